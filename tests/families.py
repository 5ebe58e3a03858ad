"""What the tests of every model family do: goldens of real size, ladders of narrow variants."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from atm_export.backends import ONNXRUNTIME
from atm_export.config import ModelConfig, ModelSpec
from atm_export.graph import lint
from atm_export.inputs import Preprocessing
from atm_export.methods.plan import MergePlan
from atm_export.model.backbone import Backbone
from atm_export.model.flops import unmerged_gmacs
from atm_export.model.reference import Trace, run_reference
from atm_export.model.zoo import load_model
from atm_export.model_configs import load_model_config
from atm_export.prove.results import LadderResult
from atm_export.rewrite.twin import Twin
from tests.exports import export
from tests.ladders import Climber, climb
from tests.shared_data import golden, golden_images, golden_weights, shared
from tests.tiny import MEAN, STD, adaptive_plan, decided_images, loaded, tome_plan

ATOL = 2e-5  # FP32 against FP64 differs by at most 3.4e-6 on these weights
BLOCKS = ("block1", "blockhalf", "blocklast")


def of_real_size(name: str, keep: tuple[str, ...] = ()) -> Any:
    """The backbone of a model of the paper, with the weights of the goldens."""
    spec = ModelSpec(name=name, config=load_model_config(name), weights="random")
    backbone: Any = load_model(spec).backbone
    golden_weights(backbone.model, keep=keep)
    has_official_keys(name, backbone.model)
    return backbone


def close(found: Tensor, expected: Any) -> None:
    torch.testing.assert_close(found, torch.from_numpy(expected), atol=ATOL, rtol=0)


@torch.inference_mode()
def equals_goldens(
    name: str, backbone: Any, slices: Mapping[str, nn.Module] | None = None
) -> dict[str, Tensor]:
    """Compare logits and what the blocks put out; returns outputs of the modules in `slices`."""
    expected, images, seen = golden(f"{name}_seed0"), golden_images(), {}
    blocks = backbone.model.blocks
    modules = {
        "block1": blocks[0],
        "blockhalf": blocks[int(expected["half_index0"])],
        "blocklast": blocks[-1],
        **(slices or {}),
    }
    with ExitStack() as stack:
        for key, module in modules.items():

            def keep(module: nn.Module, given: Any, out: Tensor, key: str = key) -> None:
                seen[key] = out

            stack.callback(module.register_forward_hook(keep).remove)
        close(backbone.plain(images), expected["logits"])
    listed = load_model_config(name).measured
    assert listed is not None
    assert unmerged_gmacs(backbone) == pytest.approx(listed.gflops, rel=1e-4)
    for key in BLOCKS:
        close(seen[key][:, :4, :8], expected[key])
        assert list(seen[key].shape) == expected[f"{key}_shape"].tolist()
    close(backbone.embed(images)[:, :4, :8], expected["embed"])
    close(backbone.plain(0.01 * images), expected["logits_x001"])
    return seen


def official_keys(name: str) -> dict[str, Any]:
    """Names, shapes and parameter counts of the official model."""
    return json.loads(shared("design", "state_dict_keys", f"{name}_keys.json").read_text())


def has_official_keys(name: str, module: nn.Module) -> None:
    facts = official_keys(name)
    own = {key: list(tensor.shape) for key, tensor in module.state_dict().items()}
    assert own == {key: shape for key, shape, *_ in facts["state_dict"]}
    assert sum(p.numel() for p in module.parameters()) == facts["params_total"]


def pixels(size: int, count: int = 12) -> np.ndarray:
    """Noise in colour patches of several sizes, [count, size, size, 3]."""
    rng = np.random.default_rng(7)
    images = [
        np.kron(rng.integers(0, 256, (size // block, size // block, 3)), np.ones((block, block, 1)))
        for block in (2, 4, 8, 16) * (count // 4)
    ]
    return np.stack(images).astype(np.uint8)


def prove(backbone: Backbone, plan: MergePlan, on: Sequence[str] = (ONNXRUNTIME,)) -> LadderResult:
    """Export, lint and climb at batch 1, 3 and 8; merges must happen on images."""
    made = export(backbone, plan)
    assert lint.lint(made.traced) == []
    how = Preprocessing(backbone.image_size, 1.0, "bicubic", MEAN, STD)
    images = pixels(backbone.image_size[0])
    climber = Climber(loaded(backbone, how), plan, made.traced, made.shipped, False)
    result = climb(climber, images, on=on)
    assert result.differences == ()
    merged = {rung.case: rung.merged_tokens for rung in result.rungs if rung.name != "twin"}
    for batch in (1, 3, 8):
        assert merged[f"images, batch {batch}"] >= batch
    return result


@torch.inference_mode()
def agrees_with_twin(backbone: Backbone, plan: MergePlan) -> Trace:
    """The twin takes the reference's decisions and gives its logits; returns the trace."""
    images = decided_images(backbone, plan, 2)
    trace = run_reference(backbone, plan, images)
    logits, _, maps = Twin(backbone, plan).eval()(images)
    assert torch.equal(maps, trace.maps)
    torch.testing.assert_close(logits, trace.outputs["logits"], atol=1e-4, rtol=0)
    return trace


def all_plans(backbone: Backbone) -> dict[str, MergePlan]:
    """ATM adaptive, frozen and per image, and ToMe; thresholds fitted to the similarities."""
    depth = len(backbone.parts())
    adaptive = adaptive_plan(backbone, proportional=backbone.proportional)
    return {
        "adaptive": adaptive,
        "frozen": adaptive.frozen((4, 3, 2, 1, 1, 1)[:depth]),
        "per image": replace(adaptive, per_image=True),
        "tome": tome_plan(backbone, 2, backbone.proportional),
    }


def narrow_spec(family: str, architecture: str, weights: str, **options: Any) -> ModelSpec:
    """A family's model with other sizes."""
    config = ModelConfig(family=family, architecture=architecture, options=options)
    return ModelSpec(name="narrow", config=config, weights=weights)


def wrapped_checkpoints(state: Mapping[str, Tensor], folder: Path) -> list[Path]:
    """The same tensors in every form that official checkpoints take."""
    prefixed = {f"module.{name}": tensor for name, tensor in state.items()}
    forms: dict[str, Any] = {
        "raw.pth": dict(state),
        "module.pth.tar": prefixed,
        "model.pth": {"model": dict(state)},
        "state_dict.pth": {"state_dict": prefixed},
        "ema.pth.tar": {"epoch": 3, "state_dict_ema": dict(state)},
    }
    for name, content in forms.items():
        torch.save(content, folder / name)
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()}, folder / "a.safetensors"
    )
    return sorted(folder.iterdir())


def loads_every_form(spec: ModelSpec, folder: Path) -> None:
    """Weights survive every wrapping, and half precision is cast to FP32."""
    source: Any = load_model(spec).backbone
    golden_weights(source.model)
    state = source.model.state_dict()
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    for path in wrapped_checkpoints(state, folder):
        same_weights(spec, path, state, 0.0)
    torch.save(half, folder / "half.pth")
    same_weights(spec, folder / "half.pth", state, 2e-3)


def same_weights(
    spec: ModelSpec, path: Path, state: Mapping[str, Tensor], tolerance: float
) -> None:
    loaded: Any = load_model(spec.model_copy(update={"weights": str(path)})).backbone
    for name, tensor in loaded.model.state_dict().items():
        torch.testing.assert_close(tensor, state[name], atol=tolerance, rtol=tolerance)
