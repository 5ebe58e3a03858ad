"""`evaluate`: the numbers, the interrupt, broken images, and the files that it leaves."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from PIL import Image

from atm_export.backends.onnxruntime.runner import OnnxRuntimeRunner
from atm_export.cli import main
from atm_export.commands import evaluate as command
from atm_export.errors import ChangedFileError, WeightsError
from atm_export.graph.optimize import with_outputs
from atm_export.graph.saving import graph_bytes, graph_from_file, graph_from_memory
from atm_export.measure.accuracy.batches import Options, _count
from atm_export.measure.accuracy.evaluation import evaluate_run
from atm_export.measure.accuracy.journal import journal
from atm_export.measure.accuracy.place import Place
from atm_export.measure.accuracy.runners import from_runner, runner_names, traced_graph
from atm_export.measure.data.samples import open_samples
from atm_export.model.flops import trace_gmacs
from atm_export.model.reference import run_reference
from atm_export.preprocess import read_images
from atm_export.prove.intervals import share_facts, wilson
from atm_export.runs.graphs import read_graph
from atm_export.runs.reading import Run, open_run
from atm_export.subject import Subject, exported_subject
from tests.manifests import having
from tests.runs import run_command

FAST = Options(batch=16, workers=0)


def subject_of_run(run: Run, weights: str | None = None, *, need_weights: bool = True) -> Subject:
    return exported_subject(run.manifest, "manifest.json", weights, need_weights=need_weights)


def with_graph(run: Run, model: ir.Model) -> Run:
    """The run with another graph in its folder, listed as if it had been exported so."""
    run.graph.write_bytes(data := graph_bytes(model))
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    files = {**run.manifest.document["files"], "model.onnx": entry}
    return Run(run.folder, having(run.manifest, files=files))


def facts_of(folder: Path, runner: str = "onnxruntime") -> dict[str, Any]:
    return json.loads((folder / f"evaluation-{runner}.json").read_text(encoding="utf-8"))


def rows_of(folder: Path, runner: str = "onnxruntime") -> list[dict[str, str]]:
    with (folder / f"predictions-{runner}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    # Newcombe, Statistics in Medicine 1998, table I, method 3
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_intervals(hits: int, count: int, low: float, high: float) -> None:
    assert wilson(hits, count) == pytest.approx((low, high), abs=5e-5)


def test_shares_of_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert share_facts(0, 0)["percent"] is None
    assert share_facts(3, 4)["percent"] == 75.0


def test_console_json_csv_and_the_reference_agree(
    run_copy: Path, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--imagenet", str(digits), "--batch", "16", "--workers", "1"]
    for runner in ("onnxruntime", "eager"):
        run_command("evaluate", str(run_copy), *arguments, "--runner", runner)
    printed = capsys.readouterr().out
    facts, eager = facts_of(run_copy), facts_of(run_copy, "eager")
    assert [row["top1"] for row in rows_of(run_copy)] == [
        row["top1"] for row in rows_of(run_copy, "eager")
    ]
    for name in ("top1", "top5", "agreement", "unmerged", "gflops"):
        assert facts[name] == eager[name]
    assert eager["tokens"]["mean_after_block"] == facts["tokens"]["mean_after_block"]

    subject = subject_of_run(open_run(run_copy))
    files = sorted(digits.rglob("*.png"))
    pixels = read_images(files, subject.model.preprocessing)
    traces = [
        run_reference(subject.model.backbone, subject.plan, subject.tensor(pixels[i : i + 16]))
        for i in range(0, len(files), 16)
    ]
    gmacs = torch.cat([trace_gmacs(subject.model.backbone, trace) for trace in traces])
    assert facts["gflops"]["mean"] == pytest.approx(float(gmacs.mean()), abs=1e-12)
    assert sum(facts["gflops"]["histogram"]["counts"]) == len(files)
    predicted = torch.cat([trace.outputs["logits"].argmax(1) for trace in traces]).tolist()
    right = [int(file.parent.name) for file in files]
    hits = sum(a == b for a, b in zip(predicted, right, strict=True))
    assert facts["top1"] == share_facts(hits, len(files))
    assert f"{facts['top1']['percent']:.2f} %" in printed
    assert f"{facts['gflops']['mean']:.3f} of {facts['gflops']['unmerged']:.3f}" in printed
    manifest = open_run(run_copy).manifest
    assert {"evaluation-eager.json", "predictions-onnxruntime.csv"} <= set(manifest.files)
    assert not list(run_copy.parent.glob(".*"))


def test_an_interrupted_evaluation_loses_no_counted_batch(
    run_copy: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, place, counted = open_run(run_copy), Place(str(digits)), []

    def stop_at_third(*arguments: Any) -> dict[str, Any]:
        counted.append(1)
        if len(counted) == 3:
            raise KeyboardInterrupt
        return _count(*arguments)

    whole = evaluate_run(run, place, FAST)
    whole.journal.unlink()
    monkeypatch.setattr("atm_export.measure.accuracy.batches._count", stop_at_third)
    options = Options(batch=8, workers=1)
    with pytest.raises(KeyboardInterrupt):
        evaluate_run(run, place, options)
    resumed = evaluate_run(run, place, options)
    assert len(counted) == 3 + 3  # 5 batches: two counted, one interrupted, three left
    resumed.journal.unlink()
    monkeypatch.undo()
    at_once = evaluate_run(run, place, options)
    for name in ("top1", "top5", "agreement", "gflops", "tokens"):
        assert resumed.facts[name] == at_once.facts[name]
    assert resumed.predictions == at_once.predictions
    assert whole.facts["top1"]["of"] == at_once.facts["top1"]["of"]


def test_a_torn_or_foreign_journal_is_not_trusted(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with journal(path, "one") as book:
        book.add({"batch": 0, "n": 1})
        book.add({"batch": 1, "n": 2})
    path.write_bytes(path.read_bytes()[:-3])
    with journal(path, "one") as book:
        assert list(book.entries) == [0]
        book.add({"batch": 1, "n": 3})
    with journal(path, "one") as book:
        assert book.entries[1]["n"] == 3
    with journal(path, "other") as book:
        assert not book.entries


def test_unreadable_images_are_named_and_limited(
    run_copy: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = Path(shutil.copytree(digits, tmp_path / "images"))
    (images / "3" / "torn.jpg").write_bytes(b"\xff\xd8\xff torn")
    (images / "4" / "nothing.png").write_bytes(b"")
    arguments = ["evaluate", str(run_copy), "--imagenet", str(images), "--workers", "0"]
    assert main([*arguments, "--max-unreadable", "1"]) == 9
    error = capsys.readouterr().err.splitlines()[-1]
    assert "2 images cannot be read" in error and "3/torn.jpg" in error
    run_command(*arguments)
    assert "40 counted, 2 unreadable" in capsys.readouterr().out
    facts = facts_of(run_copy)
    assert [row["image"] for row in facts["unreadable"]] == ["3/torn.jpg", "4/nothing.png"]
    assert facts["top1"]["of"] == 40


def test_weights_that_are_gone_cost_the_agreement_alone(run_copy: Path) -> None:
    run = open_run(run_copy)
    config = run.manifest.config
    spec = {**config["model"], "weights": "gone.safetensors"}
    moved = Run(run.folder, having(run.manifest, config={**config, "model": spec}))
    with pytest.raises(WeightsError, match=r"gone\.safetensors"):
        subject_of_run(moved)
    assert not subject_of_run(moved, need_weights=False).same_weights
    with pytest.raises(WeightsError, match="sha256 differs"):
        subject_of_run(run, "random")
    assert subject_of_run(moved, "pretrained").same_weights


def test_a_graph_without_trace_outputs_gets_them_back(run_copy: Path, digits: Path) -> None:
    shipped = with_outputs(graph_from_file(run_copy / "model.onnx"), ["logits"])
    run = with_graph(open_run(run_copy), shipped)
    config = {**run.manifest.config, "trace": False}
    run = Run(run.folder, having(run.manifest, config=config))
    subject = subject_of_run(run)
    graph, source = traced_graph(run, subject)
    assert "byte by byte" in source
    assert [output.name for output in graph_from_memory(graph).graph.outputs] == [
        "logits",
        "tokens_per_block",
    ]
    shipped.graph[5].name = "another"
    other = with_graph(run, shipped)
    assert traced_graph(other, subject) == (read_graph(other, "model.onnx"), "eager reference")
    with pytest.raises(ChangedFileError):
        traced_graph(run, subject)  # what runs is what its manifest lists
    with OnnxRuntimeRunner(read_graph(other, "model.onnx")) as runner:
        forward = from_runner(subject, runner, "eager reference")
        pixels = read_images(sorted(digits.rglob("*.png"))[:4], subject.model.preprocessing)
        trace = run_reference(subject.model.backbone, subject.plan, subject.tensor(pixels))
        assert torch.equal(forward(pixels).tokens_out, trace.tokens_out)


def run_of_another_format(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"format": 3', '"format": 1'))


def changed_graph(folder: Path) -> None:
    data = bytearray((folder / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.onnx").write_bytes(bytes(data))


def no_run(folder: Path) -> None:
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (run_of_another_format, "run format 1"),
        (changed_graph, "model.onnx was changed"),
        (no_run, "is no run folder"),
    ],
)
def test_run_folders_that_cannot_be_trusted(
    spoil: Any, says: str, run_copy: Path, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(run_copy)
    assert main(["evaluate", str(run_copy), "--imagenet", str(digits)]) == 10
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and says in lines[0]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (
            ["--runner", "magic"],
            2,
            "onnxruntime-int8, openvino, openvino-bf16, openvino-int8, tensorrt",
        ),
        (["--batch", "0"], 2, "--batch 0"),
        (["--limit", "0"], 2, "--limit 0"),
        (["--labels", "absent.txt"], 9, "absent.txt"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    code: int,
    says: str,
    finished_run: Path,
    digits: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["evaluate", str(finished_run), "--imagenet", str(digits), *arguments]) == code
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error


def test_an_empty_folder_is_one_line(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(finished_run), "--imagenet", str(tmp_path)]) == 9
    assert "no image" in capsys.readouterr().err


def test_every_runner_has_its_place() -> None:
    low = ["onnxruntime-int8", "openvino-bf16", "openvino-int8"]
    assert runner_names() == ["eager", "onnxruntime", "openvino", "tensorrt", *low]
    assert command.evaluate.__doc__


def test_grey_images_count_like_others(run_copy: Path, tmp_path: Path) -> None:
    for name in ("0", "1"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("L", (90, 30), 128).save(tmp_path / "images" / name / "a.png")
    samples = open_samples(str(tmp_path / "images"), 10, [str(i) for i in range(10)])
    assert samples.right == ((0,), (1,))
    place = Place(str(tmp_path / "images"))
    evaluation = evaluate_run(open_run(run_copy), place, FAST)
    assert evaluation.facts["top1"]["of"] == 2


def test_the_main_command_evaluates_too(
    run_copy: Path, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--images", str(digits), "--trace", "--no-benchmark", "--out", str(run_copy)]
    run_command("demo", *arguments, "--imagenet", str(digits))
    printed = capsys.readouterr().out
    assert "reused" in printed and "top1 " in printed and "agreement " in printed
    assert facts_of(run_copy)["top1"]["of"] == 40
