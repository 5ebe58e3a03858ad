"""The photographs that ship: licensed, small, varied, and taken where the user gives none."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atm_export import photos
from atm_export.choice import Choice
from atm_export.cli import main
from atm_export.config import ModelSpec
from atm_export.errors import ConfigError
from atm_export.inputs import Preprocessing
from atm_export.measure.data.images import load_images
from atm_export.model.backbone import LoadedModel
from atm_export.model.demo import digits
from atm_export.model.zoo import load_model
from atm_export.model_configs import load_model_config
from atm_export.pipeline import _images
from atm_export.preprocess import crop
from atm_export.prove.golden_vectors import _pictures
from atm_export.resolving import resolve
from atm_export.reuse import key_of
from atm_export.subject import schedule_from, subject_of
from tests.shared_data import shared

FILES = sorted(photos.FOLDER.glob("*.jpg"))
MEAN = (0.5, 0.5, 0.5)


def how(size: int, crop_pct: float = 0.9, mode: str = "center") -> Preprocessing:
    return Preprocessing((size, size), crop_pct, "bicubic", MEAN, MEAN, mode)


def test_they_are_small_and_the_card_names_author_licence_and_source_of_each() -> None:
    assert sum(path.stat().st_size for path in FILES) < 1_500_000
    assert [path.stem for path in FILES] == sorted(photos.card())
    readme = (photos.FOLDER / "README.md").read_text(encoding="utf-8")
    for name, row in photos.card().items():
        for fact in ("author", "licence", "source", "package", "member"):
            assert row[fact] and row[fact] in readme, f"{name}: {fact}"
        assert f"`{name}.jpg`" in readme
        assert row["licence"].startswith(("CC0", "CC BY", "public domain", "no known copyright"))
        assert photos.credit(name) == f"{name} ({row['author']}, {row['licence']})"


def test_every_photograph_is_seen_and_the_first_eight_views_are_of_eight_of_them() -> None:
    assert {view.photo for view in photos.VIEWS} == set(photos.card())
    assert len(photos.VIEWS) == 32
    assert len({view.photo for view in photos.VIEWS[:8]}) == 8
    assert any(view.mirrored for view in photos.VIEWS)
    for view in photos.VIEWS:
        left, top, right, bottom = view.box
        assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1
        assert view.image().mode == "RGB"


@pytest.mark.parametrize(
    "preprocessing", [how(32), how(224), how(224, 1.0), how(384), how(224, 1.0, "squash")]
)
def test_views_are_distinct_and_the_same_each_time(preprocessing: Preprocessing) -> None:
    found = [crop(view.image(), preprocessing) for view in photos.VIEWS]
    assert {pixels.shape for pixels in found} == {(*preprocessing.size, 3)}
    assert len({hashlib.sha256(pixels.tobytes()).digest() for pixels in found}) == 32
    flat = np.stack(found).reshape(32, -1).astype(np.float32)
    gaps = [np.abs(flat[i] - flat[:i]).mean(axis=1).min() for i in range(1, 32)]
    assert min(gaps) > 8  # grey levels of 256 on average between any two
    assert (np.stack([crop(v.image(), preprocessing) for v in photos.VIEWS]) == found).all()


def test_natural_image_models_take_them_and_the_demo_its_digits() -> None:
    found = load_images(None, how(224))
    assert found.pixels.shape == (32, 224, 224, 3) and found.labels is None
    assert "photographs that ship" in found.source
    assert found.names[3] == "temple (danielbuechele, CC BY 2.0)"
    assert load_images(None, how(56), digits).source == "held-out digits"
    for name, own in (("demo", digits), ("deit_t", None)):
        assert model(name).own_images is own


def model(name: str) -> LoadedModel:
    return load_model(resolve(Choice(model=name, weights="random")).model)


def test_golden_pictures_are_those_that_may_travel_without_conditions() -> None:
    free = {name for name, row in photos.card().items() if not row["licence"].startswith("CC BY")}
    assert len(_pictures(model("deit_t"))) == sum(view.photo in free for view in photos.VIEWS)
    assert {photo for photo in photos.card() if photos.unconditional(photo)} == free
    assert {picture.size for picture in _pictures(model("demo"))} == {(8, 8)}


def test_they_are_made_of_pinned_packages() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
    try:
        import make_photos
    finally:
        sys.path.pop(0)
    for source in make_photos.SOURCES:
        row = photos.card()[source.name]
        assert {key: row[key] for key in vars(source)} == vars(source)
        assert len(row["member_sha256"]) == 64
    assert make_photos.readme() == (photos.FOLDER / "README.md").read_text(encoding="utf-8")
    with pytest.raises(SystemExit, match="no wheel of scikit-image"):
        make_photos.member(Path("absent"), make_photos.SOURCES[0])


def test_no_option_speaks_of_demo_digits_any_more(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ([], ["bench"]):
        assert main([*command, "--help"]) == 0
        text = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert "demo digits" not in text and "photographs that ship" in text


def vit_tiny(**options: str) -> Choice:
    """A model without presets of the paper."""
    weights = shared("data", "weights", "vit_tiny_patch16_224.safetensors")
    return Choice(model="timm:vit_tiny_patch16_224", weights=str(weights), **options)


def test_a_frozen_schedule_says_what_it_comes_from(tmp_path: Path) -> None:
    folder = str(tmp_path)
    paper = resolve(Choice(model="deit_t", weights="random", merge="frozen"))
    assert schedule_from(paper) == "the paper's GFLOPs"
    assert schedule_from(resolve(vit_tiny(merge="frozen"))) == "the images that ship"
    given = resolve(vit_tiny(merge="frozen", calibrate=folder))
    assert schedule_from(given) == "the images to calibrate on"
    with pytest.raises(ConfigError, match="needs images to calibrate on"):
        schedule_from(resolve(vit_tiny(merge="frozen", images=folder)))


def test_images_to_calibrate_on_are_not_those_to_prove_on(tmp_path: Path) -> None:
    for name, grey in (("prove", 255), ("calibrate", 0)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (60, 60), (grey,) * 3).save(tmp_path / name / "0.png")
    model = load_model(ModelSpec(name="demo", config=load_model_config("demo")))
    both = {"images": str(tmp_path / "prove"), "calibrate": str(tmp_path / "calibrate")}
    config = resolve(Choice(model="demo", merge="frozen", **both))
    proven, calibrated = _images(config, model)
    assert proven.pixels.min() == 255 and calibrated.pixels.max() == 0
    assert key_of(config, model, proven, calibrated) != key_of(config, model, proven, proven)
    heldout = load_images(None, model.preprocessing, digits)
    black = subject_of(config, model, calibrated.pixels).plan
    assert black != subject_of(config, model, heldout.pixels).plan
    assert black == subject_of(config, model, calibrated.pixels).plan
