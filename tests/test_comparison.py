"""A verdict that NaN cannot pass, wherever numbers are compared."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from atm_export.comparison import (
    Comparison,
    largest,
    smallest,
)
from atm_export.errors import GoldenMismatchError, NonFiniteError, ParityError
from atm_export.measure.tune.objective import violation
from atm_export.methods.bipartite.decision import count_margin
from atm_export.prove import compare, finished
from atm_export.prove.results import Difference, LadderResult, Rung
from atm_export.runtime import Session, check_golden, load
from atm_export.runtime import session as session_module
from atm_export.runtime.prove import Verified
from atm_export.tasks.agreement import agreements
from atm_export.tasks.judge_classes import ClassLimits
from tests.test_report import REPORT, printed
from tests.tiny import spec_of

NAN, INF = float("nan"), float("inf")
TOP1, ANGLE = agreements["top1"], agreements["cosine"]
ROWS = np.array([[1.0, 2.0, 5.0], [4.0, 1.0, 0.0]], np.float32)


@pytest.mark.parametrize(
    ("difference", "ok"), [(0.0, True), (1.0, True), (1.1, False), (NAN, False), (INF, False)]
)
def test_the_verdict(difference: float, ok: bool) -> None:
    assert Comparison("x", difference, 1.0).ok is ok
    assert Comparison("x", difference, 1.0, same_top1=False).ok is False
    assert Comparison("x", 0.0, NAN).ok is False
    assert "another top-1" in Comparison("x", difference, 1.0, same_top1=False).line


@pytest.mark.parametrize("wrong", [NAN, INF, -INF])
@pytest.mark.parametrize("row", [0, 1])
def test_one_bad_number_fails_logits_and_angles(row: int, wrong: float) -> None:
    assert TOP1.compare("x", ROWS, ROWS, 1e-4).ok and ANGLE.compare("x", ROWS, ROWS, 0.1).ok
    bad = ROWS.copy()
    bad[row, 1] = wrong
    for ours, theirs in ((bad, ROWS), (ROWS, bad), (bad, bad)):
        assert not TOP1.compare("x", ours, theirs, 1e-4).ok
        assert not ANGLE.compare("x", ours, theirs, 0.1).ok
    assert not ANGLE.compare("x", np.zeros_like(ROWS), ROWS, 0.1).ok


def test_top1_counts_where_it_is_clear() -> None:
    near = np.array([[1.0, 1.00005, 0.0]], np.float32)
    other = np.array([[1.00005, 1.0, 0.0]], np.float32)
    assert TOP1.compare("x", other, near, 1e-4).ok
    assert not TOP1.compare("x", ROWS[:, ::-1], ROWS, 0.5).same_top1
    assert TOP1.compare("x", ROWS[:, ::-1], ROWS, 100.0).ok
    assert TOP1.flips(ROWS[:, ::-1], ROWS, 0.5).tolist() == [True, True]
    assert TOP1.flips(ROWS[:, ::-1], ROWS, 100.0).tolist() == [False, False]
    assert TOP1.compare("x", ROWS[:, :1], ROWS[:, :1], 0.0).ok, "one class"


@pytest.mark.parametrize("values", [[NAN, 1.0, 2.0], [1.0, NAN, 2.0], [1.0, 2.0, NAN]])
def test_extremes_keep_nan(values: list[float]) -> None:
    assert math.isnan(largest(values)) and math.isnan(smallest(values))
    assert largest([]) == 0 and smallest([]) == INF and largest(iter([1.0, 3.0])) == 3


class Spoilt:
    """A backend whose answers can be spoilt."""

    about, providers, facts = "spoilt", ("none",), None

    def __init__(self, session: Session, spoil: Any) -> None:
        self.session, self.spoil = session, spoil

    def run(self, image: np.ndarray) -> dict[str, np.ndarray]:
        logits = self.session.outputs(image)["logits"].copy()
        self.spoil(logits)
        return {"logits": logits}


def spoilt(session: Session, value: float) -> Session:
    def spoil(logits: np.ndarray) -> None:
        logits[-1, 0] = value

    return Session(session.run_folder, Spoilt(session, spoil))


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_logits_that_are_not_finite_are_an_error(uint8_folder: Path, value: float) -> None:
    whole = load(uint8_folder, threads=1)
    session = spoilt(whole, value)
    pixels = np.zeros((2, 48, 48, 3), np.uint8)
    for ask in (session.run, session.predict, session.classify):
        with pytest.raises(NonFiniteError, match="image 1 hold NaN or infinity"):
            ask(pixels)
    assert NonFiniteError.exit_code == 12
    assert not any(each.ok for each in check_golden(session) if "grey" not in each.what)
    with pytest.raises(ParityError, match="logits of single images"):
        Verified(session, tuple(check_golden(session))).require()
    with pytest.raises(GoldenMismatchError):
        session_module._warm_up(session)


def traced(allowed: float, *rows: float) -> Any:
    """The reference's one row of logits, of which that much may differ."""
    spec = spec_of(len(rows))
    spec = replace(spec, tolerance=replace(spec.tolerance, allowed=allowed))
    return SimpleNamespace(specs=(spec,), outputs={"logits": torch.tensor([rows])})


def test_the_eager_proof_fails_on_nan_and_on_another_top1(demo_folder: Path) -> None:
    trace = traced(1e-4, 1.0, 2.0, 5.0)

    def answer(*rows: float) -> Any:
        found = {"logits": np.array([rows], np.float32)}
        folder = SimpleNamespace(folder=demo_folder)
        return SimpleNamespace(outputs=lambda image: found, run_folder=folder)

    assert finished._compare(answer(1, 2, 5), None, trace, 1) == [0]
    for wrong in (answer(1, 2, NAN), answer(NAN, 2, 5), answer(1, 2, 5.1)):
        with pytest.raises(ParityError, match="batch 1 against the eager reference"):
            finished._compare(wrong, None, trace, 1)


def test_the_eager_proof_looks_at_top1() -> None:
    """A lead of up to twice the tolerance may go either way; a larger one may not."""
    found = {"logits": np.array([[6.0, 5.9]], np.float32)}
    session: Any = SimpleNamespace(
        outputs=lambda image: found, run_folder=SimpleNamespace(folder="x")
    )
    assert finished._compare(session, None, traced(1.0, 5.5, 6.5), 1) == [pytest.approx(0.6)]
    lead = {"logits": np.array([[5.0, 4.9]], np.float32)}
    session = SimpleNamespace(outputs=lambda image: lead, run_folder=SimpleNamespace(folder="x"))
    with pytest.raises(ParityError, match="another top-1"):
        finished._compare(session, None, traced(2.0, 3.0, 7.1), 1)


@pytest.mark.parametrize("which", ["ours", "theirs", "both"])
def test_the_ladder_fails_on_nan_of_either_side(which: str) -> None:
    good = np.array([[1.0, 2.0], [3.0, 1.0]])
    bad = np.array([[1.0, 2.0], [NAN, 1.0]])
    spec = spec_of(2)
    ours, theirs = (bad if which in (side, "both") else good for side in ("ours", "theirs"))

    def quiet() -> dict[str, Any]:
        return {"logits": np.zeros(2)}

    assert compare.compare_output(spec, good, good, quiet) is None
    assert compare.compare_output(spec, ours, theirs, quiet) == "logits are not finite"
    noise = {"logits": np.array([NAN, NAN])}
    nan = compare.compare_output(spec, good, good + 0.1, lambda: noise)
    assert nan is not None and "differ" in nan


def test_a_proof_with_nan_is_written_and_shown() -> None:
    names = ("logits_max_abs", "cosine", "top1_agreement")
    rungs = tuple(
        Rung("onnx", case, dict(zip(names, values, strict=True)), 0)
        for case, values in (("a", (1e-6, 1.0, 1.0)), ("b", (NAN, NAN, 0.5)))
    )
    for order in (rungs, rungs[::-1]):
        facts = LadderResult(order, (Difference("onnx", "b", "NaN"),), specs=(spec_of(2),)).facts()
        assert facts["logits_max_abs"] is None and facts["cosine_min"] is None
        assert facts["top1_agreement"] == 0.5
        json.dumps(facts, allow_nan=False)
    text = printed({**REPORT, "parity": {**REPORT["parity"], **facts}})
    assert "logits not finite" in text


def test_margins_and_limits_fail_on_nan() -> None:
    similarity = torch.tensor([[3.0, NAN, 9.0]])
    assert math.isnan(count_margin(similarity, 5.0, 1))
    facts = {"agreement_low": 99.0, "top1": None, "distance": NAN}
    assert not violation(facts, {"top1": None}, ClassLimits()) <= 0
    assert violation({**facts, "distance": 0.5}, {"top1": None}, ClassLimits()) == 0
