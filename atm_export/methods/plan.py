"""What every block of a model does to its tokens.

Blocks are counted l = 1..L as in arXiv 2505.15160; tuples here hold block l at index l - 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from atm_export.methods.rule import BlockRule

# How a graph of a plan is written; all forms decide and compute the same. "stepped": token counts
# are padded to steps, for backends to which every length that they have not seen is dear.
Form = Literal["plain", "stepped"]


@dataclass(frozen=True)
class MergePlan:
    """What every block does; None: nothing. `per_image`: counts are decided for each image."""

    blocks: tuple[BlockRule | None, ...]
    proportional: bool
    per_image: bool = False

    @classmethod
    def unmerged(cls, depth: int) -> MergePlan:
        """The plan that reduces nothing."""
        return cls((None,) * depth, proportional=False)

    @property
    def merges(self) -> bool:
        return any(block is not None for block in self.blocks)

    @property
    def at(self) -> tuple[int, ...]:
        """The blocks that reduce tokens, from 1."""
        return tuple(i for i, block in enumerate(self.blocks, 1) if block is not None)

    @property
    def idle(self) -> bool:
        """True where no block can reduce anything."""
        return all(block is None or block.idle for block in self.blocks)

    @property
    def adaptive(self) -> bool:
        """True where counts are decided at run time."""
        return any(block is not None and block.adaptive for block in self.blocks)

    @property
    def policy(self) -> str:
        """Who decides counts: adaptive (the batch), per-image, or frozen (nobody)."""
        if self.per_image:
            return "per-image"
        return "adaptive" if self.adaptive else "frozen"

    def has_form(self, form: Form, tokens: int) -> bool:
        """Whether it can be written so; tokens: that are embedded."""
        rules = [block for block in self.blocks if block is not None]
        return form == "plain" or (bool(rules) and all(rule.takes_steps(tokens) for rule in rules))

    def frozen(self, counts: Sequence[int]) -> MergePlan:
        """The same plan with a fixed number of tokens removed per block (which ones stays
        data-dependent)."""
        blocks = tuple(
            None if block is None else block.frozen(int(count))
            for block, count in zip(self.blocks, counts, strict=True)
        )
        return replace(self, blocks=blocks, per_image=False)
