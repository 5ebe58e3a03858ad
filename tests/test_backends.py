"""ONNX Runtime behind the Runner protocol."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from atm_export.backends.onnxruntime.door import use_threads
from atm_export.backends.onnxruntime.runner import OnnxRuntimeRunner
from atm_export.backends.runner import Runner
from atm_export.errors import AtmExportError

DOUBLE = (
    '<ir_version: 10, opset_import: ["": 20]>'
    " g (float[batch, 2] image) => (float[batch, 2] twice, float[batch, 2] minus)"
    " { twice = Add (image, image)\n minus = Neg (image) }"
)


def test_outputs_come_by_name_from_memory_and_from_a_file(tmp_path: Path) -> None:
    model = parser.parse_model(DOUBLE)
    onnx.save(model, tmp_path / "double.onnx")
    image = np.array([[1, 2], [3, 4], [5, 6]], dtype=np.float32)
    for source in (model, tmp_path / "double.onnx"):
        with OnnxRuntimeRunner(source, threads=1) as runner:
            out = runner.run(image)
        assert list(out) == ["twice", "minus"]
        assert np.array_equal(out["twice"], 2 * image)
        assert np.array_equal(out["minus"], -image)


def test_nothing_is_loaded_before_entry_or_held_after_exit(tmp_path: Path) -> None:
    absent: Runner = OnnxRuntimeRunner(tmp_path / "absent.onnx")
    with pytest.raises(AtmExportError, match="does not load"), absent:
        pytest.fail("a missing file was loaded")
    runner = OnnxRuntimeRunner(parser.parse_model(DOUBLE))
    assert runner.session is None
    with runner:
        assert runner.session is not None
    assert runner.session is None


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "damaged.onnx"
    path.write_bytes(b"\x08\x0a no model")
    with pytest.raises(AtmExportError) as caught, OnnxRuntimeRunner(path):
        pytest.fail("a damaged file was loaded")
    assert "\n" not in str(caught.value)


def test_sessions_that_prove_and_that_are_measured_open_in_one_process() -> None:
    """An export opens both, after its threads are set, each with threads of its own."""
    model = parser.parse_model(DOUBLE)
    assert use_threads(3) == 3
    with (
        OnnxRuntimeRunner(model) as proving,
        OnnxRuntimeRunner(model, waiting="spin while running") as measured,
        OnnxRuntimeRunner(model, threads=2, waiting="spin") as serving,
    ):
        for runner in (proving, measured, serving):
            assert runner.run(np.ones((1, 2), np.float32))["twice"].tolist() == [[2, 2]]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' names are Unicode")
def test_a_graph_below_a_name_that_is_no_utf8_opens(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"run \xff\xfe")
    folder.mkdir()
    onnx.save(parser.parse_model(DOUBLE), folder / "model.onnx")
    with OnnxRuntimeRunner(folder / "model.onnx") as runner:
        assert runner.run(np.ones((1, 2), np.float32))["twice"].tolist() == [[2, 2]]


def test_a_graph_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(AtmExportError, match=r"model\.onnx"),
        OnnxRuntimeRunner(tmp_path / "model.onnx"),
    ):
        pytest.fail("there is none")
