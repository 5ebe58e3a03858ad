"""Embeddings judged: cosines, nearest neighbours, class vectors, and the commands that say them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atm_export.errors import DataError, NonFiniteError
from atm_export.tasks import neighbours
from atm_export.tasks.class_vectors import read_class_vectors
from atm_export.tasks.judge_vectors import ByDirection, VectorLimits, neighbour_facts
from atm_export.tasks.neighbours import nearest
from tests.run_folders import real_run
from tests.runs import run_command

CLASSIFIER = "timm:test_vit"


def by_hand(rows: Any, k: int) -> list[list[int]]:
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    found = []
    for i, row in enumerate(unit @ unit.T):
        others = [j for j in range(len(rows)) if j != i]
        found.append(sorted(others, key=lambda j: (-round(float(row[j]), 9), j))[:k])
    return found


@pytest.mark.parametrize("block", [1, 100, 10**6])
def test_neighbours_by_hand_in_any_block(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", block)
    rows = np.random.default_rng(0).normal(size=(40, 6))
    rows[7] = 3 * rows[2]
    rows[30] = rows[2]  # ties: the first comes first
    assert nearest(rows, 10).tolist() == by_hand(rows, 10)
    assert nearest(rows, 2)[[2, 7, 30]].tolist() == [[7, 30], [2, 30], [2, 7]]


@pytest.mark.parametrize(("count", "k"), [(1, 1), (5, 5), (5, 0)])
def test_too_few_images_have_no_neighbours(count: int, k: int) -> None:
    with pytest.raises(ValueError, match="neighbours"):
        nearest(np.eye(5)[:count], k)


def test_recall_and_overlap() -> None:
    rows = np.random.default_rng(1).normal(size=(12, 4))
    same = neighbour_facts(rows, 2 * rows)
    for k in ("1", "5", "10"):
        assert same["recall"][k].hits == same["overlap"][k].hits == 12
    moved = np.random.default_rng(2).normal(size=(12, 4))
    found = neighbour_facts(moved, rows)
    ours, plain = by_hand(moved, 5), by_hand(rows, 5)
    pairs = list(zip(ours, plain, strict=True))
    assert found["recall"]["5"].hits == sum(theirs[0] in own for own, theirs in pairs)
    overlap = sum(len(set(own) & set(theirs)) / 5 for own, theirs in pairs)
    assert found["overlap"]["5"].hits == pytest.approx(overlap, abs=1e-6)
    assert neighbour_facts(rows[:3], rows[:3])["recall"].keys() == {"1"}


def test_what_has_no_direction_is_refused_and_what_is_packed_comes_back() -> None:
    judge = ByDirection()
    rows = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    np.testing.assert_array_equal(judge.unpacked(judge.packed(rows)), rows)
    for bad in (np.nan, np.inf, 0.0):
        spoilt = rows.copy()
        spoilt[1] = bad
        with pytest.raises(NonFiniteError, match="image 1"):
            judge.reading(spoilt)
    for values in ([3], ["?"], ["AAAA"], judge.packed(rows)[:1] + judge.packed(rows[:, :2])[:1]):
        with pytest.raises(ValueError):
            judge.unpacked(values)


def test_limits_fail_on_nan_and_stop_early() -> None:
    limits = VectorLimits(0.9, 50.0, 1.0)
    good = {"cosine": 0.95, "recall_low": 60.0, "distance": 0.1}
    assert all(each <= 0 for each in limits.excess(good, {}))
    for name in good:
        assert not all(each <= 0 for each in limits.excess({**good, name: np.nan}, {}))
    rows, away = np.eye(4), -np.eye(4)
    assert limits.lost(away[:3], rows, 4) and not limits.lost(away[:2], rows, 4)


def test_class_vectors(tmp_path: Path) -> None:
    path, rows = tmp_path / "text.npz", np.eye(3, 4)
    np.savez(path, vectors=2 * rows, labels=np.array(["a", "b", "c"]))
    found = read_class_vectors(path, 4)
    assert found.labels == ("a", "b", "c") and found.kind == "zero-shot"
    assert found.best(np.array([[0, 9, 1, 0]])).tolist() == [[1, 2, 0]]
    np.savez(path, weight=rows, bias=np.array([0, 0, 20.0]))
    assert read_class_vectors(path, 4).best(np.array([[0, 9, 1, 0]])).tolist() == [[2, 1, 0]]
    for wrong in (
        {"vectors": rows[:, :3]},
        {"vectors": 0 * rows},
        {"vectors": rows * np.nan},
        {"weight": rows},
        {"vectors": rows, "labels": np.array(["a"])},
        {"vectors": np.array([["x"] * 4])},
        {"vectors": np.array([[None] * 4])},
        {},
    ):
        np.savez(path, **wrong)
        with pytest.raises(DataError, match=r"text\.npz"):
            read_class_vectors(path, 4)
    path.write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"text\.npz"):
        read_class_vectors(path, 4)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("neighbours") / "run"
    point = {"alpha": 0.8, "beta": 0.05, "theta_min": 0.6}
    return real_run(out, model=CLASSIFIER, weights="random", task="embed", trace=True, **point)


def test_evaluate_speaks_of_embeddings(
    run: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "text.npz"
    np.savez(path, vectors=np.eye(10, 64), labels=np.array([str(i) for i in range(10)]))
    images = ("--imagenet", digits, "--workers", "0")
    run_command("evaluate", run, *images, "--class-vectors", path, "--min-cosine", "0")
    printed = capsys.readouterr().out
    assert "recall@1" in printed and "overlap@10" in printed
    facts = json.loads((run / "evaluation-onnxruntime.json").read_text())
    assert facts["task"] == "embed" and facts["zero_shot"]["top1"]["of"] == 40
    assert facts["neighbours"]["recall"]["1"] == facts["neighbours"]["overlap"]["1"]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "recall@10" in page and "logits" not in page and "<h2>Accuracy" not in page
    run_command("evaluate", run, *images, "--min-cosine", "1", "--min-recall", "100", code=1)
    assert "the median cosine" in capsys.readouterr().err
    for wrong in (("--min-agreement", "9"), ("--min-cosine", "2"), ("--labels", path)):
        run_command("evaluate", run, *images, *wrong, code=2)


def test_tune_and_compare_speak_of_embeddings(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATM_EXPORT_CONFIGS", str(tmp_path / "configs"))
    common = ("--weights", "random", "--task", "embed", "--images", digits, "--workers", "0")
    out = tmp_path / "compare"
    options = ("--methods", "tome:r=4", "--gflops", "0.1", "--rounds", "0", "--out", out)
    run_command("compare", CLASSIFIER, *common, *options)
    facts = json.loads((out / "compare.json").read_text())
    (row,) = facts["rows"]
    assert 0 <= row["distance"]["mean"] < 1 and row["top1"] is None and "kl" not in row
    assert row["recall"] == row["neighbours"]["recall"]["1"]
    html = (out / "report.html").read_text(encoding="utf-8")
    assert "1 - cosine" in html and "KL" not in html
    pytest.importorskip("optuna", reason="needs atm-export[tune]")
    bounds = ("--min-cosine", "0", "--min-recall", "0", "--trials", "2")
    run_command("tune", CLASSIFIER, *common, *bounds, "--out", tmp_path / "tune")
    tuned = json.loads((tmp_path / "tune" / "tune.json").read_text())
    assert tuned["task"] == "embed" and tuned["unmerged"]["cosine"] == pytest.approx(1)
    assert {"cosine", "recall", "recall_low"} <= tuned["chosen"].keys()
    options = ("--min-agreement", "90", "--out", tmp_path / "other")
    run_command("tune", CLASSIFIER, *common, *options, code=2)
