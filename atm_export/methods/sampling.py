"""Operators that keep some tokens of each image, another number of them in each."""

from __future__ import annotations

import torch
from torch import Tensor

from atm_export.methods.tokens import Capacity, sorted_by

WHOLE = 2**30  # an image's scores as whole numbers: their sum, in int32
DIGITS = 2**15  # of two sorts, the first takes them modulo this


@torch.library.custom_op("atm_export::rising", mutates_args=())
def rising(score: Tensor) -> Tensor:
    """Indices [B, n] of whole numbers up to 2 * WHOLE (float32), the smallest first, equals by
    index."""
    position = torch.arange(score.shape[1], dtype=torch.int32)
    places = 2**14
    high = (score / DIGITS).floor()
    low = score - high * DIGITS
    first = sorted_by(low.int() * places + position, largest=False)
    second = sorted_by(high.gather(1, first).int() * places + position, largest=False)
    return first.gather(1, second)


@rising.register_fake
def _(score: Tensor) -> Tensor:
    return torch.empty_like(score, dtype=torch.int64)


@torch.library.custom_op("atm_export::inverse", mutates_args=())
def inverse(order: Tensor) -> Tensor:
    """The inverse of permutations [B, n]."""
    return sorted_by(order, largest=False)


@inverse.register_fake
def _(order: Tensor) -> Tensor:
    return torch.empty_like(order)


@torch.library.custom_op("atm_export::left", mutates_args=())
def left(alive: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Positions of the tokens that are alive [B, n], as many as in the longest image [B, K], others
    after them; and how many there are [B]. most: tokens at most."""
    position = torch.arange(alive.shape[1])
    count = alive.sum(dim=1)
    place = torch.where(alive, position, position + Capacity(most).places)
    return sorted_by(place, largest=False)[:, : int(count.max())].clone(), count


@left.register_fake
def _(alive: Tensor, most: int) -> tuple[Tensor, Tensor]:
    longest = torch.library.get_ctx().new_dynamic_size(min=2)
    batch = alive.shape[0]
    return (
        alive.new_empty(batch, longest, dtype=torch.int64),
        alive.new_empty(batch, dtype=torch.int64),
    )
