"""bf16 and int8 for OpenVINO: marks on the matching, proofs, the run folder, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atm_export import errors
from atm_export.backends import ONNXRUNTIME, OPENVINO, backends
from atm_export.backends.openvino import marks
from atm_export.backends.openvino.door import openvino
from atm_export.cli import main
from atm_export.graph.saving import in_memory
from atm_export.prove.low import LowGraph, low_graph
from atm_export.runs.reading import open_run
from atm_export.runtime import load
from tests.exports import exported
from tests.installed import needs_openvino
from tests.runs import run_command

pytestmark = needs_openvino
SMALL = ("demo", "--image-size", "16", "--no-benchmark")
LOW = ("--backend", OPENVINO, "--precision", "bf16,int8")
OWN = "model.fp32.openvino.onnx"
BF16, INT8 = "model.bf16.openvino.xml", "model.int8.openvino.onnx"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo at 16 x 16 with all that OpenVINO runs; tests must not change it."""
    out = tmp_path_factory.mktemp("low") / "run"
    run_command(*SMALL, *LOW, "--out", str(out))
    return out


def bf16(name: str) -> LowGraph:
    return low_graph(backends[OPENVINO], exported(name).traced, "bf16", [])


def test_the_run_says_what_it_holds(run: Path) -> None:
    opened = open_run(run)
    assert opened.manifest.graphs == {OPENVINO: OWN}
    assert backends[OPENVINO].artifacts(opened) == (OWN, BF16, INT8)
    assert backends[ONNXRUNTIME].artifacts(opened) == ("model.onnx",)
    for name, precision in ((BF16, "bf16"), (INT8, "int8")):
        facts = opened.manifest.low_precision[name]
        assert (facts.backend, facts.precision) == (OPENVINO, precision)
        assert facts.source.file == OWN and facts.validation.images == 32
        assert facts.document[OPENVINO] and "OpenVINO" in facts.document["validation"]["against"]
    assert BF16.replace(".xml", ".bin") in opened.manifest.files


@pytest.mark.parametrize("name", [BF16, INT8])
def test_sessions_and_verify_take_it(
    run: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    low, plain = load(run, engine=name, threads=1), load(run, backend=OPENVINO, threads=1)
    assert low.about.endswith(name) and low.engine is not None
    assert (", bf16, " in low.about) is (name == BF16)
    for count in (1, 5):
        feed = low.prepare(list(np.full((count, 16, 16, 3), 9, np.uint8)))
        ours, theirs = (each.run(feed)["logits"] for each in (low, plain))
        assert np.abs(ours - theirs).max() < 1
    run_command("verify", str(run), "--engine", name)
    assert "angle of the logits" in capsys.readouterr().out


def test_weights_of_bf16_are_hashed(run: Path, tmp_path: Path) -> None:
    out = shutil.copytree(run, tmp_path / "run")
    file = out / BF16.replace(".xml", ".bin")
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    with pytest.raises(errors.ChangedFileError):
        load(out, engine=BF16)


@pytest.mark.parametrize("name", ["class token", "per image", "frozen"])
def test_the_matching_is_marked_and_stays_in_fp32(name: str) -> None:
    """What is compiled is looked at, wherever it is; on a CPU without bfloat16 nothing is low."""
    low, backend = bf16(name), backends[OPENVINO]
    saved = low.for_backend(backend)
    kept = marks.marked(saved.graph)
    deciding = ("MatMul", "Round", "ReduceMax", "ReduceMin", "LpNormalization", "TopK")
    found = {str(node.name) for node in low.model.graph if node.op_type in deciding}
    assert low.matching & found and low.matching & found <= kept
    with backend.open_graph(saved, "bf16") as runner:
        _, *shape = exported(name).traced.graph.inputs[0].shape or ()
        feed = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
        assert np.isfinite(runner.run(feed)["logits"]).all()
    again = bf16(name).for_backend(backend)
    assert again.graph == saved.graph and again.beside == saved.beside


def test_a_lowered_matching_is_an_error() -> None:
    """Without its marks; where the CPU has bfloat16."""
    low = bf16("class token")
    library = openvino()
    core = library.Core()
    model = core.read_model(in_memory(low.model).graph)
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bfloat16")
    with pytest.raises(errors.AtmExportError, match="lowers the matching"):
        marks.require_marks(compiled, low.matching)


def test_evaluate_bench_and_reuse(run: Path, tmp_path: Path, digits: Path) -> None:
    out = shutil.copytree(run, tmp_path / "run")
    some = ("--imagenet", str(digits), "--limit", "8", "--workers", "0")
    run_command("evaluate", str(out), *some, "--runner", f"{OPENVINO}-bf16")
    assert BF16 in (out / f"evaluation-{OPENVINO}-bf16.json").read_text()
    few = ("--batches", "2", "--rounds", "2", "--no-policies", "--precisions", "all")
    run_command("bench", str(out), *few, "--backends", OPENVINO)
    facts: dict[str, Any] = json.loads((out / "bench.json").read_text())
    names = [row["candidate"] for row in facts["rows"]]
    assert names == [f"{n}{p}" for p in ("", " bf16", " int8") for n in ("unmerged", "adaptive")]
    assert "reused" in run_command(*SMALL, *LOW, "--out", str(out))


def test_what_is_not_possible_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for given in (("fp16",), ("fp8",)):
        code = main(["demo", "--backend", OPENVINO, "--precision", *given])
        assert code == errors.ConfigError.exit_code
        line = capsys.readouterr().err.strip()
        assert "fp32 and bf16 and int8 are" in line and "\n" not in line
