"""A finished run of the demo, and digits as a data set: what evaluate, bench and reports start
from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from atm_export import demo
from atm_export.cli import main

DIGITS = 40


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 held-out digits in class folders 0 to 9."""
    folder = tmp_path_factory.mktemp("digits")
    images, labels = demo.heldout()
    for i in range(DIGITS):
        (folder / str(labels[i])).mkdir(exist_ok=True)
        images[i].save(folder / str(labels[i]) / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """An adaptive export of the demo with trace outputs; to be copied before it is changed."""
    out = tmp_path_factory.mktemp("runs") / "run"
    arguments = ["--images", str(digits), "--trace", "--no-benchmark", "--out", str(out)]
    assert main(["demo", *arguments]) == 0
    return out


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run for one test."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))
