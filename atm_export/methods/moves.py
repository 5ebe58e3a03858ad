"""A decision that says where every token goes, and the blocks that a method works in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from atm_export.errors import ConfigError
from atm_export.methods.rule import Decision

if TYPE_CHECKING:
    from torch import Tensor


ALIKE = 16.0  # steps of a score (scores.SPAN): about 2e-6, within the noise of FP32


@dataclass(frozen=True)
class Moves(Decision):
    """moved_to [B, n]: new place of each token; weights [B, n, 1]: by which those of one place are
    averaged (None: merging sizes); firm: the decision's margin."""

    moved_to: Tensor
    firm: float
    weights: Tensor | None = None

    def margin(self) -> float:
        return self.firm


def at_place(places: list[int], place: int) -> list[int]:
    """Tokens that went to a place."""
    return [i for i, each in enumerate(places) if each == place]


def least_ranked(groups: list[list[int]], rank: Tensor) -> list[int]:
    """Of each group of tokens, groups in the order of their places, the one of least rank; where
    those stand in another order, the first in order of those that rank alike within noise."""
    least = [-min((float(rank[i]), -i) for i in group)[1] for group in groups]
    if least == sorted(least):
        return least
    found: list[int] = []
    for group, last in zip(groups, least, strict=True):
        near = [i for i in group if rank[i] <= rank[last] + ALIKE]
        found.append(next((i for i in near if i > max(found, default=-1)), last))
    return found


def _spelled_out(value: Any) -> Any:
    """Blocks as numbers, from a list or a text ("3,5-11"), ranges included."""
    if isinstance(value, str):
        value = value.split(",")
    elif isinstance(value, int):
        value = [value]
    if not isinstance(value, list | tuple):
        return value
    found: list[Any] = []
    for each in value:
        ends = re.fullmatch(r"(\d{1,4})-(\d{1,4})", each) if isinstance(each, str) else None
        found += range(int(ends[1]), int(ends[2]) + 1) if ends else [each]
    return found


Blocks = Annotated[
    tuple[Annotated[int, Field(ge=0, le=4096)], ...],
    Field(min_length=1),
    BeforeValidator(_spelled_out),
]


def within(blocks: tuple[int, ...], depth: int) -> tuple[int, ...]:
    """The blocks in order; ConfigError for one that the model lacks or that is named twice."""
    if max(blocks) >= depth:
        raise ConfigError(
            f"blocks: {max(blocks)} lies beyond the model's {depth} blocks, counted from 0"
        )
    if twice := [block for block in blocks if blocks.count(block) > 1]:
        raise ConfigError(f"blocks: {twice[0]} is named twice")
    return tuple(sorted(blocks))
