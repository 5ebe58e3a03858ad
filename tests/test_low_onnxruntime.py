"""int8 for ONNX Runtime's CPU provider: the pass, its proof, the run folder, what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from atm_export import errors
from atm_export.backends import ONNXRUNTIME, backends
from atm_export.backends.base import GRAPH
from atm_export.choice import Choice
from atm_export.cli import main
from atm_export.graph.optimize import with_int8_products
from atm_export.graph.passes.int8_products import PRODUCT
from atm_export.measure.accuracy.runners import file_of
from atm_export.measure.data.images import load_images
from atm_export.measure.speed.bench import recommend
from atm_export.model.zoo import load_model
from atm_export.prove import low, precision
from atm_export.prove.calibration import linear_inputs, spans
from atm_export.prove.low import calibration_feeds, compare_low, low_graph
from atm_export.prove.matching import lowered_matching
from atm_export.resolving import resolve
from atm_export.rewrite.names import RULE
from atm_export.runs.reading import load_document, open_run
from atm_export.runtime import load
from atm_export.subject import subject_of
from atm_export.triton import write_repository
from tests.exports import exported, run_onnx
from tests.runs import run_command
from tests.shared_data import shared
from tests.test_verify import reseal

FILE = "model.int8.onnxruntime.onnx"
SMALL = ("demo", "--image-size", "16", "--no-benchmark")
LOW = ("--backend", ONNXRUNTIME, "--precision", "int8")
LOW_RUNNER = f"{ONNXRUNTIME}-int8"


@pytest.fixture
def run(int8_folder: Path) -> Path:
    """The demo at 16 x 16 with its int8 graph; tests must not change it."""
    return int8_folder


def int8_graph(traced: ir.Model, feeds: list[np.ndarray], *, keys: bool = True) -> ir.Model:
    return low_graph(backends[ONNXRUNTIME], traced, "int8", feeds, keys=keys).model


def test_no_sum_of_two_products_leaves_16_bits(run: Path) -> None:
    """CPUs without VNNI add two products of uint8 and int8 in 16 bits, and saturate."""
    model = onnx.load(run / FILE)
    kept = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type == PRODUCT]
    assert products
    for node in products:
        largest = int(np.abs(kept[node.input[1]].astype(int)).max())
        assert 2 * 255 * largest <= np.iinfo(np.int16).max


def images(traced: ir.Model, batch: int) -> np.ndarray:
    _, *shape = traced.graph.inputs[0].shape or ()
    return np.random.default_rng(0).normal(size=(batch, *shape)).astype(np.float32)


@pytest.mark.parametrize("keys", [True, False])
@pytest.mark.parametrize("name", ["class token", "per image", "frozen", "unmerged"])
def test_linear_layers_are_products_of_8_bits(name: str, keys: bool) -> None:
    traced = exported(name).traced
    feed = images(traced, 4)
    typed = int8_graph(traced, [feed], keys=keys)
    kept = linear_inputs(typed, keys=True)
    assert all(".k.weight" in weight for weight in kept)
    assert bool(kept) == (name != "unmerged" and not keys)
    products = [node for node in typed.graph if node.op_type == PRODUCT]
    assert len(products) == len(linear_inputs(traced, keys=keys))
    assert not any(RULE in node.metadata_props for node in products)
    assert not lowered_matching(typed)
    scales = {node.inputs[3].shape[0] for node in products}
    assert all(length > 1 for length in scales)  # one an output channel
    ours, theirs = run_onnx(typed, feed)["logits"], run_onnx(traced, feed)["logits"]
    cosine = (ours * theirs).sum() / np.linalg.norm(ours) / np.linalg.norm(theirs)
    assert 0.97 < cosine < 1


def test_keys_stay_in_fp32_where_their_decisions_would_be_too_far(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = []

    def made(*_: object, keys: bool) -> SimpleNamespace:
        tried.append(keys)
        return SimpleNamespace(keys=keys)

    proof = SimpleNamespace(within=False, require=lambda: None)
    monkeypatch.setattr(low, "calibration_feeds", lambda subject, pixels: [])
    monkeypatch.setattr(low, "low_graph", made)
    monkeypatch.setattr(low, "compare_low", lambda *given: proof)
    nothing: Any = None
    assert low.judged(nothing, nothing, nothing, "int8", nothing, nothing)[0].keys is False
    assert tried == [True, False]


def test_an_answer_does_not_depend_on_its_neighbours() -> None:
    """Grids are calibrated, not those of a batch."""
    traced = exported("frozen").traced
    feed = images(traced, 4)
    typed = int8_graph(traced, [feed])
    feed[1:] *= 3
    both = [run_onnx(typed, batch)["logits"][0] for batch in (feed, feed[:1])]
    np.testing.assert_allclose(*both, atol=1e-5)


def test_without_spans_nothing_changes() -> None:
    traced = exported("frozen").traced
    typed = with_int8_products(traced, {})
    assert [n.op_type for n in typed.graph] == [n.op_type for n in traced.graph]


def test_a_product_of_a_rule_is_left_alone() -> None:
    traced = exported("class token").traced
    linear = linear_inputs(traced)
    tagged = with_int8_products(traced, {})
    for node in tagged.graph:
        if len(node.inputs) > 1 and node.inputs[1] and node.inputs[1].name in linear:
            node.metadata_props[RULE] = "1"
    typed = with_int8_products(tagged, spans(traced, linear, [images(traced, 2)]))
    assert PRODUCT not in {node.op_type for node in typed.graph}


def test_the_run_says_what_it_holds(run: Path) -> None:
    opened = open_run(run)
    facts = opened.manifest.low_precision[FILE]
    assert (facts.backend, facts.precision) == (ONNXRUNTIME, "int8")
    assert facts.bytes == (run / FILE).stat().st_size
    assert facts.source.sha256 == opened.manifest.files[GRAPH].sha256
    assert facts.document["sha256"] == opened.manifest.files[FILE].sha256
    assert facts.validation.images == 32 and facts.validation.min_cosine >= 0.8
    assert facts.document["keys"] in ("int8", "fp32")
    assert facts.document["validation"]["against"].startswith("the eager reference")
    assert backends[ONNXRUNTIME].artifacts(opened) == (GRAPH, FILE)
    with pytest.raises(errors.ConfigError, match="--backend onnxruntime --precision int8"):
        write_repository(run, run.parent / "models", engine=FILE)
    assert not opened.manifest.engines


def test_sessions_and_verify_take_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    low, plain = load(run, engine=FILE, threads=1), load(run, threads=1)
    assert low.about.endswith(FILE) and low.providers == ("CPUExecutionProvider",)
    assert low.engine is not None and plain.engine is None
    feed = low.prepare(list(np.full((2, 16, 16, 3), 9, np.uint8)))
    ours, theirs = (each.run(feed)["logits"] for each in (low, plain))
    assert 0 < np.abs(ours - theirs).max() < 1
    run_command("verify", str(run), "--engine", FILE)
    assert "angle of the logits" in capsys.readouterr().out
    with pytest.raises(errors.ConfigError, match="made for CPUs"):
        load(run, engine=FILE, providers=["cuda"])
    with pytest.raises(errors.MissingFileError, match=r"it has: model\.onnx"):
        load(run, engine="model.bf16.onnxruntime.onnx")


def test_the_same_command_reuses_it_and_fp32_adds_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_command(*SMALL, "--backend", ONNXRUNTIME, "--precision", "fp32", "--out", str(out))
    assert not list(out.glob("*int8*"))
    run_command(*SMALL, *LOW, "--external-data", "auto", "--out", str(out))
    made = (out / FILE).stat().st_mtime_ns
    assert "reused" in run_command(*SMALL, *LOW, "--out", str(out))
    assert (out / FILE).stat().st_mtime_ns == made
    assert "<h2>Low precision</h2>" in (out / "report.html").read_text()


def test_weights_beside_the_graph(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_command(*SMALL, *LOW, "--external-data", "always", "--out", str(out))
    assert f"{FILE}.data" in open_run(out).manifest.files
    run_command("verify", str(out), "--engine", FILE)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--backend", ONNXRUNTIME, "--precision", "bf16"), "fp32 and int8 are"),
        (("--backend", ONNXRUNTIME, "--precision", "int4"), "not one of"),
        (("--precision", "int8"), "--trt, or --backend onnxruntime or openvino"),
        (("--backend", ONNXRUNTIME, "--sm", "86"), "only with --trt"),
    ],
)
def test_what_is_not_possible_is_one_line(
    arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", *arguments]) == errors.ConfigError.exit_code
    line = capsys.readouterr().err.strip()
    assert told in line and "\n" not in line


def test_one_that_is_too_far_is_an_error_and_not_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    strict = replace(precision.TOLERANCES["int8"], every=1.1)
    monkeypatch.setattr(precision, "TOLERANCES", {**precision.TOLERANCES, "int8": strict})
    out = tmp_path / "run"
    code = main([*SMALL, *LOW, "--out", str(out)])
    assert code == errors.ParityError.exit_code
    assert "int8 changes the model too much" in capsys.readouterr().err
    assert not open_run(out).manifest.low_precision and not list(out.glob("*int8*"))


def test_one_of_another_graph_is_refused(run: Path, tmp_path: Path) -> None:
    out = shutil.copytree(run, tmp_path / "run")
    entries = load_document(out)["low_precision"]
    entries[FILE]["source"]["sha256"] = "0" * 64
    reseal(out, low_precision=entries)
    with pytest.raises(errors.EngineMismatchError, match=r"made of another model\.onnx"):
        load(out, engine=FILE)


def test_evaluate_and_bench_measure_it(run: Path, tmp_path: Path, digits: Path) -> None:
    out = shutil.copytree(run, tmp_path / "run")
    some = ("--imagenet", str(digits), "--limit", "8", "--workers", "0")
    run_command("evaluate", str(out), *some, "--runner", LOW_RUNNER)
    facts = json.loads((out / f"evaluation-{LOW_RUNNER}.json").read_text())
    assert FILE in json.dumps(facts)
    few = ("--batches", "2", "--rounds", "3", "--no-policies", "--precisions", "fp32,int8")
    run_command("bench", str(out), *few)
    rows = json.loads((out / "bench.json").read_text())["rows"]
    names = [row["candidate"] for row in rows]
    assert names == ["unmerged", "adaptive", "unmerged int8", "adaptive int8"]
    assert [("speedup" in row, "over_fp32" in row) for row in rows] == [
        (False, False),
        (True, False),
        (False, True),
        (True, True),
    ]
    assert "Benchmark" in (out / "report.html").read_text()


def test_precisions_that_are_not_there_are_named(run: Path, tmp_path: Path) -> None:
    run_command("bench", str(run), "--precisions", "fp16", code=errors.ConfigError.exit_code)
    out = tmp_path / "run"
    run_command(*SMALL, "--out", str(out))
    with pytest.raises(errors.ConfigError, match="no graph in int8 for ONNX Runtime"):
        file_of(LOW_RUNNER, open_run(out))


def test_the_precision_that_is_fastest_is_recommended() -> None:
    def row(name: str, precision: str, rate: float, low: float | None = None) -> dict[str, Any]:
        speed = {} if low is None else {"speedup": {"median": low, "low": low, "high": low}}
        where = {"backend": "onnxruntime", "batch": 8, "median_ms": 8.0, "images_per_s": rate}
        return {"candidate": name, "precision": precision, **where, **speed}

    rows = [row("unmerged", "fp32", 10), row("adaptive", "fp32", 12, 1.2)]
    low = [row("unmerged int8", "int8", 20), row("adaptive int8", "int8", 19, 0.95)]
    assert recommend(rows).startswith("Take adaptive merging at batch 8")
    assert recommend([*rows, *low]).startswith("No merging in int8, at batch 8")
    low[1] = row("adaptive int8", "int8", 24, 1.2)
    assert recommend([*rows, *low]).startswith("Take adaptive merging in int8 at batch 8")


@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize(
    "merge",
    ["adaptive", *(pytest.param(m, marks=pytest.mark.slow) for m in ("frozen", "per-image"))],
)
def test_deit_with_its_weights_is_within_the_tolerance(merge: str) -> None:
    weights = shared("data", "weights", "deit_tiny_patch16_224.safetensors")
    config = resolve(Choice(model="deit_t", weights=str(weights), merge=merge))
    model = load_model(config.model)
    pixels = load_images(None, model.preprocessing, None).pixels
    subject = subject_of(config, model, pixels)
    backend, feeds = backends[ONNXRUNTIME], calibration_feeds(subject, pixels)
    typed = low_graph(backend, subject.graph(subject.plan), "int8", feeds)
    proof = compare_low(backend, subject, typed, pixels)
    proof.require()
    assert proof.images == 32 and proof.least < 1
