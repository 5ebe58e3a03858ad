"""One door opens every ONNX Runtime session: FP32 stays FP32, and waiting threads sleep."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from onnx import parser

import atm_export
from atm_export.backends import threads as usual
from atm_export.backends.onnxruntime import door, providers
from atm_export.backends.onnxruntime.providers import best_providers
from atm_export.backends.onnxruntime.runner import OnnxRuntimeRunner
from atm_export.backends.onnxruntime.serving import OnnxServer
from atm_export.errors import AtmExportError, ConfigError
from atm_export.runs.graphs import SavedGraph
from tests.runs import ended

PACKAGE = Path(atm_export.__file__).parent
MODEL = SavedGraph(
    parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]>'
        " g (float[batch, 2] image) => (float[batch, 2] minus) { minus = Neg (image) }"
    ).SerializeToString()
)
SPIN = "session.intra_op.allow_spinning"


class Recorded(Exception):
    """What a session would be opened with."""

    def __init__(self, options: Any, providers: Any) -> None:
        super().__init__("recorded")
        self.options, self.providers = options, providers


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    def record(graph: Any, options: Any, providers: Any) -> None:
        raise Recorded(options, providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", record)


def opened(**keywords: Any) -> Recorded:
    with pytest.raises(AtmExportError) as caught:
        door.open_session(MODEL, **keywords)
    assert isinstance(caught.value.__cause__, Recorded)
    return caught.value.__cause__


def test_sessions_are_opened_in_one_place() -> None:
    found = [
        path.relative_to(PACKAGE).as_posix()
        for path in [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "tools").rglob("*.py")]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "InferenceSession"
    ]
    assert found == ["backends/onnxruntime/door.py"]


@pytest.mark.usefixtures("recorded")
def test_tf32_is_off_wherever_a_session_is_opened() -> None:
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    found = opened(providers=wanted)
    assert found.providers == [(wanted[0], {"use_tf32": 0}), wanted[1]]
    with pytest.raises(AtmExportError) as caught, OnnxRuntimeRunner(MODEL, providers=wanted):
        pytest.fail("no session is opened here")
    assert caught.value.__cause__.providers[0] == (wanted[0], {"use_tf32": 0})  # type: ignore[union-attr]


@pytest.mark.usefixtures("recorded")
def test_evaluate_on_a_gpu_leaves_tf32_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `evaluate` and `bench` ask for where there is a GPU."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(providers, "cuda_devices", lambda: 1)
    assert best_providers()[0] == "CUDAExecutionProvider"
    found = opened(providers=best_providers())
    assert found.providers[0] == ("CUDAExecutionProvider", {"use_tf32": 0})


@pytest.mark.usefixtures("recorded")
def test_threads_of_a_proof_do_not_spin_and_those_of_a_service_do() -> None:
    assert opened().options.get_session_config_entry(SPIN) == "0"
    with pytest.raises(AtmExportError) as caught:
        OnnxServer(MODEL, 20, ["cpu"], 1)
    options = caught.value.__cause__.options  # type: ignore[union-attr]
    assert options.get_session_config_entry(SPIN) == "1"
    assert options.intra_op_num_threads == 1


def test_measured_sessions_spin_while_they_run_alone(
    monkeypatch: pytest.MonkeyPatch, recorded: None
) -> None:
    monkeypatch.setattr(usual, "_threads", 0)
    assert usual.use_threads(3) == 3
    options = opened(waiting="spin while running").options
    assert options.get_session_config_entry(SPIN) == "1"
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"
    assert options.intra_op_num_threads == 3
    assert opened(threads=2).options.intra_op_num_threads == 2


def test_threads_have_a_bound() -> None:
    for threads in (-1, 257, 100_000):
        with pytest.raises(ConfigError, match="threads"):
            door.open_session(MODEL, threads=threads)
        with pytest.raises(ConfigError, match="threads"):
            usual.use_threads(threads)


def test_a_provider_that_cannot_keep_fp32_is_named() -> None:
    name = "TensorrtExecutionProvider"
    about = providers.describe("1.31", [name], providers.Choice((name,)))
    assert "TF32" in about and "merge otherwise" in about
    plain = providers.describe("1.31", [door.CPU], providers.Choice((door.CPU,)))
    assert "otherwise" not in plain


THREADS = """
import os, sys
from atm_export.cli import main
assert "torch" not in sys.modules, "its threads read the policy as it is loaded"
assert main(["list"]) == 0
print("policy", os.environ["OMP_WAIT_POLICY"])
"""


@pytest.mark.parametrize("given", [None, "ACTIVE"])
def test_threads_of_pytorch_sleep_unless_the_user_says_otherwise(given: str | None) -> None:
    names = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment = names | ({"OMP_WAIT_POLICY": given} if given else {})
    run = subprocess.run(
        [sys.executable, "-c", THREADS], capture_output=True, text=True, env=environment
    )
    ended(run)
    assert f"policy {given or 'PASSIVE'}" in run.stdout.splitlines()
