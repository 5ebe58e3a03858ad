"""T2T-ViT_t: tokens-to-token by unfolding and transformers, then plain blocks (arXiv 2101.11986).

Names and shapes are those of the official checkpoints, which load strictly. The token module runs
before the first block, and merging leaves it as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from atm_export.config import ModelSpec
from atm_export.inputs import RGB
from atm_export.model.backbone import LoadedModel, families
from atm_export.model.flops import module_macs
from atm_export.model.published import PATCH, PublishedBackbone, choose_shape, load_published

TOKEN_DIM = 64


@dataclass(frozen=True)
class T2TShape:
    """One T2T-ViT of the transformer type."""

    dim: int
    depth: int
    heads: int
    classes: int = 1000


SHAPES = {
    "t2t_vit_t_14": T2TShape(dim=384, depth=14, heads=6),
    "t2t_vit_t_19": T2TShape(dim=448, depth=19, heads=7),
}


class TokenAttention(nn.Module):
    """One head that narrows tokens; its skip is v, since x has another width."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.scale = channels**-0.5  # of the input's width, not the head's
        self.qkv = nn.Linear(channels, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=2)
        weights = torch.softmax((q * self.scale) @ k.transpose(1, 2), dim=-1)
        return v + self.proj(weights @ v)


class TokenTransformer(nn.Module):
    """Tokens [B, n, channels] to [B, n, dim]."""

    def __init__(self, channels: int, dim: int = TOKEN_DIM) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = TokenAttention(channels, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Unfold(nn.Module):
    """Neighbourhoods of a map [B, C, H, W] as tokens [B, h * w, C * size**2], ordered as nn.Unfold.

    A grouped convolution with one-hot kernels: exact (one product with 1, sums of zeros), and in
    ONNX Runtime three times as fast as the gathers that nn.Unfold becomes. It moves data, so it
    is not counted as multiply-adds.
    """

    kernel: Tensor

    def __init__(self, channels: int, size: int, stride: int, padding: int) -> None:
        super().__init__()
        self.channels, self.stride, self.padding = channels, stride, padding
        one_hot = torch.eye(size * size).reshape(-1, 1, size, size).repeat(channels, 1, 1, 1)
        self.register_buffer("kernel", one_hot, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.kernel, stride=self.stride, padding=self.padding, groups=self.channels)
        return x.flatten(2).transpose(1, 2)


class TokensToToken(nn.Module):
    """Image [B, C, H, W] to tokens [B, H/16 * W/16, dim]: three unfolds, strides 4, 2 and 2."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.unfold1 = Unfold(RGB, 7, stride=4, padding=2)
        self.unfold2 = Unfold(TOKEN_DIM, 3, stride=2, padding=1)
        self.unfold3 = Unfold(TOKEN_DIM, 3, stride=2, padding=1)
        self.attention1 = TokenTransformer(RGB * 7 * 7)
        self.attention2 = TokenTransformer(TOKEN_DIM * 3 * 3)
        self.project = nn.Linear(TOKEN_DIM * 3 * 3, dim)

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[2] // 4, image.shape[3] // 4
        x = self.attention1(self.unfold1(image))
        x = self.attention2(self.unfold2(_as_map(x, height, width)))
        return self.project(self.unfold3(_as_map(x, height // 2, width // 2)))


def _as_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """[B, height * width, C] to [B, C, height, width]."""
    return tokens.transpose(1, 2).reshape(-1, tokens.shape[2], height, width)


def sinusoid(positions: int, dim: int) -> Tensor:
    """Fixed position embedding [1, positions, dim]: sine on even channels, cosine on odd ones."""
    channel = torch.arange(dim, dtype=torch.float64)
    wavelength = 10000 ** (2 * (channel // 2) / dim)
    angle = torch.arange(positions, dtype=torch.float64).unsqueeze(1) / wavelength
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float().unsqueeze(0)


class T2TViT(nn.Module):
    """The unmerged model under its official names."""

    def __init__(self, shape: T2TShape, image_size: int = 224) -> None:
        super().__init__()
        patches = (image_size // PATCH) ** 2
        self.tokens_to_token = TokensToToken(shape.dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.dim))
        self.pos_embed = nn.Parameter(sinusoid(1 + patches, shape.dim), requires_grad=False)
        norm = partial(nn.LayerNorm, eps=1e-5)
        self.blocks = nn.ModuleList(
            Block(shape.dim, shape.heads, mlp_ratio=3.0, norm_layer=norm)
            for _ in range(shape.depth)
        )
        self.norm = nn.LayerNorm(shape.dim)
        self.head = nn.Linear(shape.dim, shape.classes)

    def embed(self, image: Tensor) -> Tensor:
        """Image [B, C, H, W] to tokens [B, N, D], the class token first."""
        x = self.tokens_to_token(image)
        first = self.cls_token.expand(x.shape[0], -1, -1)
        return torch.cat([first, x], dim=1) + self.pos_embed

    def classify(self, tokens: Tensor) -> Tensor:
        """The class token of tokens [B, n, D] to logits [B, K]."""
        return self.head(self.norm(tokens[:, 0]))

    def forward(self, image: Tensor) -> Tensor:
        x = self.embed(image)
        for block in self.blocks:
            x = block(x)
        return self.classify(x)


class T2TBackbone(PublishedBackbone):
    """T2T-ViT seen as embed -> blocks -> head."""

    fixed = ("pos_embed",)

    def stem_gmacs(self) -> float:
        module = self.model.tokens_to_token
        layers = module_macs(module, self.blank())
        first = (self.image_size[0] // 4) * (self.image_size[1] // 4)
        attention = sum(2 * n * n * TOKEN_DIM for n in (first, first // 4))
        return (layers + attention) / 1e9


def build_t2t(spec: ModelSpec) -> LoadedModel:
    """The T2T-ViT that `spec` names, with its weights."""
    model = T2TViT(choose_shape(SHAPES, spec.config, "T2T-ViT"))
    return load_published(spec, model, T2TBackbone, fixed=T2TBackbone.fixed)


families.add("t2t", build_t2t)
