"""One merge of one image, written again with Python loops and whole numbers."""

from __future__ import annotations

from dataclasses import dataclass

Vector = list[float]
LATTICE = 64  # metrics are whole numbers / LATTICE, so that every dot product is exact in float32


@dataclass(frozen=True)
class BrutePairs:
    """Sources, destinations, and of each source its destination's number and similarity."""

    src: list[int]
    dst: list[int]
    best: list[int]
    similarity: list[int]


@dataclass(frozen=True)
class BruteMerged:
    """Tokens, sizes and new positions."""

    tokens: list[Vector]
    sizes: list[float]
    moved_to: list[int]


def brute_groups(sizes: list[float], prefix: int, grouping: str) -> tuple[list[int], list[int]]:
    """Positions of sources and destinations."""
    free = list(range(prefix, len(sizes)))
    if grouping == "alternate":
        return [p for p in free if p % 2 == 0], [p for p in free if p % 2 == 1]
    ordered = sorted(free, key=lambda p: (sizes[p], p))
    half = len(free) // 2
    return ordered[:half], ordered[half:]


def brute_match(
    metric: list[list[int]], sizes: list[float], prefix: int, grouping: str, grid: int
) -> BrutePairs:
    """The most similar destination of each source, the first of equals; metric in 1/LATTICE."""
    src, dst = brute_groups(sizes, prefix, grouping)
    best, similarity = [], []
    for s in src:
        dots = [sum(a * b for a, b in zip(metric[s], metric[d], strict=True)) for d in dst]
        top = max(dots, default=0)
        best.append(dots.index(top) if dots else 0)
        similarity.append(top * grid // LATTICE**2)
    return BrutePairs(src, dst, best, similarity)


def brute_merge(
    tokens: list[Vector], sizes: list[float], pairs: BrutePairs, r: int, prefix: int
) -> BruteMerged:
    """The r most similar pairs merged, equal ones in source order."""
    ranked = sorted(range(len(pairs.src)), key=lambda i: (-pairs.similarity[i], i))
    chosen = set(ranked[:r])
    groups = [[p] for p in range(prefix)]
    groups += [[p] for i, p in enumerate(pairs.src) if i not in chosen]
    for number, d in enumerate(pairs.dst):
        groups.append([d, *(pairs.src[i] for i in chosen if pairs.best[i] == number)])
    moved_to = [-1] * len(tokens)
    out_tokens, out_sizes = [], []
    for position, group in enumerate(groups):
        total = sum(sizes[p] for p in group)
        channels = range(len(tokens[0]))
        out_tokens.append([sum(sizes[p] * tokens[p][c] for p in group) / total for c in channels])
        out_sizes.append(total)
        for p in group:
            moved_to[p] = position
    return BruteMerged(out_tokens, out_sizes, moved_to)
