"""The C++ runtime on inputs of one channel and of more than pictures have, not square."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from atm_export.choice import Choice
from atm_export.errors import DataError
from atm_export.inputs import Preprocessing
from atm_export.model.backbone import LoadedModel
from atm_export.preprocess import read_images
from atm_export.prove.golden_vectors import FILE as GOLDEN
from atm_export.prove.golden_vectors import scene
from atm_export.resolving import resolve
from atm_export.runs.tensors import packed
from atm_export.runs.writing import working
from atm_export.runtime import load
from atm_export.subject import Subject
from atm_export.translation import translate
from tests.run_folders import LABELS, write
from tests.runs import ended
from tests.test_cpp import call, logits, refused
from tests.test_verify import reseal
from tests.tiny import frozen_plan, tiny_vit

BUILD = os.environ.get("ATM_CPP_BUILD")
pytestmark = pytest.mark.skipif(BUILD is None, reason="run by tools/check_cpp.sh, which builds it")
SIZE = (32, 48)
MANY = 5
KINDS = ("plain", "sanitized")


def channels_run(out: Path, channels: int, *, uint8: bool) -> Path:
    """A run of a tiny model, 32 x 48, of so many channels; nothing is compared."""
    backbone = tiny_vit(in_chans=channels, img_size=SIZE, depth=2)
    mean, std = np.linspace(0.4, 0.5, channels), np.linspace(0.2, 0.3, channels)
    how = Preprocessing(SIZE, 0.9, "bicubic", tuple(mean.tolist()), tuple(std.tolist()))
    digest = {"source": "random", "sha256": "0" * 64, "meaningless_accuracy": True}
    model = LoadedModel("tiny", backbone, how, digest, LABELS)
    config = resolve(Choice(model="demo", merge="frozen", uint8_input=uint8))
    subject = Subject(config, model, frozen_plan(backbone, (4, 0)))
    with working(out, "key") as work:
        shipped = translate(subject, work, lambda text: None).shipped
        write(subject, shipped, work, out)
    return out


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return channels_run(tmp_path_factory.mktemp("runs") / "grey", 1, uint8=False)


@pytest.fixture(scope="module")
def grey_uint8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return channels_run(tmp_path_factory.mktemp("runs") / "grey_uint8", 1, uint8=True)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return channels_run(tmp_path_factory.mktemp("runs") / "many", MANY, uint8=False)


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Colour, grey and print, of odd sizes; one is of the input's size already."""
    folder = tmp_path_factory.mktemp("jpegs")
    kinds = [((300, 200), "RGB"), ((97, 31), "L"), ((64, 80), "CMYK"), (SIZE[::-1], "RGB")]
    for i, (size, mode) in enumerate(kinds):
        scene(size, i).convert(mode).save(folder / f"{i}.jpg", quality=90)
    return sorted(folder.iterdir())


def every_colour() -> Image.Image:
    """Red, green and blue of 32 levels each, 128 x 256 pixels."""
    levels = np.linspace(0, 255, 32).astype(np.uint8)
    red, green, blue = np.meshgrid(levels, levels, levels)
    return Image.fromarray(np.stack([red, green, blue], axis=-1).reshape(256, 128, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_golden_vectors_hold(grey: Path, grey_uint8: Path, many: Path, kind: str) -> None:
    for run in (grey, grey_uint8, many):
        ended(call("self_test", run, kind=kind))


def test_grey_is_pillows(grey_uint8: Path, tmp_path: Path) -> None:
    how = Preprocessing((256, 128), 1.0, "nearest", (0.5,), (0.5,))
    copied(grey_uint8, tmp_path / "run", how)
    file = tmp_path / "all.jpg"
    every_colour().save(file, quality=100, subsampling=0)
    ours = np.asarray(Image.open(file).convert("RGB").convert("L"))
    done = call("logits", tmp_path / "run", "pixels", file)
    ended(done)
    theirs = np.frombuffer(done.stdout, np.uint8).reshape(ours.shape)
    assert np.abs(theirs.astype(int) - ours).max() <= 1
    assert (theirs == ours).mean() > 0.99 and len(np.unique(ours)) > 200


def copied(run: Path, to: Path, how: Preprocessing) -> None:
    """A copy of a uint8 run that states another preprocessing."""
    to.mkdir()
    for file in run.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    interface = json.loads((run / "manifest.json").read_text())["interface"]
    interface["input"]["shape"] = ["batch", *how.size, how.channels]
    reseal(to, preprocessing=how.facts(), interface=interface, golden=None)


@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("filters", ["bicubic", "bilinear", "lanczos", "nearest"])
def test_every_resize_rule_of_grey_equals_pillows(
    grey_uint8: Path, jpegs: list[Path], tmp_path: Path, filters: str, mode: str
) -> None:
    how = Preprocessing(SIZE, 0.9, filters, (0.5,), (0.5,), mode)
    copied(grey_uint8, tmp_path / "run", how)
    done = call("logits", tmp_path / "run", "pixels", *jpegs)
    ended(done)
    ours = read_images(jpegs, how)
    theirs = np.frombuffer(done.stdout, np.uint8).reshape(ours.shape)
    assert np.abs(theirs.astype(int) - ours).max() <= 1


def test_answers_equal_pythons(grey: Path, many: Path, jpegs: list[Path], tmp_path: Path) -> None:
    session = load(grey)
    ours = session.predict(jpegs, batch_size=1)
    assert np.abs(logits(grey, "jpeg", *jpegs).reshape(ours.shape) - ours).max() < 1e-3
    for run, channels in ((grey, 1), (many, MANY)):
        image = np.random.default_rng(0).normal(size=(3, channels, *SIZE)).astype(np.float32)
        (tmp_path / "tensor").write_bytes(image.tobytes())
        ours = np.concatenate([load(run).run(one[None])["logits"] for one in image])
        theirs = logits(run, "tensor", tmp_path / "tensor").reshape(ours.shape)
        assert np.abs(theirs - ours).max() < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_other_channels_take_no_pictures(many: Path, jpegs: list[Path], kind: str) -> None:
    line = refused(21, "classify", "--run", many, jpegs[0], kind=kind)
    assert "the model takes 5 channels, which no picture" in line
    with pytest.raises(DataError, match="the model takes 5 channels, and a picture becomes 1"):
        load(many).predict(jpegs[0])


@pytest.mark.parametrize(
    "change",
    [
        {"mean": [0.5, 0.5]},
        {"std": []},
        {"mean": [0.5] * 3, "std": [0.5] * 3},
        {"mean": [0.5] * 2000, "std": [0.5] * 2000},
        {"size": [48, 32], "resize": [53, 35]},
        {"resize": [35]},
        {"resize": None},
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    grey: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    for file in grey.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    facts = json.loads((grey / "manifest.json").read_text())["preprocessing"]
    reseal(tmp_path, preprocessing={**facts, **change})
    for kind in KINDS:
        line = refused(12, "self_test", tmp_path, kind=kind)
        assert "manifest.json is damaged; export again" in line


@pytest.mark.parametrize("name", ["images", "picture_pixels", "picture_logits"])
def test_golden_files_of_grey_are_checked(grey: Path, tmp_path: Path, name: str) -> None:
    for file in grey.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    arrays = dict(load_file(tmp_path / GOLDEN))
    (tmp_path / GOLDEN).write_bytes(packed({**arrays, name: np.repeat(arrays[name], 3, axis=-1)}))
    reseal(tmp_path)
    refused(15, "self_test", tmp_path)
