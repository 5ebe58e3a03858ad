"""Commands that must end as they should, with all that they printed where they do not; a finished
run of the demo, and digits as a data set: what evaluate, bench and reports start from."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from atm_export import demo
from atm_export.cli import main

DIGITS = 40


def run_command(*arguments: object, code: int = 0) -> str:
    """`atm-export` with these arguments; its standard output. Fails with the whole output where
    the exit code is another. What is printed goes on to where it would have gone."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            found = main([str(argument) for argument in arguments])
    finally:
        sys.stdout.write(out.getvalue())
        sys.stderr.write(err.getvalue())
    if found != code:
        line = " ".join(map(str, arguments))
        pytest.fail(_story(f"atm-export {line}", found, code, out.getvalue(), err.getvalue()))
    return out.getvalue()


def ended(done: CompletedProcess[Any], code: int = 0) -> str:
    """The standard output of a process that ended; fails with all of its output where the exit
    code is another."""
    out, err = (
        text.decode(errors="replace") if isinstance(text, bytes) else text or ""
        for text in (done.stdout, done.stderr)
    )
    if done.returncode != code:
        line = " ".join(map(str, done.args))
        pytest.fail(_story(line, done.returncode, code, out, err))
    return out


@contextmanager
def model_config(folder: Path, name: str, text: str) -> Iterator[None]:
    """A model's YAML in the user's config folder, which is `folder` meanwhile."""
    (folder / f"{name}.yaml").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATM_EXPORT_CONFIGS", str(folder))
        yield


def _story(line: str, found: int, code: int, out: str, err: str) -> str:
    return f"{line}\nended with {found}, not {code}\n-- stdout\n{out}\n-- stderr\n{err}"


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
    run_command("demo", *arguments)
    return out


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run for one test."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))
