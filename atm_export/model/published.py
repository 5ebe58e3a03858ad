"""What families with published ImageNet checkpoints share: weights, labels, sizes, block parts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from atm_export.config import ModelConfig, ModelSpec
from atm_export.errors import ConfigError, WeightsError, unknown_name
from atm_export.inputs import Preprocessing
from atm_export.model.backbone import Backbone, BlockParts, LoadedModel
from atm_export.model.weights import load_strictly, randomize, read_checkpoint, state_digest

Shape = TypeVar("Shape")
Renaming = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]

PATCH = 16  # pixels a token, each way
_HASHED = re.compile(r"-([0-9a-f]{8,64})\.pth$")  # torch.hub's rule: a name ends in its sha256


class PublishedBackbone(Backbone):
    """A model under its official names, seen as embed -> blocks -> head.

    The model has `embed` (image to tokens, the class token first), `blocks` (perhaps with a
    `divisor`), `classify` (tokens to logits), `head` and `pos_embed`.
    """

    prefix = 1
    head_rows: int | None = 1

    def __init__(self, model: Any, image_size: int = 224) -> None:
        super().__init__()
        self.model = model
        self.image_size = (image_size, image_size)
        self.grid = (image_size // PATCH, image_size // PATCH)
        self.classes = model.head.out_features

    def embed(self, image: Tensor) -> Tensor:
        tokens: Tensor = self.model.embed(image)
        return tokens

    def parts(self) -> list[BlockParts]:
        return [take_apart(block, getattr(block, "divisor", 1.0)) for block in self.model.blocks]

    def head(self, tokens: Tensor, sizes: Tensor | None) -> Tensor:
        logits: Tensor = self.model.classify(tokens)
        return logits

    def plain(self, image: Tensor) -> Tensor:
        logits: Tensor = self.model(image)
        return logits

    def head_macs(self, tokens: Tensor) -> Tensor:
        return torch.full_like(tokens, self.model.head.weight.numel())


def load_published(
    spec: ModelSpec,
    model: nn.Module,
    backbone_of: Callable[[Any, int], Backbone],
    *,
    fixed: Sequence[str] = (),
    notes: tuple[str, ...] = (),
) -> LoadedModel:
    """A model built for images of 224, with the weights and the image size that `spec` names.

    fixed: parameters that are no weights.
    """
    facts = load_weights(model, spec, fixed)
    size = spec.image_size or 224
    if size != 224:
        resize_positions(model, size, PATCH, spec.name)
    backbone = backbone_of(model, size)
    return LoadedModel(
        name=spec.name,
        backbone=backbone,
        preprocessing=imagenet_preprocessing(spec.config, backbone.image_size),
        weights=facts,
        labels=imagenet_labels(backbone.classes),
        licence=published_licence(spec),
        notes=notes,
    )


def choose_shape(shapes: Mapping[str, Shape], config: ModelConfig, kind: str) -> Shape:
    """The architecture that `config` names, with the fields that its `options` change."""
    if config.architecture not in shapes:
        raise unknown_name(f"{kind} architecture", config.architecture, shapes)
    shape: Any = shapes[config.architecture]
    known = [field.name for field in fields(shape)]
    for option in config.options:
        if option not in known:
            raise unknown_name(f"option of {kind}", option, known)
    return replace(shape, **config.options)


def load_weights(
    model: nn.Module, spec: ModelSpec, fixed: Sequence[str] = (), renamed: Renaming = dict
) -> dict[str, Any]:
    """Load what `spec.weights` says (pretrained, a file, random); returns the facts about it.

    fixed: parameters that are no weights, and stay as they are where weights are random. renamed:
    from the tensors of a file to those of `model`.
    """
    if spec.weights == "random":
        randomize(model, keep=fixed)
        facts: dict[str, Any] = {"source": "random", "meaningless_accuracy": True}
    else:
        path = _fetched(spec) if spec.weights == "pretrained" else Path(spec.weights)
        load_strictly(model, renamed(read_checkpoint(path)), str(path))
        facts = {"source": path.name}
    return {**facts, "sha256": state_digest(model)}


def _fetched(spec: ModelSpec) -> Path:
    """The published checkpoint in torch.hub's cache, downloaded on first use."""
    offer = "give --weights FILE (.safetensors or .pth) or --weights random"
    published = spec.config.published
    if published is None:
        raise WeightsError(f"{spec.name} names no published weights; {offer}")
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(published.url).path).name
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = _HASHED.search(path.name)
        begins = digest[1] if digest else None
        torch.hub.download_url_to_file(published.url, str(path), begins, progress=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsError(
            f"pretrained weights of {spec.name} cannot be fetched from {published.url} "
            f"({type(error).__name__}); {offer}"
        ) from error
    return path


def published_licence(spec: ModelSpec) -> str | None:
    """The licence under which the weights of this run are published, where that is known."""
    published = spec.config.published
    return published.licence if published and spec.weights == "pretrained" else None


def resize_positions(model: nn.Module, size: int, patch: int, name: str) -> None:
    """Interpolate `model.pos_embed` [1, 1 + patches, D] for images of `size`, as timm does."""
    if size % patch or size < 2 * patch:
        raise ConfigError(
            f"--image-size {size}: {name} takes multiples of {patch} from {2 * patch}"
        )
    grid = size // patch
    with torch.no_grad():
        resized = resample_abs_pos_embed(model.pos_embed, [grid, grid], num_prefix_tokens=1)
    model.pos_embed = nn.Parameter(resized, requires_grad=False)


def imagenet_preprocessing(config: ModelConfig, size: tuple[int, int]) -> Preprocessing:
    """The usual ImageNet evaluation, with what the config says otherwise."""
    values: dict[str, Any] = {
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    }
    return Preprocessing(size=size, **overridden(values, config))


def overridden(values: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    """Preprocessing settings with those of the config on top; ConfigError for unknown ones, and for
    a mean or std that is no list of numbers."""
    known = [field.name for field in fields(Preprocessing)]
    for name, value in config.preprocessing.items():
        if name not in known:
            raise unknown_name("preprocessing setting", name, known)
        numbers = isinstance(value, list | tuple) and all(type(n) in (int, float) for n in value)
        if name in ("mean", "std") and not numbers:
            raise ConfigError(f"preprocessing: {name} must be a list of numbers, one a channel")
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in config.preprocessing.items()}
    return {**values, **given}


def imagenet_labels(classes: int) -> tuple[str, ...] | None:
    """ImageNet-1k names for 1000-class models, from the table that timm carries."""
    from timm.data import ImageNetInfo

    if classes != 1000:
        return None
    info = ImageNetInfo("imagenet-1k")
    return tuple(info.index_to_description(i) for i in range(1000))


def take_apart(block: Any, divisor: float = 1.0) -> BlockParts:
    """A block of timm's layout: norm1, attn (timm's Attention), norm2, mlp, perhaps ls1 and ls2.

    Every pass asks, so what was found is kept while the block holds the same modules.
    """
    attn = block.attn
    dropped = getattr(attn.proj_drop, "p", 0)
    held = (*block._modules.values(), *attn._modules.values(), attn.scale, dropped, divisor)
    known = _TAKEN.get(block)
    if known is None or known[0] != held:
        known = _TAKEN[block] = (held, _taken_apart(block, attn, divisor))
    return known[1]


_TAKEN: WeakKeyDictionary[Any, tuple[tuple[Any, ...], BlockParts]] = WeakKeyDictionary()


def _taken_apart(block: Any, attn: Any, divisor: float) -> BlockParts:
    return BlockParts(
        norm1=block.norm1,
        qkv=attn.qkv,
        q_norm=attn.q_norm,
        k_norm=attn.k_norm,
        heads=attn.num_heads,
        head_dim=attn.head_dim,
        scale=attn.scale,
        attn_norm=attn.norm,
        proj=attn.proj,
        scale1=_chain(attn.proj_drop, block, "ls1", "drop_path1"),
        norm2=block.norm2,
        mlp=block.mlp,
        scale2=_chain(None, block, "ls2", "drop_path2"),
        divisor=divisor,
    )


def _chain(first: nn.Module | None, block: Any, *names: str) -> nn.Module:
    """What the block has of these, one after another; without those that never do anything."""
    found = [first, *(getattr(block, name, None) for name in names)]
    steps = [
        step
        for step in found
        if step is not None
        and not isinstance(step, nn.Identity)
        and not (isinstance(step, nn.Dropout) and step.p == 0)
    ]
    return steps[0] if len(steps) == 1 else nn.Sequential(*steps) if steps else nn.Identity()
