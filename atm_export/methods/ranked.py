"""Tokens ranked by a score: the order that every backend finds, and how firm a cut in it is.

Scores lie on a grid of 2**21 steps from 0 to a ceiling, equal ones go by position. A ceiling of
twice the mean makes a step 2**-20 of the mean, just above FP32 rounding noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from atm_export.comparison import largest, smallest
from atm_export.methods import scores
from atm_export.methods.rule import Decision
from atm_export.methods.tokens import sorted_by

STEPS = 2**21
UNIT = 2**20  # steps that weigh as much as a cosine of 1: FP32 noise is about one step


def ceiling(tokens: int, kept: int) -> float:
    """A score above which at most `kept` of `tokens` tokens lie, where all scores together are at
    most 1: what exceeds it stays in any case. At least twice the mean of scores that sum to 1."""
    return 2.0 ** max(1, math.ceil(math.log2(tokens / kept))) / tokens


def on_grid(score: Tensor, most: float) -> Tensor:
    """Scores [B, m] in steps, whole numbers from 0 to STEPS - 1 (`most` and above)."""
    return torch.round((score * (STEPS / most)).clamp(0, STEPS - 1))


@dataclass(frozen=True)
class Ranked(Decision):
    """score [B, m]: whole numbers; order [B, m]: positions by falling score, equals by position;
    cuts: ranks at which the fate of tokens changes."""

    score: Tensor
    order: Tensor
    cuts: tuple[int, ...]

    def margin(self) -> float:
        ranked = self.score.gather(1, self.order)
        gaps = (ranked[:, cut - 1] - ranked[:, cut] for cut in self.cuts)
        return smallest(float(gap.min()) for gap in gaps) / UNIT


def rank(score: Tensor, cuts: Sequence[int]) -> Ranked:
    """The reference's order; cuts at the ends of it decide nothing."""
    order = score.sort(dim=1, descending=True, stable=True).indices
    return Ranked(score, order, tuple(cut for cut in cuts if 0 < cut < score.shape[1]))


def shortfall(own: Ranked, order: Tensor) -> float:
    """By how much, in the unit of margins, another order's worst token ahead of a cut falls short
    of the best behind it."""
    ranked = own.score.gather(1, order)
    short = (ranked[:, cut:].amax(dim=1) - ranked[:, :cut].amin(dim=1) for cut in own.cuts)
    return largest([0.0, *(float(each.max()) for each in short)]) / UNIT


def falling(score: Tensor) -> Tensor:
    """The same order for exports, by unique keys that fit 32 bits."""
    return scores.falling(score, STEPS)


def ascending(positions: Tensor) -> Tensor:
    """Different positions [B, K] in ascending order."""
    return torch.topk(positions, positions.shape[1], dim=1, largest=False).values


def ranks(order: Tensor) -> Tensor:
    """Where in an order [B, m] each position stands."""
    return sorted_by(order, largest=False)
