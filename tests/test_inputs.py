"""What a model takes, for one channel, three and more: feeds, checks, samples, refusals."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from atm_export.config import ModelSpec
from atm_export.errors import ConfigError, DataError, UnsupportedModelError
from atm_export.inputs import InputSpec, Preprocessing, stated_input
from atm_export.measure.data.images import load_images
from atm_export.methods.plan import MergePlan
from atm_export.model.zoo import load_model
from atm_export.model_configs import load_model_config
from atm_export.pictures import of_channels
from atm_export.preprocess import crop, drawn, sample
from atm_export.prove.golden_vectors import golden_vectors, scene
from atm_export.prove.inputs import cases
from atm_export.runs.manifest_check import check_manifest
from atm_export.runs.tensors import unpacked
from atm_export.runtime.pictures import batch_of
from tests.manifests import FILES, least_facts

SIZE = (32, 48)
GREY = Preprocessing(SIZE, 0.9, "bicubic", (0.45,), (0.22,))
COLOURED = Preprocessing(SIZE, 0.9, "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
FOUR = Preprocessing(SIZE, 0.9, "bicubic", (0.1, 0.2, 0.3, 0.4), (0.5, 0.6, 0.7, 0.8))
TIMM = """
family: timm
architecture: vit_tiny_patch16_224
options: {img_size: [32, 48], patch_size: 8, in_chans: 4, depth: 2, embed_dim: 48, num_classes: 3}
preprocessing: {mean: [0.1, 0.2, 0.3, 0.4], std: [0.5, 0.6, 0.7, 0.8]}
default_preset: half
presets:
  half: {alpha: 0.5, beta: 0.05, theta_min: 0.3}
"""


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("how", [GREY, COLOURED, FOUR])
def test_pixels_become_what_graph_and_model_take(how: Preprocessing) -> None:
    pixels = noise(2, *SIZE, how.channels)
    flat, raw = InputSpec(how), InputSpec(how, "uint8")
    assert flat.shape == ("batch", how.channels, 32, 48)
    assert raw.shape == ("batch", 32, 48, how.channels)
    fed = flat.feed(pixels)
    assert fed.dtype == np.float32 and fed.flags.c_contiguous
    for c in range(how.channels):
        by_hand = (pixels[..., c].astype(np.float64) / 255 - how.mean[c]) / how.std[c]
        np.testing.assert_allclose(fed[:, c], by_hand, atol=1e-6)
    assert raw.feed(pixels) is pixels
    flat.check(fed)
    raw.check(pixels)
    assert raw.blank(3).shape == (3, 32, 48, how.channels) and not raw.blank().any()


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((1, 3, 32, 48), np.float32),
        np.zeros((1, 1, 48, 32), np.float32),
        np.zeros((1, 32, 48), np.float32),
        np.zeros((1, 1, 32, 48), np.float64),
        np.zeros((0, 1, 32, 48), np.float32),
        [[0.0]],
    ],
)
def test_an_array_of_another_shape_or_type_is_refused(image: Any) -> None:
    with pytest.raises(DataError, match="the graph takes"):
        InputSpec(GREY).check(image)


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "P", "CMYK", "1"])
def test_every_picture_becomes_grey_by_one_rule(mode: str) -> None:
    """Through RGB, then 0.299 R + 0.587 G + 0.114 B in 16-bit whole numbers."""
    image = scene((90, 60), 3).convert(mode)
    rgb = np.asarray(image.convert("RGB")).astype(int)
    weighed = (rgb @ (19595, 38470, 7471) + 0x8000) >> 16
    assert np.array_equal(np.asarray(of_channels(image, 1)), weighed)
    if mode == "L":
        assert np.array_equal(weighed, np.asarray(image))


def test_a_grey_crop_is_that_of_the_grey_picture() -> None:
    image = scene((90, 71), 5)
    found = crop(image, GREY)
    assert found.shape == (32, 48, 1)
    grey = image.convert("L").convert("RGB")
    assert np.array_equal(found[..., 0], crop(grey, COLOURED)[..., 0])


def test_pictures_that_prove_a_model_of_more_channels_are_colours_by_turns() -> None:
    image = scene((90, 71), 5)
    assert np.array_equal(sample(image, FOUR), crop(image, COLOURED)[..., [0, 1, 2, 0]])
    exact = scene(SIZE[::-1], 1)
    assert np.array_equal(drawn(exact, FOUR)[..., 3], np.asarray(exact)[..., 0])
    assert np.array_equal(sample(image, GREY), crop(image, GREY))
    for refused in (lambda: crop(image, FOUR), lambda: of_channels(image, 4)):
        with pytest.raises(DataError, match=r"takes 4 channels.*give arrays"):
            refused()


@pytest.mark.parametrize("how", [GREY, COLOURED, FOUR])
def test_the_ladder_has_cases_of_any_channels(how: Preprocessing) -> None:
    images = noise(9, *SIZE, how.channels)
    for case in cases(images):
        for candidate in case.candidates:
            assert candidate.shape == (case.batch, *SIZE, how.channels)
            assert candidate.dtype == np.uint8
    flats = [case.candidates[0] for case in cases(images) if case.kind == "flat"]
    assert len({image.tobytes() for image in flats[-1]}) > 2, "colours that differ"


def test_whatever_a_caller_has_becomes_grey() -> None:
    image = scene((90, 60), 2)
    file = io.BytesIO()
    image.save(file, "PNG")
    spec = InputSpec(GREY)
    expected = spec.feed(crop(image, GREY)[None])
    grey = np.asarray(image.convert("L"))[..., None]
    for given in (image, file.getvalue(), np.asarray(image), grey, expected, list(expected)):
        assert np.array_equal(batch_of(given, spec), expected)
    for wrong in (noise(60, 90), noise(60, 90, 2), grey.astype(np.int64), noise(0, 90, 1)):
        with pytest.raises(DataError, match=r"\[h, w, 1\] or \[h, w, 3\]"):
            batch_of([wrong], spec)
    with pytest.raises(DataError, match=r"\(1, 32, 48\)"):
        batch_of(np.zeros((3, 32, 48), np.float32), spec)


def test_a_model_of_more_channels_takes_arrays_alone(tmp_path: Path) -> None:
    spec, pixels = InputSpec(FOUR), noise(2, *SIZE, 4)
    floats = spec.feed(pixels)
    assert np.array_equal(batch_of(pixels, spec), floats)
    assert np.array_equal(batch_of(floats, spec), floats)
    path = tmp_path / "picture.png"
    scene((90, 60), 2).save(path)
    for wrong, said in (
        (path, "takes 4 channels"),
        (Image.open(path), "takes 4 channels"),
        (noise(90, 60, 4), r"uint8 \[32, 48, 4\]"),
        (noise(32, 48, 3), r"uint8 \[32, 48, 4\]"),
    ):
        with pytest.raises(DataError, match=said):
            batch_of(wrong, spec)
    with pytest.raises(DataError, match="takes 4 channels"):
        load_images(str(tmp_path), FOUR)
    assert load_images(None, FOUR).pixels.shape[1:] == (*SIZE, 4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mean": (0.5, 0.5)}, "one of each a channel"),
        ({"mean": (), "std": ()}, "one of each a channel"),
        ({"interpolation": "cubic"}, "interpolation"),
        ({"crop_mode": "corner"}, "crop mode"),
    ],
)
def test_a_preprocessing_that_cannot_be_meant_is_refused(
    changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(COLOURED, **changes)


def manifest(how: Preprocessing = GREY, dtype: str = "float32") -> dict[str, Any]:
    """As it is read from a file."""
    facts = {**least_facts(), "run_key": "0", "preprocessing": how.facts()}
    facts["interface"]["input"] = InputSpec(how, dtype).facts()
    facts["files"] = {name: {"bytes": 0, "sha256": "0" * 64} for name in FILES}
    read: dict[str, Any] = json.loads(json.dumps(facts))
    return read


@pytest.mark.parametrize("how", [GREY, COLOURED, FOUR])
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_a_manifest_states_it(how: Preprocessing, dtype: str) -> None:
    facts = manifest(how, dtype)
    check_manifest(facts)
    assert stated_input(facts) == InputSpec(how, dtype)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mean": [0.5, 0.5]}, "mean and preprocessing.std must be of one length"),
        ({"mean": [0.5] * 3, "std": [0.2] * 3}, r"interface.input.shape must be \['batch', 3"),
        ({"mean": [], "std": []}, "preprocessing.mean"),
        ({"std": [0.0]}, "preprocessing.std"),
        ({"resize": [35, 54]}, r"resize must be \[35, 53\]"),
        ({"resize": [35]}, "preprocessing.resize"),
        ({"resize": None}, "preprocessing.resize"),
        ({"size": [48, 32], "resize": [53, 35]}, "interface.input.shape must be"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(changes: dict[str, Any], said: str) -> None:
    facts = manifest()
    check_manifest(facts)
    facts["preprocessing"] |= changes
    with pytest.raises(ValueError, match=said):
        check_manifest(facts)


def test_a_manifest_without_its_resize_is_refused() -> None:
    """The C++ runtime reads it."""
    facts = manifest()
    del facts["preprocessing"]["resize"]
    with pytest.raises(ValueError, match=r"preprocessing\.resize is missing"):
        check_manifest(facts)


@pytest.fixture
def timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config of the timm family with four channels; its file."""
    monkeypatch.setenv("ATM_EXPORT_CONFIGS", str(tmp_path))
    path = tmp_path / "four.yaml"
    path.write_text(TIMM)
    return path


def spec_of_four() -> ModelSpec:
    return ModelSpec(name="four", config=load_model_config("four"), weights="random")


@pytest.mark.usefixtures("timm")
def test_timm_models_take_other_channels_and_sides_by_their_config() -> None:
    model = load_model(spec_of_four())
    backbone = model.backbone
    assert (backbone.image_size, backbone.channels, backbone.grid) == (SIZE, 4, (4, 6))
    assert model.input().shape == ("batch", 4, 32, 48)
    assert backbone.stem_gmacs() == pytest.approx(24 * (4 * 8 * 8) * 48 / 1e9)


@pytest.mark.usefixtures("timm")
def test_golden_vectors_of_a_model_that_takes_no_pictures_hold_none() -> None:
    model = load_model(spec_of_four())
    data, _ = golden_vectors(model, MergePlan.unmerged(2))
    arrays = unpacked(data, "golden")
    assert arrays["images"].shape[1:] == (*SIZE, 4)
    assert not any(name.startswith("picture") for name in arrays)


@pytest.mark.parametrize(
    ("before", "after", "error", "said"),
    [
        ("in_chans: 4", "in_chans: 1", UnsupportedModelError, "number of channels .* is 4"),
        ("mean: [0.1, 0.2, 0.3, 0.4]", "mean: 0.5", ConfigError, "mean must be a list of numbers"),
        ("mean: [0.1, ", "mean: [x, ", ConfigError, "mean must be a list of numbers"),
        ("mean: [0.1, ", "mean: [", ConfigError, "mean has 3 values and std 4"),
        ("preprocessing: {", "preprocessing: {crop: 1, ", ConfigError, "'crop'"),
    ],
)
def test_a_config_that_contradicts_its_model_is_refused(
    timm: Path, before: str, after: str, error: type[Exception], said: str
) -> None:
    assert before in TIMM
    timm.write_text(TIMM.replace(before, after))
    with pytest.raises(error, match=said):
        load_model(spec_of_four())
