"""Whatever a caller has, as one array that the graph takes.

A path, encoded bytes, a PIL image or a uint8 array [h, w, 3] (of a grey model [h, w, 1] too) is a
picture of any size: it is resized and cropped by the manifest's rule. A float array [C, H, W] is
taken as already normalised. A model of other channels takes arrays alone, uint8 ones [H, W, C] too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atm_export.errors import DataError
from atm_export.inputs import GREY, RGB, InputSpec, Pixels, Preprocessing
from atm_export.pictures import read_rgb
from atm_export.preprocess import crop, read_image

Picture: TypeAlias = "str | Path | bytes | Image.Image | NDArray[Any]"
Array = NDArray[Any]


def batch_of(images: Picture | Sequence[Picture], spec: InputSpec) -> Array:
    """Float32 [n, C, H, W], or uint8 [n, H, W, C] where the graph normalises; DataError."""
    single = isinstance(images, (str, Path, bytes, Image.Image))
    if isinstance(images, np.ndarray):
        single = images.ndim <= 3
    parts: list[Any] = [images] if single else list(images)  # type: ignore[arg-type]
    if not parts:
        raise DataError("no image given")
    floats = [isinstance(p, np.ndarray) and p.dtype.kind == "f" for p in parts]
    if any(floats):
        return _normalised(parts, floats, spec)
    return spec.feed(np.stack([_pixels(part, spec.preprocessing) for part in parts]))


def _normalised(parts: list[Any], floats: list[bool], spec: InputSpec) -> Array:
    if spec.uint8:
        raise DataError(
            "this graph takes uint8 pictures and normalises them itself; "
            "give paths, PIL images or uint8 arrays"
        )
    shape = spec.shape[1:]
    if not all(floats) or any(part.shape != shape for part in parts):
        raise DataError(f"normalised images must all be float arrays {shape} or [n, {shape}]")
    batch = np.ascontiguousarray(np.stack(parts), dtype=np.float32)
    if not np.isfinite(batch).all():
        raise DataError("a normalised image holds NaN or infinity")
    return batch


def _pixels(part: Any, how: Preprocessing) -> Pixels:
    if isinstance(part, (str, Path)):
        return read_image(Path(part), how)
    if isinstance(part, bytes):
        return decoded(part, how)
    if isinstance(part, np.ndarray):
        if not how.pictured:
            return _exact(part, how)
        part = _picture(part, how)
    if not isinstance(part, Image.Image):
        raise DataError(f"{type(part).__name__} is no picture: give a path, bytes, PIL or NumPy")
    return crop(part, how)


def _picture(array: Array, how: Preprocessing) -> Image.Image:
    """A picture of a uint8 array [h, w, 3], or [h, w, 1] for a grey model."""
    channels = {RGB, how.channels}
    if (
        array.dtype != np.uint8
        or array.ndim != 3
        or array.shape[2] not in channels
        or not array.size
    ):
        known = " or ".join(f"[h, w, {count}]" for count in sorted(channels))
        raise DataError(
            f"an array of {array.dtype} {list(array.shape)} is no picture: "
            f"give uint8 {known}, or normalised float [{how.channels}, H, W]"
        )
    return Image.fromarray(array[..., 0] if array.shape[2] == GREY else array)


def _exact(array: Array, how: Preprocessing) -> Pixels:
    """An array for a model that takes no pictures: nothing resizes it."""
    shape = (*how.size, how.channels)
    if array.dtype != np.uint8 or array.shape != shape:
        raise DataError(
            f"the model takes uint8 {list(shape)}, or normalised float "
            f"{[how.channels, *how.size]}, not {array.dtype} {list(array.shape)}"
        )
    return array


def decoded(data: bytes, how: Preprocessing) -> Pixels:
    """An encoded file's bytes to uint8 [H, W, C]; DataError."""
    return crop(read_rgb(data), how)
