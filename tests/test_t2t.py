"""T2T-ViT_t: the official model, its token module untouched by merging."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from atm_export.choice import Choice
from atm_export.errors import ConfigError, WeightsError
from atm_export.methods.atm import default_split
from atm_export.model.flops import module_macs, unmerged_gmacs
from atm_export.model.reference import run_reference
from atm_export.model.t2t import SHAPES, T2TBackbone, T2TShape, T2TViT, Unfold, sinusoid
from atm_export.model.weights import randomize
from atm_export.model.zoo import load_model
from atm_export.resolving import resolve
from tests.families import (
    agrees_with_twin,
    all_plans,
    close,
    equals_goldens,
    loads_every_form,
    narrow_spec,
    of_real_size,
    prove,
)
from tests.shared_data import golden, golden_weights
from tests.tiny import no_merges, planned, random_images

GMACS = {"t2t_vit_t_14": 6.0887, "t2t_vit_t_19": 9.7849}
NARROW = {"dim": 48, "depth": 3, "heads": 3}


@cache
def narrow(weights: str = "random") -> T2TBackbone:
    """3 blocks on 25 patches, 7 classes; shared, so never to be changed."""
    model = T2TViT(T2TShape(**NARROW, classes=7), 80)
    if weights == "golden":
        golden_weights(model, keep=("pos_embed",))
    else:
        randomize(model, keep=("pos_embed",))
    return T2TBackbone(model.eval().requires_grad_(False), 80)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.usefixtures("all_cores")
def test_it_is_the_official_model(name: str) -> None:
    backbone = of_real_size(name, keep=("pos_embed",))
    tokens, expected = backbone.model.tokens_to_token, golden(f"{name}_seed0")
    modules = {f"t2t_{part}_slice": getattr(tokens, part) for part in ("attention1", "attention2")}
    modules["t2t_project_slice"] = tokens.project
    seen = equals_goldens(name, backbone, modules)
    for key in modules:
        close(seen[key][:, :4, :8], expected[key])
    close(backbone.model.pos_embed[:, :4, :8], expected["pos_embed_slice"])
    close(backbone.model.pos_embed[0, 196], expected["pos_embed_row196"])
    assert unmerged_gmacs(backbone) == pytest.approx(GMACS[name], rel=1e-4)


def test_positions_are_a_sinusoid_by_hand() -> None:
    found = sinusoid(5, 6)[0].double()
    for position in range(5):
        for j in range(6):
            angle = torch.tensor(position / 10000 ** (2 * (j // 2) / 6), dtype=torch.float64)
            expected = angle.sin() if j % 2 == 0 else angle.cos()
            assert float(found[position, j]) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize(("channels", "size", "stride", "padding"), [(3, 7, 4, 2), (5, 3, 2, 1)])
def test_unfolding_is_torchs(channels: int, size: int, stride: int, padding: int) -> None:
    x = torch.randn(2, channels, 16, 24, generator=torch.Generator().manual_seed(0))
    expected = nn.Unfold(size, stride=stride, padding=padding)(x).transpose(1, 2)
    assert torch.equal(Unfold(channels, size, stride, padding)(x), expected)


def test_the_token_module_is_counted_with_both_attention_products() -> None:
    backbone = narrow()
    layers = module_macs(backbone.model.tokens_to_token, torch.zeros(1, 3, 80, 80))
    linear = 400 * (147 * 192 + 3 * 64 * 64) + 100 * (576 * 192 + 3 * 64 * 64) + 25 * 576 * 48
    assert layers == linear
    products = 2 * 64 * (400 * 400 + 100 * 100)
    assert backbone.stem_gmacs() == pytest.approx((linear + products) / 1e9)


@torch.inference_mode()
def test_taken_apart_it_is_the_same_model() -> None:
    backbone, images = narrow(), random_images(2, size=(80, 80))
    found = run_reference(backbone, no_merges(backbone), images).outputs["logits"]
    torch.testing.assert_close(found, backbone.plain(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "depth", "split"), [("t2t_vit_t_14", 14, 10), ("t2t_vit_t_19", 19, 14)]
)
def test_the_paper_merges_it_as_a_class_token_model(name: str, depth: int, split: int) -> None:
    """3/4 of 14 is 10.5: halves go to the even number."""
    assert SHAPES[name].depth == depth and default_split(depth) == split
    plan = planned(resolve(Choice(model=name)).method, depth, pooled=False, proportional=True)
    kinds = [block.grouping if block else None for block in plan.blocks]
    assert kinds == ["alternate"] * split + ["size"] * (depth - split - 1) + [None]
    assert plan.proportional and narrow().proportional and narrow().head_rows == 1


@pytest.mark.parametrize("weights", ["golden", "random"])
@pytest.mark.parametrize("kind", ["adaptive", "frozen", "per image", "tome"])
def test_the_twin_merges_alike(kind: str, weights: str) -> None:
    backbone = narrow(weights)
    trace = agrees_with_twin(backbone, all_plans(backbone)[kind])
    assert int(trace.tokens_out[-1].max()) < 26


def test_the_export_is_proven() -> None:
    backbone = narrow("golden")
    prove(backbone, all_plans(backbone)["adaptive"])


def test_official_checkpoints_load_in_every_form(tmp_path: Path) -> None:
    loads_every_form(narrow_spec("t2t", "t2t_vit_t_14", "random", **NARROW), tmp_path)


def test_a_checkpoint_of_the_performer_type_is_refused(tmp_path: Path) -> None:
    state = T2TViT(T2TShape(**NARROW)).state_dict()
    state["tokens_to_token.attention1.w"] = torch.zeros(32, 64)
    torch.save({"state_dict_ema": state}, tmp_path / "performer.pth.tar")
    spec = narrow_spec("t2t", "t2t_vit_t_14", str(tmp_path / "performer.pth.tar"), **NARROW)
    with pytest.raises(WeightsError, match=r"unexpected tokens_to_token\.attention1\.w"):
        load_model(spec)


def test_random_weights_keep_the_sinusoid() -> None:
    spec = narrow_spec("t2t", "t2t_vit_t_14", "random", **NARROW)
    backbone = load_model(spec).backbone
    assert isinstance(backbone, T2TBackbone)
    assert torch.equal(backbone.model.pos_embed, sinusoid(197, 48))


def test_another_image_size_interpolates_positions() -> None:
    spec = narrow_spec("t2t", "t2t_vit_t_19", "random", **NARROW)
    small = load_model(spec.model_copy(update={"image_size": 64})).backbone
    assert small.grid == (4, 4) and small.embed(torch.zeros(1, 3, 64, 64)).shape == (1, 17, 48)
    with pytest.raises(ConfigError, match="multiples of 16"):
        load_model(spec.model_copy(update={"image_size": 100}))
