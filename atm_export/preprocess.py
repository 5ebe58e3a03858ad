"""From an image file to the model's input, with Pillow and NumPy alone.

The same rule as the usual ImageNet evaluation: short side to floor(size / crop_pct) by an
antialiased resampling filter, centre crop, scale to 0..1, normalise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atm_export.errors import ConfigError, DataError
from atm_export.imagefiles import IMAGE_SUFFIXES, is_folder, is_image, walk
from atm_export.pictures import as_rgb, check_resized, check_size, read_rgb

_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Preprocessing:
    """Input size (height, width), resize rule and normalisation (mean and std of 0..1 pixels)."""

    size: tuple[int, int]
    crop_pct: float
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        if self.interpolation not in _FILTERS:
            raise ConfigError(
                f"interpolation '{self.interpolation}' is not one of {', '.join(_FILTERS)}"
            )
        if self.crop_mode not in ("center", "squash"):
            raise ConfigError(f"crop mode '{self.crop_mode}' is not one of center, squash")

    @property
    def resize(self) -> tuple[int, int]:
        """Height and width that the image covers (center) or takes (squash) before the crop."""
        return (
            math.floor(self.size[0] / self.crop_pct),
            math.floor(self.size[1] / self.crop_pct),
        )

    def facts(self) -> dict[str, Any]:
        """The settings in words and numbers, as the manifest states them."""
        rule = "short side" if self.crop_mode == "center" else "both sides, aspect ratio not kept"
        return {**asdict(self), "resize": list(self.resize), "resize_rule": rule}


def crop(image: Image.Image, how: Preprocessing) -> NDArray[np.uint8]:
    """Resize and centre-crop to uint8 [H, W, 3]; ImageSizeError, or DataError for other depths."""
    check_size(*image.size)
    target = _resized(image.size, how)
    check_resized(*target)
    image = as_rgb(image)
    if target != image.size:
        image = image.resize(target, _FILTERS[how.interpolation])
    top = round((image.height - how.size[0]) / 2)
    left = round((image.width - how.size[1]) / 2)
    image = image.crop((left, top, left + how.size[1], top + how.size[0]))
    return np.asarray(image, dtype=np.uint8)


def _resized(size: tuple[int, int], how: Preprocessing) -> tuple[int, int]:
    """Width and height after the resize; the rounding is that of torchvision's and timm's rules."""
    width, height = size
    cover_h, cover_w = how.resize
    if how.crop_mode == "squash":
        return cover_w, cover_h
    if cover_h == cover_w:
        if width <= height:
            return cover_w, int(cover_w * height / width)
        return int(cover_h * width / height), cover_h
    ratio = min(height / cover_h, width / cover_w)
    return round(width / ratio), round(height / ratio)


def normalize(pixels: NDArray[np.uint8], how: Preprocessing) -> NDArray[np.float32]:
    """uint8 [B, H, W, 3] to normalised float32 [B, 3, H, W]."""
    mean = np.asarray(how.mean, dtype=np.float32)
    std = np.asarray(how.std, dtype=np.float32)
    scaled = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def read_image(path: Path, how: Preprocessing) -> NDArray[np.uint8]:
    """Decode one file and crop it to uint8 [H, W, 3]; DataError names the file."""
    try:
        return crop(read_rgb(path), how)
    except DataError as error:
        raise type(error)(f"cannot read image {path}: {error}") from error


def list_images(folder: Path) -> list[Path]:
    """All image files under `folder` (links followed), in sorted order; DataError if none."""
    if not is_folder(folder):
        raise DataError(f"no image folder at {folder}")
    files = sorted(
        place / name for place, _, names in walk(folder) for name in names if is_image(name)
    )
    if not files:
        raise DataError(f"no image ({', '.join(IMAGE_SUFFIXES)}) under {folder}")
    return files


def read_images(paths: Iterable[Path], how: Preprocessing) -> NDArray[np.uint8]:
    """Decode files to one uint8 array [B, H, W, 3]."""
    return np.stack([read_image(path, how) for path in paths])
