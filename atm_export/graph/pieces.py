"""The parts of a model that are translated one by one: stem, block, head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atm_export.inputs import InputSpec
from atm_export.model.backbone import Answer, Backbone
from atm_export.rewrite.block import Merge, TwinBlock
from atm_export.rewrite.twin import unmerged


class Piece(nn.Module):
    """A part of the model that is translated on its own; equal kinds share a translation."""

    @property
    def kind(self) -> str:
        return type(self).__name__


class Entry(Piece):
    """Image to tokens, or to the answer (`whole`); uint8 [B, H, W, C] is normalised here."""

    def __init__(
        self,
        backbone: Backbone,
        spec: InputSpec,
        whole: bool,
    ) -> None:
        super().__init__()
        self.backbone, self.uint8, self.whole = backbone, spec.uint8, whole
        mean, std = spec.preprocessing.mean, spec.preprocessing.std
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("shift", 255.0 * torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("scale", 255.0 * torch.tensor(std, dtype=torch.float32))

    def forward(self, image: Tensor) -> Answer:
        if self.uint8:
            image = ((image.float() - self.shift) / self.scale).permute(0, 3, 1, 2)
        return self.backbone.plain(image) if self.whole else self.backbone.embed(image)


class Head(Piece):
    """Tokens and merging sizes to the answer."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, tokens: Tensor, sizes: Tensor | None) -> Answer:
        return self.backbone.head(tokens, sizes)


class Patches(Piece):
    """Tokens and places after a block to the dense answer."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, tokens: Tensor, where: Tensor) -> Tensor:
        return unmerged(self.backbone, tokens, where)


class Block(Piece):
    """A twin block whose result is a flat tuple."""

    def __init__(self, block: TwinBlock) -> None:
        super().__init__()
        self.block = block

    @property
    def kind(self) -> str:
        return self.block.kind

    def forward(self, tokens: Tensor, sizes: Tensor | None, where: Tensor) -> tuple[Tensor, ...]:
        out = self.block(tokens, sizes, where)
        return tuple(t for t in out if t is not None) if isinstance(out, Merge) else (out,)
