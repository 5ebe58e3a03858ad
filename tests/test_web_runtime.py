"""The browser's runtime in Node, with onnxruntime-web: PyTorch's answers, no trust misplaced."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from atm_export import pictures
from atm_export.errors import ImageSizeError
from atm_export.inputs import Preprocessing
from atm_export.preprocess import crop
from atm_export.prove.golden_vectors import FILE as GOLDEN
from atm_export.prove.golden_vectors import scene
from atm_export.runs.golden import read_golden
from atm_export.runs.reading import MANIFEST, open_run
from atm_export.runs.seal import sealed
from atm_export.runs.tensors import packed, unpacked
from atm_export.runtime import load
from tests.run_folders import real_run, tiny_run
from tests.shared_data import shared
from tests.test_format_2 import OLD
from tests.test_verify import reseal
from tests.webs import Node, array_of, asked, npm_package, text_of

WITHIN = 1e-3  # of golden logits; other sums of FP32 give 1e-5
SIZES = [
    (300, 200),
    (201, 333),
    (97, 31),
    (56, 56),
    (1, 1),
    (160, 5),
    (33, 900),
    (48, 48),
    (130, 390),
]


@pytest.fixture(scope="module")
def web() -> Iterator[Node]:
    with asked(npm_package()) as process:
        yield process


@pytest.fixture(scope="module")
def plain() -> Iterator[Node]:
    """Node alone."""
    with asked() as process:
        yield process


def proven(web: Node, run: Path, precision: str = "fp32") -> dict[str, Any]:
    """What Node says of a run whose golden vectors must hold, all of them."""
    golden = read_golden(open_run(run))
    count = min(len(golden.images), 2)
    pixels = text_of(golden.images[:count])
    answer = web.request(run=str(run), precision=precision, pixels=pixels, images=count)
    assert "error" not in answer, answer
    outputs = len(golden.alone)
    assert len(answer["golden"]) == (len(golden.images) + 1) * outputs
    for found in answer["golden"]:
        assert found["ok"] and found["difference"] <= found["allowed"], found
        assert precision != "fp32" or found["difference"] < WITHIN
    return answer


def same_decisions(web: Node, run: Path) -> None:
    """Every output of two golden images as Python's, tokens and regions exactly."""
    answer = proven(web, run)
    session, golden = load(run), read_golden(open_run(run))
    ours = session.run(session.input.feed(golden.images[:2]))
    assert set(answer["outputs"]) == set(ours)
    for name, told in answer["outputs"].items():
        theirs = array_of(told)
        if ours[name].dtype == np.int64:
            assert np.array_equal(theirs, ours[name]), name
        else:
            assert np.abs(theirs - ours[name]).max() < WITHIN
    row = np.exp(ours["logits"][0] - ours["logits"][0].max())
    order = np.argsort(-row, kind="stable")[:3]
    assert [each["index"] for each in answer["top"]] == order.tolist()
    shares = [each["probability"] for each in answer["top"]]
    assert np.allclose(shares, row[order] / row.sum(), atol=1e-4)


@pytest.mark.parametrize(
    ("variant", "merge"),
    [
        ("class token", "adaptive"),
        ("registers, first block reorders", "adaptive"),
        ("frozen", "frozen"),
        ("per image", "per-image"),
    ],
)
def test_tiny_models_give_pytorchs_answers(
    web: Node, tmp_path: Path, variant: str, merge: str
) -> None:
    same_decisions(web, tiny_run(tmp_path / "run", variant, merge, trace=True))


def test_other_inputs_and_formats_give_pytorchs_answers(
    web: Node, uint8_folder: Path, tmp_path: Path
) -> None:
    proven(web, uint8_folder)
    proven(web, OLD)
    beside = tiny_run(tmp_path / "beside", "class token", external_data="always")
    assert (beside / "model.onnx.data").is_file()
    proven(web, beside)


@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize("merge", ["adaptive", pytest.param("frozen", marks=pytest.mark.slow)])
def test_deit_with_its_weights_gives_pytorchs_answers(
    web: Node, tmp_path: Path, merge: str
) -> None:
    weights = shared("data", "weights", "deit_tiny_patch16_224.safetensors")
    run = real_run(tmp_path / "run", model="deit_t", weights=str(weights), merge=merge, trace=True)
    same_decisions(web, run)


def test_int8_answers_as_python_does(web: Node, int8_folder: Path, tmp_path: Path) -> None:
    """The same integers on both sides: what differs are FP32 sums between them."""
    low = int8_folder
    file = "model.int8.onnxruntime.onnx"
    answer = proven(web, low, "int8")
    assert (answer["file"], answer["precision"]) == (file, "int8")
    session = load(low, engine=file)
    golden = read_golden(open_run(low))
    ours = session.run(session.input.feed(golden.images[:2]))["logits"]
    theirs = array_of(answer["outputs"]["logits"])
    cosine = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert (cosine > 0.99).all()
    assert "no graph in bf16; export it with" in web.refusal(low, "bf16")
    run = Path(shutil.copytree(low, tmp_path / "run"))
    entries = json.loads((run / MANIFEST).read_text())["low_precision"]
    entries[file]["source"]["sha256"] = "0" * 64
    reseal(run, low_precision=entries)
    assert "was made of another model.onnx" in web.refusal(run, "int8")


@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("filters", ["bicubic", "bilinear", "lanczos", "nearest"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_resize_rule_equals_pillows(
    plain: Node, filters: str, mode: str, channels: int
) -> None:
    for size in ((48, 48), (20, 36)):
        mean, std = (0.5,) * channels, (0.25,) * channels
        how = Preprocessing(size, 0.9, filters, mean, std, mode)
        images = [scene(size, i) for i, size in enumerate(SIZES)]
        told = [{"width": i.width, "height": i.height, "rgba": rgba(i)} for i in images]
        crops = plain.request(crop={"how": in_js(how), "pictures": told})
        assert len(crops) == len(images)
        for image, text in zip(images, crops, strict=True):
            theirs = np.frombuffer(base64.b64decode(text), np.uint8)
            assert np.array_equal(theirs, crop(image, how).reshape(-1)), image.size


def rgba(image: Image.Image) -> str:
    return text_of(np.asarray(image.convert("RGBA")))


def in_js(how: Preprocessing) -> dict[str, Any]:
    """As manifest.mjs gives it."""
    facts = how.facts()
    (height, width), (cover_height, cover_width) = facts["size"], facts["resize"]
    return {
        "height": height,
        "width": width,
        "coverHeight": cover_height,
        "coverWidth": cover_width,
        "interpolation": facts["interpolation"],
        "squash": facts["crop_mode"] == "squash",
        "mean": facts["mean"],
        "std": facts["std"],
    }


def test_the_limits_of_pictures_are_pythons(plain: Node) -> None:
    assert plain.request(limits=True) == {
        "pixels": pictures.MOST_PIXELS,
        "aspect": pictures.MOST_ASPECT,
        "resized": pictures.MOST_RESIZED,
        "bytes": pictures.MOST_BYTES,
    }
    how = Preprocessing((2000, 2000), 0.9, "bicubic", (0.5,) * 3, (0.5,) * 3)
    for size in ((33, 1), (1, 33), (640, 20)):
        image = scene(size, 0)
        told = {"width": size[0], "height": size[1], "rgba": rgba(image)}
        answer = plain.request(crop={"how": in_js(how), "pictures": [told]})
        with pytest.raises(ImageSizeError) as error:
            crop(image, how)
        assert answer == {"error": str(error.value), "expected": True}


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_what_is_changed_is_refused(web: Node, uint8_folder: Path, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(uint8_folder, tmp_path / name))

    for file in ("model.onnx", GOLDEN):
        run = copy(file)
        flipped(run / file)
        assert f"{file} was changed after the export" in web.refusal(run)
    run = copy("seal")
    text = (run / MANIFEST).read_text()
    (run / MANIFEST).write_text(text.replace('"merge": "adaptive"', '"merge": "frozen"'))
    assert "manifest.json was changed after the export" in web.refusal(run)
    (run / MANIFEST).write_text("{")
    assert "manifest.json is damaged" in web.refusal(run)
    for facts, why in (
        ({"format": 9}, "run format 9, this runtime reads 2 and 3"),
        ({"status": "not proven"}, "was not proven"),
        ({"labels": ["one"]}, "damaged (labels)"),
        ({"files": {"..": {"bytes": 1, "sha256": "0" * 64}}}, "damaged (a file name)"),
        ({"preprocessing": {}}, "is damaged"),
        ({"opset": 20, "interface": {}}, "is damaged"),
    ):
        run = copy("-".join(facts))
        write_sealed(run, facts)
        assert why in web.refusal(run)


def write_sealed(run: Path, facts: dict[str, Any]) -> None:
    """A manifest with a true seal that says this instead."""
    manifest = json.loads((run / MANIFEST).read_text())
    (run / MANIFEST).write_bytes(sealed({**manifest, **facts}))


@pytest.mark.parametrize("value", [np.nan, 1e3])
def test_another_answer_than_pytorchs_is_refused(
    web: Node, uint8_folder: Path, tmp_path: Path, value: float
) -> None:
    run = Path(shutil.copytree(uint8_folder, tmp_path / "run"))
    arrays = dict(unpacked((run / GOLDEN).read_bytes(), GOLDEN))
    arrays["logits"] = np.full_like(arrays["logits"], value)
    (run / GOLDEN).write_bytes(packed(arrays))
    reseal(run)
    assert "this browser does not compute what was exported" in web.refusal(run)
