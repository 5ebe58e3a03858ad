"""The shipped demo model as a family: weights inside the package, no download."""

from __future__ import annotations

from pathlib import Path

from timm.models.vision_transformer import VisionTransformer

from atm_export import demo
from atm_export.config import ModelSpec
from atm_export.errors import ConfigError
from atm_export.inputs import Preprocessing
from atm_export.model.backbone import Limited, LoadedModel, OwnImages, families
from atm_export.model.vit import TimmBackbone
from atm_export.model.weights import load_strictly, randomize, read_checkpoint, state_digest


def build_demo(spec: ModelSpec) -> LoadedModel:
    """The demo ViT (197 tokens, 12 blocks, 10 classes)."""
    card = demo.card()
    model = VisionTransformer(**card["architecture"])
    size = card["architecture"]["img_size"]
    shipped = spec.weights == "pretrained"
    if spec.weights == "random":
        source = "random"
        randomize(model)
    else:
        path = demo.FOLDER / "weights.safetensors" if shipped else Path(spec.weights)
        source = "atm-export demo" if shipped else path.name
        load_strictly(model, read_checkpoint(path), str(path))
    if spec.image_size not in (None, size):
        if spec.image_size % card["architecture"]["patch_size"]:
            raise ConfigError(
                f"--image-size {spec.image_size} is not a multiple of the patch size 4"
            )
        model.set_input_size(img_size=(spec.image_size, spec.image_size))
    backbone = TimmBackbone(model, spec.name)
    return LoadedModel(
        name=spec.name,
        backbone=backbone,
        preprocessing=Preprocessing(
            backbone.image_size, 1.0, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
        ),
        weights={
            "source": source,
            "meaningless_accuracy": spec.weights == "random",
            "sha256": state_digest(model),
        },
        labels=tuple(str(digit) for digit in range(10)),
        licence="Apache-2.0 (weights); CC BY 4.0 (digits)" if shipped else None,
        own_images=digits,
    )


def digits() -> OwnImages:
    """The handwritten digits that the demo's model has not seen in training."""
    images, labels = demo.heldout()
    return OwnImages(
        images, labels, "held-out digits", "handwritten digits (CC BY 4.0) and drawn scenes"
    )


families.add("demo", Limited(build_demo, "the demo", options=()))
