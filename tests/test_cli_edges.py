"""Folders that cannot be used, runs that are cut short, and every command that the texts show."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from signal import SIGTERM, getsignal, signal
from typing import Any

import pytest

from atm_export import cli, pipeline, subject
from atm_export.choice import Choice
from atm_export.cli import HELP, main
from atm_export.config import ModelSpec, RunConfig
from atm_export.errors import AtmExportError
from atm_export.model.zoo import load_model
from atm_export.model_configs import load_model_config
from atm_export.runs.writing import broken_files, finished_document
from atm_export.uses import USES
from tests.runs import run_command

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    *("bench", "compare", "evaluate", "predict", "reproduce", "triton", "tune", "verify"),
    *("visualize", "web"),
}
SMALL = ["demo", "--image-size", "8", "--method", "none", "--no-benchmark"]


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """`main` takes SIGTERM over; give it back."""
    before = getsignal(SIGTERM)
    yield
    signal(SIGTERM, before)


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of the error; nothing but progress stands before it."""
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("atm-export: ")]
    assert errors == lines[-1:]
    assert not [line for line in lines if "Traceback" in line or "Warning" in line]
    return errors[0]


def shown_commands() -> list[str]:
    """Every line `atm-export ...` of the help, the README and the how-to guides."""
    lines = re.findall(r"^ *atm-export (\S.*)$", HELP, re.M)
    lines = [re.split(r"  +", line)[0] for line in lines]
    pages = [ROOT / "README.md", ROOT / "docs" / "tutorial.md", *ROOT.glob("docs/howto/*.md")]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    lines += [line.split("#")[0] for line in re.findall(r"^atm-export (.*)$", text, re.M)]
    return sorted({line.strip() for line in lines})


def test_the_texts_show_commands() -> None:
    assert len(shown_commands()) >= 6


@pytest.mark.parametrize("line", shown_commands())
def test_a_shown_command_resolves(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parsed, looked up and validated; only the run itself is left out."""
    monkeypatch.chdir(tmp_path)
    ran: list[RunConfig] = []

    def run(config: RunConfig, *rest: Any) -> int:
        ran.append(config)
        return 0

    monkeypatch.setattr(cli, "_run", run)
    monkeypatch.setattr("atm_export.measure.budget.meeting", lambda config, *rest: config)
    monkeypatch.setattr("atm_export.commands.triton.write_all", lambda *given: None)
    arguments = shlex.split(line)
    if arguments[0] in COMMANDS:
        cli.app.parse_args(arguments, exit_on_error=False, print_error=False)
        return
    for option, value in pairwise(arguments):
        if option in ("--images", "--calibrate"):
            Path(value).mkdir(parents=True, exist_ok=True)
    run_command(*arguments)
    runs = not {"list", "--help", "--version"} & set(arguments)
    assert len(ran) == runs


@pytest.mark.parametrize("parts", [("x" * 300,), ("new", "x" * 300), ("x" * 300, "run")])
def test_a_name_too_long_is_one_line_and_leaves_nothing(
    parts: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, "--out", str(tmp_path.joinpath(*parts))]) == 7
    assert "choose another --out" in last_line(capsys)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """Permissions count for root too: this thread lays down its right to pass over them (Linux
    capabilities DAC_OVERRIDE and DAC_READ_SEARCH), and takes it up again."""
    if os.geteuid() != 0:
        yield
        return
    libc, header = ctypes.CDLL(None, use_errno=True), (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    if libc.capget(header, sets) != 0:
        pytest.skip("root without capabilities to lay down")
    before, sets[0] = sets[0], sets[0] & ~0b110
    assert libc.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = before
        assert libc.capset(header, sets) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux'")
@pytest.mark.parametrize("mode", [0o500, 0o000])
def test_a_folder_that_may_not_be_written(
    mode: int, tmp_path: Path, unprivileged: None, capsys: pytest.CaptureFixture[str]
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(mode)
    try:
        for out in (closed / "run", closed / "new" / "run"):
            assert main([*SMALL, "--out", str(out)]) == 7
            assert "choose another --out" in last_line(capsys)
    finally:
        closed.chmod(0o700)
    assert not list(closed.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux'")
def test_own_configs_that_cannot_be_read_are_one_line(
    tmp_path: Path,
    unprivileged: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    configs = tmp_path / "configs"
    configs.mkdir()
    monkeypatch.setenv("ATM_EXPORT_CONFIGS", str(configs))
    (configs / "demo.yaml").write_text("family: demo")
    for path, mode in ((configs / "demo.yaml", 0o000), (configs, 0o000)):
        path.chmod(mode)
        assert main(SMALL) == 2
        assert "cannot read" in (line := last_line(capsys)) and "ATM_EXPORT_CONFIGS" in line
        path.chmod(0o700)
    (configs / "demo.yaml").write_bytes(b"family: \xff")
    assert main(SMALL) == 2
    assert "is not UTF-8" in last_line(capsys)


def test_a_full_disk_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert main([*SMALL, "--out", str(tmp_path / "new" / "run")]) == 7
    assert "disk full" in last_line(capsys)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_run_goes_on_from_its_finished_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "climb", interrupt)
    assert main([*SMALL, "--out", str(out)]) == 130
    assert "interrupted" in last_line(capsys)
    assert not out.exists()
    monkeypatch.undo()
    translated: list[int] = []
    monkeypatch.setattr(subject, "traced_graph", lambda *_, **__: translated.append(1))
    run_command(*SMALL, "--out", str(out))
    assert not translated
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    manifest = finished_document(out)
    assert manifest is not None
    assert manifest["status"] == "proven" and not broken_files(out, manifest)


def test_what_lies_in_the_folder_stays(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    run_command(*SMALL, "--out", str(out))
    assert (out / "notes.txt").read_text() == "mine"
    run_command(*SMALL, "--uint8-input", "--force", "--out", str(out))
    assert (out / "notes.txt").read_text() == "mine"
    manifest = finished_document(out)
    assert manifest is not None and manifest["config"]["uint8_input"] is True


@pytest.mark.parametrize(
    "options",
    [
        ["--precision", "int8"],
        ["--precision", "fp16"],
        ["--batch", "4"],
        ["--batch", "1:8:64"],
        ["--version-compatible", "--sm", "89"],
    ],
)
def test_settings_of_engines_are_never_ignored(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, *options, "--out", str(tmp_path / "run")]) == 2
    line = last_line(capsys)
    assert all(name in line for name in options if name.startswith("--")) and "--trt" in line
    assert not list(tmp_path.iterdir())


def test_running_out_of_memory_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def exhausted(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(pipeline, "climb", exhausted)
    assert main([*SMALL, "--out", str(tmp_path / "run")]) == 1
    assert "out of memory" in last_line(capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--schedule increasing", "--schedule belongs to --method tome"),
        ("--schedule decreasing --merge frozen", "--schedule belongs to --method tome"),
        ("-r 8", "-r belongs to --method tome"),
        ("-r 8 --schedule decreasing", "-r, --schedule belong to --method tome"),
        ("--method none -r 8", "-r belongs to --method tome"),
        ("--method none --schedule increasing", "--schedule belongs to --method tome"),
        ("--method none --proportional", "--proportional belongs to --method atm, tome"),
        ("--method none --no-proportional", "--proportional belongs to --method atm, tome"),
        ("--method none --merge per-image", "--merge belongs to --method atm"),
        ("--method none --split 3", "--split belongs to --method atm"),
        ("--method tome -r 8 --alpha 0.9", "--alpha belongs to --method atm"),
        ("--method tome -r 8 --beta 0.9 --split 2", "--beta, --split belong to --method atm"),
        ("--method tome -r 8 --theta-min 0.9", "--theta-min belongs to --method atm"),
        ("--method tome -r 8 --gflops 0.1", "--gflops looks for r, which is given too"),
        ("--method tome -r 8 --merge frozen", "--merge belongs to --method atm"),
        ("--method tome -r 8 --calibrate .", "--calibrate belongs to --merge frozen"),
        ("--method tome -r 8,8 --schedule increasing", "--schedule belongs to an -r of one"),
        ("--method tome", "needs -r"),
        ("--calibrate .", "--calibrate belongs to --merge frozen"),
        ("--merge per-image --calibrate .", "--calibrate belongs to --merge frozen"),
        ("--preset lossless --alpha 0.9 --beta 0 --theta-min 0.8", "--preset and all of"),
        ("--preset lossless --gflops 0.1", "--preset and --gflops"),
    ],
)
def test_options_given_in_vain_are_refused(
    options: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", *options.split()]) == 2
    assert says in last_line(capsys)
    assert not list(tmp_path.iterdir())


def test_every_option_of_merging_has_its_place_in_the_rule() -> None:
    """A new option of a method must say where it is of use."""
    known = {name for use in USES for name in use.options} | {"images"}
    shape = {"model", "weights", "image_size", "option", "uint8_input", "trace", "opset"}
    shape |= {"external_data", "task", "normalize"}
    known |= {"method", "settings", "preset"}  # which mean something in every choice
    assert {field.name for field in fields(Choice)} == known | shape


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["timm:"], "timm model"),
        (["../deit_t"], "unknown model"),
        (["demo", "--alpha", "inf"], "alpha"),
        (["demo", "--theta-min", "-1"], "theta_min"),
        (["demo", "--beta", "-0.1"], "beta"),
        (["demo", "--image-size", "0"], "image_size"),
        (["demo", "--image-size", "5000"], "image_size"),
        (["demo", "--opset", "19"], "opset"),
        (["demo", "--method", "tome", "-r", "8", "--merge", "frozen"], "--method atm"),
        (["demo", "--method", "tome", "-r", "1.5"], "whole numbers"),
        (["demo", "--method", "none", "--preset", "lossless"], "one of --method atm, not of none"),
        (["demo", "extra"], "extra"),
        (["demo", "--split", "-1"], "split"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_meant(
    arguments: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert says in last_line(capsys)
    assert not list(tmp_path.iterdir())


def test_more_tokens_than_a_sort_key_holds_are_refused() -> None:
    """Sort keys are value * 8192 + position: beyond that, positions would run into values."""
    spec = ModelSpec(name="demo", config=load_model_config("demo"), image_size=368)
    with pytest.raises(AtmExportError, match="tokens"):
        load_model(spec)
