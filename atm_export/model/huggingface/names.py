"""The tensors of a checkpoint of transformers, under the names of timm's VisionTransformer.

Each of timm's tensors says which of the checkpoint's it is made of; so what is missing or left
over is known by its name there. Files of older and newer versions of transformers differ in names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from atm_export.errors import WeightsError
from atm_export.model.huggingface.described import Vision

_OLDER = [
    (re.compile(pattern), newer)
    for pattern, newer in (
        (r"^(vit|deit|dinov2|dinov2_with_registers|vision_model)\.", ""),
        (r"^encoder\.layers?\.", "layers."),
        (r"^(layers\.\d+\.attention)\.attention\.(q|k|v)(uery|ey|alue)\.", r"\1.\2_proj."),
        (r"^(layers\.\d+\.attention)\.output\.dense\.", r"\1.o_proj."),
        (r"^(layers\.\d+)\.intermediate\.dense\.", r"\1.mlp.fc1."),
        (r"^(layers\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
        (r"^(layers\.\d+\.mlp)\.weights_out\.", r"\1.down_proj."),
    )
]
_UNUSED = re.compile(
    r"pooler\..+|embeddings\.(mask_token|position_ids)|text_(model|projection)\..+|"
    r"logit_(scale|bias)"
)
_VIT = {
    "norm1": ("layernorm_before",),
    "attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "attn.proj": ("attention.o_proj",),
    "norm2": ("layernorm_after",),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.fc2": ("mlp.fc2",),
}
_CLIP = {
    **_VIT,
    "norm1": ("layer_norm1",),
    "attn.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.proj": ("self_attn.out_proj",),
    "norm2": ("layer_norm2",),
}
_BLOCK = {"vit": _VIT, "dinov2": {**_VIT, "norm1": ("norm1",), "norm2": ("norm2",)}, "clip": _CLIP}
_KINDS = ("weight", "bias")


@dataclass(frozen=True)
class Source:
    """What one of timm's tensors is made of. how: from the named tensors, in this order."""

    names: tuple[str, ...]
    how: Callable[..., Tensor]


Sources = Iterator[tuple[str, Source]]


def newer_name(name: str) -> str:
    """A tensor's name without what differs between versions and classes of transformers."""
    for pattern, newer in _OLDER:
        name = pattern.sub(newer, name, count=1)
    return name


def is_read(name: str) -> bool:
    """Whether a tensor of a file may be one of the model's; others need not be loaded."""
    return _UNUSED.fullmatch(newer_name(name)) is None


def timm_tensors(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, Tensor], vision: Vision, source: str
) -> dict[str, Tensor]:
    """The checkpoint's tensors under the names of `shapes`, timm's state; WeightsError names what
    is missing, left over or misshapen."""
    files = {newer_name(name): name for name in tensors if is_read(name)}
    parts = {name: tensors[file] for name, file in files.items()}
    made_of = dict(sources(vision, packed="layers.0.mlp.weights_in.weight" in files))
    names = [name for key in shapes for name in made_of[key].names]
    used = {*names, *(name for name in files if name.partition(".")[0] in vision.reading.unread)}
    left = [file for name, file in files.items() if name not in used]
    if len(files) < sum(map(is_read, tensors)):
        raise WeightsError(f"{source}: tensors come under an older and a newer name")
    problems = [
        f"{what} {', '.join(found[:2])}{f' and {len(found) - 2} more' if len(found) > 2 else ''}"
        for what, found in (("missing", [n for n in names if n not in parts]), ("unexpected", left))
        if found
    ]
    if problems:
        raise WeightsError(f"{source} is not what its config.json says: {'; '.join(problems)}")
    return {
        key: _joined(made_of[key], parts, tuple(like.shape), source) for key, like in shapes.items()
    }


def _joined(
    source: Source, parts: Mapping[str, Tensor], shape: tuple[int, ...], where: str
) -> Tensor:
    given = [parts[name] for name in source.names]
    try:
        tensor = source.how(*given)
    except (RuntimeError, IndexError, TypeError):
        tensor = torch.empty(0)
    if tuple(tensor.shape) != shape:
        shown = ", ".join(f"{n} {list(t.shape)}" for n, t in zip(source.names, given, strict=True))
        raise WeightsError(f"{where}: the shape is not what its config.json says: {shown}")
    return tensor


def sources(vision: Vision, *, packed: bool = False) -> Sources:
    """What each of timm's tensors is made of. packed: both halves of a gated MLP are one layer."""
    yield from _stem(vision)
    block = dict(_BLOCK[vision.kind.layout])
    if vision.gated:
        gates = ("mlp.weights_in",) if packed else ("mlp.gate_proj", "mlp.up_proj")
        block |= {"mlp.fc1": gates, "mlp.fc2": ("mlp.down_proj",)}
    for i in range(vision.depth):
        for layer, names in block.items():
            yield from _layer(f"blocks.{i}.{layer}", *(f"layers.{i}.{name}" for name in names))
        if vision.kind.layout == "dinov2":
            for k in (1, 2):
                yield (
                    f"blocks.{i}.ls{k}.gamma",
                    Source((f"layers.{i}.layer_scale{k}.lambda1",), _as),
                )
    yield from _layer("norm", "post_layernorm" if vision.kind.layout == "clip" else "layernorm")
    if vision.reading.reads == "pool":
        yield from _pool(vision)
    if vision.reading.head is not None:
        yield from _layer("head", vision.reading.head)
    if vision.reading.reads == "both":
        yield from _layer("head_dist", "distillation_classifier")


def _layer(own: str, *names: str) -> Sources:
    for kind in _KINDS:
        yield f"{own}.{kind}", Source(tuple(f"{name}.{kind}" for name in names), _stacked)


def _stem(vision: Vision) -> Sources:
    if vision.kind.layout == "clip":
        yield from _layer("patch_embed.proj", "embeddings.patch_embedding")
        if vision.flexible:
            names = ("embeddings.patch_embedding.weight",)
            yield "patch_embed.proj.weight", Source(names, _unflattened(vision))
        yield "cls_token", Source(("embeddings.class_embedding",), lambda t: t.reshape(1, 1, -1))
        yield "pos_embed", Source(("embeddings.position_embedding.weight",), lambda t: t[None])
        yield from _layer("norm_pre", "pre_layrnorm")
        return
    yield from _layer("patch_embed.proj", "embeddings.patch_embeddings.projection")
    token, positions = "embeddings.cls_token", "embeddings.position_embeddings"
    if vision.registers:  # which have no position: the class token's is added beforehand
        yield "cls_token", Source((token, positions), lambda t, at: t + at[:, :1])
        yield "reg_token", Source(("embeddings.register_tokens",), _as)
        yield "pos_embed", Source((positions,), lambda at: at[:, 1:])
        return
    yield "cls_token", Source((token,), _as)
    yield "pos_embed", Source((positions,), _as)
    for own in ("reg_token", "dist_token"):
        yield own, Source(("embeddings.distillation_token",), _as)


def _pool(vision: Vision) -> Sources:
    yield "attn_pool.latent", Source(("head.probe",), _as)
    for kind in _KINDS:
        names = (f"head.attention.in_proj_{kind}",)
        yield f"attn_pool.q.{kind}", Source(names, lambda t: t[: vision.width])
        yield f"attn_pool.kv.{kind}", Source(names, lambda t: t[vision.width :])
    yield from _layer("attn_pool.proj", "head.attention.out_proj")
    yield from _layer("attn_pool.norm", "head.layernorm")
    for layer in ("fc1", "fc2"):
        yield from _layer(f"attn_pool.mlp.{layer}", f"head.mlp.{layer}")


def _as(tensor: Tensor) -> Tensor:
    return tensor


def _stacked(*tensors: Tensor) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _unflattened(vision: Vision) -> Callable[[Tensor], Tensor]:
    """A linear layer of patches flattened by (row, column, channel) as a convolution's weight."""
    shape = (vision.width, vision.patch, vision.patch, vision.channels)
    return lambda weight: weight.reshape(shape).permute(0, 3, 1, 2).contiguous()
