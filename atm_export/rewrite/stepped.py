"""The operator of the stepped form alone: q, k and v come of one layer, heads first."""

from __future__ import annotations

import torch
from torch import Tensor

STEP = 32  # token counts are padded to a multiple of it


@torch.library.custom_op("atm_export::split_qkv", mutates_args=())
def split_qkv(x: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """[B, n, 3 * heads * d] to q, k and v, each [B, heads, n, d]."""
    parts = x.reshape(x.shape[0], x.shape[1], 3, heads, -1).permute(2, 0, 3, 1, 4)
    return parts[0].clone(), parts[1].clone(), parts[2].clone()


@split_qkv.register_fake
def _(x: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    shape = (x.shape[0], heads, x.shape[1], x.shape[2] // (3 * heads))
    return x.new_empty(shape), x.new_empty(shape), x.new_empty(shape)
