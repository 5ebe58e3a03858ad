"""The slim install, for real: a new virtual environment that has neither torch nor timm."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import ended

ROOT = Path(__file__).resolve().parents[1]
CODE = """
import importlib.util, sys
for name in ('torch', 'timm', 'onnx', 'pydantic'):
    assert importlib.util.find_spec(name) is None, name
from PIL import Image
from atm_export import photos
assert len({view.image().tobytes() for view in photos.VIEWS}) == 32
from atm_export.runtime import load
session = load(sys.argv[1])
print(session.classify(Image.new('RGB', (80, 60)), 1)[0][0].name, session.about)
"""


def test_without_dependencies_of_the_exporter_it_answers(
    demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        subprocess.run([*pip, "onnxruntime", "pytest", "hatchling"], check=True, timeout=300)
        subprocess.run([*pip, str(ROOT / "runtime" / "python")], check=True, timeout=300)
    except subprocess.SubprocessError as error:
        pytest.skip(f"no package registry: {error}")
    local = [*pip, "--no-deps", "--no-build-isolation", str(ROOT)]  # nothing is fetched any more
    ended(subprocess.run(local, capture_output=True, text=True, timeout=300))
    run = str(demo_folder)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    done = subprocess.run([str(python), "-c", CODE, run], capture_output=True, text=True)
    ended(done)
    for package in ("atm_runtime", "atm_export.runtime"):
        verify = [str(python), "-m", package, "verify", run]
        done = subprocess.run(verify, capture_output=True, text=True)
        assert "logits of a JPEG file" in ended(done)
    plugin = [str(python), "-m", "pytest", "--atm-run", run, "--junitxml", "parity.xml"]
    done = subprocess.run(plugin, capture_output=True, text=True, cwd=tmp_path)
    assert "2 passed, 1 skipped" in ended(done)
    assert (tmp_path / "parity.xml").is_file()
