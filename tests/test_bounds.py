"""Numbers beyond their bounds are one line, the same at every entrance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atm_export.bounds import MAX_THREADS, checked_threads, whole
from atm_export.choice import Choice
from atm_export.cli import main
from atm_export.errors import ConfigError
from atm_export.measure.accuracy.batches import Options
from atm_export.measure.accuracy.evaluation import evaluate_run
from atm_export.measure.accuracy.place import Place
from atm_export.pipeline import export
from atm_export.resolving import resolve
from atm_export.runs.reading import open_run
from atm_export.runtime import load
from atm_export.runtime.__main__ import main as slim
from atm_export.runtime.prove import verify

BAD: tuple[Any, ...] = (MAX_THREADS + 1, 10**6, -1, -5, True, False, "3", 2.5, None, 10**400)


@pytest.mark.parametrize("threads", BAD, ids=lambda value: str(value)[:12])
def test_python_refuses_threads(threads: Any, uint8_folder: Path, tmp_path: Path) -> None:
    run = open_run(uint8_folder)
    for ask in (
        lambda: checked_threads(threads),
        lambda: load(uint8_folder, threads=threads),
        lambda: verify(uint8_folder, threads=threads),
        lambda: export(resolve(Choice(model="demo")), tmp_path / "run", threads=threads),
        lambda: evaluate_run(run, Place("absent"), Options(), threads=threads),
    ):
        with pytest.raises(ConfigError, match=r"threads .*give a whole number from 0 \(all"):
            ask()
    assert not list(tmp_path.iterdir())


def test_what_is_taken() -> None:
    assert [checked_threads(n) for n in (0, 1, MAX_THREADS)] == [0, 1, MAX_THREADS]
    found = whole(np.int64(3), "x", 1, 4)
    assert found == 3 and type(found) is int


@pytest.mark.parametrize("threads", ["100000", "257", "-5", "abc", "2.5", "1e3", "True", ""])
def test_every_command_refuses_threads(
    threads: str,
    uint8_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    run = str(uint8_folder)
    for command in (
        ["demo"],
        ["evaluate", run, "--imagenet", "images"],
        ["bench", run],
        ["tune", "demo", "--images", "images"],
        ["verify", run],
    ):
        assert main([*command, "--threads", threads]) == 2, command
        lines = capsys.readouterr().err.strip().splitlines()
        assert "threads" in lines[-1] and not [line for line in lines if "Traceback" in line]
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


@pytest.mark.parametrize("threads", ["100000", "-5"])
def test_the_slim_commands_refuse_threads(
    threads: str, uint8_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["verify", str(uint8_folder)], ["classify", str(uint8_folder), "a.png"]):
        assert slim([*command, "--threads", threads]) == 2
        assert "give a whole number from 0 (all cores) to 256" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["bench", "RUN", "--rounds", "0"], "--rounds 0"),
        (["bench", "RUN", "--rounds", "1000000"], "--rounds 1000000"),
        (["bench", "RUN", "--rounds", "2.5"], "2.5"),
        (["bench", "RUN", "--batches", "1,0"], "--batches 0"),
        (["bench", "RUN", "--batches", "1000000"], "--batches 1000000"),
        (["bench", "RUN", "--batches", "1,x"], "--batches 1,x"),
        (["bench", "RUN", "--batches", ""], "--batches"),
        (["bench", "RUN", "--cores", "99999999999999999999999"], "--cores"),
        (["evaluate", "RUN", "--imagenet", ".", "--batch", "0"], "--batch 0"),
        (["evaluate", "RUN", "--imagenet", ".", "--batch", "1000000"], "--batch 1000000"),
        (["evaluate", "RUN", "--imagenet", ".", "--workers", "100000"], "--workers 100000"),
        (["evaluate", "RUN", "--imagenet", ".", "--workers", "-1"], "--workers -1"),
        (["evaluate", "RUN", "--imagenet", ".", "--limit", "0"], "--limit 0"),
        (["evaluate", "RUN", "--imagenet", ".", "--max-unreadable", "-1"], "--max-unreadable"),
        (["tune", "demo", "--images", ".", "--trials", "0"], "--trials 0"),
        (["tune", "demo", "--images", ".", "--use", "0"], "--use 0"),
        (["tune", "demo", "--images", ".", "--workers", "1000"], "--workers 1000"),
        (["tune", "demo", "--images", ".", "--minutes", "nan"], "--minutes nan"),
        (["demo", "--image-size", "5000"], "image_size"),
        (["demo", "--image-size", "8.5"], "8.5"),
        (["demo", "--opset", "20.4"], "20.4"),
        (["demo", "--opset", "99999999999999999999"], "--opset"),
        (["deit_s", "--gflops", "nan"], "--gflops nan"),
        (["deit_s", "--gflops", "-1"], "--gflops -1"),
        (["demo", "--method", "tome", "-r", "9" * 30], "r.0"),
        (["demo", "--split", "9" * 30], "split"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_other_numbers(
    command: list[str],
    says: str,
    uint8_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [str(uint8_folder) if part == "RUN" else part for part in command]
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert says in error and "Traceback" not in error and len(error) < 400
