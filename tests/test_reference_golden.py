"""The eager reference against outputs of the official implementations."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from atm_export.config import ModelSpec
from atm_export.inputs import normalize
from atm_export.methods.tome import TomeSettings
from atm_export.model.backbone import Backbone, LoadedModel
from atm_export.model.flops import unmerged_gmacs
from atm_export.model.plan import plan_for
from atm_export.model.reference import Trace, run_reference
from atm_export.model.vit import TimmBackbone
from atm_export.model.zoo import load_model
from atm_export.model_configs import load_model_config
from tests.shared_data import golden, golden_images, golden_weights, shared
from tests.tiny import no_merges

pytestmark = pytest.mark.usefixtures("all_cores")
GOLDEN_MODELS = ("deit_t", "deit_s", "deit_b")  # those of the other families: in their own files
UNMERGED_GMACS = {"deit_t": 1.2537, "deit_s": 4.5989, "deit_b": 17.5638}
LOGITS_ATOL = 2e-5  # FP32 against FP64 differs by at most 3.4e-6 on these weights
TOME_ATOL = 1e-4


@pytest.fixture(scope="module", params=GOLDEN_MODELS)
def official(request: pytest.FixtureRequest) -> tuple[str, TimmBackbone, dict[str, Any]]:
    """A model with the goldens' weights, and the goldens."""
    name = request.param
    expected = golden(f"{name}_seed0")
    config = load_model_config(name)
    model = load_model(ModelSpec(name=name, config=config, weights="random"))
    assert isinstance(model.backbone, TimmBackbone)
    golden_weights(model.backbone.model)
    return name, model.backbone, expected


def close(found: torch.Tensor, expected: np.ndarray) -> None:
    torch.testing.assert_close(found, torch.from_numpy(expected), atol=LOGITS_ATOL, rtol=0)


def test_goldens_input_is_recreated() -> None:
    expected = golden("deit_t_seed0")["input_sum"]
    assert float(golden_images().double().sum()) == pytest.approx(float(expected), abs=1e-4)


@torch.inference_mode()
def test_unmerged_model_equals_the_official_one(
    official: tuple[str, TimmBackbone, dict[str, Any]],
) -> None:
    name, backbone, expected = official
    images = golden_images()
    close(backbone.plain(images), expected["logits"])
    close(backbone.plain(0.01 * images), expected["logits_x001"])
    assert unmerged_gmacs(backbone) == pytest.approx(UNMERGED_GMACS[name], abs=1e-4)


def test_embed_blocks_and_head_equal_the_official_model(
    official: tuple[str, TimmBackbone, dict[str, Any]],
) -> None:
    _, backbone, expected = official
    images, plan = golden_images(), no_merges(backbone)
    close(backbone.embed(images)[:, :4, :8], expected["embed"])
    trace = run_reference(backbone, plan, images)
    close(trace.outputs["logits"], expected["logits"])
    close(trace.features[:, :8], expected["blocklast"][:, 0])
    close(run_reference(backbone, plan, 0.01 * images).outputs["logits"], expected["logits_x001"])
    assert trace.tokens_in.unique().tolist() == trace.tokens_out.unique().tolist() == [197]


def vit_tiny() -> LoadedModel:
    path = shared("data", "weights", "vit_tiny_patch16_224.safetensors")
    name = "timm:vit_tiny_patch16_224"
    return load_model(ModelSpec(name=name, config=load_model_config(name), weights=str(path)))


@cache
def tome_inputs() -> tuple[Backbone, torch.Tensor, dict[str, Any]]:
    model = vit_tiny()
    pixels = golden("tome_images20_u8")["images"]
    images = torch.from_numpy(normalize(pixels, model.preprocessing))
    return model.backbone, images, golden("tome_vit_tiny")


def run_tome(r: int, shape: str, proportional: bool) -> Trace:
    backbone, images, _ = tome_inputs()
    method = TomeSettings(r=(r,), schedule=shape, proportional=proportional)
    plan = plan_for(backbone, method)
    return run_reference(backbone, plan, images)


def final_sizes(trace: Trace) -> np.ndarray:
    """Merging sizes after the last block, sorted, [B, n]."""
    remaining = int(trace.tokens_out[-1, 0])
    counts = [np.bincount(row, minlength=remaining) for row in trace.maps[-1].numpy()]
    return np.sort(np.stack(counts), axis=1)


def test_goldens_preprocessing_is_the_models_own() -> None:
    how = vit_tiny().preprocessing
    assert how.mean == how.std == (0.5, 0.5, 0.5)


def test_unmerged_vit_tiny_equals_the_official_one() -> None:
    backbone, images, expected = tome_inputs()
    with torch.inference_mode():
        logits = backbone.plain(images)
    torch.testing.assert_close(
        logits, torch.from_numpy(expected["base_logits"]), atol=TOME_ATOL, rtol=0
    )


@pytest.mark.parametrize("proportional", [True, False], ids=["prop", "noprop"])
@pytest.mark.parametrize(
    ("r", "shape", "key"),
    [
        (4, "constant", "r4"),
        (8, "constant", "r8"),
        (13, "constant", "r13"),
        (8, "decreasing", "r8dec"),
    ],
    ids=["r4", "r8", "r13", "r8dec"],
)
def test_tome_equals_the_official_implementation(
    r: int, shape: str, key: str, proportional: bool
) -> None:
    trace = run_tome(r, shape, proportional)
    expected = {
        name: tome_inputs()[2][f"{key}_{'prop' if proportional else 'noprop'}_{name}"]
        for name in ("logits", "tokens_in", "tokens_out", "final_size")
    }
    assert torch.equal(trace.tokens_in, trace.tokens_in[:, :1].expand_as(trace.tokens_in))
    assert trace.tokens_in[:, 0].tolist() == expected["tokens_in"].tolist()
    assert trace.tokens_out[:, 0].tolist() == expected["tokens_out"].tolist()
    assert np.array_equal(final_sizes(trace), np.sort(expected["final_size"], axis=1))
    torch.testing.assert_close(
        trace.outputs["logits"], torch.from_numpy(expected["logits"]), atol=TOME_ATOL, rtol=0
    )
