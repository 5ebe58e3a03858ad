"""The pytest plugin, run as its users run it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from atm_export.errors import ParityError, WeightsError
from atm_export.prove import finished
from atm_export.runtime import load
from atm_export.tasks import classify
from tests.run_folders import deit_t_run
from tests.runs import ended
from tests.test_verify import reseal

ROOT = Path(__file__).resolve().parents[1]
SLIM = "for n in ('torch', 'timm', 'onnx', 'pydantic'): sys.modules[n] = None"
MINE = """
import pytest

@pytest.mark.atm_parity({run!r})
def test_marked(atm_run):
    assert atm_run.predict(__import__('PIL.Image').Image.new('RGB', (9, 9))).shape == (1, 10)

@pytest.mark.atm_parity
def test_of_the_option(atm_run):
    assert atm_run.policy == 'adaptive'

def test_other():
    pass
"""


def run_pytest(folder: Path, *arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """pytest in a process of its own, in `folder`, with no plugin but ours."""
    code = (
        f"import sys\n{before}\nimport pytest\n"
        f"sys.exit(pytest.main([*{list(arguments)!r}, '-p', 'atm_export.pytest_plugin', '-rs']))"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, env=env
    )


def test_the_proof_alone_with_junit(demo_folder: Path, tmp_path: Path) -> None:
    done = run_pytest(tmp_path, "--atm-run", str(demo_folder), "--junitxml", "out.xml")
    assert "3 passed" in ended(done)
    cases = ET.parse(tmp_path / "out.xml").getroot().iter("testcase")
    assert [case.get("name") for case in cases] == ["manifest", "golden", "eager"]


def test_without_torch_the_golden_vectors_prove_it(demo_folder: Path, tmp_path: Path) -> None:
    done = run_pytest(tmp_path, "--atm-run", str(demo_folder), before=SLIM)
    assert "2 passed, 1 skipped" in ended(done)
    assert "is missing" in done.stdout


def test_marker_and_fixture_beside_other_tests(demo_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(MINE.format(run=str(demo_folder)))
    done = run_pytest(tmp_path, "-q", before=SLIM)
    assert "2 passed, 1 skipped" in ended(done)
    done = run_pytest(
        tmp_path, "-q", "--strict-markers", "--atm-run", str(demo_folder), before=SLIM
    )
    assert "5 passed, 1 skipped" in ended(done)
    done = run_pytest(
        tmp_path, "-q", "--atm-run", str(demo_folder), "-m", "atm_parity", before=SLIM
    )
    assert "4 passed, 1 skipped, 1 deselected" in done.stdout, done.stdout


def test_a_changed_run_fails_in_one_line(uint8_folder: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(uint8_folder, tmp_path / "run"))
    (run / "config.yaml").write_bytes(b"x")
    done = run_pytest(tmp_path, "--atm-run", str(run), before=SLIM)
    assert "2 failed, 1 skipped" in ended(done, 1)
    assert "ChangedFileError:" in done.stdout and "Traceback" not in done.stdout
    done = run_pytest(tmp_path, "--atm-run", str(tmp_path / "absent"), before=SLIM)
    assert done.returncode == 1 and "NotARunError" in done.stdout


def test_the_reference_is_built_again_and_compared(
    demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert finished.prove_again(demo_folder) < 1e-4
    run = Path(shutil.copytree(demo_folder, tmp_path / "run"))
    manifest = load(run).manifest
    reseal(run, weights={**manifest["weights"], "sha256": "0" * 64})
    with pytest.raises(WeightsError, match="not the weights of this export"):
        finished.prove_again(run)
    gone = {**manifest["config"], "model": {**manifest["config"]["model"], "weights": "gone.pth"}}
    reseal(run, config=gone)
    with pytest.raises(finished.NotHere, match="not at hand"):
        finished.prove_again(run)
    monkeypatch.setattr(classify, "FP32", replace(classify.FP32, allowed=-1.0))
    with pytest.raises(ParityError, match="batch 1 against the eager reference: differs"):
        finished.prove_again.__wrapped__(demo_folder)


@pytest.mark.slow
def test_a_real_model_is_checked_in_the_users_ci(tmp_path: Path, all_cores: None) -> None:
    run = deit_t_run(tmp_path / "deit_t")
    done = run_pytest(tmp_path, "--atm-run", str(run))
    assert "3 passed" in ended(done)
