"""ONNX Runtime behind the Runner protocol."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import parser

from atm_export.backends.onnxruntime.runner import OnnxRuntimeRunner
from atm_export.backends.runner import Runner
from atm_export.backends.threads import use_threads
from atm_export.errors import AtmExportError
from atm_export.graph.saving import (
    External,
    graph_from_file,
    graph_from_memory,
    in_memory,
    written,
)
from atm_export.runs.graphs import SavedGraph

DOUBLE = (
    '<ir_version: 10, opset_import: ["": 20]>'
    " g (float[batch, 2] image) => (float[batch, 2] twice, float[batch, 2] minus)"
    " { twice = Add (image, image)\n minus = Neg (image) }"
)


def graph() -> SavedGraph:
    return SavedGraph(parser.parse_model(DOUBLE).SerializeToString())


def test_outputs_come_by_name() -> None:
    image = np.array([[1, 2], [3, 4], [5, 6]], dtype=np.float32)
    with OnnxRuntimeRunner(graph(), threads=1) as runner:
        out = runner.run(image)
    assert list(out) == ["twice", "minus"]
    assert np.array_equal(out["twice"], 2 * image)
    assert np.array_equal(out["minus"], -image)


def test_nothing_is_loaded_before_entry_or_held_after_exit() -> None:
    runner: Runner = OnnxRuntimeRunner(graph())
    assert isinstance(runner, OnnxRuntimeRunner) and runner.session is None
    with runner:
        assert runner.session is not None
    assert runner.session is None


def test_a_damaged_graph_is_one_line() -> None:
    damaged = SavedGraph(b"\x08\x0a no model")
    with (
        pytest.raises(AtmExportError, match="does not load") as caught,
        OnnxRuntimeRunner(damaged),
    ):
        pytest.fail("a damaged file was loaded")
    assert "\n" not in str(caught.value)


def test_sessions_that_prove_and_that_are_measured_open_in_one_process() -> None:
    """An export opens both, after its threads are set, each with threads of its own."""
    model = graph()
    assert use_threads(3) == 3
    with (
        OnnxRuntimeRunner(model) as proving,
        OnnxRuntimeRunner(model, waiting="spin while running") as measured,
        OnnxRuntimeRunner(model, threads=2, waiting="spin") as serving,
    ):
        for runner in (proving, measured, serving):
            assert runner.run(np.ones((1, 2), np.float32))["twice"].tolist() == [[2, 2]]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' names are Unicode")
@pytest.mark.parametrize("external", ["never", "always"])
def test_a_graph_below_a_name_that_is_no_utf8_opens(tmp_path: Path, external: External) -> None:
    folder = tmp_path / os.fsdecode(b"run \xff\xfe")
    folder.mkdir()
    file = written(graph_from_memory(graph()), folder / "model.onnx", external)
    with OnnxRuntimeRunner(in_memory(graph_from_file(file))) as runner:
        assert runner.run(np.ones((1, 2), np.float32))["twice"].tolist() == [[2, 2]]
