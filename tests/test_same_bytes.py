"""Structural work changes no graph: bytes of `model.onnx` as they were before it, all but the
recipe in its metadata, which every new option grows.

Sums and random numbers differ in last bits from one kind of CPU to another. Where this one computes
as the recording one did, whole files are compared; everywhere, all but the floats.
"""

from __future__ import annotations

import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from atm_export.graph.saving import graph_bytes
from tests.graphs import shipped_graph
from tests.shared_data import shared

RECORDED = Path(__file__).with_name("same_bytes.json")
DEIT = "deit_tiny_patch16_224.safetensors"
PACKAGES = ("torch", "timm", "onnx", "onnxscript", "onnx-ir")
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)

CASES: dict[str, dict[str, Any]] = {
    "demo": {"model": "demo"},
    "deit_t adaptive": {"model": "deit_t", "weights": DEIT},
    "deit_t frozen": {"model": "deit_t", "weights": DEIT, "merge": "frozen"},
    "deit_t per-image": {"model": "deit_t", "weights": DEIT, "merge": "per-image"},
    "deit_t traced": {"model": "deit_t", "weights": DEIT, "trace": True},
    "deit_t uint8": {"model": "deit_t", "weights": DEIT, "uint8_input": True},
    "deit_t ToMe": {"model": "deit_t", "weights": DEIT, "method": "tome", "r": "8"},
    "deit_t unmerged": {"model": "deit_t", "weights": DEIT, "method": "none"},
    "lvvit_t": {"model": "lvvit_t", "weights": "random"},
    "t2t_vit_t_14": {"model": "t2t_vit_t_14", "weights": "random"},
}


def machine() -> dict[str, Any]:
    """What decides last bits: package versions, and how this CPU draws and sums."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4096, generator=generator)
    square = noise.double().reshape(64, 64)
    drawn = [noise, square @ square[0], noise.sin(), noise.reshape(8, 512).sum(dim=0)]
    digest = hashlib.sha256(b"".join(t.numpy().tobytes() for t in drawn)).hexdigest()
    return {"versions": {name: metadata.version(name) for name in PACKAGES}, "numbers": digest}


def digests(model: onnx.ModelProto) -> dict[str, str]:
    """sha256 of the file without its recipe, and of that without floats and their source."""
    _forget(model, "atm_export.config")
    whole = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    for tensor in model.graph.initializer:
        if tensor.data_type in FLOATS:
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
    _forget(model, "atm_export.weights")
    shape = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    return {"whole": whole, "all but floats": shape}


def _forget(model: onnx.ModelProto, key: str) -> None:
    """Without a piece of its metadata."""
    kept = [prop for prop in model.metadata_props if prop.key != key]
    assert len(kept) + 1 == len(model.metadata_props)
    del model.metadata_props[:]
    model.metadata_props.extend(kept)


def made(case: str) -> dict[str, str]:
    """The digests of a case, as this version makes them; run where the weights lie."""
    return digests(onnx.load_from_string(graph_bytes(shipped_graph(**CASES[case]))))


@pytest.mark.parametrize("case", CASES)
def test_the_file_is_what_it_was(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded, here = json.loads(RECORDED.read_text()), machine()
    if recorded["machine"]["versions"] != here["versions"]:
        pytest.skip(f"recorded with other packages: {recorded['machine']['versions']}")
    if DEIT in CASES[case].values():
        monkeypatch.chdir(shared("data", "weights", DEIT).parent)
    found, then = made(case), recorded["digests"][case]
    assert found["all but floats"] == then["all but floats"]
    if recorded["machine"] == here:
        assert found["whole"] == then["whole"]


def record() -> None:
    """Write what this version makes: python -m tests.test_same_bytes, in the weights' folder."""
    torch.set_num_threads(1)
    facts = {"machine": machine(), "digests": {case: made(case) for case in CASES}}
    RECORDED.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    record()
