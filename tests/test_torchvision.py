"""tv:NAME: torchvision's own forward, names, sizes and preprocessing, and the whole way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import VisionTransformer, get_model

from atm_export.choice import Choice
from atm_export.config import ModelConfig, ModelSpec
from atm_export.errors import ConfigError, WeightsError
from atm_export.model.backbone import LoadedModel
from atm_export.model.reference import run_reference
from atm_export.model.torchvision_vit import SHAPES
from atm_export.model.weights import randomize
from atm_export.model.zoo import load_model
from atm_export.resolving import resolve
from tests.runs import model_config, run_command
from tests.tiny import no_merges, random_images

TINY = {
    **{"image_size": 48, "patch_size": 8, "num_layers": 3, "num_heads": 3},
    **{"hidden_dim": 48, "mlp_dim": 100, "num_classes": 7},
}


def torchvisions(folder: Path) -> tuple[Any, Path]:
    model = VisionTransformer(**TINY).eval()
    randomize(model, 3)
    torch.save(model.state_dict(), folder / "own.pth")
    return model, folder / "own.pth"


def tiny(weights: str, **more: Any) -> LoadedModel:
    config = ModelConfig(family="torchvision", architecture="vit_b_16", options=TINY)
    return load_model(ModelSpec(name="tv:vit_b_16", config=config, weights=weights, **more))


@torch.inference_mode()
def test_it_is_torchvisions_own_forward(tmp_path: Path) -> None:
    model, file = torchvisions(tmp_path)
    backbone = tiny(str(file)).backbone
    images = random_images(2)
    expected = model(images)
    torch.testing.assert_close(backbone.plain(images), expected, atol=1e-5, rtol=0)
    answer = run_reference(backbone, no_merges(backbone), images).outputs["logits"]
    torch.testing.assert_close(answer, expected, atol=1e-5, rtol=0)
    embedded = tiny(str(file), task="embed").backbone
    assert (embedded.task, embedded.classes) == ("embed", 48)


def test_the_published_files_older_names_load(tmp_path: Path) -> None:
    model, file = torchvisions(tmp_path)
    older = {
        name.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): tensor
        for name, tensor in model.state_dict().items()
    }
    torch.save(older, tmp_path / "older.pth")
    digests = {tiny(str(tmp_path / n)).weights["sha256"] for n in (file.name, "older.pth")}
    assert len(digests) == 1


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_shapes_are_torchvisions(name: str) -> None:
    shape = SHAPES[name]
    with torch.device("meta"):
        model: Any = get_model(name, weights=None)
    layers = model.encoder.layers
    assert (model.patch_size, model.hidden_dim, model.mlp_dim, len(layers)) == (
        *(shape.patch_size, shape.hidden_dim, shape.mlp_dim),
        shape.num_layers,
    )
    assert layers[0].num_heads == shape.num_heads


def test_another_size_and_other_weights(tmp_path: Path) -> None:
    assert tiny("random", image_size=64).backbone.image_size == (64, 64)
    with pytest.raises(ConfigError, match="multiples of 8"):
        tiny("random", image_size=50)
    torch.save({"head.weight": torch.zeros(7, 48)}, tmp_path / "part.pth")
    with pytest.raises(WeightsError, match="another architecture"):
        tiny(str(tmp_path / "part.pth"))


@pytest.mark.parametrize("name", ["vit_b_61", "vit_b_16.swag", "vit_h_14.v1", "resnet18"])
def test_unknown_names_offer_the_nearest(name: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown torchvision model '{name}'"):
        load_model(resolve(Choice(model=f"tv:{name}", weights="random")).model)


@pytest.mark.parametrize(
    ("model", "r"),
    [
        ("tv:vit_b_16.swag_e2e", 45),
        ("tv:vit_l_16.swag_e2e", 40),
        ("tv:vit_h_14", 40),
        ("timm:vit_small_patch16_224", 13),
        ("timm:vit_base_patch16_224.augreg_in21k_ft_in1k", 13),
        ("timm:vit_large_patch16_224.augreg_in21k_ft_in1k", 7),
        ("timm:vit_large_patch16_384", 23),
        ("mae_vit_b", 16),
    ],
)
def test_what_tome_published(model: str, r: int) -> None:
    run = resolve(Choice(model=model, weights="random", preset=f"tome-r{r}"))
    method: Any = run.method
    assert (method.name, list(method.r)) == ("tome", [r])
    preset = run.model.config.presets[f"tome-r{r}"]
    assert preset.published is not None and "2210.09461" in preset.published


def test_it_goes_the_whole_way(tmp_path: Path) -> None:
    _, file = torchvisions(tmp_path)
    text = f"family: torchvision\narchitecture: vit_b_16\noptions: {json.dumps(TINY)}\n"
    point = ("--alpha", "0.8", "--beta", "0.05", "--theta-min", "0.6", "--no-benchmark")
    out = tmp_path / "run"
    with model_config(tmp_path, "tiny_tv", text):
        run_command("tiny_tv", "--weights", file, *point, "--out", out)
        run_command("verify", out)
    assert json.loads((out / "manifest.json").read_text(encoding="utf-8"))["status"] == "proven"


@pytest.mark.slow
@torch.inference_mode()
def test_the_real_size(tmp_path: Path) -> None:
    model: Any = get_model("vit_b_16", weights=None, image_size=384).eval()
    randomize(model, 3)
    torch.save(model.state_dict(), tmp_path / "own.pth")
    choice = Choice(model="tv:vit_b_16.swag_e2e", weights=str(tmp_path / "own.pth"))
    found: Any = load_model(resolve(choice).model)
    assert found.backbone.image_size == (384, 384) and found.preprocessing.resize == (384, 384)
    images = random_images(1, size=(384, 384))
    torch.testing.assert_close(found.backbone.plain(images), model(images), atol=1e-5, rtol=0)
