"""hf: equals transformers: each class at its own and another size, older names, pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from atm_export.choice import Choice
from atm_export.errors import ConfigError, WeightsError
from atm_export.inputs import normalize
from atm_export.model.backbone import LoadedModel
from atm_export.model.reference import run_reference
from atm_export.model.zoo import load_model
from atm_export.preprocess import crop
from atm_export.resolving import resolve
from tests.runs import run_command
from tests.tiny import no_merges, random_images

transformers: Any = pytest.importorskip(
    "transformers", reason="what checkpoints are compared with: the extra dev"
)

PATCH, OWN, OTHER = 8, 32, 24  # fewer patches show whether positions are antialiased
DINOV2 = {
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"image_size": OWN, "patch_size": PATCH},
}
SIZES = {**DINOV2, "intermediate_size": 40}
CLASSES = {"num_labels": 5}
NAFLEX = {**{k: v for k, v in SIZES.items() if k != "image_size"}, "num_patches": 16}
TEXT = {
    **{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9},
    **{"intermediate_size": 16, "max_position_embeddings": 8},
    **{"pad_token_id": 1, "bos_token_id": 1, "eos_token_id": 2},
}
Answer = Callable[..., Tensor]


def classified(model: Any, images: Tensor, **how: bool) -> Tensor:
    return model(images, **how).logits


def class_token(model: Any, images: Tensor, **how: bool) -> Tensor:
    return model(images, **how).last_hidden_state[:, 0]


def pooled(model: Any, images: Tensor, **how: bool) -> Tensor:
    return model(images, **how).pooler_output


def features(model: Any, images: Tensor, **how: bool) -> Tensor:
    return model.get_image_features(images, **how).pooler_output


def projected(model: Any, images: Tensor, **how: bool) -> Tensor:
    return model(images, **how).image_embeds


def flattened(answer: str) -> Answer:
    """What NaFlex makes of square images whose patches are flattened as its processor does."""

    def of(model: Any, images: Tensor, **_: bool) -> Tensor:
        rows = images.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)  # [B, C, h, w, p, p]
        pixels = rows.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
        given = {
            "pixel_values": pixels,
            "pixel_attention_mask": torch.ones(pixels.shape[:2], dtype=torch.int32),
            "spatial_shapes": torch.tensor([rows.shape[2:4]] * len(images)),
        }
        inner = model.get_image_features if answer == "features" else model
        return getattr(inner(**given), "logits" if answer == "logits" else "pooler_output")

    return of


def always(answer: Answer) -> Answer:
    """Of models that interpolate positions without being asked."""
    return lambda model, images, **_: answer(model, images)


def config(name: str, **values: Any) -> Any:
    return getattr(transformers, f"{name}Config")(**values)


def whole(name: str, vision: dict[str, Any], **values: Any) -> Any:
    return config(name, vision_config=vision, text_config=TEXT, **values)


MODELS: dict[str, tuple[Callable[[], Any], Answer]] = {
    "ViTModel": (lambda: config("ViT", **SIZES), class_token),
    "ViTForImageClassification": (
        lambda: config("ViT", **SIZES, **CLASSES, qkv_bias=False, hidden_act="gelu_new"),
        classified,
    ),
    "DeiTModel": (lambda: config("DeiT", **SIZES), class_token),
    "DeiTForImageClassification": (lambda: config("DeiT", **SIZES, **CLASSES), classified),
    "DeiTForImageClassificationWithTeacher": (
        lambda: config("DeiT", **SIZES, **CLASSES),
        classified,
    ),
    "Dinov2Model": (lambda: config("Dinov2", **DINOV2, use_swiglu_ffn=True), always(pooled)),
    "Dinov2ForImageClassification": (
        lambda: config("Dinov2", **DINOV2, **CLASSES),
        always(classified),
    ),
    "Dinov2WithRegistersModel": (
        lambda: config("Dinov2WithRegisters", **DINOV2),
        always(pooled),
    ),
    "Dinov2WithRegistersForImageClassification": (
        lambda: config("Dinov2WithRegisters", **DINOV2, **CLASSES),
        always(classified),
    ),
    "CLIPVisionModel": (lambda: config("CLIPVision", **SIZES), pooled),
    "CLIPVisionModelWithProjection": (
        lambda: config("CLIPVision", **SIZES, projection_dim=12, hidden_act="gelu"),
        projected,
    ),
    "CLIPModel": (lambda: whole("CLIP", SIZES, projection_dim=12), features),
    "CLIPForImageClassification": (lambda: whole("CLIP", SIZES, **CLASSES), classified),
    "SiglipVisionModel": (lambda: config("SiglipVision", **SIZES), pooled),
    "SiglipModel": (lambda: whole("Siglip", SIZES), features),
    "SiglipForImageClassification": (lambda: whole("Siglip", SIZES, **CLASSES), classified),
    "Siglip2VisionModel": (lambda: config("Siglip2Vision", **NAFLEX), flattened("pooled")),
    "Siglip2Model": (lambda: whole("Siglip2", NAFLEX), flattened("features")),
    "Siglip2ForImageClassification": (
        lambda: whole("Siglip2", NAFLEX, **CLASSES),
        flattened("logits"),
    ),
}


def saved(name: str, folder: Path, shard: str = "1GB") -> Any:
    """transformers' own model with weights that every layer shows in the answer, in `folder`."""
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    model = getattr(transformers, name)(MODELS[name][0]()).eval()
    with torch.no_grad():
        for weight in model.parameters():
            scale = weight[0].numel() ** -0.5 if weight.ndim in (2, 4) else 0.3
            weight.copy_(scale * torch.randn_like(weight) + (weight.ndim == 1))
    model.save_pretrained(folder, max_shard_size=shard)
    return model


def loaded(folder: Path, **options: Any) -> LoadedModel:
    return load_model(resolve(Choice(model=f"hf:{folder}", **options)).model)


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_it_is_transformers_own_answer(name: str, tmp_path: Path) -> None:
    with torch.inference_mode(False):
        model = saved(name, tmp_path)
    answer = MODELS[name][1]
    for size, how in ((OWN, {}), (OTHER, {"interpolate_pos_encoding": True})):
        backbone = loaded(tmp_path, image_size=None if size == OWN else size).backbone
        images = random_images(2, size=(size, size))
        expected = answer(model, images, **how)
        assert backbone.task == ("classify" if "Classification" in name else "embed")
        assert expected.shape == (2, backbone.classes) and expected.std() > 0.1
        torch.testing.assert_close(backbone.plain(images), expected, atol=1e-5, rtol=0)
        (found,) = run_reference(backbone, no_merges(backbone), images).outputs.values()
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_a_classifiers_embedding_is_the_class_token(tmp_path: Path) -> None:
    images = random_images(2, size=(OWN, OWN))
    for name in ("Dinov2ForImageClassification", "DeiTForImageClassificationWithTeacher"):
        folder = tmp_path / name
        with torch.inference_mode(False):
            model = saved(name, folder)
        expected = class_token(model.base_model, images)
        embedded = loaded(folder, task="embed", normalize=True)
        expected = torch.nn.functional.normalize(expected, dim=-1)
        torch.testing.assert_close(embedded.backbone.plain(images), expected, atol=1e-5, rtol=0)
        assert "embedding: the class token after the last norm, of length 1" in embedded.notes


@torch.inference_mode()
def test_patches_and_another_pooling(tmp_path: Path) -> None:
    images = random_images(2, size=(OWN, OWN))
    for name, prefix in (("Dinov2WithRegistersForImageClassification", 5), ("CLIPModel", 1)):
        folder = tmp_path / name
        with torch.inference_mode(False):
            model = saved(name, folder)
        if name == "CLIPModel":
            tower = model.vision_model
            features = tower.post_layernorm(tower(images).last_hidden_state)
        else:
            features = model.base_model(images).last_hidden_state
        patches = features[:, prefix:]
        dense = loaded(folder, task="dense")
        (found,) = dense.backbone.plain(images)
        torch.testing.assert_close(found.flatten(1, 2), patches, atol=1e-5, rtol=0)
        assert "after the last block" in dense.notes[-1] and dense.labels is None
        mean = loaded(folder, task="embed", pool="avg")
        torch.testing.assert_close(
            mean.backbone.plain(images), patches.mean(dim=1), atol=1e-5, rtol=0
        )
        assert "embedding: the mean of all patches" in mean.notes
    with pytest.raises(ConfigError, match="no attention pooling"):
        loaded(folder, task="embed", pool="map")


def test_shards_newer_names_and_a_file_of_ones_own(tmp_path: Path) -> None:
    """Of one model: as saved, in shards, and under the names that its modules have today."""
    model = saved("Dinov2Model", tmp_path / "whole")
    saved("Dinov2Model", tmp_path / "shards", shard="20KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    save_file(model.state_dict(), tmp_path / "newer.safetensors")
    assert set(model.state_dict()) != set(load_file(tmp_path / "whole" / "model.safetensors"))
    digests = {
        loaded(tmp_path / "whole").weights["sha256"],
        loaded(tmp_path / "shards").weights["sha256"],
        loaded(tmp_path / "whole", weights=str(tmp_path / "newer.safetensors")).weights["sha256"],
    }
    assert len(digests) == 1
    next((tmp_path / "shards").glob("model-00002*")).unlink()
    with pytest.raises(WeightsError, match=r"index\.json names model-00002.*not there"):
        loaded(tmp_path / "shards")


def test_a_tower_alone_has_its_prefix_in_older_files(tmp_path: Path) -> None:
    saved("CLIPVisionModel", tmp_path)
    file = tmp_path / "model.safetensors"
    digest = loaded(tmp_path).weights["sha256"]
    older = {f"vision_model.{name}": tensor for name, tensor in load_file(file).items()}
    older["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    save_file(older, file)
    assert loaded(tmp_path).weights["sha256"] == digest


PROCESSORS = {  # settings beside the usual ones, and the size of a picture
    "ViT": ({"size": {"height": OWN, "width": OWN}}, (50, 41)),
    "DeiT": ({"size": {"height": 40, "width": 40}, "crop_size": OWN}, (50, 41)),
    "CLIP": ({"size": {"shortest_edge": OWN}, "crop_size": OWN}, (60, 41)),
    "Bit": ({"size": {"shortest_edge": 40}, "crop_size": OWN, "do_normalize": False}, (41, 62)),
    "Siglip": ({"size": {"height": OWN, "width": OWN}, "rescale_factor": 0.01}, (41, 50)),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_pictures_become_what_transformers_makes_of_them(name: str, tmp_path: Path) -> None:
    values, size = PROCESSORS[name]
    processor = getattr(transformers, f"{name}ImageProcessorPil")(**values)
    processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", **SIZES}))
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    how = loaded(tmp_path, weights="random").preprocessing
    found = normalize(crop(picture, how)[None], how)
    expected = np.asarray(processor(picture, return_tensors="np")["pixel_values"])
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_it_goes_the_whole_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved("CLIPModel", Path("clip"))
    transformers.CLIPImageProcessor(size=OWN, crop_size=OWN).save_pretrained("clip")
    point = ("--alpha", "0.8", "--beta", "0.05", "--theta-min", "0.6", "--no-benchmark")
    run_command("hf:./clip", "--task", "embed", "--normalize", *point, "--out", "run")
    told = json.loads(Path("run/manifest.json").read_text(encoding="utf-8"))
    assert told["status"] == "proven" and told["weights"]["source"] == "hf:./clip"
    assert told["interface"]["outputs"]["embedding"]["shape"] == ["batch", 12]
    run_command("verify", "run")


@pytest.mark.slow
@torch.inference_mode()
def test_the_real_size(tmp_path: Path) -> None:
    made = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig()).eval()
    with torch.inference_mode(False):
        made.save_pretrained(tmp_path)
    images = random_images(1, size=(224, 224))
    found = loaded(tmp_path)
    assert (found.backbone.tokens, found.backbone.classes) == (50, 512)
    torch.testing.assert_close(
        found.backbone.plain(images), projected(made, images), atol=1e-5, rtol=0
    )
