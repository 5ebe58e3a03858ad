"""The merging maths against a re-implementation with loops, and against what it promises."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from atm_export.methods.bipartite import matching
from atm_export.methods.bipartite.matching import GRID, Grouping, Pairs
from tests.brute_force import LATTICE, BrutePairs, brute_match, brute_merge

PREFIXES = (0, 1, 2, 5)
GROUPINGS: tuple[Grouping, ...] = ("alternate", "size")


@dataclass(frozen=True)
class Example:
    """Random tokens with a metric on a coarse lattice, so that many similarities are equal."""

    tokens: Tensor
    sizes: Tensor
    lattice: Tensor
    prefix: int

    @property
    def metric(self) -> Tensor:
        return self.lattice.float() / LATTICE

    @property
    def free(self) -> int:
        return self.tokens.shape[1] - self.prefix


def make_example(seed: int, prefix: int, free: int, batch: int) -> Example:
    rng = torch.Generator().manual_seed(seed)
    n = prefix + free
    sizes = torch.randint(1, 4, (batch, n, 1), generator=rng).float()
    sizes[:, :prefix] = 1
    levels = (2, 3, 30)[seed % 3]
    lattice = torch.randint(-levels, levels + 1, (batch, n, 4), generator=rng)
    return Example(torch.randn(batch, n, 6, generator=rng), sizes, lattice, prefix)


def brute_pairs(example: Example, image: int, grouping: Grouping) -> BrutePairs:
    return brute_match(
        example.lattice[image].tolist(),
        example.sizes[image, :, 0].tolist(),
        example.prefix,
        grouping,
        GRID,
    )


def examples() -> list[Example]:
    shapes = itertools.product(PREFIXES, (2, 3, 4, 7, 12, 13), (1, 3))
    return [
        make_example(seed, prefix, free, batch) for seed, (prefix, free, batch) in enumerate(shapes)
    ]


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_match_equals_brute_force(grouping: Grouping) -> None:
    for example in examples():
        pairs = matching.match(example.metric, example.sizes, example.prefix, grouping)
        for image in range(len(example.tokens)):
            expected = brute_pairs(example, image, grouping)
            assert pairs.src[image].tolist() == expected.src
            assert pairs.dst[image].tolist() == expected.dst
            assert pairs.best[image].tolist() == expected.best
            assert pairs.similarity[image].tolist() == expected.similarity


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_merge_equals_brute_force_at_every_r(prefix: int, grouping: Grouping) -> None:
    merges = 0
    for example in (e for e in examples() if e.prefix == prefix):
        pairs = matching.match(example.metric, example.sizes, prefix, grouping)
        for r in range(pairs.src.shape[1] + 1):
            merged = matching.merge(example.tokens, example.sizes, pairs, r, prefix)
            assert merged.tokens.shape[1] == example.tokens.shape[1] - r
            merges += r
            for image in range(len(example.tokens)):
                expected = brute_merge(
                    example.tokens[image].double().tolist(),
                    example.sizes[image, :, 0].tolist(),
                    brute_pairs(example, image, grouping),
                    r,
                    prefix,
                )
                assert merged.moved_to[image].tolist() == expected.moved_to
                assert merged.sizes[image, :, 0].tolist() == expected.sizes
                found = merged.tokens[image].double()
                wanted = torch.tensor(expected.tokens, dtype=torch.float64)
                torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    assert merges > 100


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_the_map_says_where_every_token_went(grouping: Grouping) -> None:
    for example in examples():
        pairs = matching.match(example.metric, example.sizes, example.prefix, grouping)
        r = pairs.src.shape[1] // 2
        merged = matching.merge(example.tokens, example.sizes, pairs, r, example.prefix)
        batch, _, channels = example.tokens.shape
        remaining = merged.tokens.shape[1]
        index = merged.moved_to.unsqueeze(2)
        mass = torch.zeros(batch, remaining, 1).scatter_add(1, index, example.sizes)
        weighted = torch.zeros(batch, remaining, channels).scatter_add(
            1, index.expand(-1, -1, channels), example.tokens * example.sizes
        )
        assert torch.equal(mass, merged.sizes)
        torch.testing.assert_close(weighted / mass, merged.tokens, atol=1e-6, rtol=0)


def test_sizes_are_conserved_over_many_merges() -> None:
    rng = torch.Generator().manual_seed(0)
    tokens, sizes = torch.randn(3, 50, 8, generator=rng), torch.ones(3, 50, 1)
    for step in range(6):
        grouping: Grouping = "alternate" if step < 3 else "size"
        metric = matching.key_metric(tokens.unsqueeze(1))
        pairs = matching.match(metric, sizes, 1, grouping)
        mean = (tokens * sizes).sum(dim=1)
        merged = matching.merge(tokens, sizes, pairs, min(7, pairs.src.shape[1]), 1)
        tokens, sizes = merged.tokens, merged.sizes
        assert sizes.sum(dim=1).flatten().tolist() == [50.0] * 3
        assert bool((sizes[:, 0] == 1).all())
        torch.testing.assert_close((tokens * sizes).sum(dim=1), mean, atol=1e-4, rtol=0)
    assert tokens.shape[1] < 50 // 2


def test_several_sources_may_join_one_destination() -> None:
    metric = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]])
    tokens = torch.tensor([[[2.0], [5.0], [4.0], [6.0], [9.0]]])
    sizes = torch.tensor([[[1.0], [1.0], [2.0], [3.0], [1.0]]])
    pairs = matching.match(metric, sizes, 0, "alternate")
    merged = matching.merge(tokens, sizes, pairs, 3, 0)
    assert merged.tokens.flatten().tolist() == pytest.approx([5.0, (2 + 2 * 4 + 3 * 6 + 9) / 7])
    assert merged.sizes.flatten().tolist() == [1.0, 7.0]
    assert merged.moved_to.tolist() == [[1, 0, 1, 1, 1]]


def test_equal_similarities_merge_in_position_order() -> None:
    metric = torch.ones(1, 9, 1)
    pairs = matching.match(metric, torch.ones(1, 9, 1), 1, "alternate")
    assert pairs.src.tolist() == [[2, 4, 6, 8]]
    assert pairs.best.tolist() == [[0, 0, 0, 0]]
    merged = matching.merge(torch.arange(9.0).reshape(1, 9, 1), torch.ones(1, 9, 1), pairs, 2, 1)
    assert merged.tokens.flatten().tolist() == pytest.approx([0, 6, 8, (1 + 2 + 4) / 3, 3, 5, 7])


@pytest.mark.parametrize(("prefix", "free"), [(0, 1), (1, 0), (1, 1), (2, 0), (2, 1), (5, 1)])
@pytest.mark.parametrize("grouping", GROUPINGS)
def test_too_few_tokens_to_pair_merge_nothing(grouping: Grouping, prefix: int, free: int) -> None:
    tokens, sizes = torch.randn(2, prefix + free, 3), torch.ones(2, prefix + free, 1)
    pairs = matching.match(torch.ones(2, prefix + free, 2), sizes, prefix, grouping)
    assert matching.count_above(pairs, -1.0) == 0
    merged = matching.merge(tokens, sizes, pairs, 0, prefix)
    assert merged.tokens.shape == tokens.shape
    assert torch.equal(merged.tokens.sum(dim=1), tokens.sum(dim=1))


def test_the_metric_is_the_normalised_mean_of_the_keys_over_heads() -> None:
    keys = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(1))
    metric = matching.key_metric(keys)
    for image, token in itertools.product(range(2), range(5)):
        mean = [sum(keys[image, h, token, c].item() for h in range(3)) / 3 for c in range(4)]
        norm = math.sqrt(sum(value * value for value in mean))
        for c in range(4):
            assert metric[image, token, c].item() == pytest.approx(mean[c] / norm, abs=1e-6)


def test_prefix_tokens_neither_merge_nor_absorb() -> None:
    metric = torch.ones(1, 13, 2)
    for prefix, grouping in itertools.product((1, 2, 5), GROUPINGS):
        pairs = matching.match(metric, torch.ones(1, 13, 1), prefix, grouping)
        assert int(pairs.src.min()) >= prefix
        assert int(pairs.dst.min()) >= prefix
        both = sorted(pairs.src[0].tolist() + pairs.dst[0].tolist())
        assert both == list(range(prefix, 13))


def counted(similarity: list[list[float]], theta: float) -> int:
    grid = torch.tensor(similarity, dtype=torch.float64) * GRID
    values = grid.round().float()
    nothing = torch.zeros_like(values, dtype=torch.int64)
    return matching.count_above(Pairs(nothing, nothing, nothing, values, values), theta)


def test_the_count_is_the_floored_mean_over_the_batch() -> None:
    rows = [[0.95, 0.91, 0.5], [0.95, 0.93, 0.2], [0.99, 0.1, 0.1]]
    assert counted(rows, 0.9) == 5 // 3
    assert counted(rows, 0.05) == 3
    assert counted(rows, 0.995) == 0
    assert counted(rows[:1], 0.9) == 2
    assert counted(rows[2:], 0.9) == 1
    assert counted(rows[1:], 0.9) == 3 // 2


def test_counts_equal_a_loop_over_all_pairs() -> None:
    for example in examples():
        for theta in (-1.0, -0.01, 0.0, 3 / LATTICE**2, 0.004, 0.2):
            pairs = matching.match(example.metric, example.sizes, example.prefix, "alternate")
            above = 0
            for image in range(len(example.tokens)):
                found = brute_pairs(example, image, "alternate").similarity
                above += sum(value > theta * GRID for value in found)
            assert matching.count_above(pairs, theta) == above // len(example.tokens)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("width", [1, 3, 17, 64])
def test_identical_tokens_have_similarity_one_exactly(width: int, scale: float) -> None:
    rng = torch.Generator().manual_seed(width)
    for _ in range(50):
        key = scale * torch.randn(1, 3, 1, width, generator=rng)
        keys = key.expand(2, 3, 12, width)
        pairs = matching.match(matching.key_metric(keys), torch.ones(2, 12, 1), 1, "alternate")
        assert pairs.similarity.unique().tolist() == [GRID]
        assert pairs.lead.unique().tolist() == [0]
        assert matching.count_above(pairs, 1.0) == 0
        assert matching.count_above(pairs, 1 - 1e-6) == pairs.src.shape[1]


def test_the_lead_is_the_gap_to_the_second_best() -> None:
    a = torch.tensor([1.0, 0.0])
    b, c = torch.tensor([0.75, 0.5]), torch.tensor([0.5, 0.5])
    metric = torch.stack([a, b, a, c]).unsqueeze(0)
    pairs = matching.match(metric, torch.ones(1, 4, 1), 0, "alternate")
    assert pairs.best.tolist() == [[0, 0]]
    assert pairs.similarity.tolist() == [[0.75 * GRID] * 2]
    assert pairs.lead.tolist() == [[0.25 * GRID] * 2]
