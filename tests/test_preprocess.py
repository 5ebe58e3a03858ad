"""Preprocessing with Pillow equals timm's evaluation transform."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.data import create_transform

from atm_export.errors import ConfigError, DataError
from atm_export.inputs import Preprocessing, normalize
from atm_export.preprocess import crop, list_images, read_image, read_images
from tests.shared_data import sample_images

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def how(
    size: tuple[int, int] = (224, 224),
    pct: float = 0.875,
    interpolation: str = "bicubic",
    mode: str = "center",
) -> Preprocessing:
    return Preprocessing(size, pct, interpolation, MEAN, STD, mode)


def by_timm(image: Image.Image, rule: Preprocessing) -> np.ndarray:
    transform = create_transform(
        (3, *rule.size),
        crop_pct=rule.crop_pct,
        interpolation=rule.interpolation,
        mean=MEAN,
        std=STD,
        crop_mode=rule.crop_mode,
    )
    return transform(image.convert("RGB")).numpy()


RULES = [
    how(),
    how(pct=0.9),
    how((384, 384), 1.0),
    how((160, 160), 0.95, "bilinear"),
    how((224, 192), 0.9),
    how((192, 192), 0.9, mode="squash"),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.size}-{rule.crop_pct}")
def test_equals_timm_on_real_images(rule: Preprocessing) -> None:
    for path in sample_images(step=50):
        with Image.open(path) as image:
            ours = normalize(crop(image, rule)[None], rule)[0]
            theirs = by_timm(image, rule)
        assert np.abs(ours - theirs).max() < 1e-5, path.name


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (31, 400), (224, 224), (257, 256)])
def test_equals_timm_on_odd_shapes(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    rule = how((96, 96))
    assert np.abs(normalize(crop(image, rule)[None], rule)[0] - by_timm(image, rule)).max() < 1e-5


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P", "LA"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    suffix = "tif" if mode in ("CMYK", "LA") else "png"
    path = tmp_path / f"image.{suffix}"
    Image.new(mode, (300, 200)).save(path)
    assert read_image(path, how()).shape == (224, 224, 3)


def test_broken_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.jpeg"
    path.write_bytes(b"\xff\xd8\xff not a jpeg")
    with pytest.raises(DataError, match=r"broken\.jpeg"):
        read_images([path], how())
    with pytest.raises(DataError, match="no image folder"):
        list_images(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image"):
        list_images(tmp_path / "empty")


def test_unknown_rules_are_refused() -> None:
    with pytest.raises(ConfigError, match="interpolation"):
        how(interpolation="magic")
    with pytest.raises(ConfigError, match="crop mode"):
        how(mode="border")
