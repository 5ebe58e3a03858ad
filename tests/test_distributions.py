"""Both distributions, built and installed as a user does, from the source tree and from sdists,
without a package registry: what they need is linked from the environment that runs the tests."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import atm_export
from tests.runs import ended

pytest.importorskip("hatchling", reason='hatchling is not installed (pip install ".[dev]")')

ROOT = Path(__file__).resolve().parents[1]
SLIM = ROOT / "runtime" / "python"
OFFLINE = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
FOREIGN = ("torch", "timm", "onnx", "pydantic", "yaml", "atm_export")
ABSENT = f"""
import importlib.util, sys
found = [name for name in {FOREIGN} if importlib.util.find_spec(name)]
assert not found, found
import atm_runtime, atm_runtime.errors
assert atm_runtime.__file__.startswith(sys.argv[1]), atm_runtime.__file__
session = atm_runtime.load(sys.argv[2])
assert all(each.ok for each in atm_runtime.check_golden(session))
"""


def run(*command: object, path: tuple[Path, ...] = (), cwd: Path | None = None) -> str:
    """A process that sees no installed package but those on `path`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    done = subprocess.run(
        [sys.executable, *(["-S"] if path else []), *map(str, command)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=cwd,
        env=environment,
    )
    return ended(done)


def installed(what: Path, folder: Path) -> Path:
    """`pip install WHAT` into a folder that holds nothing else."""
    run("-m", "pip", "install", "--quiet", *OFFLINE, "--target", folder, what)
    return folder


def built(project: Path, folder: Path, kind: str) -> Path:
    """The wheel or sdist of a project."""
    run("-m", "hatchling", "build", "--target", kind, "--directory", folder, cwd=project)
    (found,) = folder.iterdir()
    return found


@pytest.fixture(scope="module")
def needs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with numpy, pillow, onnxruntime, what these need, and nothing else."""
    folder = tmp_path_factory.mktemp("needs")
    onnxruntime = next(
        name for name in ("onnxruntime-gpu", "onnxruntime") if _version(name) is not None
    )
    todo, seen = ["numpy", "pillow", onnxruntime], set[str]()
    while todo:
        name = todo.pop()
        if name in seen or _version(name) is None:
            continue
        seen.add(name)
        found = metadata.distribution(name)
        wanted = map(Requirement, found.requires or ())
        todo += [each.name for each in wanted if not each.marker or each.marker.evaluate()]
        tops = {file.parts[0] for file in found.files or () if file.parts[0] != ".."}
        for top in tops - {"__pycache__"}:
            (folder / top).symlink_to(Path(str(found.locate_file(top))))
    return folder


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@pytest.fixture(scope="module")
def slim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(SLIM, tmp_path_factory.mktemp("slim"))


def test_the_slim_runtime_answers_without_torch(
    slim: Path, needs: Path, demo_folder: Path, digits: Path, tmp_path: Path
) -> None:
    path = (slim, needs)
    run("-c", ABSENT, slim, demo_folder, path=path, cwd=tmp_path)
    picture = next(digits.rglob("*.png"))
    told = run("-m", "atm_runtime", "classify", demo_folder, picture, path=path, cwd=tmp_path)
    whole = [sys.executable, "-m", "atm_export.runtime", "classify", demo_folder, picture]
    assert told == ended(subprocess.run(whole, capture_output=True, text=True))
    assert told.count("%") == 5
    told = run("-m", "atm_runtime", "verify", demo_folder, path=path, cwd=tmp_path)
    assert "logits of a JPEG file" in told


def test_the_slim_runtime_says_what_is_missing(
    slim: Path, needs: Path, demo_folder: Path, tmp_path: Path
) -> None:
    wrong = subprocess.run(
        [sys.executable, "-S", "-m", "atm_runtime", "classify", "nothing", "cat.jpeg"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{slim}{os.pathsep}{needs}"},
    )
    assert wrong.returncode == 10 and wrong.stderr.count("\n") == 1
    code = (
        "import sys, atm_runtime, atm_runtime.errors as errors\n"
        "for name in ('openvino', 'tensorrt'):\n"
        "    try: atm_runtime.load(sys.argv[1], backend=name)\n"
        "    except errors.MissingDependencyError as error: print(error)\n"
    )
    told = run("-c", code, demo_folder, path=(slim, needs), cwd=tmp_path)
    assert "atm-export[openvino]" in told and "atm-export[trt]" in told


def test_the_slim_runtime_is_the_same_source(slim: Path) -> None:
    """Every module of it is one of `atm_export`, but for the name."""
    ours = {path.relative_to(slim / "atm_runtime") for path in slim.rglob("atm_runtime/**/*.py")}
    own = {Path("__init__.py"), Path("__main__.py")}
    for file in ours - own:
        text = (ROOT / "atm_export" / file).read_text(encoding="utf-8")
        there = (slim / "atm_runtime" / file).read_text(encoding="utf-8")
        assert "atm_export" not in there
        assert there.count("atm_runtime") == text.count("atm_export")
    assert {path.name for path in (ROOT / "atm_export" / "runtime").glob("*.py")} <= {
        path.name for path in (slim / "atm_runtime" / "runtime").iterdir()
    }


def test_sdists_install_too(slim: Path, needs: Path, demo_folder: Path, tmp_path: Path) -> None:
    sdist = built(SLIM, tmp_path / "slim", "sdist")
    from_sdist = installed(sdist, tmp_path / "from_sdist")
    names = [
        sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))
        for folder in (slim, from_sdist)
    ]
    assert names[0] == names[1]
    run("-m", "atm_runtime", "verify", demo_folder, path=(from_sdist, needs), cwd=tmp_path)

    sdist = built(ROOT, tmp_path / "whole", "sdist")
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {"atm_export/py.typed", "README.md", "LICENSE", "CHANGELOG.md"} <= held
    assert {"runtime/python/pyproject.toml", "docs/runtime.md", "tests/conftest.py"} <= held
    folder = installed(sdist, tmp_path / "exporter")
    packages = Path(sysconfig.get_paths()["purelib"])
    told = run("-m", "atm_export.cli", "--version", path=(folder, packages), cwd=tmp_path)
    assert told.strip() == atm_export.__version__
    code = "import atm_export, atm_export.photos as p; print(atm_export.__file__, len(p.VIEWS))"
    told = run("-c", code, path=(folder, packages), cwd=tmp_path)
    assert told.split() == [str(folder / "atm_export" / "__init__.py"), "32"]
    told = run("-m", "atm_export.cli", "list", "deit_s", path=(folder, packages), cwd=tmp_path)
    assert "a2-3.23" in told


def test_the_version_is_stated_once(slim: Path) -> None:
    (stated,) = slim.glob("atm_runtime-*.dist-info")
    assert stated.name == f"atm_runtime-{atm_export.__version__}.dist-info"
    header = ROOT / "runtime" / "cpp" / "include" / "atm_runtime" / "atm_runtime.h"
    assert f'#define ATM_VERSION "{atm_export.__version__}"' in header.read_text(encoding="utf-8")
