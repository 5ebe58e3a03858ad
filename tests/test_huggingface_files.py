"""hf: what its files may say and may not, on the hub and in a folder; without transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor

from atm_export.choice import Choice
from atm_export.errors import AtmExportError, ConfigError, WeightsError
from atm_export.model.backbone import LoadedModel
from atm_export.model.zoo import load_model
from atm_export.resolving import default_out, resolve
from tests.runs import ended, run_command

REVISION = "0123456789abcdef0123456789abcdef01234567"
LABELS = {"0": "ant", "1": "bee", "2": "cat"}
CONFIG: dict[str, Any] = {
    **{"architectures": ["ViTForImageClassification"], "model_type": "vit", "hidden_size": 16},
    **{"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24},
    **{"image_size": 16, "patch_size": 8, "id2label": LABELS},
}
PROCESSOR = {
    **{"feature_extractor_type": "ViTFeatureExtractor", "size": 16, "resample": 3},
    **{"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]},
}
LAYERS = {
    **{"layernorm_before": (16,), "layernorm_after": (16,)},
    **{f"attention.attention.{name}": (16, 16) for name in ("query", "key", "value")},
    **{"attention.output.dense": (16, 16), "intermediate.dense": (24, 16)},
    "output.dense": (16, 24),
}


def tensors() -> dict[str, Tensor]:
    """Of CONFIG's model, as most files on the hub have them."""
    shapes: dict[str, tuple[int, ...]] = {
        "vit.embeddings.cls_token": (1, 1, 16),
        "vit.embeddings.position_embeddings": (1, 5, 16),
        "vit.pooler.dense.weight": (16, 16),
    }
    layers = {f"vit.encoder.layer.{i}.{name}": LAYERS[name] for i in range(2) for name in LAYERS}
    layers |= {"vit.embeddings.patch_embeddings.projection": (16, 3, 8, 8)}
    layers |= {"vit.layernorm": (16,), "classifier": (3, 16)}
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write(folder: Path, file: str, document: Any) -> None:
    (folder / file).write_text(json.dumps(document), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current one holds `vit`, a whole checkpoint."""
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "vit"
    place.mkdir()
    write(place, "config.json", CONFIG)
    write(place, "preprocessor_config.json", PROCESSOR)
    save_file(tensors(), place / "model.safetensors")
    return place


def loaded(name: str = "hf:./vit", **options: Any) -> LoadedModel:
    return load_model(resolve(Choice(model=name, **options)).model)


def line(error: type[AtmExportError], name: str = "hf:./vit", **options: Any) -> str:
    with pytest.raises(error) as caught:
        loaded(name, **options)
    text = str(caught.value)
    assert "\n" not in text and type(caught.value).__module__ == "atm_export.errors"
    return text


def test_a_folder_has_all_of_it(folder: Path) -> None:
    model = loaded()
    how = model.preprocessing
    assert (how.size, how.mean, how.std) == ((16, 16), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (how.crop_pct, how.crop_mode, how.interpolation) == (1.0, "squash", "bicubic")
    assert model.labels == ("ant", "bee", "cat") and model.licence is None
    assert model.weights["source"] == "hf:./vit" and "model card" in model.notes[0]
    assert default_out(resolve(Choice(model="hf:./vit"))).name == "hf_._vit-default"


def test_random_weights_need_a_config_alone(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "preprocessor_config.json").unlink()
    model = loaded(weights="random", image_size=24)
    assert model.preprocessing.size == (24, 24) and model.preprocessing.mean == (0.5,) * 3
    assert model.notes == ("no preprocessor_config.json: the usual preprocessing of vit",)


def test_no_safetensors_is_one_line_whose_command_helps(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(tensors(), folder / "pytorch_model.bin")
    text = line(WeightsError)
    assert text.startswith("hf:./vit has no model.safetensors; where it has pytorch_model.bin")
    command = text.partition("convert it: ")[2].partition("; then export")[0]
    python = f'python() {{ {sys.executable} "$@"; }}; '
    ended(subprocess.run(["bash", "-c", python + command], capture_output=True, text=True))
    found = loaded().weights["sha256"]
    assert found == loaded(weights="vit/pytorch_model.bin").weights["sha256"]


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in tensors().items() if name not in names}


OUTPUT = "vit.encoder.layer.1.output.dense.weight"


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (without(OUTPUT), r"missing layers\.1\.mlp\.fc2\.weight"),
        ({**tensors(), "vit.more": torch.ones(1)}, r"unexpected vit\.more"),
        ({**tensors(), OUTPUT: torch.ones(9, 9)}, r"fc2\.weight \[9, 9\]"),
        ({**tensors(), OUTPUT: torch.ones(16, 24, dtype=torch.int8)}, "int8, not floats"),
        ({**tensors(), OUTPUT: torch.full((16, 24), torch.nan)}, "NaN or infinite"),
        ({**tensors(), "layers.1.mlp.fc2.weight": torch.ones(16, 24)}, "older and a newer name"),
        (
            {
                **without("vit.encoder.layer.0.attention.attention.key.bias"),
                "vit.encoder.layer.0.attention.attention.key.bias": torch.ones(3, 3),
            },
            r"q_proj\.bias \[16\], layers\.0\.attention\.k_proj\.bias \[3, 3\]",
        ),
    ],
)
def test_other_tensors_are_one_line(folder: Path, found: dict[str, Tensor], told: str) -> None:
    save_file(found, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=told):
        loaded()


def test_damaged_weights_and_an_index_that_leads_away(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"no safetensors")
    assert "not a whole safetensors file" in line(WeightsError)
    (folder / "model.safetensors").rename(folder.parent / "other.safetensors")
    for name in ("../other.safetensors", "/etc/passwd", ".safetensors", "pytorch_model.bin", 3):
        write(folder, "model.safetensors.index.json", {"weight_map": {"a": name}})
        assert "weight_map.a must be a file in the same folder" in line(WeightsError)
    write(folder, "model.safetensors.index.json", {"weight_map": {}})
    assert "names 0 files" in line(WeightsError)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_type": "swin"}, "model type 'swin' is not supported; these are: vit, deit"),
        ({"model_type": None}, "model_type must be a text"),
        ({"architectures": ["ViTForMaskedImageModeling"]}, "class 'ViTForMasked.*' is not"),
        ({"hidden_size": 10**12}, "hidden_size must be a whole number from 1 to 8192"),
        ({"hidden_size": "16"}, "hidden_size must be a whole number"),
        ({"hidden_size": 8192, "num_hidden_layers": 128, "intermediate_size": 65536}, "parameters"),
        ({"num_attention_heads": 3}, "hidden_size 16 is no multiple of 3 heads"),
        ({"head_dim": 4}, "heads are not"),
        ({"image_size": [16, 24]}, "image_size must be square"),
        ({"image_size": 8}, "a single patch"),
        ({"hidden_act": "exec"}, "hidden_act must be one of gelu"),
        ({"layer_norm_eps": True}, "layer_norm_eps must be a number"),
        ({"num_labels": 4}, "num_labels is 4, id2label has 3 names"),
        ({"id2label": {}}, "1 to 1000000 classes"),
        ({"quantization_config": {"bits": 4}}, "quantized"),
        ({"model_type": "siglip2_vision_model", "architectures": [], "num_patches": 5}, "square"),
        (
            {"architectures": None, "model_type": "siglip2_vision_model"} | {"patch_size": 512},
            "must fit into 4096 pixels",
        ),
        (
            {"model_type": "siglip_vision_model", "architectures": None, "vision_use_head": False},
            "no pooling head",
        ),
        ({"num_channels": 4}, "3 means and 3 deviations; its images have 4 channels"),
    ],
)
def test_what_a_config_may_not_say(folder: Path, change: dict[str, Any], told: str) -> None:
    write(folder, "config.json", {**CONFIG, **change})
    with pytest.raises(AtmExportError, match=told):
        loaded(weights="random")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"size": {"shortest_edge": 16}}, "set do_center_crop to true"),
        ({"size": {"shortest_edge": 16, "longest_edge": 32}}, "more than a shortest_edge"),
        ({"size": {"height": 16, "width": 24}}, "no square inside a square"),
        ({"do_center_crop": True, "crop_size": 32}, "no square inside a square"),
        ({"size": {"max_height": 3}}, "size.height is missing"),
        ({"resample": 4}, "resample must be one of 0, 1, 2, 3"),
        ({"image_std": [0.5, 0.5, 0]}, r"image_std\[2\] must be a number"),
        ({"rescale_factor": 0}, "rescale_factor must be a number"),
        ({"do_resize": False}, "do_resize is false"),
        ({"do_pad": True}, "do_pad cannot be exported"),
        ({"crop_pct": 0.9}, "crop_pct cannot be exported"),
        ({"feature_extractor_type": "BeitFeatureExtractor"}, "'BeitFeatureExtractor' is not"),
    ],
)
def test_what_a_preprocessing_may_not_say(folder: Path, change: dict[str, Any], told: str) -> None:
    write(folder, "preprocessor_config.json", {**PROCESSOR, **change})
    with pytest.raises(AtmExportError, match=told):
        loaded(weights="random")


def test_generic_labels_are_none_and_a_dinov2_takes_the_size_of_its_crop(folder: Path) -> None:
    write(folder, "config.json", {**CONFIG, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}})
    model = loaded(weights="random")
    assert (model.labels, model.backbone.classes) == (None, 2)
    dinov2 = {**CONFIG, "architectures": None, "model_type": "dinov2", "image_size": 32}
    write(folder, "config.json", dinov2)
    write(folder, "preprocessor_config.json", {"size": {"shortest_edge": 20}, "crop_size": 16})
    model = loaded(weights="random")
    assert model.backbone.image_size == (16, 16) and model.preprocessing.resize == (20, 20)
    assert model.notes[0] == "images of 16, as its preprocessing has them; trained on 32"
    nested = {"image_processor": {"size": {"shortest_edge": 24}, "crop_size": 24}}
    (folder / "preprocessor_config.json").unlink()
    write(folder, "processor_config.json", nested)
    assert loaded(weights="random").backbone.image_size == (24, 24)


def test_options_and_names_that_are_none(folder: Path) -> None:
    assert "no options" in line(ConfigError, option=("num_classes=3",), weights="random")
    assert "takes multiples of 8" in line(ConfigError, image_size=20, weights="random")
    assert "belongs to --task embed" in line(ConfigError, normalize=True)
    for name in ("hf:", "hf:vit", "hf:a/b/c", "hf:a/../b", "hf:a/b@../x"):
        assert "give hf:OWNER/NAME" in line(ConfigError, name)
    assert "cannot be printed" in line(ConfigError, "hf:./v\nit")
    for name in ("hf:./absent", "hf:~nobody-at-all/x", "hf:./vit/config.json"):
        assert "no such folder" in line(ConfigError, name)
    (folder / "config.json").unlink()
    assert line(ConfigError) == "hf:./vit has no config.json"
    write(folder, "config.json", {"architecture": "vit_tiny_patch16_224", "num_classes": 2})
    assert "give hf-hub: in the place of hf:" in line(ConfigError)
    assert "has no options" in line(ConfigError, option=("a=b",))
    text = run_command("hf:./vit", "--weights", "random", "--no-benchmark", code=2)
    assert "Traceback" not in text


@pytest.fixture
def cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with the checkpoint as owner/vit, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder.parent / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    snapshot = folder.parent / "hub" / "models--owner--vit" / "snapshots" / REVISION
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(REVISION)
    return snapshot


def test_the_hubs_cache_has_it_too(cache: Path) -> None:
    model = loaded("hf:owner/vit")
    assert model.weights["source"] == "hf:owner/vit" and model.labels == ("ant", "bee", "cat")
    assert loaded(f"hf:owner/vit@{REVISION}").weights["sha256"] == model.weights["sha256"]
    assert "config.json is neither in the hub's cache nor" in line(ConfigError, "hf:owner/absent")
    (cache / "model.safetensors").rename(cache / "model-1.safetensors")
    text = line(WeightsError, "hf:owner/vit")
    assert "model.safetensors is neither" in text and text.endswith("; give --weights FILE")
    index = {"weight_map": dict.fromkeys(tensors(), "model-1.safetensors")}
    write(cache, "model.safetensors.index.json", index)
    assert loaded("hf:owner/vit").weights["sha256"] == model.weights["sha256"]


def test_what_the_hub_was_seen_not_to_have(cache: Path) -> None:
    """Unknown is no absence: other preprocessing would be another model."""
    (cache / "preprocessor_config.json").unlink()
    text = line(ConfigError, "hf:owner/vit")
    assert "preprocessor_config.json is neither" in text
    gone = cache.parents[1] / ".no_exist" / REVISION
    gone.mkdir(parents=True)
    for name in ("preprocessor_config.json", "processor_config.json"):
        (gone / name).touch()
    assert loaded("hf:owner/vit").notes[0].startswith("no preprocessor_config.json")
    Path("owner/vit").mkdir(parents=True)
    (cache / "config.json").unlink()
    assert line(ConfigError, "hf:owner/vit").endswith("; the folder here is hf:./owner/vit")
