"""What bipartite matching is told of a block: how tokens group, and what decides how many merge.

Nothing here imports torch.
"""

from __future__ import annotations

from typing import Literal, Protocol

Grouping = Literal["alternate", "size"]


class Terms(Protocol):
    """A grouping, and either a cosine threshold `theta` or a fixed count `r`."""

    @property
    def grouping(self) -> Grouping: ...

    @property
    def theta(self) -> float | None: ...

    @property
    def r(self) -> int | None: ...


def most_merges(n: int, prefix: int) -> int:
    """Merges that n tokens allow: every source may go (ToMe: at most half of the tokens).

    With an even number of prefix tokens (none, or class and distillation) the last two patch
    tokens stay, so that there is always a source and a destination.
    """
    body = n - prefix
    return body // 2 if prefix % 2 else min((body + 1) // 2, max(body - 2, 0))
