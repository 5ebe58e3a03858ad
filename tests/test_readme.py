"""What the README and the checks promise; its commands are run."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from atm_export import pipeline
from atm_export.prove.results import LadderResult
from atm_export.runs.reading import open_run
from atm_export.subject import Subject
from tests.runs import ended, run_command
from tests.shared_data import shared

ROOT = Path(__file__).resolve().parents[1]
# What the README leaves to the reader, and what keeps a command short.
SHORT = {
    "bench": ["--rounds", "2", "--batches", "2", "--no-policies"],
    "evaluate": ["--workers", "0"],
    "compare": ["--methods", "atm", "--rounds", "0", "--workers", "0"],
    "tune": ["--trials", "2", "--workers", "0", "--min-agreement", "0"],
}
# What a command leaves behind, as a pattern in its folder.
LEAVES = {
    "bench": "build/*/bench.json",
    "compare": "build/compare-*/compare.json",
    "evaluate": "build/*/evaluation-onnxruntime.json",
    "triton": "models/deit_s/config.pbtxt",
    "tune": "configs/presets/*.yaml",
    "visualize": "pictures/dog-tokens.png",
}


def not_climbed(subject: Subject, *_: object) -> LadderResult:
    """The proof of a ladder without rungs."""
    return LadderResult((), (), specs=subject.model.backbone.outputs)


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_two_commands_are_there_and_ci_runs_them() -> None:
    text, ci = readme(), (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "pip install . && atm-export demo" in text
    assert 'pip install ".[dev]" && pytest' in text
    for command in ("pip install --quiet .\n", 'pip install --quiet ".[dev]"', "atm-export demo"):
        assert command in ci
    assert "tools/check.sh" in ci
    assert "pytest" in (ROOT / "tools" / "check.sh").read_text(encoding="utf-8")


def shown() -> list[str]:
    """The README's lines `atm-export ...`, without their remarks."""
    lines = re.findall(r"^atm-export ([^#\n]*)", readme(), re.M)
    return sorted({line.strip() for line in lines})


@pytest.fixture
def place(demo_folder: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the README's reader stands, with runs (of the demo) and pictures under its names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATM_EXPORT_CONFIGS", str(tmp_path / "configs"))
    for name in ("deit_s", "deit_s-a2-3.23", "demo-lossless"):
        shutil.copytree(demo_folder, tmp_path / "build" / name)
    shutil.copytree(digits, tmp_path / "imagenet" / "val")
    (tmp_path / "photos").mkdir()
    for file in digits.rglob("*.png"):
        shutil.copy(file, tmp_path / "photos")
    for name in ("dog.jpg", "digit.png"):
        shutil.copy(next(digits.rglob("*.png")), tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    "line", [line for line in shown() if line.split()[0] in (*LEAVES, "list", "verify", "--help")]
)
def test_a_command_of_the_readme_runs(line: str, place: Path) -> None:
    """As it stands, but for a model that ships inside and the options of SHORT."""
    words = shlex.split(line)
    if words[0] in ("compare", "tune"):
        words[1] = "demo"
    assert run_command(*words, *SHORT.get(words[0], [])).strip()
    assert words[0] not in LEAVES or len(list(place.glob(LEAVES[words[0]]))) == 1


@pytest.mark.parametrize(
    "line",
    [
        line
        for line in shown()
        if not line.startswith(("list", "verify", "--help", *LEAVES)) and "--trt" not in line
    ],
)
def test_an_export_of_the_readme_runs(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it stands, but smaller: 16 patches, and the ladder is tests/test_ladder.py's. Where the
    README's weights come from the network they are random here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "climb", not_climbed)
    words = shlex.split(line)
    if "--weights" not in words:
        words += ["--weights", "random"]
    elif "random" not in words:
        weights = shared("data", "weights", "deit_tiny_patch16_224.safetensors")
        (tmp_path / "deit_tiny.safetensors").symlink_to(weights.resolve())
    words += ["--no-benchmark", "--image-size", "56" if "patch14" in line else "64"]
    assert "written" in run_command(*words)
    (folder,) = (tmp_path / "build").iterdir()
    manifest = open_run(folder).manifest
    assert manifest.model == words[0] and manifest.proven
    method = manifest.method
    for option, name in (("--alpha", "alpha"), ("--beta", "beta"), ("--theta-min", "theta_min")):
        if option in words:
            given = float(words[words.index(option) + 1])
            assert method.more["operating_point"][name] == given
    assert method.name == (words[words.index("--method") + 1] if "--method" in words else "atm")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", readme(), re.M | re.S)


def test_the_runtime_answers_as_the_readme_shows(place: Path) -> None:
    (line,) = re.findall(r"^python -m (atm_export\.runtime [^#\n]*)", readme(), re.M)
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(line)], capture_output=True, text=True
    )
    assert ended(done).count("%") == 5
    (code,) = blocks("python")
    (place / "service.py").write_text(code, encoding="utf-8")
    session = runpy.run_path(str(place / "service.py"))["session"]
    assert len(session.classify("digit.png", top_k=3)[0]) == 3


def test_from_python_as_the_readme_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (imports, call) = re.findall(r"`((?:from|export\().*?)`(?:,|\.)", readme(), re.S)
    monkeypatch.setattr(pipeline, "climb", not_climbed)
    call = call.replace('"deit_s"', '"demo"', 1)
    exec(f"from pathlib import Path\n{imports}\nfound = {call}", space := {})
    assert space["found"].out == Path("build/deit_s") and open_run(tmp_path / "build" / "deit_s")


def test_the_output_that_the_readme_shows_is_that_of_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Line by line; but times and the last digits of sums are the machine's, and so is one token
    where the mean number of pairs lies at a whole number."""
    monkeypatch.chdir(tmp_path)
    (text,) = blocks("text")
    printed = [line for line in text.splitlines() if not line.startswith("latency")]
    told = run_command("demo", "--no-benchmark").splitlines()

    def tokens(lines: list[str]) -> list[int]:
        (found,) = (line.split()[1:] for line in lines if line.startswith("tokens "))
        return [int(count) for count in found]

    def words(lines: list[str]) -> list[str]:
        kept = [line for line in lines if not line.startswith("tokens ")]
        return [re.sub(r"within [\d.e-]+", "within", line) for line in kept]

    assert set(words(printed)) <= set(words(told))
    assert tokens(printed) == pytest.approx(tokens(told), abs=1)
    assert len(re.findall(r"^latency   batch \d: .*speed-up", text, re.M)) == 2


def test_it_is_short_and_its_links_lead_somewhere() -> None:
    assert readme().count("\n") <= 150
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", readme()):
        assert link.startswith("https://") or (ROOT / link).is_file(), link


def test_every_command_of_the_readme_is_run_here_or_builds_an_engine() -> None:
    """Engines are built for real in tests/test_engines.py and tests/test_engine_matrix.py; the
    README's two take minutes."""
    assert sum("--trt" in line for line in shown()) == 2
    assert len(shown()) >= 18


def test_extras_and_entry_point_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {
        "data",
        "dev",
        "docs",
        "hf",
        "openvino",
        "ray",
        "rtx",
        "runtime",
        "service",
        "trt",
        "tune",
    }
    assert set(project["optional-dependencies"]) == extras
    assert project["scripts"] == {"atm-export": "atm_export.cli:main"}


def test_files_that_the_readme_names_exist() -> None:
    for name in re.findall(r"`((?:tools|atm_export|model|export_configs)/[\w./]+)`", readme()):
        places = (ROOT / name, ROOT / "atm_export" / name)
        assert any(place.exists() for place in places), name
