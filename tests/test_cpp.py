"""The C++ runtime, built by tools/check_cpp.sh: Python's answers, and no trust misplaced."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from atm_export.errors import ImageSizeError
from atm_export.inputs import Preprocessing, normalize
from atm_export.methods.plan import MergePlan
from atm_export.model.reference import run_reference
from atm_export.model.vit import TimmBackbone
from atm_export.preprocess import read_image, read_images
from atm_export.prove.finished import _rebuilt
from atm_export.prove.golden_vectors import FILE as GOLDEN
from atm_export.prove.golden_vectors import scene
from atm_export.runs.reading import MANIFEST
from atm_export.runs.seal import sealed
from atm_export.runs.tensors import packed, unpacked
from atm_export.runtime import load
from atm_export.runtime.session import Session
from tests.run_folders import LABELS, deit_t_run, real_run, tiny_run
from tests.runs import ended
from tests.shared_data import sample_images
from tests.test_format_2 import OLD
from tests.test_verify import reseal
from tests.test_weights_beside import DAMAGE, ELSEWHERE, NO_GRAPH, pointing
from tests.tiny import MEAN, STD

BUILD = os.environ.get("ATM_CPP_BUILD")
pytestmark = pytest.mark.skipif(BUILD is None, reason="run by tools/check_cpp.sh, which builds it")
FUZZ_SECONDS = 60
INT8 = "model.int8.onnxruntime.onnx"
REFUSED = range(11, 20)


def call(name: str, *arguments: object, kind: str = "plain") -> subprocess.CompletedProcess[bytes]:
    """One of the built programs."""
    program = Path(str(BUILD)) / kind / f"atm_{name}"
    return subprocess.run([program, *map(str, arguments)], capture_output=True, timeout=540)


def logits(run: Path, mode: str, *files: object) -> np.ndarray:
    done = call("logits", run, mode, *files)
    ended(done)
    return np.frombuffer(done.stdout, np.float32)


@pytest.fixture(scope="module", autouse=True)
def fuzzing(demo_folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Runs beside the other tests; its outcome is asked for at the end."""
    if BUILD is None:
        pytest.skip("not built")
    program = [Path(BUILD) / "sanitized" / "atm_fuzz", demo_folder, str(FUZZ_SECONDS), "7"]
    process = subprocess.Popen(
        ["nice", "-n", "5", *program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    yield process
    process.kill()


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of odd sizes, colours and encodings."""
    folder = tmp_path_factory.mktemp("jpegs")
    kinds = [
        ((300, 200), "RGB", {"quality": 90}),
        ((201, 333), "RGB", {"quality": 40, "progressive": True}),
        ((97, 31), "L", {"quality": 80}),
        ((64, 64), "CMYK", {"quality": 95}),
        ((56, 56), "RGB", {"quality": 100, "subsampling": 0}),
        ((1, 1), "RGB", {"quality": 90}),
        ((160, 5), "RGB", {"quality": 90, "subsampling": 1}),
        ((33, 900), "RGB", {"quality": 75, "optimize": True}),
        ((130, 390), "RGB", {"quality": 90}),
    ]
    paths = []
    for i, (size, mode, options) in enumerate(kinds):
        paths.append(folder / f"{i}.jpg")
        scene(size, i).convert(mode).save(paths[-1], **options)
    return paths


def test_golden_vectors_hold_through_the_c_boundary(demo_folder: Path, uint8_folder: Path) -> None:
    for run in (demo_folder, uint8_folder):
        for kind in ("plain", "sanitized"):
            done = call("self_test", run, kind=kind)
            ended(done)


def test_int8_equals_python(
    int8_folder: Path, jpegs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same library and the same pixels; what differs is by threads."""
    for kind in ("plain", "sanitized"):
        said = ended(call("self_test", int8_folder, INT8, kind=kind))
        assert f"CPU, {INT8}" in said
    monkeypatch.setenv("ATM_ENGINE", INT8)
    ours = load(int8_folder, engine=INT8).predict(jpegs, batch_size=1)
    theirs = logits(int8_folder, "jpeg", *jpegs).reshape(ours.shape)
    assert np.abs(theirs - ours).max() < 1e-3
    full = load(int8_folder).predict(jpegs, batch_size=1)
    assert np.abs(theirs - full).max() > 1e-3, "another graph runs"
    done = call("classify", "--run", int8_folder, "--precision", "int8", jpegs[0])
    assert f"runs on ONNX Runtime {onnxruntime.__version__}, CPU, {INT8}" in done.stderr.decode()
    assert ended(done).count("%") == 5


def test_int8_that_is_absent_changed_or_of_another_graph_is_refused(
    int8_folder: Path, demo_folder: Path, jpegs: list[Path], tmp_path: Path
) -> None:
    line = refused(21, "classify", "--run", demo_folder, "--precision", "int8", jpegs[0])
    assert "export it with --backend onnxruntime --precision int8" in line
    assert "give fp32 or int8" in refused(2, "classify", "--precision", "bf16", jpegs[0])
    run = Path(shutil.copytree(int8_folder, tmp_path / "run"))
    entries = json.loads((run / MANIFEST).read_text())["low_precision"]
    entries[INT8]["source"]["sha256"] = "0" * 64
    reseal(run, low_precision=entries)
    for kind in ("plain", "sanitized"):
        line = refused(17, "self_test", run, INT8, kind=kind)
        assert "made of another model.onnx" in line
    for value in (7, {INT8: {}}, {INT8: {**entries[INT8], "validation": []}}):
        manifest = json.loads((int8_folder / MANIFEST).read_text())
        (run / MANIFEST).write_bytes(sealed({**manifest, "low_precision": value}))
        for kind in ("plain", "sanitized"):
            refused(12, "self_test", run, kind=kind)
    run = Path(shutil.copytree(int8_folder, tmp_path / "changed"))
    data = bytearray((run / INT8).read_bytes())
    data[len(data) // 2] ^= 1
    (run / INT8).write_bytes(data)
    refused(15, "self_test", run, INT8)


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo with its weights beside the graph."""
    return real_run(tmp_path_factory.mktemp("runs") / "run", model="demo", external_data="always")


def test_weights_beside_the_graph_give_the_same_answers(
    beside: Path, demo_folder: Path, jpegs: list[Path]
) -> None:
    for kind in ("plain", "sanitized"):
        ended(call("self_test", beside, kind=kind))
    assert np.array_equal(logits(beside, "jpeg", *jpegs), logits(demo_folder, "jpeg", *jpegs))


def test_a_run_of_format_2_is_read(tmp_path: Path) -> None:
    for kind in ("plain", "sanitized"):
        ended(call("self_test", OLD, kind=kind))
    run = Path(shutil.copytree(OLD, tmp_path / "run"))
    for version in (1, 4):
        reseal(run, format=version)
        done = call("self_test", run)
        assert done.returncode in REFUSED and b"this runtime reads 2 and 3" in done.stderr, done


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_weights_beside_the_graph_are_refused(
    what: str, beside: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(beside, tmp_path / "run"))
    DAMAGE[what](run)
    done = call("self_test", run, kind="sanitized")
    assert done.returncode in REFUSED, done
    assert b"model.onnx.data" in done.stderr


@pytest.mark.parametrize("location", ELSEWHERE)
def test_graphs_that_point_elsewhere_are_refused(
    location: str, beside: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(beside, tmp_path / "run"))
    shutil.copy(run / "model.onnx.data", tmp_path / "secret")
    done = call("self_test", pointing(run, location), kind="sanitized")
    assert done.returncode in REFUSED, done
    assert b"has no file" in done.stderr


def test_bytes_that_are_no_graph_are_refused(beside: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(beside, tmp_path / "run"))
    for data in NO_GRAPH:
        (run / "model.onnx").write_bytes(data)
        reseal(run)
        done = call("self_test", run, kind="sanitized")
        assert done.returncode in REFUSED and b"is no ONNX file" in done.stderr, done


def test_pictures_and_answers_equal_pythons(demo_folder: Path, jpegs: list[Path]) -> None:
    session = load(demo_folder)
    ours = np.concatenate([session.prepare(path) for path in jpegs])
    theirs = logits(demo_folder, "pixels", *jpegs).reshape(ours.shape)
    assert np.abs(theirs - ours).max() * 0.5 * 255 <= 1 + 1e-3, "grey levels"
    assert_same(session, demo_folder, jpegs)


def assert_same(session: Session, run: Path, files: list[Path]) -> None:
    ours = session.predict(files, batch_size=1)
    theirs = logits(run, "jpeg", *files).reshape(ours.shape)
    assert np.abs(theirs - ours).max() < 1e-3
    assert (theirs.argmax(axis=1) == ours.argmax(axis=1)).all()


@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("filters", ["bicubic", "bilinear", "lanczos", "nearest"])
def test_every_resize_rule_equals_pillows(
    uint8_folder: Path, jpegs: list[Path], tmp_path: Path, filters: str, mode: str
) -> None:
    run = Path(shutil.copytree(uint8_folder, tmp_path / "run"))
    how = Preprocessing((48, 48), 0.9, filters, MEAN, STD, mode)
    reseal(run, preprocessing=how.facts(), golden=None)
    done = call("logits", run, "pixels", *jpegs)
    ended(done)
    theirs = np.frombuffer(done.stdout, np.uint8).reshape(-1, 48, 48, 3)
    ours = read_images(jpegs, how)
    assert np.abs(theirs.astype(int) - ours).max() <= 1


def test_classify_prints_labels(uint8_folder: Path, jpegs: list[Path]) -> None:
    done = call("classify", "--run", uint8_folder, "--top", 3, jpegs[0])
    best = [label.name for label in load(uint8_folder).classify(jpegs[0], 3)[0]]
    text = done.stdout.decode()
    assert done.returncode == 0 and all(name in LABELS for name in best)
    assert [line.split("%  ")[1] for line in text.splitlines()[1:]] == best
    ended(call("classify"), 2)
    ended(call("classify", "--run", uint8_folder, "absent.jpg"), 20)
    assert call("classify", "--run", uint8_folder, "--engine", "x", jpegs[0]).returncode == 21


def refused(code: int, name: str, *arguments: object, kind: str = "plain") -> str:
    """The one line that a program says before it ends with `code`."""
    done = call(name, *arguments, kind=kind)
    lines = done.stderr.decode().splitlines()
    assert (done.returncode, len(lines)) == (code, 1), done
    return lines[0]


@pytest.mark.parametrize("kind", ["plain", "sanitized"])
def test_no_number_that_is_none_passes_a_comparison(kind: str) -> None:
    done = call("verdicts", kind=kind)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("name", ["--threads", "--top"])
@pytest.mark.parametrize(
    "value", ["abc", "", "-5", "1.5", "4 ", "0x2", "100000000", "9" * 40, "--run"]
)
def test_numbers_of_the_command_line_are_bounded(
    uint8_folder: Path, jpegs: list[Path], name: str, value: str
) -> None:
    line = refused(2, "classify", "--run", uint8_folder, name, value, jpegs[0])
    assert f"{name} '{value}': give a whole number from" in line
    assert call("classify", "--run", uint8_folder, "--threads", 1, jpegs[0]).returncode == 0
    assert "256" in refused(2, "classify", "--run", uint8_folder, "--threads", 257, jpegs[0])


def sized(width: int, height: int) -> bytes:
    """A small JPEG file that says it were of another size."""
    buffer = io.BytesIO()
    scene((64, 64), 0).save(buffer, "JPEG")
    data = bytearray(buffer.getvalue())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize("kind", ["plain", "sanitized"])
@pytest.mark.parametrize(
    "size", [(16000, 1), (65000, 1), (1, 65000), (33, 1), (8193, 8192), (65000, 65000)]
)
def test_pictures_beyond_the_limits_are_refused_as_in_python(
    uint8_folder: Path, tmp_path: Path, size: tuple[int, int], kind: str
) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(sized(*size))
    line = refused(20, "classify", "--run", uint8_folder, path, kind=kind)
    assert str(path) in line and ("too long and thin" in line or "67108864 in all" in line)
    with pytest.raises(ImageSizeError):
        read_image(path, load(uint8_folder).input.preprocessing)


def test_other_files_are_refused_in_one_line(uint8_folder: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "two\nlines.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\nshowpage\n")
    scene((64, 64), 0).save(tmp_path / "a.png")
    (tmp_path / "cut.jpg").write_bytes(sized(64, 64)[:-40])
    with (tmp_path / "long.jpg").open("wb") as sparse:
        sparse.truncate(2**40)
    for file in [*tmp_path.iterdir(), tmp_path, tmp_path / "absent.jpg"]:
        refused(20, "classify", "--run", uint8_folder, file)


def test_the_resized_picture_is_capped_as_in_python(uint8_folder: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(uint8_folder, tmp_path / "run"))
    how = Preprocessing((2000, 2000), 0.9, "bicubic", MEAN, STD)
    interface = json.loads((run / MANIFEST).read_text())["interface"]
    interface["input"]["shape"] = ["batch", 2000, 2000, 3]
    reseal(run, preprocessing=how.facts(), interface=interface, golden=None)
    path = tmp_path / "picture.jpg"
    scene((640, 20), 0).save(path)
    line = refused(20, "logits", run, "pixels", path)
    with pytest.raises(ImageSizeError, match="would be resized to 71104 x 2222 pixels"):
        read_image(path, how)
    assert "would be resized to 71104 x 2222 pixels" in line


@pytest.mark.parametrize(
    "key", ["labels", "method", "opset", "golden", "interface", "preprocessing"]
)
@pytest.mark.parametrize("value", ["absent", 7, "x", [], {}, [[]], -1, 1e300, True])
def test_manifests_with_a_true_seal_and_false_facts_are_refused(
    uint8_folder: Path, tmp_path: Path, key: str, value: object
) -> None:
    run = Path(shutil.copytree(uint8_folder, tmp_path / "run"))
    manifest = json.loads((run / MANIFEST).read_text())
    if value == "absent":
        del manifest[key]
    elif (key, value) != ("opset", 7):
        manifest[key] = value
    else:
        return
    (run / MANIFEST).write_bytes(sealed(manifest))
    for kind in ("plain", "sanitized"):
        line = refused(12, "self_test", run, kind=kind)
        assert "manifest.json is damaged; export again" in line


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"opset": ', '"opset": 23, "opset": '),
        ('"crop_pct": 0.9', '"crop_pct": 0.8'),
        ('"crop_mode": "center"', '"crop_mode": "middle"'),
        ('"merge": "adaptive"', '"merge": "all"'),
        ('"config.yaml": {', '"..": {'),
        ('"config.yaml": {', '"config.yaml\\u0000x": {'),
        ('"std": [', '"std": [1e300, '),
    ],
)
def test_facts_that_python_refuses_are_refused(
    uint8_folder: Path, tmp_path: Path, old: str, new: str
) -> None:
    run = Path(shutil.copytree(uint8_folder, tmp_path / "run"))
    text = (run / MANIFEST).read_text()
    assert old in text
    zeros = '"seal": "' + "0" * 64
    blank = re.sub('"seal": "[0-9a-f]{64}', zeros, text.replace(old, new))
    seal = hashlib.sha256(blank.encode()).hexdigest()
    (run / MANIFEST).write_text(blank.replace(zeros, f'"seal": "{seal}'))
    for kind in ("plain", "sanitized"):
        line = refused(12, "self_test", run, kind=kind)
        assert "manifest.json is damaged; export again" in line


@pytest.mark.parametrize("text", ["[", '{"a":', '[{"a":['])
@pytest.mark.parametrize("kind", ["plain", "sanitized"])
def test_json_that_nests_without_end_is_refused(
    uint8_folder: Path, tmp_path: Path, text: str, kind: str
) -> None:
    run = Path(shutil.copytree(uint8_folder, tmp_path / "run"))
    whole, deep = (run / MANIFEST).read_bytes(), (text * 10**6).encode()
    (run / MANIFEST).write_bytes(deep)
    assert "nested too deeply" in refused(12, "self_test", run, kind=kind)
    (run / MANIFEST).write_bytes(b"[" * 2**25)
    assert "too large" in refused(11, "self_test", run, kind=kind)
    (run / MANIFEST).write_bytes(whole)
    (run / GOLDEN).write_bytes(struct.pack("<Q", len(deep)) + deep)
    reseal(run)
    assert "nested too deeply" in refused(15, "self_test", run, kind=kind)


@pytest.mark.parametrize("name", ["images", "logits", "batch_logits", "picture", "picture_pixels"])
def test_golden_files_with_nothing_in_them_are_refused(
    uint8_folder: Path, tmp_path: Path, name: str
) -> None:
    run = Path(shutil.copytree(uint8_folder, tmp_path / "run"))
    arrays = dict(unpacked((run / GOLDEN).read_bytes(), GOLDEN))
    for less in ({**arrays, name: arrays[name][:0]}, {k: arrays[k] for k in arrays if k != name}):
        (run / GOLDEN).write_bytes(packed(less))
        reseal(run)
        for kind in ("plain", "sanitized"):
            refused(15, "self_test", run, kind=kind)


def test_golden_logits_that_are_nan_are_refused(uint8_folder: Path, tmp_path: Path) -> None:
    for name in ("logits", "batch_logits", "picture_logits"):
        run = Path(shutil.copytree(uint8_folder, tmp_path / name))
        arrays = dict(unpacked((run / GOLDEN).read_bytes(), GOLDEN))
        arrays[name] = np.full_like(arrays[name], np.nan)
        (run / GOLDEN).write_bytes(packed(arrays))
        reseal(run)
        assert "differ by nan" in refused(19, "self_test", run)


def test_logits_that_are_not_finite_are_an_error(demo_folder: Path, tmp_path: Path) -> None:
    image = np.full((1, 3, 56, 56), np.nan, np.float32)
    (tmp_path / "tensor").write_bytes(image.tobytes())
    assert "not finite" in refused(25, "logits", demo_folder, "tensor", tmp_path / "tensor")


def test_one_flipped_byte_anywhere_is_refused(uint8_folder: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(uint8_folder, tmp_path / "run"))
    generator = random.Random(1)
    for file in sorted(run.iterdir()):
        whole = file.read_bytes()
        for _ in range(12):
            broken = bytearray(whole)
            broken[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
            file.write_bytes(broken)
            assert call("self_test", run).returncode in REFUSED
        file.write_bytes(whole)
    ended(call("self_test", run))
    (run / "config.yaml").unlink()
    ended(call("self_test", run), 14)
    ended(call("self_test", tmp_path), 11)


def test_8_threads_of_1000_requests_equal_one_thread(uint8_folder: Path) -> None:
    done = call("stress", uint8_folder, 8, 1000)
    ended(done)
    assert b" 0 wrong" in done.stdout


def eager(model: object, plan: MergePlan, image: np.ndarray) -> np.ndarray:
    backbone: TimmBackbone = model.backbone  # type: ignore[attr-defined]
    return run_reference(backbone, plan, torch.from_numpy(image)).outputs["logits"].numpy()


@pytest.mark.slow
def test_python_cpp_and_eager_agree_on_100_images(tmp_path: Path, all_cores: None) -> None:
    """The same top-1; logits within 1e-3 from the JPEG file on, 1e-4 from the same tensor on."""
    run = deit_t_run(tmp_path / "deit_t")
    session = load(run)
    subject = _rebuilt(session.run_folder.manifest)
    model, plan = subject.model, subject.plan
    files = sample_images(step=5)
    pixels = [read_image(path, model.preprocessing)[None] for path in files]
    tensor = np.concatenate([normalize(pixel, model.preprocessing) for pixel in pixels])
    reference = np.concatenate([eager(model, plan, image[None]) for image in tensor])
    (tmp_path / "tensor").write_bytes(tensor.tobytes())
    python = session.predict(files, batch_size=1)
    same = np.concatenate([session.run(image[None])["logits"] for image in tensor])
    cpp = logits(run, "jpeg", *files).reshape(reference.shape)
    cpp_same = logits(run, "tensor", tmp_path / "tensor").reshape(reference.shape)
    assert len(files) == 100
    for answers, allowed in ((python, 1e-3), (cpp, 1e-3), (same, 1e-4), (cpp_same, 1e-4)):
        assert np.abs(answers - reference).max() < allowed
        assert (answers.argmax(axis=1) == reference.argmax(axis=1)).all()


@pytest.mark.slow
def test_the_per_image_policy_answers_alike_in_any_batch(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run", "per image", merge="per-image")
    ended(call("self_test", run))


def test_a_minute_of_fuzzing_found_nothing(fuzzing: subprocess.Popen[str]) -> None:
    out, _ = fuzzing.communicate(timeout=FUZZ_SECONDS + 120)
    ended(subprocess.CompletedProcess(fuzzing.args, fuzzing.returncode, out))
    refused = {line.split(":")[0]: int(line.split()[-4]) for line in out.strip().splitlines()}
    assert set(refused) == {"manifests", "golden files", "images", "models"}
    assert all(count > 10 for count in refused.values()), out
