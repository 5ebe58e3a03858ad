"""What a model family must offer so that its tokens can be merged and its graph exported.

A family is one file: it subclasses `Backbone` (embed, parts, head), and registers a `Family`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from atm_export.config import ModelSpec
from atm_export.errors import UnsupportedModelError
from atm_export.inputs import RGB, InputSpec, Pixels, Preprocessing
from atm_export.registry import Registry
from atm_export.tasks import tasks
from atm_export.tasks.base import OutputSpec, names
from atm_export.tasks.classify import Classify

Answer = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class BlockParts:
    """One pre-norm transformer block, taken apart.

    x += scale1(proj(attn_norm(attention(norm1 x)))) / divisor, then x += scale2(mlp(norm2 x)) /
    divisor. `qkv` maps [.., D] to [.., 3 * heads * head_dim], ordered (q|k|v, head, channel).
    """

    norm1: nn.Module
    qkv: nn.Linear
    q_norm: nn.Module
    k_norm: nn.Module
    heads: int
    head_dim: int
    scale: float
    attn_norm: nn.Module
    proj: nn.Linear
    scale1: nn.Module
    norm2: nn.Module
    mlp: nn.Module
    scale2: nn.Module
    divisor: float = 1.0


class Backbone(nn.Module, ABC):
    """A pretrained model seen as embed -> blocks -> head.

    prefix: leading tokens that never merge (class, distillation, registers).
    head_rows: leading tokens that the head reads, or None if it pools over all tokens.
    proportional: whether ATM uses proportional attention on this family.
    classes: numbers that the head gives an image. task: what they are, a name of `tasks`.
    image_size, channels: of the image that `embed` takes. grid: tokens along each of its axes.
    fixed: parameters of its model that are no weights: neither trained nor random.
    unmerges: it answers by `dense`, from the tokens of all patches, and not by `head`; `head_rows`
    is None then, and `classes` the width. layers: after which blocks, from 0, an output each; ():
    after the last, in one.
    """

    task: str = Classify.name
    unmerges: bool = False
    layers: tuple[int, ...] = ()

    prefix: int
    head_rows: int | None
    proportional: bool = True
    image_size: tuple[int, int]
    channels: int = RGB
    classes: int
    grid: tuple[int, ...]
    fixed: tuple[str, ...] = ()

    @property
    def pooled(self) -> bool:
        return self.head_rows is None

    @property
    def read_after(self) -> tuple[int, ...]:
        """The blocks, from 0, whose tokens `dense` reads, in the order of outputs: the deepest
        first."""
        if not self.unmerges:
            return ()
        layers = sorted(self.layers) or [len(self.parts()) - 1]
        return (layers[-1], *layers[:-1])

    @property
    def patches(self) -> int:
        """Tokens that may merge, as they are embedded."""
        return math.prod(self.grid)

    @property
    def tokens(self) -> int:
        """Tokens that are embedded, prefix included."""
        return self.prefix + self.patches

    def blank(self) -> Tensor:
        """An image of zeros [1, C, H, W], to count multiply-adds with."""
        return torch.zeros(1, self.channels, *self.image_size)

    @property
    def weight_bytes(self) -> int:
        """Bytes of its weights, FP32."""
        return sum(t.numel() * t.element_size() for t in self.state_dict().values())

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        """What it answers, the main output first."""
        return tasks[self.task].outputs(self)

    @property
    def ranks(self) -> str | None:
        """The output whose rows rank classes, where there is one."""
        return tasks[self.task].ranks

    @property
    def judged(self) -> str:
        """The output that commands judge: the one that ranks classes, or else the main one."""
        return self.ranks or self.outputs[0].name

    def named(self, answer: Answer) -> dict[str, Tensor]:
        """What `head` or `plain` gave, by output; UnsupportedModelError for another answer than the
        task's."""
        values = answer if isinstance(answer, tuple) else (answer,)
        shapes = [list(value.shape) for value in values]
        if len(values) != len(self.outputs) or not all(
            spec.holds(shape, shape[0]) for spec, shape in zip(self.outputs, shapes, strict=True)
        ):
            wanted = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in self.outputs)
            raise UnsupportedModelError(
                f"the head of {type(self).__name__} gives {shapes}; its task '{self.task}' wants "
                f"{wanted}"
            )
        return dict(zip(names(self.outputs), values, strict=True))

    @abstractmethod
    def embed(self, image: Tensor) -> Tensor:
        """Normalised image [B, C, H, W] to tokens [B, N, D], prefix tokens first."""

    @abstractmethod
    def parts(self) -> list[BlockParts]:
        """The blocks in order."""

    @abstractmethod
    def head(self, tokens: Tensor, sizes: Tensor | None) -> Answer:
        """Tokens after the last block and merging sizes [B, n, 1] (None: all 1) to what is
        answered: a tensor, or a tuple of them where the task has several outputs, in its order.

        Where head_rows is set, `tokens` may hold those rows alone.
        """

    def dense(self, tokens: Tensor) -> Tensor:
        """Tokens of patches [B, patches, D] after one block of `read_after`, each patch's where it
        was embedded, to what is answered of them [B, *grid, classes]."""
        raise NotImplementedError

    @abstractmethod
    def plain(self, image: Tensor) -> Answer:
        """The unmerged model, exactly as its own authors' forward computes it."""

    @abstractmethod
    def stem_gmacs(self) -> float:
        """Multiply-adds of `embed` for one image of `image_size`, in units of 1e9."""

    @abstractmethod
    def head_macs(self, tokens: Tensor) -> Tensor:
        """Multiply-adds of `head` for `tokens` [B] tokens an image, [B]."""


@dataclass(frozen=True)
class OwnImages:
    """Images of a model's own kind, where photographs are none: they prove and measure it, and some
    travel with its run folders. labels [n]: their classes; source: what they are; terms: the same
    with the licence, as golden vectors state it."""

    images: Sequence[Image.Image]
    labels: NDArray[np.int64]
    source: str
    terms: str


@dataclass(frozen=True)
class LoadedModel:
    """A backbone with its weights and the facts that travel with every artifact.

    own_images: reads what proves it in the place of the photographs that ship. Raises
    UnsupportedModelError where the preprocessing is not of the backbone's size and channels. The
    backbone is put into evaluation, without gradients.
    """

    name: str
    backbone: Backbone
    preprocessing: Preprocessing
    weights: dict[str, Any]
    labels: tuple[str, ...] | None = None
    licence: str | None = None
    notes: tuple[str, ...] = field(default=())
    own_images: Callable[[], OwnImages] | None = None

    def __post_init__(self) -> None:
        how, backbone = self.preprocessing, self.backbone
        for what, told, takes in (
            ("size", how.size, backbone.image_size),
            ("number of channels (means)", how.channels, backbone.channels),
        ):
            if told != takes:
                raise UnsupportedModelError(
                    f"{self.name}: the {what} of the preprocessing is {told}, the model takes "
                    f"{takes}; say it in the family, or under preprocessing in the config"
                )
        backbone.eval().requires_grad_(False)

    def input(self, *, uint8: bool = False) -> InputSpec:
        """What its graph takes."""
        return InputSpec(self.preprocessing, "uint8" if uint8 else "float32")

    def tensor(self, pixels: Pixels) -> Tensor:
        """Pixels [k, H, W, C] as the backbone takes them."""
        return torch.from_numpy(self.input().feed(pixels))


Family = Callable[[ModelSpec], LoadedModel]


@dataclass(frozen=True)
class Limited:
    """A family of which `--option` may give these alone; a config's `options` may hold others."""

    build: Family
    title: str
    options: tuple[str, ...]

    def __call__(self, spec: ModelSpec) -> LoadedModel:
        return self.build(spec)


families: Registry[Family] = Registry("model family")
