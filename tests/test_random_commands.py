"""Command lines drawn at random from the app's own options, with a folder of the user's beside.

Work stays small by construction: nine lines in ten hold one value that cannot work whatever else
they hold, the model is the demo at 8 x 8 pixels, and no line that may succeed builds engines.
"""

from __future__ import annotations

import os
import random
import shutil
import types
from collections.abc import Iterator
from pathlib import Path
from signal import SIGTERM, getsignal, signal
from typing import Any, Literal, Union, get_args, get_origin

import pytest

from atm_export.cli import app, main
from atm_export.runs.reading import open_run
from tests.snapshots import snapshot

LINES, SEED, PER_TEST = 200, 10, 20
CODES = set(range(12))
NOT_DRAWN = {"--ray"}  # would look for a cluster
ENGINES = {"--trt", "--refit", "--version-compatible", "--hardware-compatible"}
COMMANDS = ("", "", "", "list", "evaluate", "bench", "tune", "visualize", "verify", "triton")
LONG = ("compare", "predict", "reproduce", "web")  # where they succeed: drawn with what cannot work
MAY_SUCCEED = ("", "evaluate", "visualize", "visualize", "verify", "triton", "triton")

TEXTS = ["x", ".", "..", "/", "-", "a b", "ü", "'", '"', "a\nb", "%s", "{}", "\\", "x" * 300]
NUMBERS = ["0", "1", "2", "-1", "-5", "1.5", "1e3", "nan", "x", "1" * 30, "0x10", "٣"]
FRACTIONS = ["0", "1", "-1", "0.9", "0.035", "nan", "inf", "-inf", "1e308", "x", "1,5"]
PLACES = [
    ".",
    "..",
    "/",
    "../theirs",
    "../theirs/",
    "../theirs/./model.onnx",
    "../theirs/sub",
    "link",
    "link/../../theirs",
    "dangling",
    "loop",
    "file.txt",
    "file.txt/run",
    "../runs",
    "../runs/run",
    "new/../../theirs",
    "/proc/none/run",
    "ü b",
    "x" * 300,
]
SOME = {  # what means something, or must stay small
    "MODEL": ["demo", "demo", "demo", "deit_t", "timm:", "timm:../x", "../demo", "DEMO", "-demo"],
    "RUN": ["../runs/run", "../runs/run", "../runs/run/", *PLACES],
    "IMAGES": ["../digits/0", "../digits/1", *PLACES],
    "--images": ["../digits", "../digits/0", *PLACES],
    "--imagenet": ["../digits", *PLACES],
    "--calibrate": ["../digits/0", *PLACES],
    "--weights": ["random", "pretrained", "../theirs/weights.pth", *PLACES],
    "--timing-cache": PLACES,
    "--labels": ["../theirs/labels.txt", *PLACES],
    "--real": ["../theirs/labels.txt", *PLACES],
    "--image-size": ["8", "12", "7", "0", "-8", "x", "100000"],
    "--option": ["num_classes=3", "global_pool=", "=", "a=b", "..=..", "x"],
    "--threads": ["0", "1", "2", "x", "1.5"],
    "--workers": ["0", "-1", "x"],
    "--limit": ["2", "0", "-1", "x"],
    "--rounds": ["1", "0", "-1", "x"],
    "--trials": ["1", "0", "-1", "1" * 12, "x"],
    "--minutes": ["0", "0.001", "-1", "nan", "x"],
    "--batches": ["1", "1,2", "0", "-1", ",", "x", "9" * 12],
    "--backends": ["onnxruntime", "eager", "x", ",", "onnxruntime,onnxruntime"],
    "--cores": ["0", "-1", "99999", ",", "x"],
    "--against": ["none", "tome:2", "tome:x", "x", "../theirs", "../runs/run"],
    "--providers": ["cpu", "cpu,cpu", "x", ",", "cuda"],
    "--runner": ["eager", "onnxruntime", "tensorrt", "x"],
}
GOOD = {  # what works, by itself
    "MODEL": ["demo"],
    "RUN": ["../runs/run", "../runs/./run/"],
    "IMAGES": ["../digits/0"],
    "--images": ["../digits", "../digits/0"],
    "--imagenet": ["../digits"],
    "--calibrate": ["../digits/0"],
    "--image-size": ["8", "12"],
    "--threads": ["1", "2"],
    "--workers": ["0"],
    "--limit": ["2"],
    "--batch": ["1", "2"],
    "--batches": ["1", "2"],
    "--rounds": ["1"],
    "--trials": ["1"],
    "--minutes": ["0.001"],
    "--backends": ["onnxruntime", "eager"],
    "--cores": ["0"],
    "--against": ["none", "tome:1"],
    "--providers": ["cpu"],
    "--runner": ["eager", "onnxruntime"],
    "--out": ["out", "new/run/", ".", "build/../out", "ü b"],
    "--triton-repo": ["models", "models/", "new/models"],
    "--name": ["m", "tuned-1"],
    "--preset": ["lossless"],
    "--alpha": ["1", "0.99"],
    "--beta": ["0.03", "0"],
    "--theta-min": ["0.9"],
    "--split": ["8", "0"],
    "--opset": ["20", "21", "23"],
    "--max-unreadable": ["0", "3"],
}
SMALL = {
    "": ["--image-size=8", "--method=none", "--no-benchmark", "--threads=1"],
    "evaluate": ["--workers=0", "--limit=2", "--threads=1"],
    "bench": ["--rounds=1", "--batches=1", "--threads=1"],
    "tune": ["--workers=0", "--minutes=0", "--trials=1", "--threads=1"],
    "verify": ["--threads=1"],
}
FATAL = {
    "": ["--opset=19", "--image-size=-1", "--weights=absent.pth", "--out=../theirs"],
    "list": ["--nothing-like-it", "absent-model"],
    "evaluate": ["--imagenet=absent", "--batch=0", "--limit=-1", "--runner=absent"],
    "bench": ["--rounds=0", "--batches=x", "--images=absent", "--backends=absent"],
    "tune": ["--images=absent", "--trials=0", "--out=../theirs", "--name=../precious"],
    "visualize": ["absent.png", "--out=../theirs", "--out=dangling"],
    "verify": ["absent", "--nothing-like-it", "../theirs"],
    "triton": ["--name=../theirs", "--name=a\nb", "--triton-repo=file.txt", "--engine=absent"],
    "compare": ["--images=absent", "--methods=absent", "--rounds=-1", "--batches=x"],
    "predict": ["--images=absent", "--out=../theirs", "--batch=0", "--top-k=0", "--backend=absent"],
    "reproduce": ["--images=absent", "--weights=x", "--table=B", "--figure=3", "--batch=0"],
    "web": ["absent", "--precision=int7", "--out=../theirs", "--onnxruntime-web=absent"],
}  # fmt: skip
WRITES = ("--out", "--triton-repo", "--timing-cache")


def values_of(name: str, hint: Any) -> list[str]:
    """What may be drawn for an argument; [] for a flag."""
    if name in SOME:
        return SOME[name]
    kinds = {hint}
    while any(get_origin(kind) in (Union, types.UnionType, tuple, Literal) for kind in kinds):
        kinds = {part for kind in kinds for part in (get_args(kind) or (kind,))}
    if bool in kinds:
        return []
    chosen = [kind for kind in kinds if isinstance(kind, str)]
    if chosen:
        return [*sorted(chosen), "x"]
    plain = NUMBERS if int in kinds else FRACTIONS if float in kinds else TEXTS
    return PLACES if Path in kinds else plain


def arguments_of(command: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Positional arguments and options of a command, as the app has them, with their values."""
    found = (app[command] if command else app).assemble_argument_collection()
    by_place: dict[str, list[str]] = {}
    options: dict[str, list[str]] = {}
    for argument in found:
        for name in argument.names:
            if name == "*" or name in NOT_DRAWN:
                continue
            flag = name in (argument.parameter.negative or ())
            values = [] if flag else values_of(name, argument.hint)
            (options if name.startswith("-") else by_place)[name] = values
    return by_place, options


def draw(dice: random.Random, fatal: bool, commands: tuple[str, ...] = COMMANDS) -> list[str]:
    """One command line. fatal: it holds what cannot work."""

    def value(name: str, values: list[str]) -> str:
        good = dice.random() < (0.7 if fatal else 0.97)
        return dice.choice(GOOD.get(name, values) if good else values)

    command = dice.choice(commands if fatal else MAY_SUCCEED)
    by_place, options = arguments_of(command)
    words = [command] if command else []
    for name, values in by_place.items():
        words += [value(name, values) for _ in range(2 if dice.random() < 0.1 else 1)]
    known = sorted(options if fatal else [n for n in options if n in GOOD or not options[n]])
    drawn = dice.sample(known, k=min(len(known), dice.randint(0, 5 if fatal else 2)))
    required = {
        **{"evaluate": ["--imagenet"], "tune": ["--images"], "triton": ["--triton-repo"]},
        **{"compare": ["--images"], "reproduce": ["--images"], "web": ["--out"]},
        **{"predict": ["--images", "--out"]},
    }
    for name in dict.fromkeys([*required.get(command, []), *drawn]):
        if name in ENGINES and not fatal:
            continue
        values = options[name]
        if not values:
            words.append(name)
        elif dice.random() < 0.5:
            words += [name, value(name, values)]
        else:
            words.append(f"{name}={value(name, values)}")
    given = {word.partition("=")[0] for word in words}
    words += [word for word in SMALL.get(command, []) if word.partition("=")[0] not in given]
    if fatal:
        words.append(dice.choice(FATAL[command]))
    if dice.random() < 0.03:
        words[dice.randrange(len(words))] = dice.choice(
            ["", " ", "\udcff", "--", "--=", "-", "=" * 3]
        )
    return words


def lines() -> list[list[str]]:
    dice, others = random.Random(SEED), random.Random(SEED)
    found = [draw(dice, fatal=i % 10 != 0) for i in range(LINES)]
    return found + [draw(others, True, LONG) for _ in range(PER_TEST)]


@pytest.fixture
def there(
    demo_folder: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A current folder with links, a run, images, and beside them what is the user's."""
    theirs, here = tmp_path / "theirs", tmp_path / "here"
    (theirs / "sub").mkdir(parents=True)
    names = [
        "config.yaml",
        "report.json",
        "model.onnx",
        "manifest.json",
        "pareto.csv",
        "labels.txt",
    ]
    for name in [*names, "weights.pth", ".atm-export.json", "sub/config.yaml", ".sub.work"]:
        (theirs / name).write_text("precious")
    (theirs / "run").mkdir()
    (theirs / "link").symlink_to("sub")
    here.mkdir()
    (here / "link").symlink_to("../theirs")
    (here / "dangling").symlink_to("../theirs/absent")
    (here / "loop").symlink_to("loop")
    (here / "file.txt").write_text("precious")
    shutil.copytree(demo_folder, tmp_path / "runs" / "run")
    (tmp_path / "digits").symlink_to(digits)
    monkeypatch.setenv("ATM_EXPORT_CONFIGS", str(tmp_path / "configs"))
    monkeypatch.chdir(here)
    before, cores = getsignal(SIGTERM), os.sched_getaffinity(0)
    yield tmp_path
    signal(SIGTERM, before)
    os.sched_setaffinity(0, cores)


def test_every_option_is_drawn() -> None:
    """The lists above know each command, and each option is there to be drawn."""
    for command in {*COMMANDS, *LONG}:
        assert FATAL[command]
        by_place, options = arguments_of(command)
        assert by_place or command == "reproduce"
        assert options or command == "list"
    assert {"--out", "--triton-repo", "--trt", "--no-benchmark", "-r"} <= set(arguments_of("")[1])
    assert {name for name in app if not name.startswith("-")} == {*COMMANDS, *LONG} - {""}


@pytest.mark.parametrize("first", range(0, LINES + PER_TEST, PER_TEST))
def test_random_commands_lose_nothing_and_never_trace_back(
    first: int, there: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    theirs, run = there / "theirs", there / "runs" / "run"
    for words in lines()[first : first + PER_TEST]:
        before = snapshot(theirs)
        code = main(words)
        out, err = capfd.readouterr()
        said = f"{words}\n{out}\n{err}"
        assert code in CODES, said
        assert "Traceback" not in out + err, said
        assert code == 0 or err.splitlines()[-1].startswith("atm-export: "), said
        after = snapshot(theirs)
        assert {name: after.get(name) for name in before} == before, said
        told = any(word.startswith(WRITES) for word in words)
        assert told or after == before, said
        assert (there / "here" / "file.txt").read_text() == "precious", said
        open_run(run)
