"""A toy family goes the whole way, registered by import and as an installed plugin."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

import atm_export
from atm_export.choice import Choice
from atm_export.config import ModelSpec
from atm_export.errors import UnsupportedModelError
from atm_export.model.backbone import families
from atm_export.model.flops import unmerged_gmacs
from atm_export.model.zoo import load_model
from atm_export.model_configs import load_model_config, model_names
from atm_export.pipeline import export
from atm_export.resolving import resolve
from atm_export.runtime import load
from tests.extensions import family
from tests.test_timm_models import counted_gmacs

ROOT = Path(atm_export.__file__).parent.parent


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The one YAML and the one registration."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "toy.yaml").write_text(family.YAML)
    monkeypatch.setenv("ATM_EXPORT_CONFIGS", str(tmp_path / "configs"))
    family.register()
    yield
    families.remove("toy")


@pytest.mark.usefixtures("toy")
def test_it_is_exported_and_proven(tmp_path: Path) -> None:
    assert "toy" in model_names()
    config = resolve(Choice(model="toy", weights="random", trace=True))
    outcome = export(config, tmp_path / "out", benchmark=False)
    report = outcome.report
    assert report["parity"]["proven"] and report["parity"]["comparisons"] >= 53
    assert report["tokens"]["mean_after_block"][0] < 64
    assert report["gflops"]["mean"] < report["gflops"]["unmerged"]
    names = [out.name for out in onnx.load(tmp_path / "out" / "model.onnx").graph.output]
    assert names == ["logits", "tokens_per_block", "patch_to_token"]


@pytest.mark.usefixtures("toy")
def test_its_multiply_adds_are_counted() -> None:
    model = load_model(ModelSpec(name="toy", config=load_model_config("toy"), weights="random"))
    assert unmerged_gmacs(model.backbone) == pytest.approx(counted_gmacs(model.backbone), rel=1e-9)


def test_a_family_without_a_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "toy.yaml").write_text(family.YAML)
    monkeypatch.setenv("ATM_EXPORT_CONFIGS", str(tmp_path))
    with pytest.raises(UnsupportedModelError, match="needs the model family 'toy'"):
        load_model(ModelSpec(name="toy", config=load_model_config("toy"), weights="random"))


def installed(folder: Path, value: str) -> dict[str, str]:
    """The environment of a process that finds the toy family as an installed plugin."""
    shutil.copy(family.__file__, folder / "toy_family.py")
    facts = folder / "toy_family-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-family\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(f"[atm_export.plugins]\ntoy = {value}\n")
    (folder / "configs").mkdir()
    (folder / "configs" / "toy.yaml").write_text(family.YAML)
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        "ATM_EXPORT_CONFIGS": str(folder / "configs"),
    }


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "atm_export.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_an_installed_plugin_goes_the_whole_way(tmp_path: Path) -> None:
    environment = installed(tmp_path, "toy_family:register")
    out = tmp_path / "out"
    made = run(environment, "toy", "--weights", "random", "--no-benchmark", "--out", str(out))
    assert made.returncode == 0, made.stderr
    assert "proven: " in made.stdout and (out / "report.html").is_file()
    checked = run(environment, "verify", str(out))
    assert checked.returncode == 0, checked.stderr
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8)
    assert load(out).predict(pixels).shape == (3, 5)
    listed = run(environment, "list")
    assert "toy (plugin)" in listed.stdout


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("toy_family:absent", "AttributeError"),
        ("no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    ],
)
def test_a_plugin_that_does_not_load_is_named(tmp_path: Path, value: str, says: str) -> None:
    environment = installed(tmp_path, value)
    made = run(environment, "toy", "--weights", "random", "--out", str(tmp_path / "out"))
    assert made.returncode == 2 and len(made.stderr.splitlines()) == 1, made.stderr
    assert f"the plugin toy ({value}) does not load: {says}" in made.stderr
    assert run(environment, "--version").returncode == 0
    assert run(environment, "demo", "--preset", "none such").stderr.count("plugin") == 0
