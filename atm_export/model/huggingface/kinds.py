"""Model types of transformers that have the shape of timm's VisionTransformer; their classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from atm_export.model.resizing import Resampling

# What is read after the last block: the class token; the mean of the patches, or both side by side;
# the class and the distillation token, each by a classifier; an attention pool.
Reads = Literal["class", "mean", "class and mean", "both", "pool"]
Layout = Literal["vit", "dinov2", "clip"]


@dataclass(frozen=True)
class Reading:
    """What a class of transformers answers. head: the layer that makes it of what is read, `None`
    where that is the answer; projected: its numbers are no classes; outer: how many is said beside
    the vision tower's config; unread: layers of its files that it does not use."""

    reads: Reads
    head: str | None = None
    projected: bool = False
    outer: bool = False
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kind:
    """A model type. usual: values of its config where the file says none. classes: what it may be,
    the plain one first. anyhow: it interpolates positions without being asked. processor: its image
    processor."""

    layout: Layout
    classes: Mapping[str, Reading]
    usual: Mapping[str, Any]
    how: Resampling
    processor: str
    nested: bool = False
    anyhow: bool = False


_SIZES = {
    **{"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "num_channels": 3},
    **{"image_size": 224, "patch_size": 16, "hidden_act": "gelu", "qkv_bias": True},
}
_VIT = {**_SIZES, "intermediate_size": 3072, "layer_norm_eps": 1e-12}
_DINOV2 = {
    **_SIZES,
    **{"mlp_ratio": 4, "layer_norm_eps": 1e-6, "use_swiglu_ffn": False},
}
_CLIP = {
    **_VIT,
    **{"patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    **{"projection_dim": 512},
}
_SIGLIP = {
    **_VIT,
    **{"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "vision_use_head": True},
}
_SIGLIP2 = {**{k: v for k, v in _SIGLIP.items() if k != "image_size"}, "num_patches": 256}
_CLASSIFIER = Reading("class", "classifier")
_BOTH = Reading("class and mean", "classifier")
_PROJECTION = Reading("class", "visual_projection", projected=True)
_BICUBIC = Resampling(antialias=False)
_BILINEAR = Resampling("bilinear")

_CLIP_CLASSES = {
    "CLIPVisionModel": Reading("class"),
    "CLIPVisionModelWithProjection": _PROJECTION,
}
_CLIP_WHOLE = {
    "CLIPModel": Reading("class", "visual_projection", projected=True, outer=True),
    "CLIPForImageClassification": Reading("mean", "classifier", unread=("post_layernorm",)),
    **_CLIP_CLASSES,
}


def _siglip(name: str) -> tuple[Mapping[str, Reading], Mapping[str, Reading]]:
    """Classes of the vision tower, and of the whole model."""
    tower = {f"{name}VisionModel": Reading("pool")}
    averaged = Reading("mean", "classifier", unread=("head",))
    return tower, {
        f"{name}Model": Reading("pool"),
        f"{name}ForImageClassification": averaged,
    } | tower


_SIGLIP_TOWER, _SIGLIP_WHOLE = _siglip("Siglip")
_SIGLIP2_TOWER, _SIGLIP2_WHOLE = _siglip("Siglip2")
KINDS = {
    "vit": Kind(
        "vit",
        {"ViTModel": Reading("class"), "ViTForImageClassification": _CLASSIFIER},
        _VIT,
        _BICUBIC,
        "ViT",
    ),
    "deit": Kind(
        "vit",
        {
            "DeiTModel": Reading("class"),
            "DeiTForImageClassification": _CLASSIFIER,
            "DeiTForImageClassificationWithTeacher": Reading("both", "cls_classifier"),
        },
        _VIT,
        _BICUBIC,
        "DeiT",
    ),
    "dinov2": Kind(
        "dinov2",
        {"Dinov2Model": Reading("class"), "Dinov2ForImageClassification": _BOTH},
        {**_DINOV2, "patch_size": 14},
        _BICUBIC,
        "Bit",
        anyhow=True,
    ),
    "dinov2_with_registers": Kind(
        "dinov2",
        {
            "Dinov2WithRegistersModel": Reading("class"),
            "Dinov2WithRegistersForImageClassification": _BOTH,
        },
        {**_DINOV2, "num_register_tokens": 4},
        Resampling(),
        "Bit",
        anyhow=True,
    ),
    "clip_vision_model": Kind("clip", _CLIP_CLASSES, _CLIP, _BICUBIC, "CLIP"),
    "clip": Kind("clip", _CLIP_WHOLE, _CLIP, _BICUBIC, "CLIP", nested=True),
    "siglip_vision_model": Kind("clip", _SIGLIP_TOWER, _SIGLIP, _BICUBIC, "Siglip"),
    "siglip": Kind("clip", _SIGLIP_WHOLE, _SIGLIP, _BICUBIC, "Siglip", nested=True),
    "siglip2_vision_model": Kind("clip", _SIGLIP2_TOWER, _SIGLIP2, _BILINEAR, "Siglip2"),
    "siglip2": Kind("clip", _SIGLIP2_WHOLE, _SIGLIP2, _BILINEAR, "Siglip2", nested=True),
}
