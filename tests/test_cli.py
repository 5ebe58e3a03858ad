"""The command line as a user meets it: the demo end to end, and one line for every mistake."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from atm_export import demo, pipeline
from atm_export.backends.onnxruntime.runner import OnnxRuntimeRunner
from atm_export.choice import Choice
from atm_export.cli import main
from atm_export.config import ModelSpec
from atm_export.inputs import normalize
from atm_export.model.flops import trace_gmacs
from atm_export.model.reference import run_reference
from atm_export.model.zoo import load_model
from atm_export.model_configs import load_model_config
from atm_export.preprocess import crop
from atm_export.prove.results import Difference, LadderResult
from atm_export.resolving import resolve
from atm_export.runs.graphs import SavedGraph
from atm_export.runs.writing import broken_files, finished_document, sha256
from tests.runs import run_command
from tests.tiny import planned, spec_of

DEMO_WEIGHTS = demo.FOLDER / "weights.safetensors"


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished `atm-export demo`, with uint8 input and trace outputs."""
    out = tmp_path_factory.mktemp("runs") / "demo"
    run_command("demo", "--uint8-input", "--trace", "--out", str(out))
    return out


def report_of(out: Path) -> dict:
    return json.loads((out / "report.json").read_text(encoding="utf-8"))


def test_demo_is_proven_and_complete(demo_run: Path) -> None:
    manifest = finished_document(demo_run)
    assert manifest is not None
    assert manifest["status"] == "proven"
    names = {"model.onnx", "report.json", "report.html", "config.yaml", "golden.safetensors"}
    assert set(manifest["files"]) == names
    assert {path.name for path in demo_run.iterdir()} == names | {"manifest.json"}
    for name, facts in manifest["files"].items():
        assert facts["sha256"] == sha256(demo_run / name)
        assert facts["bytes"] == (demo_run / name).stat().st_size
    assert manifest["labels"] == [str(digit) for digit in range(10)]
    assert manifest["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert manifest["opset"] == 20
    assert len(manifest["weights"]["sha256"]) == 64
    assert not list(demo_run.parent.glob(".*"))


def test_demo_report_saves_flops_and_keeps_accuracy(demo_run: Path) -> None:
    report = report_of(demo_run)
    assert report["gflops"]["mean"] < 0.5 * report["gflops"]["unmerged"]
    assert report["accuracy"]["images"] == 360
    assert report["accuracy"]["top1"] >= 97
    assert report["parity"]["decisions_that_differ"] == 0
    assert report["parity"]["comparisons"] >= 53
    assert [row["batch"] for row in report["latency"]["rows"]] == [1, 8]


def test_metadata_of_the_model_states_the_manifest(demo_run: Path) -> None:
    manifest = finished_document(demo_run)
    assert manifest is not None
    model = onnx.load(demo_run / "model.onnx")
    facts = {p.key.removeprefix("atm_export."): p.value for p in model.metadata_props}
    assert facts["model"] == "demo"
    for name in ("preprocessing", "method", "weights", "labels", "interface"):
        assert json.loads(facts[name]) == manifest[name]
    assert {entry.domain for entry in model.opset_import} == {""}


def test_trace_outputs_are_the_references(demo_run: Path) -> None:
    model = load_model(ModelSpec(name="demo", config=load_model_config("demo")))
    digits, _ = demo.heldout()
    pixels = np.stack([crop(digit, model.preprocessing) for digit in digits[:3]])
    config = resolve(Choice(model="demo"))
    plan = planned(config.method, 12, pooled=False, proportional=True)
    trace = run_reference(
        model.backbone, plan, torch.from_numpy(normalize(pixels, model.preprocessing))
    )
    with OnnxRuntimeRunner(SavedGraph((demo_run / "model.onnx").read_bytes())) as runner:
        out = runner.run(pixels)
    assert set(out) == {"logits", "tokens_per_block", "patch_to_token"}
    assert out["tokens_per_block"].tolist() == trace.tokens_out[:, 0].tolist()
    assert np.array_equal(out["patch_to_token"], trace.maps[-1][:, 1:].numpy())
    assert np.abs(out["logits"] - trace.outputs["logits"].numpy()).max() < 1e-4
    assert float(trace_gmacs(model.backbone, trace).mean()) < 0.1


def test_a_second_run_reuses_and_a_changed_byte_is_redone_by_force(
    demo_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["demo", "--uint8-input", "--trace", "--no-benchmark", "--out", str(demo_run)]
    run_command(*arguments)
    assert "reused" in capsys.readouterr().out
    whole = (demo_run / "model.onnx").read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    (demo_run / "model.onnx").write_bytes(bytes(changed))
    manifest = finished_document(demo_run)
    assert manifest is not None
    assert broken_files(demo_run, manifest) == ["model.onnx"]
    assert main(arguments) == 7
    assert "model.onnx was changed" in capsys.readouterr().err
    assert (demo_run / "model.onnx").read_bytes() == bytes(changed)
    run_command(*arguments, "--force")
    assert "reused" not in capsys.readouterr().out
    assert (demo_run / "model.onnx").read_bytes() == whole  # the same bytes again


def test_another_run_is_not_overwritten(demo_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--theta-min", "0.9", "--out", str(demo_run)]) == 2
    error = capsys.readouterr().err
    assert "differs in: method" in error and "--force" in error
    manifest = finished_document(demo_run)
    assert manifest is not None and not broken_files(demo_run, manifest)


def test_a_failed_proof_is_written_as_unproven_and_exits_with_5(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = LadderResult(
        (), (Difference("onnx", "noise, batch 3", "block 4 merges other"),), specs=(spec_of(10),)
    )
    monkeypatch.setattr(pipeline, "climb", lambda *_: broken)
    out = tmp_path / "run"
    arguments = ["demo", "--method", "none", "--no-benchmark", "--out", str(out)]
    assert main(arguments) == 5
    assert "not proven: onnx differs on noise, batch 3: block 4" in capsys.readouterr().err
    manifest = finished_document(out)
    assert manifest is not None and manifest["status"] == "unproven"
    facts = {p.key: p.value for p in onnx.load(out / "model.onnx").metadata_props}
    assert facts["atm_export.status"] == "unproven"
    monkeypatch.undo()
    run_command(*arguments)  # an unproven run is not reused
    assert "reused" not in capsys.readouterr().out


BAD = [
    (["deit_xs"], 2, "deit_s"),
    (["deit_t", "--preset", "a2-0.9"], 2, "a2-0.90"),
    (["deit_t", "--alpha", "1.2"], 2, "alpha"),
    (["deit_t", "--theta-min", "nan"], 2, "theta_min"),
    (["demo", "--method", "tome", "-r", "-3"], 2, "greater than or equal to 0"),
    (["demo", "--method", "tome"], 2, "needs -r"),
    (["demo", "--method", "tome", "-r", "8,8"], 2, "12 blocks"),
    (["demo", "-r", "8"], 2, "belongs to --method tome"),
    (["demo", "--split", "13"], 2, "beyond the model's 12 blocks"),
    (["demo", "--gflops", "0"], 2, "--gflops"),
    (["demo", "--image-size", "57"], 2, "multiple of the patch size"),
    (["demo", "--method", "magic"], 2, "magic"),
    (["demo", "--bogus"], 2, "--bogus"),
    ([], 2, "MODEL"),
    (["demo", "--merge", "frozen", "--calibrate", "absent"], 9, "absent"),
    (["demo", "--images", "absent"], 9, "absent"),
    (["deit_t", "--weights", "absent.pth"], 3, "absent.pth"),
    (["deit_t", "--weights", str(DEMO_WEIGHTS)], 3, "another architecture"),
    (["deit_t"], 3, "--weights FILE"),
    (["timm:nothing_like_it"], 2, "unknown timm model"),
    (["timm:swin_tiny_patch4_window7_224", "--weights", "random"], 4, "not supported"),
    (["timm:vit_small_patch16_rope_224", "--weights", "random"], 4, "rotary"),
    (["timm:vit_small_patch16_18x2_224", "--weights", "random"], 4, "ParallelThingsBlock"),
]


@pytest.mark.parametrize(("arguments", "code", "says"), BAD, ids=lambda v: str(v)[:60])
def test_a_mistake_is_one_line_and_an_exit_code(
    arguments: list[str],
    code: int,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("atm-export: ")
    assert says in lines[0]
    assert not list(tmp_path.iterdir())


def _truncated(path: Path) -> None:
    path.write_bytes(DEMO_WEIGHTS.read_bytes()[:-9])


def _nan(path: Path) -> None:
    tensors = load_file(DEMO_WEIGHTS)
    tensors["head.weight"][0, 0] = float("nan")
    save_file(tensors, path)


def _text(path: Path) -> None:
    path.write_text("no tensors here")


def _code(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": print}))


@pytest.mark.parametrize(
    ("name", "make", "says"),
    [
        ("short.safetensors", _truncated, "whole safetensors file"),
        ("nan.safetensors", _nan, "NaN"),
        ("text.pth", _text, "damaged"),
        ("code.pth", _code, "refused"),
    ],
)
def test_broken_weights_are_refused(
    name: str, make: object, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(make)
    make(tmp_path / name)
    out = tmp_path / "run"
    assert main(["demo", "--weights", str(tmp_path / name), "--out", str(out)]) == 3
    error = capsys.readouterr().err
    assert says in error and name in error
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_unusable_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert main(["demo", "--out", str(out)]) == 7
        assert "choose another --out" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_list_shows_models_and_presets(capsys: pytest.CaptureFixture[str]) -> None:
    run_command("list")
    models = " ".join(capsys.readouterr().out.split())
    assert "deit_s" in models and "4.60 -> 3.23" in models
    assert "6.57 -> 4.73 83.26 -> 83.16 6.55 -> (*)" in models
    assert "0.16 -> 0.05 98.89" in models
    assert "(*) needs the official weights" in models and "not yet" not in models
    run_command("list", "deit_t")
    presets = capsys.readouterr().out
    assert "a2-0.90" in presets and "72.04" in presets and "fine-tuned" in presets
    assert main(["list", "deit_xs"]) == 2


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    run_command("--help")
    text = capsys.readouterr().out
    for word in ("atm-export demo", "--merge", "per-image", "Exit codes", "--uint8-input"):
        assert word in text
