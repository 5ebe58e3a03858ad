"""MAE ViT-B fine-tuned: no proportional attention, merges in every block, pools by size."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from atm_export.choice import Choice
from atm_export.config import ModelSpec
from atm_export.errors import WeightsError
from atm_export.model.flops import unmerged_gmacs
from atm_export.model.reference import run_reference
from atm_export.model.vit import TimmBackbone
from atm_export.model.zoo import load_model
from atm_export.model_configs import load_model_config
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
from tests.tiny import planned, random_images, threshold_plan, tiny_vit


@cache
def narrow(weights: str = "random") -> TimmBackbone:
    """MAE's layout with 2 blocks on 36 patches; shared, so never to be changed."""
    model = tiny_vit(depth=2, global_pool="avg").model
    if weights == "golden":
        golden_weights(model)
    return TimmBackbone(model, "narrow", proportional=False)


@pytest.mark.usefixtures("all_cores")
def test_it_is_the_official_model() -> None:
    backbone = of_real_size("mae_vit_b")
    expected = golden("mae_vit_b_seed0")
    seen = equals_goldens("mae_vit_b", backbone, {"fc_norm": backbone.model.fc_norm})
    close(seen["fc_norm"][:, :16], expected["fc_norm_slice"])
    assert unmerged_gmacs(backbone) == pytest.approx(17.5638, rel=1e-5)
    close(seen["blocklast"][:, 1:].mean(dim=1)[:, :16], expected["pooled_slice"])


def test_the_paper_merges_in_the_last_block_without_proportional_attention() -> None:
    config = load_model_config("mae_vit_b")
    assert config.proportional is False
    method = resolve(Choice(model="mae_vit_b")).method
    plan = planned(method, 12, pooled=True, proportional=config.proportional)
    kinds = [block.grouping if block else None for block in plan.blocks]
    assert kinds == ["alternate"] * 9 + ["size"] * 3
    assert not plan.proportional


def test_the_mean_over_tokens_is_weighted_by_merging_size() -> None:
    backbone = narrow()
    tokens = torch.randn(2, 4, 48, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([[1.0, 1, 2, 3], [1, 4, 1, 1]]).unsqueeze(2)
    counts = sizes[..., 0].long()
    repeated = [row.repeat_interleave(n, dim=0) for row, n in zip(tokens, counts, strict=True)]
    found, expected = backbone.head(tokens, sizes), backbone.head(torch.stack(repeated), None)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_merging_everything_leaves_few_tokens_and_the_class_token() -> None:
    backbone = narrow()
    trace = run_reference(backbone, threshold_plan(backbone, -2.0), random_images(2))
    assert int(trace.tokens_out[-1, 0]) < int(trace.tokens_in[-1, 0]) < 37


@pytest.mark.parametrize("weights", ["golden", "random"])
@pytest.mark.parametrize("kind", ["adaptive", "frozen", "per image", "tome"])
def test_the_twin_merges_alike(kind: str, weights: str) -> None:
    backbone = narrow(weights)
    plan = all_plans(backbone)[kind]
    assert not plan.proportional
    trace = agrees_with_twin(backbone, plan)
    assert int(trace.tokens_out[-1].max()) < int(trace.tokens_in[-1].max()) < 37


def test_the_export_is_proven() -> None:
    backbone = narrow("golden")
    prove(backbone, all_plans(backbone)["adaptive"])


def test_official_checkpoints_load_in_every_form(tmp_path: Path) -> None:
    options = {"global_pool": "avg", "embed_dim": 48, "depth": 2, "num_heads": 3}
    loads_every_form(narrow_spec("timm", "vit_base_patch16_224", "random", **options), tmp_path)


def test_the_final_norm_of_a_class_token_model_is_named(tmp_path: Path) -> None:
    options = {"global_pool": "avg", "embed_dim": 48, "depth": 2, "num_heads": 3}
    spec = narrow_spec("timm", "vit_base_patch16_224", "random", **options)
    backbone = load_model(spec).backbone
    assert isinstance(backbone, TimmBackbone)
    state = backbone.model.state_dict()
    state["norm.weight"] = state.pop("fc_norm.weight")
    torch.save({"model": state}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"missing fc_norm\.weight; unexpected norm\.weight"):
        load_model(spec.model_copy(update={"weights": str(tmp_path / "other.pth")}))


def test_pretrained_means_the_published_file_and_not_timms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    config = load_model_config("mae_vit_b")
    assert config.published is not None and "non-commercial" in config.published.licence
    nowhere = config.published.model_copy(update={"url": (tmp_path / "absent.pth").as_uri()})
    spec = ModelSpec(name="mae_vit_b", config=config.model_copy(update={"published": nowhere}))
    with pytest.raises(WeightsError, match=r"cannot be fetched from .*absent\.pth.*--weights FILE"):
        load_model(spec)


def test_published_weights_are_fetched_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    spec = narrow_spec("lvvit", "lvvit_t", "random", dim=48, depth=1, heads=3)
    source = load_model(spec).backbone
    torch.save(source.model.state_dict(), tmp_path / "weights.pth.tar")
    published = {"url": (tmp_path / "weights.pth.tar").as_uri(), "licence": "stated there"}
    config = spec.config.model_validate({**spec.config.model_dump(), "published": published})
    pretrained = ModelSpec(name="narrow", config=config)
    first = load_model(pretrained)
    assert first.licence == "stated there" and first.weights["source"] == "weights.pth.tar"
    (tmp_path / "weights.pth.tar").unlink()
    assert load_model(pretrained).weights == first.weights
