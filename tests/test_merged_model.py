"""Merging in PyTorch: the reference's decisions and numbers, in a module that trains."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atm_export import merged
from atm_export.errors import ConfigError, UnsupportedModelError
from atm_export.model.merged_model import MergedModel
from atm_export.model.reference import run_reference
from tests.shared_data import shared
from tests.tiny import random_images, tiny_vit

SETTINGS: dict[str, dict[str, Any]] = {
    "atm": {"alpha": 0.6, "beta": 0.05, "theta_min": 0.1},
    "tome": {"r": 5},
    "evit": {"keep": 0.6, "blocks": [1, 3]},
    "mctf": {"r": 4},
    "diffrate": {"prune": [30, 25, 20, 8], "merge": [28, 20, 16, 6]},
    "pitome": {"ratio": 0.8},
    "ats": {"blocks": [2, 3]},
    "zerotprune": {"blocks": [1, 3], "keep": [0.8, 0.6]},
    "none": {},
}
IMAGES = random_images(3, seed=4)


def tiny(**options: Any) -> nn.Module:
    return tiny_vit(**options).model.requires_grad_(True)


@pytest.mark.parametrize("policy", ["adaptive", "per-image"])
@pytest.mark.parametrize("kind", [{}, {"class_token": False, "global_pool": "avg"}], ids=str)
def test_atm_is_the_reference_exactly(kind: dict[str, Any], policy: str) -> None:
    backbone = tiny_vit(**kind)
    module = merged(backbone.model, **SETTINGS["atm"], merge=policy)
    trace = run_reference(backbone, module.plan, IMAGES)
    assert trace.tokens_out[-1].max() < trace.tokens_in[0].min()
    torch.testing.assert_close(module(IMAGES), trace.outputs["logits"], atol=1e-6, rtol=0)
    told = module.trace(IMAGES)
    assert torch.equal(told.maps, trace.maps) and torch.equal(told.tokens_out, trace.tokens_out)


@pytest.mark.parametrize("method", SETTINGS)
def test_every_method_is_its_reference_and_trains(method: str) -> None:
    backbone = tiny_vit()
    module = merged(backbone.model, method, **SETTINGS[method])
    trace = run_reference(backbone, module.plan, IMAGES)
    backbone.model.requires_grad_(True)
    answer = module.train()(IMAGES)
    torch.testing.assert_close(answer, trace.outputs["logits"], atol=1e-6, rtol=0)
    answer.square().sum().backward()
    missing = [name for name, p in module.named_parameters() if p.grad is None]
    assert not missing
    assert all(
        bool(torch.isfinite(p.grad).all()) for p in module.parameters() if p.grad is not None
    )


def grads(module: nn.Module, images: Tensor) -> dict[str, Tensor]:
    module.zero_grad()
    module(images).square().sum().backward()
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    return found


def test_gradients_without_merges_are_those_of_the_model() -> None:
    model = tiny()
    for name, expected in grads(model, IMAGES).items():
        got = grads(merged(model, "tome", r=0), IMAGES)[name]
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_gradients_of_merges_are_those_that_differences_show() -> None:
    model = tiny().double()
    module = merged(model, "tome", r=6)
    images = random_images(2, seed=3).double()
    weight = model.blocks[1].attn.proj.weight
    gradient = grads(module, images)["blocks.1.attn.proj.weight"]
    step = torch.zeros_like(weight)
    step[3, 5] = 1e-5
    with torch.no_grad():
        ends = []
        for sign in (1, -1):
            weight += sign * step
            ends.append(module(images).square().sum())
            weight -= sign * step
    slope = (ends[0] - ends[1]) / 2e-5
    torch.testing.assert_close(gradient[3, 5], slope, atol=1e-6, rtol=1e-5)


def test_the_weights_are_the_models_own() -> None:
    model = tiny()
    module = merged(model, "tome", r=4)
    assert list(module.state_dict()) == list(model.state_dict())
    assert module.unmerged() is model
    module.load_state_dict({k: v + 0.5 for k, v in model.state_dict().items()})
    assert all(a is b for a, b in zip(module.parameters(), model.parameters(), strict=True))
    module.train()
    assert model.training and all(part.training for part in model.modules())
    module.eval()
    assert not any(part.training for part in model.modules())
    assert "ToMe" in repr(module)


def test_a_trace_leaves_training_as_it_was() -> None:
    module = merged(tiny(), "tome", r=4).train()
    module.trace(IMAGES)
    assert module.training and module.unmerged().training


def test_a_copy_is_one_of_its_own(tmp_path: Path) -> None:
    module = merged(tiny(), "tome", r=4)
    other = copy.deepcopy(module)
    torch.save(module, tmp_path / "module.pt")
    loaded = torch.load(tmp_path / "module.pt", weights_only=False)
    expected = module(IMAGES)
    with torch.no_grad():
        for each in module.parameters():
            each.zero_()
    for kept in (other, loaded):
        assert isinstance(kept, MergedModel)
        torch.testing.assert_close(kept(IMAGES), expected, atol=0, rtol=0)
        assert next(kept.parameters()) is next(kept.unmerged().parameters())


@pytest.mark.parametrize("method", SETTINGS)
def test_low_precision_decides_in_fp32(method: str) -> None:
    model = tiny()
    module = merged(model, method, **SETTINGS[method])
    full = module(IMAGES)
    with torch.autocast("cpu", torch.bfloat16):
        answer = module(IMAGES)
        answer.square().sum().backward()
    torch.testing.assert_close(answer.float(), full, atol=0.25, rtol=0.1)
    half = merged(copy.deepcopy(model).bfloat16(), method, **SETTINGS[method])
    assert half(IMAGES.bfloat16()).dtype == torch.bfloat16


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_for_any_number_of_tokens() -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    module = merged(tiny(), **SETTINGS["atm"])
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, backend=counter)
    counts, graphs = [], []
    with torch.no_grad():
        for seed, batch in enumerate((2, 2, 3, 5, 4, 6)):
            images = random_images(batch, seed)
            torch.testing.assert_close(compiled(images), module(images), atol=1e-5, rtol=1e-5)
            counts.append(tuple(module.trace(images).tokens_out[:, 0].tolist()))
            graphs.append(counter.frame_count)
    assert len(set(counts)) > 1
    assert graphs[0] > 0 and graphs[-1] == graphs[3], graphs
    compiled(random_images(2)).sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_in_parallel_the_same(tmp_path: Path) -> None:
    module = merged(tiny(), **SETTINGS["atm"]).train()
    expected = grads(module, IMAGES)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        parallel = nn.parallel.DistributedDataParallel(module)
        parallel(IMAGES).square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    for name, p in module.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], atol=1e-6, rtol=1e-6)


def test_stochastic_depth_and_dropout_act_in_training_alone() -> None:
    model = tiny(drop_path_rate=0.5, proj_drop_rate=0.3)
    module = merged(model, "none")
    torch.testing.assert_close(module.eval()(IMAGES), model.eval()(IMAGES), atol=1e-5, rtol=1e-5)
    torch.manual_seed(1)
    ours = module.train()(IMAGES)
    torch.manual_seed(1)
    torch.testing.assert_close(ours, model(IMAGES), atol=1e-5, rtol=1e-5)
    assert (ours - module.eval()(IMAGES)).abs().max() > 1e-2


def test_a_preset_says_model_method_and_settings() -> None:
    module = merged(tiny(depth=12), preset="deit_s-a2-3.23")
    assert (module.method.name, module.method.preset) == ("atm", "a2-3.23")
    assert merged(tiny(depth=12), preset="deit_t-table2-tome").method.name == "tome"
    changed = merged(tiny(depth=12), preset="deit_s-a2-3.23", theta_min=0.9)
    assert changed.method.preset is None


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"preset": "a2-3.23"}, "give MODEL-PRESET"),
        ({"preset": "deit_s-a2-3.24"}, "a2-3.23"),
        ({"preset": "deit_s-a2-3.23", "method": "tome"}, "is one of method atm"),
        ({"method": "tone"}, "tome"),
        ({"method": "tome"}, "needs -r"),
        ({"r": 4}, "r"),
        ({"merge": "frozen"}, "frozen at export"),
        ({"method": "tome", "r": [1, 2]}, "12 blocks|4 blocks"),
    ],
    ids=str,
)
def test_bad_settings_are_one_line(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        merged(tiny(), **arguments)
    assert "\n" not in str(caught.value)


def test_what_cannot_merge_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="not a plain VisionTransformer"):
        merged(nn.Linear(2, 2))
    with pytest.raises(UnsupportedModelError, match=r"attn_drop 0\.1"):
        merged(tiny(attn_drop_rate=0.1))


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "vit_tiny_patch16_224"])
def test_real_weights_merge_as_their_reference(name: str) -> None:
    import timm
    from safetensors.torch import load_file

    weights = shared("data", "weights", f"{name}.safetensors")
    model = timm.create_model(name).eval()
    model.load_state_dict(load_file(weights))
    module = merged(model, preset="deit_t-a2-0.90")
    images = random_images(2, size=(224, 224))
    trace = module.trace(images)
    assert trace.tokens_out[-1].max() < 197
    with torch.no_grad():
        torch.testing.assert_close(module(images), trace.outputs["logits"], atol=1e-6, rtol=0)


def test_the_plain_merge_that_speed_is_compared_with_merges_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1] / "tools")
    from pytorch_speed import ScatterMerged

    model = tiny()
    with torch.no_grad():
        expected = merged(model, "tome", r=3)(IMAGES)
        torch.testing.assert_close(ScatterMerged(model, 3)(IMAGES), expected, atol=1e-4, rtol=1e-4)
