"""From a picture to the pixels of a model's input, with Pillow and NumPy alone.

The same rule as the usual ImageNet evaluation: short side to floor(size / crop_pct) by an
antialiased resampling filter, then a centre crop. `inputs.normalize` does the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from atm_export.errors import DataError
from atm_export.imagefiles import IMAGE_SUFFIXES, is_folder, is_image, walk
from atm_export.inputs import RGB, Pixels, Preprocessing
from atm_export.pictures import as_rgb, check_resized, check_size, of_channels, read_rgb

_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
}


def crop(image: Image.Image, how: Preprocessing) -> Pixels:
    """Resize and centre-crop to uint8 [H, W, C].

    Raises ImageSizeError, and DataError for other depths or a model that takes no pictures.
    """
    check_size(*image.size)
    target = _resized(image.size, how)
    check_resized(*target)
    image = of_channels(image, how.channels)
    return _array(_cropped(image, target, how))


def sample(image: Image.Image, how: Preprocessing) -> Pixels:
    """`crop` for the pictures that prove a model; one that takes no pictures sees their red, green
    and blue by turns, channel after channel."""
    if how.pictured:
        return crop(image, how)
    return _by_turns(_array(_cropped(as_rgb(image), _resized(image.size, how), how)), how)


def drawn(image: Image.Image, how: Preprocessing) -> Pixels:
    """The same of a picture that has the input's size already."""
    if how.pictured:
        return _array(of_channels(image, how.channels))
    return _by_turns(_array(as_rgb(image)), how)


def _by_turns(pixels: Pixels, how: Preprocessing) -> Pixels:
    return np.ascontiguousarray(pixels[..., np.arange(how.channels) % RGB])


def _cropped(image: Image.Image, target: tuple[int, int], how: Preprocessing) -> Image.Image:
    if target != image.size:
        image = image.resize(target, _FILTERS[how.interpolation])
    top = round((image.height - how.size[0]) / 2)
    left = round((image.width - how.size[1]) / 2)
    return image.crop((left, top, left + how.size[1], top + how.size[0]))


def _array(image: Image.Image) -> Pixels:
    """[H, W, C], grey pictures too."""
    return np.asarray(image, dtype=np.uint8).reshape(image.height, image.width, -1)


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


def read_image(path: Path, how: Preprocessing) -> Pixels:
    """Decode one file and crop it to uint8 [H, W, C]; DataError names the file."""
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


def read_images(paths: Iterable[Path], how: Preprocessing) -> Pixels:
    """Decode files to one uint8 array [B, H, W, C]."""
    return np.stack([read_image(path, how) for path in paths])
