"""Scores on a grid, in a defined order: whole numbers as float32, equal ones by index.

What a rule's decision and its graph have in common; keys are unique and fit 32 bits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from atm_export.methods.tokens import sorted_by

SPAN = 2**23  # steps of a score from 0 to 1: float32 has no finer ones between 1/2 and 1
FINE = 2**25  # of one below 1/2
DIGITS = 2**13  # of two sorts, the first takes the scores modulo this
EXACT = 2**24  # float32 holds all whole numbers up to here
ROOM = 2**31  # keys lie below


def on_grid(score: Tensor, span: int = SPAN) -> Tensor:
    """Scores within [-1, 1] as whole numbers, in units of 1/span."""
    return torch.round(score * span).clamp(1 - span, span - 1)


def falling(score: Tensor, span: int = SPAN) -> Tensor:
    """Indices [B, S] of whole numbers [B, S] between -span and span, from the largest down, equals
    by index. Where one key does not fit 32 bits (SPAN: beyond 256 of them), they are sorted by the
    low digits, then by the high ones, equals as the first sort left them."""
    slot = torch.arange(score.shape[1], dtype=torch.int32)
    places = 1 << (score.shape[1] - 1).bit_length()
    most = span - (span <= EXACT)
    score = score.clamp(-most, most)  # says the bound; changes nothing
    if (most + 1) * places <= ROOM:
        return sorted_by(score.int() * places - slot)
    high = (score / DIGITS).floor()
    low = (score - high * DIGITS).clamp(0, DIGITS - 1)
    first = sorted_by(low.int() * places - slot)
    second = sorted_by(high.gather(1, first).int() * places - slot)
    return first.gather(1, second)


def nearest(score: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's highest score and the first column that has it, both [B, S]; score [B, S, T]:
    whole numbers."""
    top = score.amax(dim=2, keepdim=True)
    column = torch.arange(score.shape[2], dtype=torch.float32)
    first = torch.where(score == top, column, float(score.shape[2])).amin(dim=2)
    return top[..., 0], first.clamp(0, score.shape[2] - 1).long()


def firmness(
    score: Tensor, highest: Tensor, ranked: Tensor, merges: int, *, in_order: bool
) -> float:
    """The least change of a score [B, S, T] that alters who joins whom: the best columns of the
    first `merges` rows by rank [B, S], which rows those are, and, if it counts, the order of the
    others. highest [B, S]: of each row."""
    first = max(merges - 1, 0)
    gaps = ranked_gaps(highest)
    gaps = gaps[:, first:] if in_order else gaps[:, first:merges]
    if not merges or score.shape[2] < 2:
        return least(gaps) / SPAN
    best = score.topk(2, dim=2).values
    leads = (best[..., 0] - best[..., 1]).gather(1, ranked[:, :merges])
    return min(least(leads), least(gaps)) / SPAN


def ranked_gaps(score: Tensor) -> Tensor:
    """How far each score [B, S] is ahead of the next smaller one, [B, S - 1]."""
    ranked = score.sort(dim=1, descending=True).values
    return ranked[:, :-1] - ranked[:, 1:]


def least(gaps: Tensor) -> float:
    """The smallest of some gaps; infinite where there is none."""
    return float(gaps.min()) if gaps.numel() else float("inf")


def most(*shortfalls: Tensor) -> float:
    """The largest of some shortfalls, 0 at least."""
    return max([0.0, *(float(each.max()) for each in shortfalls if each.numel())])


@torch.library.custom_op("atm_export::unit_rows", mutates_args=())
def unit_rows(x: Tensor) -> Tensor:
    """Rows of L2 norm 1, as one operator: where FP32 begins in lower precisions."""
    return F.normalize(x.float(), dim=-1)


@unit_rows.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)
