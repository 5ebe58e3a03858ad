"""No command deletes or overwrites what is not its own, wherever it is told to write."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGTERM, getsignal, signal
from types import ModuleType
from typing import Any

import pytest

from atm_export import engines, loose_files, marks, pipeline
from atm_export.backends.tensorrt.build import BuildFailedError, check_timing_cache
from atm_export.cli import main
from atm_export.config import Preset
from atm_export.errors import ConfigError, OutputError
from atm_export.measure.accuracy.journal import journal
from atm_export.model_configs import add_user_preset
from atm_export.pipeline import FILES
from atm_export.runs.reading import MANIFEST, open_run
from tests.snapshots import snapshot

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["demo", "--image-size", "8", "--method", "none", "--no-benchmark"]
RUN, DIGITS, OUT = "RUN", "DIGITS", "OUT"
COMMANDS = {
    "export": [*SMALL, "--out", OUT],
    "export by force": [*SMALL, "--force", "--out", OUT],
    "export to triton": [*SMALL, "--out", "elsewhere/m", "--triton-repo", OUT],
    "triton": ["triton", RUN, "--name", "m", "--triton-repo", OUT],
    "tune": ["tune", "demo", "--images", DIGITS, "--trials", "1", "--workers", "0", "--out", OUT],
    "visualize": ["visualize", RUN, f"{DIGITS}/0/000.png", "--out", OUT],
}
WRITTEN = {
    "export": [*FILES, MANIFEST],
    "export by force": [*FILES, MANIFEST],
    "export to triton": ["m"],
    "triton": ["m"],
    "tune": ["pareto.csv", "pareto.svg", "tune.json"],
    "visualize": ["000-tokens.png", marks.LIST],
}
INSIDE = {  # what adds files to a run
    "evaluation-eager.json": ["evaluate", RUN, "--imagenet", DIGITS, "--runner", "eager"],
    "predictions-eager.csv": ["evaluate", RUN, "--imagenet", DIGITS, "--runner", "eager"],
    "bench.json": ["bench", RUN, "--rounds", "1", "--batches", "1"],
}


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """`main` takes SIGTERM over; give it back."""
    before = getsignal(SIGTERM)
    yield
    signal(SIGTERM, before)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with configs of its own."""
    monkeypatch.setenv("ATM_EXPORT_CONFIGS", str(tmp_path / "configs"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def run(demo_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_folder, tmp_path / "runs" / "run"))


@pytest.fixture
def picture(digits: Path) -> Path:
    return sorted(digits.glob("*/*.png"))[0]


@pytest.fixture
def call(
    demo_folder: Path, digits: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Run a command of the lists above; returns its code and its one line."""

    def run_it(arguments: list[str], out: str, run: Path = demo_folder) -> tuple[int, str]:
        values = {RUN: str(run), OUT: out, DIGITS: str(digits), f"{DIGITS}/0/000.png": str(picture)}
        code = main([values.get(word, word) for word in arguments])
        lines = capsys.readouterr().err.splitlines()
        said = [line for line in lines if line.startswith("atm-export: ")]
        assert not [line for line in lines if "Traceback" in line]
        assert code == 0 or said == lines[-1:]
        return code, said[-1] if said else ""

    return run_it


def a_file(path: Path) -> None:
    path.write_text("precious")


def a_folder(path: Path) -> None:
    path.mkdir()
    (path / "precious").write_text("precious")


def a_link(path: Path) -> None:
    target = path.parent.parent / "precious"
    target.write_text("precious")
    path.symlink_to(target)


def a_link_to_nothing(path: Path) -> None:
    path.symlink_to("absent")


KINDS = [a_file, a_folder, a_link, a_link_to_nothing]


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
@pytest.mark.parametrize(
    ("command", "name"), [(command, name) for command in COMMANDS for name in WRITTEN[command]]
)
def test_what_is_in_the_way_stays(
    command: str, name: str, make: Callable[[Path], None], tmp_path: Path, picture: Path, call: Any
) -> None:
    out = tmp_path / "theirs" / "folder"
    out.mkdir(parents=True)
    make(out / name.replace("000", picture.stem))
    before = snapshot(tmp_path)
    code, line = call(COMMANDS[command], str(out))
    assert code == 7 and re.search("move (it|the folder) away", line)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", INSIDE)
def test_what_is_in_the_way_in_a_run_stays(
    name: str, make: Callable[[Path], None], run: Path, tmp_path: Path, call: Any
) -> None:
    make(run / name)
    before = snapshot(tmp_path)
    code, line = call(INSIDE[name], "", run)
    assert code == 7 and str(run / name) in line and "move it away" in line
    assert "--out" not in line, "these commands have none"
    assert snapshot(tmp_path) == before


def file_in_the_way(home: Path) -> str:
    a_file(home / "there")
    return "there"


def file_above(home: Path) -> str:
    a_file(home / "there")
    return "there/new/run/"


def link_to_a_file(home: Path) -> str:
    a_file(home / "precious")
    (home / "there").symlink_to("precious")
    return "./there"


def link_to_nowhere(home: Path) -> str:
    (home / "there").symlink_to("absent")
    return "there/"


def link_to_nowhere_above(home: Path) -> str:
    (home / "there").symlink_to("absent")
    return "there/new/run"


def link_to_itself(home: Path) -> str:
    (home / "there").symlink_to("there")
    return "there"


def the_root(home: Path) -> str:
    return "/../."


def a_place_where_nobody_may_write(home: Path) -> str:
    return "/proc/atm-export/new/../run"


def an_unset_variable(home: Path) -> str:
    return ""


PLACES = [
    file_in_the_way,
    file_above,
    link_to_a_file,
    link_to_nowhere,
    link_to_nowhere_above,
    link_to_itself,
    the_root,
    a_place_where_nobody_may_write,
    an_unset_variable,
]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("make", PLACES, ids=lambda make: make.__name__)
def test_a_place_that_cannot_be_meant_is_one_line(
    command: str, make: Callable[[Path], str], home: Path, tmp_path: Path, call: Any
) -> None:
    out = make(home)
    before = snapshot(tmp_path)
    code, line = call(COMMANDS[command], out)
    assert code == 7 and ("--out" in line or "triton" in command)
    assert command != "triton" or "--out" not in line, "triton has no --out"
    if command == "export to triton":  # the run itself may be done by then
        shutil.rmtree(home / "elsewhere", ignore_errors=True)
    assert snapshot(tmp_path) == before


THERE = {"the folder itself": ".", "by a detour": "new/../../home/./"}


@pytest.mark.parametrize("out", THERE.values(), ids=list(THERE))
@pytest.mark.parametrize("name", ["config.yaml", "report.json", "model.onnx", "manifest.json"])
def test_the_folder_where_the_user_works(out: str, name: str, home: Path, call: Any) -> None:
    a_file(home / name)
    a_file(home / "notes.txt")
    before = snapshot(home)
    for force in ([], ["--force"]):
        code, line = call([*SMALL, *force, "--out", OUT], out)
        assert code == 7 and name in line and "no mark of atm-export" in line
    assert snapshot(home) == before


@pytest.mark.parametrize("arguments", [["--out="], ["--out", " "], ["--triton-repo="]], ids=str)
def test_an_unset_variable_is_never_the_current_folder(
    arguments: list[str], home: Path, call: Any
) -> None:
    code, line = call([*SMALL, *arguments], "")
    assert code == 7 and "is empty; is a shell variable not set?" in line
    assert not list(home.iterdir())


@pytest.mark.parametrize(
    "arguments", [["evaluate", ""], ["demo", "--images", ""], ["demo", "--weights="], [""]], ids=str
)
def test_an_empty_argument_means_nothing(arguments: list[str], call: Any) -> None:
    code, line = call(arguments, "")
    assert code == 2 and "is empty" in line


def test_an_empty_value_of_an_architecture_is_meant(call: Any) -> None:
    assert "global_pool" in call(["demo", "--option", "global_pool="], "")[1]


def test_a_run_in_the_current_folder_through_a_link(home: Path, tmp_path: Path, call: Any) -> None:
    a_file(home / "notes.txt")
    (tmp_path / "link").symlink_to("home")
    for out, code, more in (
        (".", 0, []),
        ("../link/", 0, []),
        ("../link/../home", 0, ["--force"]),
    ):
        assert call([*SMALL, *more, "--out", OUT], out)[0] == code
        assert sorted(p.name for p in home.iterdir()) == sorted([*FILES, MANIFEST, "notes.txt"])
    assert (tmp_path / "link").is_symlink()
    open_run(tmp_path / "link")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home", "link"]
    for arguments in (["triton", RUN, "--triton-repo", "models"], ["verify", RUN]):
        assert call(arguments, "", Path())[0] == 0
    assert [p.name for p in Path("models").iterdir()] == ["home"]


def test_a_changed_file_of_a_run_goes_only_by_force(run: Path, tmp_path: Path, call: Any) -> None:
    (run / "config.yaml").write_text("edited")
    before = snapshot(tmp_path)
    code, line = call([*SMALL, "--out", OUT], str(run))
    assert code == 7 and "config.yaml was changed after it was written; give --force" in line
    assert snapshot(tmp_path) == before
    assert call([*SMALL, "--force", "--out", OUT], str(run))[0] == 0
    open_run(run)


def test_a_manifest_that_was_changed_marks_nothing(run: Path, tmp_path: Path, call: Any) -> None:
    text = (run / MANIFEST).read_text().replace('"proven"', '"mine"').replace('"unproven"', '"x"')
    (run / MANIFEST).write_text(text)
    before = snapshot(tmp_path)
    for force in ([], ["--force"]):
        code, line = call([*SMALL, *force, "--out", OUT], str(run))
        assert code == 7 and MANIFEST in line and "move the folder away" in line
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("command", ["export", "triton"])
def test_a_work_folder_of_others_stays(
    command: str, make: Callable[[Path], None], tmp_path: Path, call: Any
) -> None:
    name = {"export": "new/.run.work", "triton": "new/run/.m.work"}[command]
    (tmp_path / name).parent.mkdir(parents=True)
    make(tmp_path / name)
    before = snapshot(tmp_path)
    assert call(COMMANDS[command], str(tmp_path / "new" / "run"))[0] == 7
    assert snapshot(tmp_path) == before


def test_an_interrupted_redo_leaves_no_work_folder_once_the_run_is_used(
    home: Path, monkeypatch: pytest.MonkeyPatch, call: Any
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    assert call(COMMANDS["export"], "run")[0] == 0
    monkeypatch.setattr(pipeline, "climb", interrupt)
    assert call(COMMANDS["export by force"], "run")[0] == 130
    assert (home / ".run.work").is_dir()
    monkeypatch.undo()
    monkeypatch.chdir(home)
    assert call(COMMANDS["export"], "run")[0] == 0
    assert [path.name for path in home.iterdir()] == ["run"]


# Triton


@pytest.mark.parametrize(
    "name",
    ["../precious", ".", "..", "a/b", "/tmp/x", 'a"b', "a\nb", "-a", ".hidden", "a" * 200, "é"],
    ids=ascii,
)
def test_what_is_no_name_of_a_model(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "models").mkdir()
    a_folder(tmp_path / "precious")
    before = snapshot(tmp_path)
    assert main(["triton", str(run), "--triton-repo", "../models", f"--name={name}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "model name" in lines[0]
    assert snapshot(tmp_path) == before


def test_a_run_is_no_model_of_its_own_repository(run: Path, call: Any) -> None:
    before = snapshot(run)
    code, line = call(["triton", RUN, "--triton-repo", OUT], f"{run}/..", run)
    assert code == 7 and "--name" in line
    assert call([*SMALL, "--out", str(run), "--triton-repo", OUT, "--force"], f"{run}/..")[0] == 7
    assert snapshot(run) == before
    assert call(["triton", RUN, "--name", "m", "--triton-repo", OUT], f"{run}/../", run)[0] == 0
    assert snapshot(run) == before


def test_a_model_is_replaced_until_somebody_changes_it(home: Path, call: Any) -> None:
    for _ in range(2):
        assert call(COMMANDS["triton"], "models")[0] == 0
    assert [path.name for path in Path("models").iterdir()] == ["m"]
    (home / "models" / "m" / "config.pbtxt").open("a").write("# tuned by hand\n")
    before = snapshot(home)
    code, line = call(COMMANDS["triton"], "models")
    assert code == 7 and "config.pbtxt" in line and "was changed" in line
    assert snapshot(home) == before


# What others write


def test_pictures_are_replaced_until_somebody_changes_them(
    home: Path, picture: Path, call: Any
) -> None:
    for _ in range(2):
        assert call(COMMANDS["visualize"], "tokens")[0] == 0
    (home / "tokens" / f"{picture.stem}-tokens.png").write_bytes(b"painted over")
    before = snapshot(home)
    assert call(COMMANDS["visualize"], "tokens")[0] == 7
    assert snapshot(home) == before


def test_two_pictures_never_share_a_name(digits: Path) -> None:
    from atm_export.commands.visualize import _names

    files = [Path("a/x.png"), Path("b/x.png"), Path("1-a-x.png"), Path("c/x.png"), Path("c/x.jpg")]
    assert len({name.lower() for name in _names(files)}) == len(files)


def test_verify_writes_nothing(run: Path, tmp_path: Path, call: Any) -> None:
    before = snapshot(tmp_path)
    assert call(["verify", f"{RUN}"], "", run)[0] == 0
    assert snapshot(tmp_path) == before


def test_a_journal_of_others_stays(tmp_path: Path) -> None:
    for text in ("precious", "", '{"json": 1}\n'):
        path = tmp_path / "journal.jsonl"
        path.write_text(text)
        with pytest.raises(OutputError, match="move it away"), journal(path, "key"):
            pytest.fail("it was taken for a journal")
        assert path.read_text() == text


def test_a_journal_folder_of_others_stays(home: Path, tmp_path: Path, call: Any) -> None:
    pytest.importorskip("optuna", reason="needs atm-export[tune]")
    a_folder(home / "journal")
    before = snapshot(tmp_path)
    assert call(COMMANDS["tune"], ".")[0] == 7
    assert snapshot(tmp_path) == before


def test_a_preset_never_touches_a_config_of_the_user(tmp_path: Path) -> None:
    own = tmp_path / "configs" / "demo.yaml"
    own.parent.mkdir()
    shipped = (ROOT / "export_configs" / "demo.yaml").read_text()
    own.write_text(shipped + "# mine\n")
    before = snapshot(tmp_path)
    point = {"alpha": 0.99, "beta": 0.02, "theta_min": 0.9}
    preset = Preset(settings=point)
    path = add_user_preset("demo", "tuned", preset)
    add_user_preset("demo", "other", preset)
    add_user_preset("demo", "tuned", Preset(settings={**point, "alpha": 0.98}))
    assert {name: what for name, what in snapshot(tmp_path).items() if name in before} == before
    path.write_text(path.read_text() + "# mine\n")
    before = snapshot(tmp_path)
    with pytest.raises(OutputError, match="was changed"):
        add_user_preset("demo", "third", preset)
    with pytest.raises(ConfigError, match="has a preset of that name"):
        add_user_preset("demo", "lossless", preset)
    with pytest.raises(ConfigError, match="--name"):
        add_user_preset("demo", "../precious", preset)
    assert snapshot(tmp_path) == before


def test_a_timing_cache_of_others_stays(tmp_path: Path) -> None:
    a_file(tmp_path / "notes.txt")
    with pytest.raises(OutputError, match="--timing-cache"):
        check_timing_cache(tmp_path / "notes.txt")
    loose_files.put_files(tmp_path, {"t.cache": b"timings"})
    check_timing_cache(tmp_path / "t.cache")


def test_a_log_of_others_stays(tmp_path: Path) -> None:
    """The failed build is told all the same."""
    a_file(tmp_path / "e.plan.log")
    error = BuildFailedError("it fails at blocks.3", [("ERROR", "the whole story")])
    told = engines.build_failed(tmp_path, "e.plan", error)
    assert "it fails at blocks.3" in str(told) and "no mark of atm-export" in str(told)
    assert (tmp_path / "e.plan.log").read_text() == "precious"
    told = engines.build_failed(tmp_path, "f.plan", error)
    assert str(tmp_path / "f.plan.log") in str(told)
    assert "the whole story" in (tmp_path / "f.plan.log").read_text()


# Tools, and what ships


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "file", "arguments"),
    [
        ("train_demo", "card.json", ["--epochs", "1"]),
        ("draw_curves", "accuracy.png", ["--model", "demo=pretrained", "--images", "."]),
    ],
)
def test_tools_replace_nothing_of_others(
    name: str, file: str, arguments: list[str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn", reason="needs atm-export[dev]")
    a_file(home / file)
    before = snapshot(home)
    monkeypatch.setattr(sys, "argv", [name, "--out", ".", *arguments])
    with pytest.raises(SystemExit, match="no mark of atm-export"):
        tool(name).main()
    assert snapshot(home) == before


def test_the_licence_ships() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License\n                           Version 2.0" in text and "APPENDIX" in text
    facts = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert facts["project"]["license"] == "Apache-2.0"
    assert facts["project"]["license-files"] == ["LICENSE"]
    assert "LICENSE" in facts["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
