"""Ranks by unique keys are those of a stable sort, on a grid that no cut can leave."""

from __future__ import annotations

import pytest
import torch

from atm_export.methods.ranked import (
    STEPS,
    UNIT,
    ascending,
    ceiling,
    falling,
    on_grid,
    rank,
    ranks,
    shortfall,
)


@pytest.mark.parametrize("tokens", [1, 2, 7, 196, 1024, 1025, 3000])
@pytest.mark.parametrize("most", [0, 3, STEPS - 1])
def test_keys_order_as_a_stable_sort_does(tokens: int, most: int) -> None:
    """Beyond 1024 tokens it takes two sorts."""
    draw = torch.Generator().manual_seed(tokens)
    score = torch.randint(0, most + 1, (3, tokens), generator=draw).float()
    order = falling(score)
    assert torch.equal(order, rank(score, ()).order)
    assert torch.equal(order.gather(1, ranks(order)), torch.arange(tokens).expand(3, -1))
    assert torch.equal(ascending(order), torch.arange(tokens).expand(3, -1))


@pytest.mark.parametrize("tokens", [5, 196, 4096])
def test_no_cut_lies_above_the_ceiling(tokens: int) -> None:
    """However few tokens stay, and however much of the attention they have."""
    draw = torch.Generator().manual_seed(tokens)
    for power in (0.1, 1.0, 8.0):
        score = torch.rand(4, tokens, generator=draw) ** power
        score = score / score.sum(dim=1, keepdim=True)
        for kept in {1, 2, tokens // 10 + 1, tokens // 2, tokens - 1}:
            most = ceiling(tokens, kept)
            assert int((score > most).sum(dim=1).max()) <= kept
            assert most * tokens >= 2 - 1e-9
            own = rank(on_grid(score, most), (kept,))
            exact = score.double().sort(dim=1, descending=True).values
            found = score.double().gather(1, own.order)
            cut = exact[:, kept - 1 : kept] - found[:, :kept].amin(dim=1, keepdim=True)
            assert float(cut.max()) <= most / STEPS + 1e-12, kept


def test_margins_and_shortfalls_are_in_shares_of_the_mean() -> None:
    score = torch.tensor([[5.0, 9.0, 2.0, 7.0]])
    own = rank(score, (0, 2, 4))
    assert own.cuts == (2,) and own.margin() == 2 / UNIT
    assert shortfall(own, own.order) == 0
    assert shortfall(own, torch.tensor([[1, 2, 0, 3]])) == 5 / UNIT
    assert rank(score, (4,)).margin() == float("inf")
