"""Which blocks merge, counted from 1 as in arXiv 2505.15160; the others leave every token in place.

A merge costs the same however many tokens it merges, so fewer of them, with lower thresholds, save
the same multiply-adds in less time.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

from atm_export.errors import ConfigError
from atm_export.methods.base import ModelShape

AUTO = "auto"
FORMS = "give numbers from 1 (4,6,8,10 or 4-8), every:N, auto or all"


def _parsed(value: Any) -> Any:
    """Numbers, "every:N", "auto", or None for all; from a list or a text."""
    if value is None or value == "all":
        return None
    if isinstance(value, str) and (value == AUTO or re.fullmatch(r"every:[1-9]\d{0,3}", value)):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        value = [value]
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not parts:
        raise ValueError(FORMS)
    found = [number for part in parts for number in _numbers(part)]
    if len(set(found)) < len(found):
        raise ValueError("a block is named twice")
    return tuple(sorted(found))


def _numbers(part: Any) -> range:
    ends = re.fullmatch(r"([1-9]\d{0,3})(?:-([1-9]\d{0,3}))?", str(part).strip())
    if ends is None:
        raise ValueError(FORMS)
    found = range(int(ends[1]), int(ends[2] or ends[1]) + 1)
    if not found:
        raise ValueError(f"{part} runs backwards")
    return found


MergeBlocks = Annotated[tuple[int, ...] | str | None, BeforeValidator(_parsed)]


def merging(blocks: tuple[int, ...] | str | None, shape: ModelShape, last: int) -> tuple[int, ...]:
    """The blocks that merge, of those up to `last`, beyond which the head leaves nothing to merge;
    ConfigError for one beyond it that is named.

    auto: every second block from a third of the depth on, but the last: at equal multiply-adds it
    loses no more than merging in all of them (measured: docs/sparse.md).
    """
    if blocks is None:
        return tuple(range(1, last + 1))
    if isinstance(blocks, str):
        step = 2 if blocks == AUTO else int(blocks.removeprefix("every:"))
        first = max(shape.depth // 3, 1) if blocks == AUTO else step
        end = shape.depth - 1 if blocks == AUTO else last
        found = tuple(range(first, end + 1, step))
    else:
        found = blocks
    if not found:
        raise ConfigError(f"merge_blocks: {blocks} names none of the {last} blocks that can merge")
    if max(found) > last:
        why = (
            f"the model has {shape.depth} blocks"
            if max(found) > shape.depth
            else "the head reads the class token alone, so that nothing merges in the last block"
        )
        raise ConfigError(f"merge_blocks: {max(found)}: {why}")
    return found


def worth_a_trial(depth: int) -> tuple[str, ...]:
    """Sets of blocks that a search tries: all, and every second, third or fourth block from several
    ones on, two merges at least."""
    runs = (
        tuple(range(first, depth, step))
        for step in (2, 3, 4)
        for first in range(max(depth // 6, 1), depth // 2 + 1)
    )
    named = [",".join(map(str, run)) for run in runs if len(run) > 1]
    return ("all", *dict.fromkeys(named))


def blocks_label(blocks: tuple[int, ...] | str | None) -> str:
    """As part of a folder's name."""
    if blocks is None:
        return ""
    words = blocks.replace(":", "-") if isinstance(blocks, str) else "-".join(map(str, blocks))
    return f"-blocks-{words}"


def blocks_words(blocks: tuple[int, ...] | str | None, at: tuple[int, ...]) -> str:
    """As part of a summary; at: the blocks that merge."""
    return "" if blocks is None else f", in blocks {' '.join(map(str, at))}"
