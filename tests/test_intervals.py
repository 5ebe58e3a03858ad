"""A share breaks its bound where its 95 % interval excludes the bound, not by one case."""

from __future__ import annotations

import pytest

from atm_export.prove.intervals import Share, wilson


@pytest.mark.parametrize("count", [1, 3, 32, 6221, 10**9])
def test_the_ends_are_exact(count: int) -> None:
    assert wilson(0, count)[0] == 0.0 and wilson(count, count)[1] == 1.0
    assert Share(count, count).at_least(1.0) and Share(0, count).at_most(0.0)
    assert not Share(count - 1, count).at_least(1.0) and not Share(1, count).at_most(0.0)


@pytest.mark.parametrize(
    ("hits", "of", "bound", "reaches"),
    [
        (18, 19, 0.98, True),  # one flip of 19: the interval ends at 0.991
        (17, 19, 0.98, False),
        (31, 32, 0.98, True),
        (29, 32, 0.98, False),
        (945, 1000, 0.98, False),  # the same share as 18 of 19, of enough cases
        (0, 1, 0.9, False),
        (0, 0, 0.98, True),  # nothing counted excludes nothing; the report says so
    ],
)
def test_many_cases_break_what_few_cannot(hits: int, of: int, bound: float, reaches: bool) -> None:
    assert Share(hits, of).at_least(bound) is reaches
    assert Share(of - hits, of).at_most(1 - bound) is reaches


def test_it_says_n() -> None:
    assert str(Share(17, 19)) == "17 of 19 (95 % interval 68.6 to 97.1 %)"
    assert Share(18, 19).facts()["of"] == 19
