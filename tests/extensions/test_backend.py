"""A toy backend goes the whole way: command line, ladder, run folder, verify, service, report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from atm_export.backends import ONNXRUNTIME, backends
from atm_export.cli import main
from atm_export.errors import ConfigError, GoldenMismatchError, ParityError
from atm_export.measure.accuracy.runners import runner_names
from atm_export.runs.reading import read_manifest
from atm_export.runtime import load
from tests.extensions import reference
from tests.runs import run_command

SMALL = ("demo", "--image-size", "16", "--no-benchmark")


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    reference.register()
    yield
    backends.remove("reference")


@pytest.fixture(scope="module")
def run(registered: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo at 16 x 16, proven on both; tests must not change it."""
    out = tmp_path_factory.mktemp("backend") / "run"
    run_command(*SMALL, "--backend", "reference", "--out", str(out))
    return out


def test_the_run_says_what_it_was_proven_on(run: Path) -> None:
    manifest = read_manifest(run)
    assert list(manifest.proven_on) == [ONNXRUNTIME, "reference"]
    assert manifest.proven_on["reference"].startswith("ONNX reference 1.")
    report = json.loads((run / "report.json").read_text())
    rungs = [rung for rung in report["parity"]["rungs"] if "reference" in rung["name"]]
    plain = [rung for rung in report["parity"]["rungs"] if rung["name"] == "onnx"]
    assert {rung["name"] for rung in rungs} == {"reference onnx", "shipped reference onnx"}
    assert [r["case"] for r in rungs if r["name"] == "reference onnx"] == [r["case"] for r in plain]
    assert max(rung["logits_max_abs"] for rung in rungs) <= 1e-4
    assert any(rung["merged_tokens"] for rung in rungs)
    assert "ONNX reference 1." in (run / "report.html").read_text()


def test_a_finished_run_is_proven_on_a_backend_that_it_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    run_command(*SMALL, "--out", str(out))
    assert list(read_manifest(out).proven_on) == [ONNXRUNTIME]
    run_command(*SMALL, "--backend", "reference", "--out", str(out))
    assert list(read_manifest(out).proven_on) == [ONNXRUNTIME, "reference"]
    capsys.readouterr()
    run_command(*SMALL, "--out", str(out))
    assert "reused" in capsys.readouterr().out


def test_it_serves_and_verifies(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(run), "--backend", "reference"]) == 0
    assert "runs on ONNX reference 1." in capsys.readouterr().out
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    ours, theirs = load(run, backend="reference"), load(run)
    assert np.abs(ours.predict(pixels) - theirs.predict(pixels)).max() <= 1e-4
    with pytest.raises(ConfigError, match="ONNX reference takes neither"):
        load(run, backend="reference", providers=["cpu"])
    with pytest.raises(ConfigError, match="ONNX reference takes neither"):
        load(run, backend="reference", threads=2)
    with pytest.raises(ConfigError, match="unknown backend 'referense'; nearest: reference"):
        load(run, backend="referense")


def test_a_backend_that_computes_something_else_is_refused(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    right = reference.Evaluated.run

    def wrong(self: reference.Evaluated, image: np.ndarray) -> dict[str, np.ndarray]:
        return {
            name: value + np.float32(0.01) if name == "logits" else value
            for name, value in right(self, image).items()
        }

    monkeypatch.setattr(reference.Evaluated, "run", wrong)
    with pytest.raises(GoldenMismatchError):
        load(run, backend="reference")
    arguments = [*SMALL, "--backend", "reference", "--out", str(tmp_path / "run")]
    assert main(arguments) == ParityError.exit_code
    assert "reference onnx differs on images, batch 1" in capsys.readouterr().err
    assert read_manifest(tmp_path / "run").proven_on == {}


def test_evaluate_and_bench_run_on_it(
    run: Path, tmp_path: Path, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    low = [f"{ONNXRUNTIME}-int8", "openvino-bf16", "openvino-int8"]
    assert runner_names() == ["eager", ONNXRUNTIME, "openvino", "reference", "tensorrt", *low]
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    some = ["--imagenet", str(digits), "--limit", "20", "--batch", "10", "--workers", "0"]
    for runner in ("reference", "eager"):
        run_command("evaluate", str(copy), *some, "--runner", runner)
    found = [
        json.loads((copy / f"evaluation-{runner}.json").read_text())
        for runner in ("reference", "eager")
    ]
    for name in ("top1", "agreement", "gflops"):
        assert found[0][name] == found[1][name]
    assert found[0]["device"] == "ONNX reference"
    capsys.readouterr()
    arguments = ["--backends", "reference", "--batches", "1", "--rounds", "1", "--no-policies"]
    run_command("bench", str(copy), *arguments)
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {row["backend"] for row in facts["rows"]} == {"reference"} and not facts["missing"]


def test_it_may_be_named_twice_and_by_commas(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    again = ("--backend", "onnxruntime,reference", "--backend", "reference")
    run_command(*SMALL, *again, "--out", str(out))
    assert list(read_manifest(out).proven_on) == [ONNXRUNTIME, "reference"]
    assert main([*SMALL, "--backend", "reference,nothing", "--out", str(out)]) == 2
    assert "unknown backend 'nothing'" in capsys.readouterr().err
