"""Rows, orders and places of tokens, written as exports need them: unique sort keys that fit 32
bits, no scatter, no boolean indexing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TINY = 1e-30  # stands for a size of 0 where a logarithm or a quotient is taken
STRIDE = 1024  # slots that one sort key tells apart: key = similarity * STRIDE - slot


@dataclass(frozen=True)
class Capacity:
    """What sort keys must hold where an image has at most `tokens` tokens."""

    tokens: int

    @property
    def places(self) -> int:
        """The least power of two above every position."""
        return 1 << self.tokens.bit_length()

    @property
    def slots(self) -> int:
        """Source slots at most: half of the tokens, and the prefix token in front."""
        return self.tokens // 2 + 1

    @property
    def one_key(self) -> bool:
        """Whether similarity and slot fit one key of 32 bits."""
        return self.slots <= STRIDE


def rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x [B, n, C] at index [B, K]: [B, K, C]."""
    batch, n, channels = x.shape
    if batch == 1:
        return x[0].index_select(0, index[0]).unsqueeze(0)
    first = torch.arange(0, batch * n, n, device=x.device).unsqueeze(1)
    taken = x.reshape(-1, channels).index_select(0, (index + first).reshape(-1))
    return taken.reshape(batch, index.shape[1], channels)


@torch.library.custom_op("atm_export::take_rows", mutates_args=())
def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """`rows` as one operator, whose ONNX gathers whole rows."""
    return rows(x, index)


@take_rows.register_fake
def _(x: Tensor, index: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], index.shape[1], x.shape[2])


def sorted_by(key: Tensor, largest: bool = True) -> Tensor:
    """Indices that sort unique keys [B, S]."""
    return torch.topk(key, key.shape[1], dim=1, largest=largest).indices


def carried(where: Tensor, moved_to: Tensor) -> Tensor:
    """Places [B, N0] after a block that moved its tokens to moved_to [B, n]; -1: dropped, now or
    before."""
    return torch.where(where < 0, -1, moved_to.gather(1, where.clamp(min=0)))
