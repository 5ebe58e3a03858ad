"""A task is one file: a toy one, registered by import, goes the whole way; what states no judge is
neither evaluated nor tuned, and what states one is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from atm_export import errors
from atm_export.cli import main
from atm_export.config import ModelSpec
from atm_export.model.backbone import families
from atm_export.model.plan import exported_plan
from atm_export.model.reference import run_reference
from atm_export.model.zoo import load_model
from atm_export.model_configs import load_model_config
from atm_export.photos import VIEWS
from atm_export.prove.compare import compare
from atm_export.prove.judging import own_noise
from atm_export.runs.reading import MANIFEST, open_run, read_manifest
from atm_export.runs.seal import sealed
from atm_export.runs.tensors import packed, unpacked
from atm_export.runtime import Session, load
from atm_export.subject import Subject, exported_subject
from atm_export.tasks import tasks
from atm_export.tasks.base import Output, OutputSpec, measured
from atm_export.tasks.judge_vectors import ByDirection
from atm_export.tasks.stated import CLASSIFIER
from tests.extensions.vector import FP32, SIZE, YAML, Pooled, Vector
from tests.runs import ended, model_config
from tests.test_verify import reseal
from tests.tiny import spec_of

BUILD = os.environ.get("ATM_CPP_BUILD")
WIDTH = 48


@pytest.fixture(scope="module", autouse=True)
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The one YAML."""
    with model_config(tmp_path_factory.mktemp("configs"), "pooled", YAML):
        yield


@pytest.fixture(scope="module")
def exported(config: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By the command line, with the ladder."""
    out = tmp_path_factory.mktemp("pooled") / "run"
    command = ["pooled", "--weights", "random", "--trace", "--no-benchmark", "--out", str(out)]
    assert main(command) == 0
    return out


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy, to be changed."""
    return Path(shutil.copytree(exported, tmp_path / "run"))


@pytest.fixture(scope="module")
def subject(exported: Path) -> Subject:
    return exported_subject(read_manifest(exported), "manifest.json")


def test_the_run_folder_states_it(exported: Path) -> None:
    manifest = json.loads((exported / "manifest.json").read_text())
    assert manifest["status"] == "proven" and manifest["labels"] is None
    outputs = [{"name": "vector", "agreement": "cosine"}]
    assert manifest["task"] == {"name": "vector", "ranks": None, "outputs": outputs}
    shipped = onnx.load(exported / "model.onnx").graph.output
    assert [o.name for o in shipped] == ["vector", "tokens_per_block", "patch_to_token"]
    assert manifest["interface"]["outputs"]["vector"]["shape"] == ["batch", WIDTH]
    arrays = unpacked((exported / "golden.safetensors").read_bytes(), "golden")
    assert arrays["vector"].shape[1:] == (WIDTH,) and arrays["picture_vector"].shape == (WIDTH,)
    assert "batch_vector" in arrays and not any("logits" in name for name in arrays)
    allowed = manifest["golden"]["tolerance"]
    assert (allowed["vector"], allowed["picture_vector"]) == (FP32.allowed, FP32.picture)


def test_report_and_page_speak_of_its_output(exported: Path) -> None:
    text = (exported / "report.json").read_text()
    parity = json.loads(text)["parity"]
    assert parity["proven"] and parity["cosine_min"] > 0.999 and "top1_agreement" not in parity
    assert 0 < parity["vector_max_abs"] < 1e-3
    assert all(0 <= rung["vector_max_abs"] < 1e-3 for rung in parity["rungs"])
    assert max(json.loads(text)["tokens"]["mean_after_block"]) <= 65
    html = (exported / "report.html").read_text()
    assert "vector within" in html and "logits" not in html + text


def test_verify_proves_it(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(exported)]) == 0
    told = capsys.readouterr().out
    for what in ("single images", "a batch of", "a JPEG file"):
        assert f"vector of {what}" in told


def test_vectors_that_point_elsewhere_are_refused(folder: Path) -> None:
    path = folder / "golden.safetensors"
    arrays = dict(unpacked(path.read_bytes(), str(path)))
    for name in ("vector", "batch_vector", "picture_vector"):
        longer = {**arrays, name: 3 * arrays[name]}
        path.write_bytes(packed(longer))
        reseal(folder)
        assert main(["verify", str(folder)]) == 0, "of the same direction"
        turned = arrays[name].copy()
        turned[..., 0] += np.float32(0.1)
        path.write_bytes(packed({**arrays, name: turned}))
        reseal(folder)
        assert main(["verify", str(folder)]) == errors.ParityError.exit_code, name


def test_the_runtime_gives_the_references_vectors(exported: Path, subject: Subject) -> None:
    session = load(exported)
    pictures = [np.asarray(view.image()) for view in VIEWS[:3]]
    found = session.predict(pictures)
    assert found.shape == (3, WIDTH) and session.classes == 0
    image = torch.from_numpy(session.prepare(pictures))
    plan = exported_plan(subject.model.backbone, subject.config.method, session.manifest["method"])
    theirs = run_reference(subject.model.backbone, plan, image).outputs["vector"].numpy()
    np.testing.assert_allclose(found, theirs, atol=1e-4)
    assert set(session.run(image.numpy())) == {"vector", "tokens_per_block", "patch_to_token"}
    for ask in (session.classify, session.ranked):
        with pytest.raises(errors.ConfigError, match=r"ranks classes.*'vector'"):
            ask(found if ask == session.ranked else pictures)


def test_a_vector_that_is_none_is_an_error(exported: Path) -> None:
    class Spoilt:
        about, providers, facts = "spoilt", ("none",), None

        def __init__(self, vector: np.ndarray) -> None:
            self.vector = vector

        def run(self, image: np.ndarray) -> dict[str, np.ndarray]:
            return {"vector": self.vector}

    image, run = np.zeros((2, 3, SIZE, SIZE), np.float32), open_run(exported)
    vector = np.ones((2, WIDTH), np.float32)
    assert Session(run, Spoilt(vector)).run(image)["vector"] is vector
    with pytest.raises(errors.RunFolderError, match="the graph's vector are"):
        Session(run, Spoilt(vector[:, 1:])).run(image)
    vector[1, 7] = np.nan
    with pytest.raises(errors.NonFiniteError, match="the vector of image 1"):
        Session(run, Spoilt(vector)).run(image)


def test_triton_serves_it_without_labels(exported: Path, tmp_path: Path) -> None:
    assert main(["triton", str(exported), "--triton-repo", str(tmp_path)]) == 0
    text = (tmp_path / "run" / "config.pbtxt").read_text()
    assert 'name: "vector"' in text and f"dims: [ {WIDTH} ]" in text
    assert "labels.txt" not in text and not (tmp_path / "run" / "labels.txt").exists()


def test_evaluate_and_tune_decline_in_one_line(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tune = ["tune", "pooled", "--weights", "random", "--out", str(tmp_path / "tune")]
    for command in (["evaluate", str(exported), "--imagenet", str(tmp_path)], tune):
        images = ["--images", str(tmp_path)] if command is tune else []
        assert main([*command, *images]) == errors.ConfigError.exit_code
        told = capsys.readouterr().err.strip().splitlines()[-1]
        assert "cannot judge the task 'vector': it states no judge" in told
    assert not (tmp_path / "tune").exists()


def test_a_judge_is_all_that_evaluate_asks_of_it(
    folder: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Vector, "judge", ByDirection())
    assert main(["evaluate", str(folder), "--imagenet", str(digits), "--workers", "0"]) == 0
    facts = json.loads((folder / "evaluation-onnxruntime.json").read_text())
    assert facts["task"] == "vector" and facts["cosine"]["median"] <= 1


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"outputs": [{"name": "vector", "agreement": "taste"}]}, "must be one of cosine"),
        ({"outputs": [{"name": "else", "agreement": "cosine"}]}, "interface.outputs.else is miss"),
        ({"outputs": []}, "1 to 16 values"),
        ({"ranks": "vector"}, "task.ranks"),
        ({"ranks": 3}, "a text"),
        ({"name": None}, "a text"),
    ],
)
def test_a_task_that_cannot_be_meant_is_refused(
    folder: Path, task: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    reseal(folder, task={**manifest["task"], **task})
    assert main(["verify", str(folder)]) == errors.RunFolderError.exit_code
    assert said in capsys.readouterr().err


def test_a_graph_that_answers_otherwise_is_found(subject: Subject, exported: Path) -> None:
    """The ladder's comparison: as the reference says, or which image, and by how much."""
    pixels = np.stack([np.asarray(view.image().resize((SIZE, SIZE))) for view in VIEWS[:2]])
    trace = run_reference(subject.model.backbone, subject.plan, subject.tensor(pixels))
    ours = {"vector": trace.outputs["vector"].numpy().copy()}

    def told() -> str | None:
        noise = own_noise(subject.model, subject.plan, pixels, trace)
        return compare(trace, ours, None, None, lambda: noise)

    assert told() is None
    ours["vector"] *= 2
    assert told() is None
    ours["vector"][1, 0] += 1
    assert "vector of image 1 differ" in str(told())
    ours["vector"][1, 0] = np.nan
    assert told() == "vector are not finite"


class Both(Vector):
    """Two outputs: a vector an image, and one a patch."""

    name = "both"

    def outputs(self, model: Any) -> tuple[OutputSpec, ...]:
        dense = OutputSpec("dense", ("batch", model.patches, WIDTH), "cosine", FP32)
        return (*super().outputs(model), dense)


def test_a_head_must_give_what_its_task_says() -> None:
    spec = ModelSpec(name="pooled", config=load_model_config("pooled"), weights="random")
    backbone = load_model(spec).backbone
    assert isinstance(backbone, Pooled)
    vector, dense = torch.zeros(2, WIDTH), torch.zeros(2, 64, WIDTH)
    assert list(backbone.named(vector)) == ["vector"]
    for wrong in ((vector, dense), vector[:, :7], (), dense):
        with pytest.raises(errors.UnsupportedModelError, match="task 'vector' wants vector"):
            backbone.named(wrong)
    tasks.add("both", Both())
    try:
        backbone.task = "both"
        assert list(backbone.named((vector, dense))) == ["vector", "dense"]
        with pytest.raises(errors.UnsupportedModelError, match=r"wants vector .*, dense"):
            backbone.named(vector)
    finally:
        tasks.remove("both")


def test_what_is_measured_of_several_outputs() -> None:
    specs = (spec_of(3), Output("dense", ("batch", 2, 2), "cosine"))
    ours = {"logits": np.array([[1.0, 2.0, 3.0]]), "dense": np.array([[[1.0, 0.0], [0.0, 1.0]]])}
    assert measured(specs, ours, ours) == {
        "logits_max_abs": 0,
        "dense_max_abs": 0,
        "cosine": 1,
        "top1_agreement": 1,
    }
    other = {"logits": ours["logits"][:, ::-1], "dense": np.array([[[1.0, 0.0], [0.6, 0.8]]])}
    found = measured(specs, ours, other)
    assert found["logits_max_abs"] == 2 and found["dense_max_abs"] == pytest.approx(0.6)
    assert found["cosine"] == pytest.approx(10 / 14) and found["top1_agreement"] == 0


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "image"},
        {"name": "tokens_per_block"},
        {"name": "picture_x"},
        {"name": "a b"},
        {"name": "../x"},
        {"shape": ("batch",)},
        {"shape": (3, 4)},
        {"shape": ("batch", 0)},
        {"shape": ("batch", "n")},
        {"shape": ("batch", 2, 3, 4, 5)},
        {"shape": ("batch", 2, 3)},
    ],
)
def test_outputs_that_cannot_be_meant_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        replace(spec_of(3), **changed)


@pytest.mark.skipif(BUILD is None, reason="run by tools/check_cpp.sh, which builds the runtime")
def test_cpp_proves_it_and_gives_it_by_name(folder: Path, tmp_path: Path) -> None:
    build = Path(str(BUILD))
    for kind in ("plain", "sanitized"):
        ended(subprocess.run([build / kind / "atm_self_test", folder], capture_output=True))
    session = load(folder)
    image = session.prepare([np.asarray(VIEWS[0].image())])
    (tmp_path / "tensor").write_bytes(image.tobytes())
    program: list[Any] = [build / "plain" / "atm_logits", folder, "tensor", tmp_path / "tensor"]
    done = subprocess.run(program, capture_output=True)
    ended(done)
    np.testing.assert_allclose(
        np.frombuffer(done.stdout, np.float32), session.run(image)["vector"][0], atol=1e-4
    )
    picture = tmp_path / "x.jpg"
    VIEWS[0].image().save(picture)
    done = subprocess.run([build / "plain" / "atm_classify", "--run", folder, picture])
    assert done.returncode == 21
    graph = onnx.load(folder / "model.onnx")
    heads = (t for t in graph.graph.initializer if t.name.startswith("head."))
    bias = next(t for t in heads if t.name.endswith("norm.bias"))
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 1, bias.name))
    onnx.save(graph, folder / "model.onnx")
    reseal(folder)
    done = subprocess.run([build / "plain" / "atm_self_test", folder], capture_output=True)
    assert done.returncode == 19 and b"vector" in done.stderr


def test_a_run_without_a_word_about_its_task_is_a_classifier(
    demo_folder: Path, tmp_path: Path
) -> None:
    """Run folders that were written before there were tasks."""
    old = Path(shutil.copytree(demo_folder, tmp_path / "run"))
    manifest = json.loads((old / MANIFEST).read_text())
    assert manifest.pop("task") == CLASSIFIER
    del manifest["seal"]
    (old / MANIFEST).write_bytes(sealed(manifest))
    assert main(["verify", str(old)]) == 0
    session = load(old)
    assert (session.classes, session.answers.task) == (10, "classify")
    assert len(session.classify([np.zeros((56, 56, 3), np.uint8)], 3)[0]) == 3
    graph = onnx.load(old / "model.onnx")
    assert "atm_export.task" not in {fact.key for fact in graph.metadata_props}
    if BUILD is not None:
        ended(subprocess.run([Path(BUILD) / "plain" / "atm_self_test", old], capture_output=True))


@pytest.mark.skipif(BUILD is None, reason="run by tools/check_cpp.sh, which builds the runtime")
@pytest.mark.parametrize(
    "task",
    [
        {"outputs": [{"name": "vector", "agreement": "taste"}]},
        {"outputs": [{"name": "else", "agreement": "cosine"}]},
        {"outputs": []},
        {"outputs": [{"name": "vector", "agreement": "cosine"}] * 2},
        {"ranks": "vector"},
        {"name": None},
    ],
)
def test_cpp_refuses_a_task_that_cannot_be_meant(folder: Path, task: dict[str, Any]) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    reseal(folder, task={**manifest["task"], **task})
    for kind in ("plain", "sanitized"):
        program = Path(str(BUILD)) / kind / "atm_self_test"
        done = subprocess.run([program, folder], capture_output=True)
        assert done.returncode == 12 and done.stderr.count(b"\n") == 1


def test_it_is_registered() -> None:
    assert "vector" in tasks and "pooled" in families
