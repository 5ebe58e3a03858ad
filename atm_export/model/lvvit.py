"""LV-ViT: a convolutional stem, divided residuals, an auxiliary head (arXiv 2104.10858).

Names and shapes are those of the official checkpoints, which load strictly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from timm.layers import Attention, Mlp
from torch import Tensor, nn

from atm_export.config import ModelSpec
from atm_export.errors import ConfigError
from atm_export.inputs import RGB
from atm_export.model.backbone import LoadedModel, families
from atm_export.model.flops import module_macs
from atm_export.model.published import PATCH, PublishedBackbone, choose_shape, load_published

AUX_WEIGHT = 0.5
AuxHead = Literal["unmerged", "always", "never"]
AUX_NOTES: dict[AuxHead, str] = {
    "unmerged": "auxiliary head: part of the unmerged model, left out where tokens merge",
    "always": "auxiliary head: read over the remaining patch tokens, merged or not",
    "never": "auxiliary head: left out, the class token alone is read",
}


@dataclass(frozen=True)
class LvVitShape:
    """One LV-ViT; `divisor` of both residual branches.

    aux_head: who reads it (adds half of its maximum over patch tokens to the class token's
    logits). unmerged: the unmerged model, as published; where tokens merge the class token alone
    goes on, as in arXiv 2505.15160. always: merged models too, so that the last block and the head
    run on all remaining tokens. never: no model.
    """

    dim: int
    depth: int
    heads: int
    divisor: float
    classes: int = 1000
    aux_head: AuxHead | bool = "unmerged"

    @property
    def aux(self) -> AuxHead:
        if isinstance(self.aux_head, bool):
            return "always" if self.aux_head else "never"
        if self.aux_head not in AUX_NOTES:
            raise ConfigError(f"aux_head '{self.aux_head}' is not one of {', '.join(AUX_NOTES)}")
        return self.aux_head


SHAPES = {
    "lvvit_t": LvVitShape(dim=240, depth=12, heads=4, divisor=1.0),
    "lvvit_s": LvVitShape(dim=384, depth=16, heads=6, divisor=2.0),
    "lvvit_m": LvVitShape(dim=512, depth=20, heads=8, divisor=2.0),
}


class Stem(nn.Module):
    """Image [B, C, H, W] to a map [B, D, H/16, W/16]: three convolutions and a projection."""

    def __init__(self, dim: int, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(RGB, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.proj = nn.Conv2d(width, dim, PATCH // 2, stride=PATCH // 2)  # conv1 halves the image

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.relu(self.bn3(self.conv3(x)))
        return self.proj(x)


class DividedBlock(nn.Module):
    """A pre-norm block whose residual branches are divided by `divisor`."""

    def __init__(self, dim: int, heads: int, divisor: float) -> None:
        super().__init__()
        self.divisor = divisor
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads, qkv_bias=False)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 3 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x)) / self.divisor
        return x + self.mlp(self.norm2(x)) / self.divisor


class LvVit(nn.Module):
    """The unmerged model under its official names."""

    def __init__(self, shape: LvVitShape, image_size: int = 224) -> None:
        super().__init__()
        self.aux = shape.aux
        patches = (image_size // PATCH) ** 2
        self.patch_embed = Stem(shape.dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + patches, shape.dim))
        self.blocks = nn.ModuleList(
            DividedBlock(shape.dim, shape.heads, shape.divisor) for _ in range(shape.depth)
        )
        self.norm = nn.LayerNorm(shape.dim)
        self.head = nn.Linear(shape.dim, shape.classes)
        self.aux_head = nn.Linear(shape.dim, shape.classes)

    def embed(self, image: Tensor) -> Tensor:
        """Image [B, C, H, W] to tokens [B, N, D], the class token first."""
        x = self.patch_embed(image).flatten(2).transpose(1, 2)
        first = self.cls_token.expand(x.shape[0], -1, -1)
        return torch.cat([first, x], dim=1) + self.pos_embed

    def classify(self, tokens: Tensor) -> Tensor:
        """Tokens [B, n, D] to logits [B, K]; the auxiliary head reads the patch tokens given."""
        tokens = self.norm(tokens)
        logits = self.head(tokens[:, 0])
        if self.aux == "never" or tokens.shape[1] == 1:
            return logits
        return logits + AUX_WEIGHT * self.aux_head(tokens[:, 1:]).amax(dim=1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.embed(image)
        for block in self.blocks:
            x = block(x)
        return self.classify(x)


class LvVitBackbone(PublishedBackbone):
    """LV-ViT seen as embed -> blocks -> head."""

    def __init__(self, model: LvVit, image_size: int = 224) -> None:
        super().__init__(model, image_size)
        self.head_rows = None if model.aux == "always" else 1

    def stem_gmacs(self) -> float:
        return module_macs(self.model.patch_embed, self.blank()) / 1e9

    def head_macs(self, tokens: Tensor) -> Tensor:
        total = super().head_macs(tokens)
        if self.model.aux != "never":
            total += (tokens - 1) * self.model.aux_head.weight.numel()
        return total


def build_lvvit(spec: ModelSpec) -> LoadedModel:
    """The LV-ViT that `spec` names, with its weights."""
    model = LvVit(choose_shape(SHAPES, spec.config, "LV-ViT"))
    return load_published(spec, model, LvVitBackbone, notes=(AUX_NOTES[model.aux],))


families.add("lvvit", build_lvvit)
