"""ONNX Runtime behind the Runner protocol."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from atm_export.backends.onnxruntime import OnnxRuntimeRunner
from atm_export.backends.runner import Runner
from atm_export.errors import AtmExportError
from tests.runs import ended

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


POOL = """
import sys
from pathlib import Path
import numpy as np
from onnx import parser
from atm_export.backends.onnxruntime import OnnxRuntimeRunner
from atm_export.ort import share_threads

def tasks():
    return len(list(Path("/proc/self/task").iterdir())) if sys.platform == "linux" else 0

model = parser.parse_model(sys.argv[1])
assert share_threads(3) == 3
assert share_threads(5) == 3, "the first size stays"
with OnnxRuntimeRunner(model, threads=7, measured=True) as first:
    before = tasks()
    with OnnxRuntimeRunner(model, threads=7, measured=True) as second:
        assert tasks() == before, "a second session has threads of its own"
        for runner in (first, second):
            assert runner.run(np.ones((1, 2), np.float32))["twice"].tolist() == [[2, 2]]
"""


def test_the_shared_pool_keeps_its_first_size_and_serves_every_session() -> None:
    """In a process of its own: ONNX Runtime makes its pool once, and conftest.py forbids it."""
    run = subprocess.run([sys.executable, "-c", POOL, DOUBLE], capture_output=True, text=True)
    ended(run)
