"""Operators for images that keep different numbers of tokens: `--merge per-image`.

Padded tensors [B, n, D] hold each image's tokens first and padding after them; a merging size of 0
marks padding. Packed tensors [1, M, D] hold the tokens alone, image after image: linear layers run
on those, so that padding costs attention only. `rows` [1, M]: position of each packed row in the
flattened padded tensor. `slots` [B, n]: packed row of each padded position (padding repeats the
image's last token).
"""

from __future__ import annotations

import torch
from torch import Tensor

from atm_export.methods.tokens import TINY


@torch.library.custom_op("atm_export::ragged_layout", mutates_args=())
def ragged_layout(sizes: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """(rows [1, M], slots [B, n]) of padded sizes [B, n, 1]; most: tokens at most."""
    batch, n, _ = sizes.shape
    count = (sizes[..., 0] > 0).sum(dim=1)
    start = count.cumsum(dim=0) - count
    position = torch.arange(n)
    slots = start.unsqueeze(1) + torch.minimum(position, count.unsqueeze(1) - 1)
    packed = torch.arange(int(count.sum()))
    image = (packed.unsqueeze(1) >= (start + count)).sum(dim=1)
    return (packed + (torch.arange(batch) * n - start)[image]).unsqueeze(0), slots


@ragged_layout.register_fake
def _(sizes: Tensor, most: int) -> tuple[Tensor, Tensor]:
    rows = torch.library.get_ctx().new_dynamic_size(min=2)
    slots = sizes.new_empty(sizes.shape[0], sizes.shape[1], dtype=torch.int64)
    return sizes.new_empty(1, rows, dtype=torch.int64), slots


@torch.library.custom_op("atm_export::pack", mutates_args=())
def pack(x: Tensor, rows: Tensor) -> Tensor:
    """Padded [B, n, D] to packed [1, M, D]."""
    return x.reshape(-1, x.shape[2])[rows]


@pack.register_fake
def _(x: Tensor, rows: Tensor) -> Tensor:
    return x.new_empty(1, rows.shape[1], x.shape[2])


@torch.library.custom_op("atm_export::unpack", mutates_args=())
def unpack(x: Tensor, slots: Tensor) -> Tensor:
    """Packed [1, M, D] to padded [B, n, D]."""
    return x[0][slots]


@unpack.register_fake
def _(x: Tensor, slots: Tensor) -> Tensor:
    return x.new_empty(slots.shape[0], slots.shape[1], x.shape[2])


@torch.library.custom_op("atm_export::unpack_heads", mutates_args=())
def unpack_heads(x: Tensor, slots: Tensor, heads: int) -> Tensor:
    """Packed [1, M, heads * d] to padded [B, n, heads, d]."""
    return x[0][slots].reshape(slots.shape[0], slots.shape[1], heads, -1).clone()


@unpack_heads.register_fake
def _(x: Tensor, slots: Tensor, heads: int) -> Tensor:
    return x.new_empty(slots.shape[0], slots.shape[1], heads, x.shape[2] // heads)


@torch.library.custom_op("atm_export::log_sizes", mutates_args=())
def log_sizes(sizes: Tensor, proportional: bool) -> Tensor:
    """Attention bias [B, n, 1]: log of the sizes (or of 1), far below zero for padding."""
    clipped = sizes if proportional else sizes.clamp(max=1.0)
    return clipped.clamp(min=TINY).log()


@log_sizes.register_fake
def _(sizes: Tensor, proportional: bool) -> Tensor:
    return torch.empty_like(sizes)
