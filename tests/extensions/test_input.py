"""Another input is a line of a family: one channel of 32 x 48 pixels goes the whole way."""

from __future__ import annotations

import csv
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from safetensors.numpy import load_file

from atm_export import errors
from atm_export.cli import main
from atm_export.model.plan import exported_plan
from atm_export.model.reference import run_reference
from atm_export.photos import VIEWS
from atm_export.pictures import read_rgb
from atm_export.runs.reading import read_manifest
from atm_export.runtime import load
from atm_export.subject import exported_subject
from tests.extensions.grey import SIZE, YAML
from tests.runs import ended, model_config

BUILD = os.environ.get("ATM_CPP_BUILD")
EXPORT = ["grey", "--weights", "random", "--no-benchmark"]


@pytest.fixture(scope="module", autouse=True)
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The one YAML."""
    with model_config(tmp_path_factory.mktemp("configs"), "grey", YAML):
        yield


@pytest.fixture(scope="module")
def exported(config: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By the command line, with the ladder."""
    out = tmp_path_factory.mktemp("grey") / "run"
    assert main([*EXPORT, "--trace", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def raw(config: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with uint8 pixels as the graph's input."""
    out = tmp_path_factory.mktemp("raw") / "run"
    assert main([*EXPORT, "--uint8-input", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders 0 and 3 with grey and colour files."""
    folder = tmp_path_factory.mktemp("pictures")
    for i, view in enumerate(VIEWS[:6]):
        place = folder / ("0" if i % 2 else "3")
        place.mkdir(exist_ok=True)
        view.image().convert("L" if i < 4 else "RGB").save(place / f"{i}.png")
    return folder


def answers(run: Path, pixels: np.ndarray) -> np.ndarray:
    """The eager reference's, of pixels [n, H, W, 1] as one batch."""
    manifest = read_manifest(run)
    subject = exported_subject(manifest, "manifest.json")
    plan = exported_plan(subject.model.backbone, subject.config.method, manifest.method.document)
    trace = run_reference(subject.model.backbone, plan, subject.tensor(pixels))
    return trace.outputs["logits"].numpy()


def test_the_run_folder_states_it(exported: Path, raw: Path) -> None:
    for run, shape in ((exported, ["batch", 1, *SIZE]), (raw, ["batch", *SIZE, 1])):
        manifest = json.loads((run / "manifest.json").read_text())
        assert manifest["status"] == "proven"
        assert manifest["interface"]["input"]["shape"] == shape
        assert manifest["preprocessing"]["mean"] == [0.45]
        (image,) = onnx.load(run / "model.onnx").graph.input
        axes = image.type.tensor_type.shape.dim
        assert [axis.dim_param or axis.dim_value for axis in axes] == shape
        arrays = load_file(run / "golden.safetensors")
        assert arrays["images"].shape[1:] == arrays["picture_pixels"].shape == (*SIZE, 1)
        report = json.loads((run / "report.json").read_text())
        assert report["parity"]["proven"] and report["parity"]["comparisons"] >= 53
        assert report["tokens"]["mean_after_block"][-1] < 25, "tokens merge"


def test_verify_proves_it(exported: Path, raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(exported), str(raw)]) == 0
    told = capsys.readouterr().out
    assert told.count("logits of a JPEG file") == told.count("grey levels of a JPEG file") == 2


def test_colours_and_arrays_become_what_it_takes(exported: Path, raw: Path, tmp_path: Path) -> None:
    """A colour file, its grey pixels, an array of the graph's own: one answer, the reference's."""
    path = tmp_path / "colour.png"
    VIEWS[1].image().save(path)
    grey = np.asarray(read_rgb(path).convert("L"))[..., None]
    for run in (exported, raw):
        session = load(run)
        found = session.predict(path)
        assert np.array_equal(session.predict(grey), found)
        prepared = session.prepare(path)
        assert prepared.shape[1:] == session.input.shape[1:]
        assert np.array_equal(session.run(prepared)["logits"], found)
        pixels = load(raw).prepare(path)
        np.testing.assert_allclose(found, answers(run, pixels), atol=1e-4)
        assert not np.allclose(session.predict(grey[:, ::-1]), found, atol=1e-3)
    with pytest.raises(errors.DataError, match=r"float arrays \(1, 32, 48\)"):
        load(exported).predict(np.zeros((3, *SIZE), np.float32))


def test_labelled_pictures_are_evaluated(exported: Path, folder: Path) -> None:
    arguments = ["evaluate", str(exported), "--imagenet", str(folder), "--class-order", "index"]
    assert main(arguments) == 0
    facts = json.loads((exported / "evaluation-onnxruntime.json").read_text())
    assert facts["data"]["images"] == 6 and not facts["unreadable"]
    session = load(exported)
    with (exported / "predictions-onnxruntime.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    logits = session.predict([folder / row["image"] for row in rows])
    assert [int(row["top1"]) for row in rows] == logits.argmax(axis=1).tolist()


def test_its_tokens_are_drawn(exported: Path, folder: Path, tmp_path: Path) -> None:
    """Beside each picture its patches, both of 32 x 48 pixels enlarged seven times, in grey."""
    assert main(["visualize", str(exported), str(folder), "--out", str(tmp_path)]) == 0
    drawn = np.asarray(Image.open(tmp_path / "1-tokens.png"))
    assert drawn.shape == (7 * 32, 2 * 7 * 48 + 8, 3)
    assert (drawn == drawn[..., :1]).all()
    html = (exported / "report.html").read_text()
    assert html.count("data:image/jpeg") == 24


def test_triton_serves_it(exported: Path, raw: Path, tmp_path: Path) -> None:
    for run, dims, kind, size in (
        (exported, "[ 1, 32, 48 ]", "TYPE_FP32", 4),
        (raw, "[ 32, 48, 1 ]", "TYPE_UINT8", 1),
    ):
        command = ["triton", str(run), "--triton-repo", str(tmp_path), "--name", kind]
        assert main(command) == 0
        text = (tmp_path / kind / "config.pbtxt").read_text()
        assert f"data_type: {kind}\n  dims: {dims}" in text
        image = (tmp_path / kind / "warmup" / "image").read_bytes()
        assert len(image) == size * 32 * 48
        first = load_file(run / "golden.safetensors")["images"][:1]
        assert image == load(run).input.feed(first).tobytes()


@pytest.mark.parametrize("merge", ["frozen", "per-image"])
def test_other_policies_are_proven_on_pictures_of_ones_own(
    merge: str, folder: Path, tmp_path: Path
) -> None:
    images = ["--images", str(folder)]
    if merge == "frozen":
        images += ["--calibrate", str(folder)]
    assert main([*EXPORT, "--merge", merge, *images, "--out", str(tmp_path / "run")]) == 0
    assert load(tmp_path / "run").policy == merge


@pytest.mark.skipif(BUILD is None, reason="run by tools/check_cpp.sh, which builds it")
def test_cpp_gives_the_same_answers(exported: Path, raw: Path, tmp_path: Path) -> None:
    """Golden vectors through the C boundary, and a colour and a grey JPEG file."""
    files = [tmp_path / "colour.jpg", tmp_path / "grey.jpg"]
    VIEWS[0].image().save(files[0])
    VIEWS[1].image().convert("L").save(files[1])
    for run in (exported, raw):
        for kind in ("plain", "sanitized"):
            ended(subprocess.run([f"{BUILD}/{kind}/atm_self_test", run], capture_output=True))
        program = [f"{BUILD}/plain/atm_logits", run, "jpeg", *files]
        done = subprocess.run(program, capture_output=True)
        ended(done)
        theirs = np.frombuffer(done.stdout, np.float32).reshape(2, -1)
        assert np.abs(theirs - load(run).predict(files, batch_size=1)).max() < 1e-3
