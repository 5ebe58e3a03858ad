"""Real TensorRT-RTX engines from the demo and tiny models, built where no GPU is."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from onnx import parser

from atm_export import engines
from atm_export.backends.onnxruntime.runner import OnnxRuntimeRunner
from atm_export.backends.tensorrt.build import Engine, engine_from_onnx
from atm_export.backends.tensorrt.cut import FailingPart
from atm_export.backends.tensorrt.runner import TensorRTRunner
from atm_export.backends.tensorrt.settings import EngineSettings, Flavor, Precision, Profile
from atm_export.cli import main
from atm_export.errors import (
    AtmExportError,
    EngineBuildError,
    EngineMismatchError,
    GraphLintError,
    OutputError,
)
from atm_export.graph.optimize import with_precision
from atm_export.graph.saving import graph_bytes
from atm_export.measure.speed import engines as evaluated
from atm_export.runs.graphs import SavedGraph
from atm_export.runs.reading import open_run
from tests.exports import exported
from tests.graphs import proto
from tests.runs import run_command

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
RTX = EngineSettings(flavor=Flavor.RTX, sms=(86,))
PLAN = "model.fp16.rtx.sm86.plan"
PART = (
    '<ir_version: 10, opset_import: ["": 20]>'
    " g (float[batch] image) => (float[batch] y) { [negated] y = Neg (image) }"
)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo with one engine."""
    out = tmp_path_factory.mktemp("engines") / "demo"
    arguments = ["demo", "--out", str(out), "--no-benchmark", "--trt", "--trt-flavor", "rtx"]
    run_command(*arguments, "--sm", "86")
    return out


def test_an_engine_lies_in_the_run_with_its_facts(built: Path) -> None:
    run = open_run(built)
    facts = run.manifest.engines[PLAN]
    entry = facts.document
    assert run.manifest.files[PLAN].sha256 == entry["sha256"]
    assert facts.source.file == "model.fp16.onnx"
    assert run.manifest.files["model.fp16.onnx"].sha256 == facts.source.sha256
    assert entry["flavor"] == "rtx" and entry["sms"] == [86] and entry["profiles"] == ["1:8:64"]
    assert entry["tensors"]["image"] == {
        "mode": "input",
        "dtype": "float32",
        "shape": [-1, 3, 56, 56],
    }
    assert entry["tensors"]["logits"] == {"mode": "output", "dtype": "float32", "shape": [-1, 10]}
    assert entry["build"]["activation_bytes"] > 0 and entry["cuda"]
    assert entry["validation"]["within"] and entry["validation"]["images"] == 32
    assert entry["run"]["status"] == "built ahead of time; not run: no GPU"
    assert str(PLAN) in entry["by_hand"]["replay"]
    typed = onnx.load(built / "model.fp16.onnx")
    assert {p.key: p.value for p in typed.metadata_props}["atm_export.precision"] == "fp16"


def test_a_second_run_reuses_the_engine_and_the_manifest(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engines, "_add_one", lambda *a: pytest.fail("built again"))
    before = (built / "manifest.json").read_bytes()
    arguments = ["demo", "--out", str(built), "--no-benchmark", "--trt", "--trt-flavor", "rtx"]
    run_command(*arguments, "--sm", "86")
    assert (built / "manifest.json").read_bytes() == before
    printed = capsys.readouterr().out
    assert PLAN in printed and "not run: no GPU" in printed


def test_a_second_engine_joins_the_first(built: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    shutil.copytree(built, out)
    arguments = ["demo", "--out", str(out), "--no-benchmark", "--trt", "--sm", "120"]
    extra = ["--trt-flavor", "rtx", "--precision", "fp32", "--batch", "1:1:1,2:4:8"]
    run_command(*arguments, *extra)
    run = open_run(out)
    assert sorted(run.manifest.engines) == [PLAN, "model.fp32.rtx.sm120.plan"]
    second = run.manifest.engines["model.fp32.rtx.sm120.plan"]
    assert second.batches == ((1, 1, 1), (2, 4, 8))
    assert second.source.file == "model.onnx"


def test_a_failed_build_leaves_the_run_whole_and_saves_the_log(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from atm_export.backends.tensorrt.build import BuildFailedError

    def fail(*arguments: object, **named: object) -> None:
        raise BuildFailedError("the build fails at blocks.3", [("ERROR", "the whole story")])

    out = tmp_path / "demo"
    shutil.copytree(built, out)
    before = (out / "manifest.json").read_bytes()
    monkeypatch.setattr(engines, "engine_from_onnx", fail)
    part = FailingPart(parser.parse_model(PART))
    monkeypatch.setattr(engines, "failing_part", lambda *given: part)
    arguments = ["demo", "--out", str(out), "--no-benchmark", "--trt", "--trt-flavor", "rtx"]
    assert main([*arguments, "--sm", "89"]) == EngineBuildError.exit_code == 11
    line = capsys.readouterr().err.splitlines()[-1]
    assert "the build fails at blocks.3; the smallest part that fails is negated (Neg)" in line
    assert onnx.load(out / "model.fp16.rtx.sm89.plan.failing.onnx") == part.model
    assert "the whole story" in (out / "model.fp16.rtx.sm89.plan.log").read_text()
    assert (out / "manifest.json").read_bytes() == before
    open_run(out)


def test_an_interrupted_build_leaves_the_run_whole(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "demo"
    shutil.copytree(built, out)
    monkeypatch.setattr(engines, "engine_from_onnx", interrupt)
    arguments = ["demo", "--out", str(out), "--no-benchmark", "--trt", "--trt-flavor", "rtx"]
    assert main([*arguments, "--sm", "89"]) == 130
    assert sorted(open_run(out).manifest.engines) == [PLAN]


def test_two_builds_into_one_folder_do_not_corrupt_it(built: Path, tmp_path: Path) -> None:
    from atm_export.runs.writing import working

    out = tmp_path / "demo"
    shutil.copytree(built, out)
    found: list[int] = []

    def build() -> None:
        arguments = ["demo", "--out", str(out), "--no-benchmark", "--trt", "--trt-flavor", "rtx"]
        found.append(main([*arguments, "--sm", "89"]))

    with working(out, "the other build"):
        try:
            build()
        except ValueError:  # signals belong to the main thread
            thread = threading.Thread(target=build)
            thread.start()
            thread.join()
    assert found == [OutputError.exit_code]
    assert sorted(open_run(out).manifest.engines) == [PLAN]


def test_the_runner_refuses_before_deserialising(built: Path) -> None:
    with pytest.raises(EngineMismatchError, match="no GPU is here"), TensorRTRunner(built / PLAN):
        pytest.fail("entered without a GPU")


def test_a_wrong_or_missing_plan_is_refused(built: Path, tmp_path: Path) -> None:
    with pytest.raises(AtmExportError, match="no run folder"):
        TensorRTRunner(tmp_path / PLAN)
    with pytest.raises(EngineMismatchError, match="no engine of its run folder"):
        TensorRTRunner(built / "other.plan")


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_engines_from_python(precision: Precision) -> None:
    """A typed tiny graph, an unmerged one, and how their sizes and memory compare."""
    settings = RTX.model_copy(update={"profiles": (Profile(min=1, opt=2, max=4),)})
    merged = engine_from_onnx(
        with_precision(exported("class token").shipped, precision.value), settings
    )
    plain = engine_from_onnx(
        with_precision(exported("unmerged").shipped, precision.value), settings
    )
    for engine in (merged, plain):
        assert engine.facts["tensors"]["logits"]["mode"] == "output"
        assert engine.facts["profiles"] == ["1:2:4"]
        assert 0 < engine.facts["build"]["activation_bytes"] < 2**28
    assert len(plain.plan) > 1000 and len(merged.plan) > len(plain.plan)


def test_a_graph_that_breaks_a_rule_is_refused_before_the_build() -> None:
    model = proto(exported("class token").shipped)
    for node in model.graph.node:
        if node.op_type == "Max":
            node.op_type = "Min"
    with pytest.raises(GraphLintError, match="unbounded length"):
        engine_from_onnx(model, RTX)


def test_parser_errors_name_the_node(tmp_path: Path) -> None:
    model = proto(exported("unmerged").shipped)
    gelu = next(node for node in model.graph.node if node.op_type == "Gelu")
    gelu.op_type, gelu.domain = "NoSuchThing", "com.mine"
    with pytest.raises(EngineBuildError, match="NoSuchThing"):
        engine_from_onnx(model, RTX)


class OnnxInPlaceOfPlan:
    """Where no GPU is, the logic around one is tested with ONNX Runtime under a runner's name."""

    def __init__(self, plan: Path, facts: object = None, *, static: bool = False) -> None:
        self.runner = OnnxRuntimeRunner(SavedGraph(plan.read_bytes()))

    def __enter__(self) -> OnnxRuntimeRunner:
        return self.runner.__enter__()

    def __exit__(self, *error: object) -> None:
        self.runner.__exit__(None, None, None)


def test_where_a_gpu_is_the_engine_is_proven_measured_and_judged(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = open_run(built).manifest.engines[PLAN].document

    def no_build(model: ir.Model, settings: object, api: object) -> Engine:
        return Engine(graph_bytes(model), {**facts, "sms": [89]})

    monkeypatch.setattr(engines, "engine_from_onnx", no_build)
    monkeypatch.setattr(engines, "TensorRTRunner", OnnxInPlaceOfPlan)
    monkeypatch.setattr(engines, "gpu_sm", lambda: 89)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a stand-in GPU")
    monkeypatch.setattr(engines, "ROUNDS", 2)
    monkeypatch.setattr(engines, "BATCHES", (1, 4))
    out = tmp_path / "demo"
    shutil.copytree(built, out)
    arguments = ["demo", "--out", str(out), "--no-benchmark", "--trt", "--trt-flavor", "rtx"]
    run_command(*arguments, "--sm", "89", "--precision", "fp32")
    entry = open_run(out).manifest.engines["model.fp32.rtx.sm89.plan"].document
    run = entry["run"]
    assert run["status"] == "run on a stand-in GPU"
    assert list(open_run(out).manifest.proven_on) == ["onnxruntime", "tensorrt"]
    assert list(open_run(built).manifest.proven_on) == ["onnxruntime"]
    assert run["parity"]["within"] and run["parity"]["token_counts_differing"] == 0
    assert [row["batch"] for row in run["latency"]] == [1, 4]
    for row in run["latency"]:
        assert row["rounds"] == 2
        assert set(row["runners"]) == {"adaptive", "frozen", "unmerged"}
        assert row["runners"]["unmerged"]["speedup"] == 1.0
        assert row["runners"]["adaptive"]["p50_ms"] <= row["runners"]["adaptive"]["p99_ms"]
    assert run["recommendation"].startswith("On a stand-in GPU: ")
    assert "run on a stand-in GPU" in capsys.readouterr().out


def test_recommendations_prefer_no_merging_within_the_noise() -> None:
    def row(batch: int, **speedups: float) -> dict[str, object]:
        return {"batch": batch, "runners": {n: {"speedup": s} for n, s in speedups.items()}}

    rows = [
        row(1, unmerged=1.0, adaptive=0.8, frozen=1.01),
        row(64, unmerged=1.0, adaptive=1.4, frozen=1.3),
    ]
    assert evaluated.recommend(rows, "G") == (
        "On G: unmerged at batch 1, adaptive at batch 64 (1.40 times the unmerged engine)."
    )


@pytest.mark.gpu
def test_engines_run_on_the_gpu_that_is_there(tmp_path: Path) -> None:
    """Needs TensorRT and a GPU: the whole of --trt, parity and latency included."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    out = tmp_path / "demo"
    run_command("demo", "--out", str(out), "--trt", "--precision", "fp32,fp16")
    for entry in open_run(out).manifest.engines.values():
        assert entry.status.startswith("run on"), entry.status
