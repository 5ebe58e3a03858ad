"""hf-hub:OWNER/NAME, from the hub's cache: what config.json says, what it may not say, weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from atm_export.choice import Choice
from atm_export.errors import ConfigError, UnsupportedModelError, WeightsError
from atm_export.model.backbone import LoadedModel
from atm_export.model.weights import randomize
from atm_export.model.zoo import load_model
from atm_export.resolving import default_out, resolve
from tests.runs import run_command
from tests.tiny import random_images

NAME = "hf-hub:owner/tiny.vit"
ARGUMENTS = {"img_size": 48, "global_pool": "avg", "depth": 3}
CONFIG: dict[str, Any] = {
    "architecture": "test_vit",
    "num_classes": 4,
    "model_args": ARGUMENTS,
    "pretrained_cfg": {
        **{"input_size": [3, 48, 48], "crop_pct": 1.0, "interpolation": "bilinear"},
        **{"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "num_classes": 4},
        **{"license": "mit", "label_names": ["ant", "bee", "cat", "dog"], "custom_load": True},
        **{"file": "/etc/passwd", "url": "https://nowhere.invalid/weights"},
    },
}
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with one repository, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    snapshot = tmp_path / "hub" / "models--owner--tiny.vit" / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(REVISION)
    write(snapshot, CONFIG)
    model = timm.create_model("test_vit", num_classes=4, **ARGUMENTS).eval()
    randomize(model, 3)
    save_file(model.state_dict(), snapshot / "model.safetensors")
    return snapshot


def write(snapshot: Path, config: Any) -> None:
    (snapshot / "config.json").write_text(json.dumps(config), encoding="utf-8")


def loaded(**options: Any) -> LoadedModel:
    return load_model(resolve(Choice(model=NAME, **options)).model)


def own(**more: Any) -> Any:
    model = timm.create_model("test_vit", **{"num_classes": 4, **ARGUMENTS, **more}).eval()
    randomize(model, 3)
    return model


@torch.inference_mode()
def test_architecture_input_labels_and_weights_are_the_repositorys(cache: Path) -> None:
    model = loaded()
    images = random_images(2, size=(48, 48))
    torch.testing.assert_close(model.backbone.plain(images), own()(images), atol=0, rtol=0)
    assert len(model.backbone.parts()) == 3 and model.backbone.head_rows is None
    how = model.preprocessing
    assert (how.size, how.mean, how.std) == ((48, 48), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (how.crop_pct, how.interpolation) == (1.0, "bilinear")
    assert model.labels == ("ant", "bee", "cat", "dog") and model.licence == "mit"
    assert model.weights["source"] == NAME


def test_it_goes_the_whole_way(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_command(
        NAME,
        "--no-benchmark",
        "--alpha",
        "0.8",
        "--theta-min",
        "0.6",
        "--beta",
        "0.05",
        "--out",
        out,
    )
    told = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert told["status"] == "proven" and told["weights"]["source"] == NAME
    run_command("verify", out)
    assert default_out(resolve(Choice(model=NAME))).name == "hf-hub_owner_tiny.vit-default"


def test_headless_repositories_embed(cache: Path) -> None:
    write(cache, {**CONFIG, "num_classes": 0})
    model = loaded(weights="random")
    assert (model.backbone.task, model.backbone.classes, model.labels) == ("embed", 64, None)


def test_repositories_that_leave_pooling_open_ask_for_it(cache: Path) -> None:
    """As Virchow2, whose users join the class token and the mean."""
    write(cache, {**CONFIG, "num_classes": 0, "model_args": {**ARGUMENTS, "global_pool": ""}})
    with pytest.raises(UnsupportedModelError, match=r"say by --task embed --pool token or avg"):
        loaded(weights="random")
    assert loaded(weights="random", pool="avg").backbone.head_rows is None
    assert loaded(weights="random", pool="token").backbone.head_rows == 1
    dense = loaded(weights="random", task="dense").backbone
    assert dense.outputs[0].shape == ("batch", 3, 3, 64)


def test_a_file_of_ones_own_and_another_size(cache: Path, tmp_path: Path) -> None:
    (cache / "model.safetensors").unlink()
    file = tmp_path / "own.safetensors"
    save_file(own().state_dict(), file)
    model = loaded(weights=str(file), image_size=64)
    assert model.weights["source"] == "own.safetensors" and model.backbone.image_size == (64, 64)
    with pytest.raises(
        WeightsError, match=r"model\.safetensors is neither .*; give --weights FILE"
    ):
        loaded()


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ([], "config"),
        ({"architecture": "../vit"}, "names no timm architecture"),
        ({"architecture": "vit_of_nobody"}, "unknown timm model 'vit_of_nobody'"),
        ({**CONFIG, "model_args": {"checkpoint_path": "/etc/passwd"}}, "'checkpoint_path'"),
        ({**CONFIG, "model_args": {"pretrained": True}}, "'pretrained'"),
        ({**CONFIG, "model_args": 3}, "not that of a timm model"),
        ({**CONFIG, "architecture": "resnet18", "model_args": {}}, "not supported"),
    ],
)
def test_what_a_config_may_not_say_is_one_line(cache: Path, config: Any, told: str) -> None:
    write(cache, config)
    with pytest.raises(Exception, match=told) as caught:
        loaded(weights="random")
    assert "\n" not in str(caught.value) and type(caught.value).__module__ == "atm_export.errors"


@pytest.mark.parametrize(
    "name", ["hf-hub:tiny", "hf-hub:../../x", "hf-hub:a/b/c", "hf-hub:", "hf-hub:a/b@../x"]
)
def test_names_that_are_none(cache: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="OWNER/NAME"):
        load_model(resolve(Choice(model=name, weights="random")).model)


def test_offline_it_is_one_line(cache: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"config\.json is neither in the hub's cache nor"
    ) as caught:
        load_model(resolve(Choice(model="hf-hub:owner/absent", weights="random")).model)
    assert "\n" not in str(caught.value)


def test_a_revision_may_be_named(cache: Path) -> None:
    model = load_model(resolve(Choice(model=f"{NAME}@{REVISION}")).model)
    assert model.weights["source"] == f"{NAME}@{REVISION}"
