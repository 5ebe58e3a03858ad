"""torchvision's vision transformers: `tv:vit_b_16`, or `tv:vit_l_16.swag_e2e` for other weights.

They have the shape of timm's plain VisionTransformer, under other names. Where weights are
published, their hash, licence and preprocessing are read from torchvision.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from timm.layers import LayerNorm
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torchvision.models import WeightsEnum, get_model_weights

from atm_export.config import ModelConfig, ModelSpec, PublishedWeights
from atm_export.errors import unknown_name
from atm_export.inputs import Preprocessing
from atm_export.model.backbone import Limited, LoadedModel, families
from atm_export.model.dense import notes_of_patches, patches_of
from atm_export.model.embedding import chosen_embedding, notes_of
from atm_export.model.published import (
    choose_shape,
    imagenet_labels,
    load_weights,
    overridden,
    published_licence,
)
from atm_export.model.resizing import crop_share, take_images_of
from atm_export.model.vit import TimmBackbone
from atm_export.tasks.embed import Embed


@dataclass(frozen=True)
class Shape:
    """Arguments of torchvision's VisionTransformer; image_size None: that of the weights."""

    patch_size: int
    num_layers: int
    num_heads: int
    hidden_dim: int
    mlp_dim: int
    image_size: int | None = None
    num_classes: int = 1000


SHAPES = {
    "vit_b_16": Shape(16, 12, 12, 768, 3072),
    "vit_b_32": Shape(32, 12, 12, 768, 3072),
    "vit_l_16": Shape(16, 24, 16, 1024, 4096),
    "vit_l_32": Shape(32, 24, 16, 1024, 4096),
    "vit_h_14": Shape(14, 32, 16, 1280, 5120),
}
TAGS = {
    "v1": "IMAGENET1K_V1",
    "swag_e2e": "IMAGENET1K_SWAG_E2E_V1",
    "swag_linear": "IMAGENET1K_SWAG_LINEAR_V1",
}
SWAG = "CC-BY-NC-4.0 (non-commercial)"
OWN = "BSD-3-Clause (of the repository)"

_BLOCK = re.compile(r"encoder\.layers\.encoder_layer_(\d+)\.(.+)\.(weight|bias)")
_IN_BLOCK = {
    "ln_1": "norm1",
    "self_attention.out_proj": "attn.proj",
    "ln_2": "norm2",
    "mlp.0": "mlp.fc1",
    "mlp.3": "mlp.fc2",
    "mlp.linear_1": "mlp.fc1",  # as the published files have it
    "mlp.linear_2": "mlp.fc2",
}
_NAMES = {
    "class_token": "cls_token",
    "encoder.pos_embedding": "pos_embed",
    "conv_proj": "patch_embed.proj",
    "encoder.ln": "norm",
    "heads.head": "head",
}


def known_names() -> list[str]:
    """Every architecture, with its usual weights and with each of the others."""
    own = {name: get_model_weights(name).__members__ for name in SHAPES}
    tagged = [f"{name}.{tag}" for name in SHAPES for tag in TAGS if TAGS[tag] in own[name]]
    return [*SHAPES, *tagged]


def published_weights(architecture: str) -> WeightsEnum:
    """What torchvision says of the weights; ConfigError offers the nearest name."""
    if architecture not in known_names():
        raise unknown_name("torchvision model", architecture, known_names())
    name, _, tag = architecture.partition(".")
    return get_model_weights(name)[TAGS[tag] if tag else "DEFAULT"]


def timm_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of torchvision's VisionTransformer under timm's names; others keep theirs."""
    return {_timm_name(name): tensor for name, tensor in tensors.items()}


def _timm_name(name: str) -> str:
    if name in _NAMES:
        return _NAMES[name]
    packed = re.sub(r"self_attention\.in_proj_(weight|bias)$", r"self_attention.in_proj.\1", name)
    if found := _BLOCK.fullmatch(packed):
        layer = {**_IN_BLOCK, "self_attention.in_proj": "attn.qkv"}.get(found[2])
        return f"blocks.{found[1]}.{layer}.{found[3]}" if layer else name
    layer, _, kind = name.rpartition(".")
    return f"{_NAMES[layer]}.{kind}" if layer in _NAMES else name


def build_torchvision(spec: ModelSpec) -> LoadedModel:
    """The torchvision family: timm's model of the same shape, torchvision's weights in it."""
    weights = published_weights(spec.config.architecture)
    spec = _published(spec, weights)
    shape = _shape(spec.config, weights)
    model = VisionTransformer(
        img_size=shape.image_size,
        patch_size=shape.patch_size,
        num_classes=shape.num_classes,
        embed_dim=shape.hidden_dim,
        depth=shape.num_layers,
        num_heads=shape.num_heads,
        mlp_ratio=(shape.mlp_dim + 0.5) / shape.hidden_dim,  # timm rounds the product down
        norm_layer=partial(LayerNorm, eps=1e-6),
        weight_init="skip",
    ).eval()
    facts = load_weights(model, spec, renamed=timm_names)
    if spec.image_size is not None:
        take_images_of(model, spec.image_size, spec.name)
    embeds = chosen_embedding(model, spec) if spec.task == Embed.name else None
    patches = patches_of(spec, len(model.blocks))
    backbone = TimmBackbone(model, spec.name, spec.config.proportional, embeds, patches)
    notes = notes_of_patches(patches.layers) if patches else notes_of(model, embeds)
    return LoadedModel(
        name=spec.name,
        backbone=backbone,
        preprocessing=_preprocessing(spec.config, weights, backbone.image_size),
        weights=facts,
        labels=None if embeds or patches else imagenet_labels(shape.num_classes),
        licence=published_licence(spec),
        notes=(*notes, *_figure(spec, weights)),
    )


def _published(spec: ModelSpec, weights: WeightsEnum) -> ModelSpec:
    """The same with the address and licence of torchvision's weights, where a config has none."""
    if spec.config.published is not None:
        return spec
    stated = PublishedWeights(url=weights.url, licence=SWAG if "SWAG" in weights.name else OWN)
    return spec.model_copy(update={"config": spec.config.model_copy(update={"published": stated})})


def _shape(config: ModelConfig, weights: WeightsEnum) -> Shape:
    options = {"image_size": weights.meta["min_size"][0], **config.options}
    name = config.architecture.partition(".")[0]
    stated = config.model_copy(update={"architecture": name, "options": options})
    return choose_shape(SHAPES, stated, "torchvision models")


def _preprocessing(config: ModelConfig, weights: WeightsEnum, size: tuple[int, int]) -> Any:
    how: Any = weights.transforms()
    crop, resized = how.crop_size[0], how.resize_size[0]
    values = {
        "crop_pct": crop_share((crop, crop), (resized, resized)),
        "interpolation": how.interpolation.value,
        "mean": tuple(how.mean),
        "std": tuple(how.std),
    }
    return Preprocessing(size=size, **overridden(values, config))


def _figure(spec: ModelSpec, weights: WeightsEnum) -> tuple[str, ...]:
    if spec.weights != "pretrained":
        return ()
    top1 = weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    return (f"torchvision's {weights.name}, {top1:.2f} % top-1 as stated there",)


OPTIONS = ("num_classes",)
families.add("torchvision", Limited(build_torchvision, "torchvision models", OPTIONS))
