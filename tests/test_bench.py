"""`bench`: pairing, intervals, the recommendation, and one run of the demo."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pytest

from atm_export.backends import backends
from atm_export.backends.runner import Array
from atm_export.cli import main
from atm_export.commands.bench import BenchOptions
from atm_export.errors import MissingDependencyError
from atm_export.measure.speed.bench import recommend
from atm_export.measure.speed.candidates import candidates
from atm_export.measure.speed.latency import interleave, median_interval, orders, row_of
from atm_export.model.plan import plan_for
from atm_export.runs.reading import open_run
from atm_export.subject import exported_subject
from tests.runs import run_command


class Recorder:
    """A runner that writes down when it ran."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def run(self, image: Array) -> Mapping[str, Array]:
        self.log.append(self.name)
        return {}


def test_candidates_take_turns_and_warm_up_is_not_counted() -> None:
    log: list[str] = []
    runners = {name: Recorder(name, log) for name in "ab"}
    ticks = iter(range(100))
    feeds = [dict.fromkeys("ab", np.zeros(1))]
    seconds = interleave(runners, feeds, 3, clock=lambda: float(next(ticks)))
    assert "".join(log) == "ab" * 5
    assert seconds == {"a": [1.0] * 3, "b": [1.0] * 3}


@pytest.mark.parametrize("count", [1, 3, 4, 5])
def test_nobody_runs_behind_itself_and_everybody_behind_every_other(count: int) -> None:
    rows = orders(count)
    assert all(sorted(row) == list(range(count)) for row in rows)
    behind = Counter(pair for row in rows for pair in pairwise(row))
    assert set(behind) == {(a, b) for a in range(count) for b in range(count) if a != b}
    assert len(set(behind.values())) <= 1
    if count > 1:
        assert all(a[-1] != b[0] for a, b in zip(rows, [*rows[1:], rows[0]], strict=True))


def test_intervals_of_medians() -> None:
    # order statistics of the table in Hahn and Meeker, Statistical Intervals, 95 %, two-sided
    assert median_interval([float(i) for i in range(1, 11)]) == (2.0, 9.0)
    assert median_interval([float(i) for i in range(1, 21)]) == (6.0, 15.0)
    assert median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)
    assert median_interval([1.0]) == (1.0, 1.0)


def test_a_row_has_paired_ratios() -> None:
    row = row_of([0.5, 1.0, 2.0], [1.0, 3.0, 2.0], 4, 1.4)
    assert row["speedup"] == {"median": 2.0, "low": 1.0, "high": 3.0}
    assert row["median_ms"] == 1000.0 and row["images_per_s"] == 4.0
    assert "speedup" not in row_of([0.5], None, 1, 1.0)


def line(candidate: str, batch: int, rate: float, *speed: float) -> dict[str, Any]:
    row = {"backend": "onnxruntime", "candidate": candidate, "batch": batch}
    row |= {"images_per_s": rate, "median_ms": 1e3 * batch / rate}
    if speed:
        row["speedup"] = dict(zip(("low", "median", "high"), speed, strict=True))
    return row


def test_the_recommendation_is_one_sentence() -> None:
    rows = [
        line("unmerged", 1, 10.0),
        line("adaptive", 1, 12.0, 0.9, 1.2, 1.3),
        line("frozen", 8, 15.0, 1.3, 1.5, 1.6),
        {**line("tome:8", 8, 99.0, 1.3, 1.5, 1.6), "compared": True},
    ]
    text = recommend(rows)
    assert text.startswith("Take frozen merging at batch 8 in onnxruntime: 1.50 (1.30 to 1.60)")
    text = recommend(rows[:2])
    assert text.startswith("No merging, at batch 1") and "adaptive at batch 1, gives 1.20" in text
    assert "Nothing" in recommend([])


def test_bench_ends_with_a_recommendation_and_one_json_line(
    run_copy: Path, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--images", str(digits), "--batches", "2", "--rounds", "2", "--no-policies"]
    backends = ["--backends", "onnxruntime,eager,tensorrt"]
    run_command("bench", str(run_copy), *arguments, *backends)
    lines = capsys.readouterr().out.splitlines()
    facts = json.loads(lines[-1])
    assert lines[-2] == facts["recommendation"]
    measured = {(row["backend"], row["candidate"]) for row in facts["rows"]}
    names = ("unmerged", "adaptive")
    assert measured == {(b, c) for b in ("onnxruntime", "eager") for c in names}
    assert {row["backend"] for row in facts["missing"]} == {"tensorrt"}
    assert all("--trt" in row["reason"] for row in facts["missing"])
    assert facts["threads"] >= 1 and "cpu_affinity" in facts
    adaptive = next(row for row in facts["rows"] if row["candidate"] == "adaptive")
    assert adaptive["flops_ratio"] > 2 and adaptive["p90_ms"] <= adaptive["p99_ms"]
    html = (run_copy / "report.html").read_text(encoding="utf-8")
    assert facts["recommendation"] in html.replace("&#39;", "'")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--backends", "magic"], 2, "known: onnxruntime"),
        (["--batches", "0"], 2, "--batches 0"),
        (["--rounds", "0"], 2, "--rounds 0"),
        (["--against", "tome:x", "--no-policies"], 2, "tome:8"),
        (["--against", "absent", "--no-policies"], 10, "absent"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    code: int,
    says: str,
    finished_run: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["bench", str(finished_run), *arguments]) == code
    assert says in capsys.readouterr().err


def test_a_preset_is_a_candidate_that_may_be_recommended(finished_run: Path) -> None:
    run = open_run(finished_run)
    subject = exported_subject(run.manifest, "manifest.json")
    pixels = np.zeros((2, 56, 56, 3), np.uint8)
    found = candidates(run, subject, pixels, "lossless", policies=False)[-1]
    preset = subject.config.model.config.presets["lossless"]
    assert (found.name, found.compared) == ("lossless", False)
    assert found.plan == plan_for(subject.model.backbone, preset.chosen)


def test_all_backends_are_those_that_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise MissingDependencyError("not here")

    monkeypatch.setattr(backends["openvino"], "require", absent)
    monkeypatch.setattr(backends["tensorrt"], "require", absent)
    assert BenchOptions(backends="all").sweep().backends == (
        "onnxruntime",
        "eager",
        "torch.compile",
    )


def test_tome_is_planned_from_its_name(finished_run: Path) -> None:
    run = open_run(finished_run)
    subject = exported_subject(run.manifest, "manifest.json")
    pixels = np.zeros((2, 56, 56, 3), np.uint8)
    found = candidates(run, subject, pixels, "tome:8", policies=True)
    assert [c.name for c in found] == ["unmerged", "adaptive", "frozen", "per-image", "tome:8"]
    assert [block and block.r for block in found[-1].plan.blocks] == [8] * 12
    assert not found[2].plan.adaptive and found[3].plan.per_image
