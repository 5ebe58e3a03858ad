"""Whatever a caller has, as one array that the graph takes.

A path, encoded bytes, a PIL image or a uint8 array [h, w, 3] is a picture of any size: it is
resized and cropped by the manifest's rule. A float array [3, H, W] is taken as already normalised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atm_export.errors import DataError
from atm_export.pictures import read_rgb
from atm_export.preprocess import Preprocessing, crop, normalize, read_image

Picture: TypeAlias = "str | Path | bytes | Image.Image | NDArray[Any]"
Array = NDArray[Any]


def preprocessing(manifest: Mapping[str, Any]) -> Preprocessing:
    """The rule that the manifest states."""
    facts = manifest["preprocessing"]
    return Preprocessing(
        size=tuple(facts["size"]),
        crop_pct=facts["crop_pct"],
        interpolation=facts["interpolation"],
        mean=tuple(facts["mean"]),
        std=tuple(facts["std"]),
        crop_mode=facts["crop_mode"],
    )


def batch_of(images: Picture | Sequence[Picture], how: Preprocessing, uint8: bool) -> Array:
    """Float32 [n, 3, H, W], or uint8 [n, H, W, 3] where the graph normalises; DataError."""
    single = isinstance(images, (str, Path, bytes, Image.Image))
    if isinstance(images, np.ndarray):
        single = images.ndim <= 3
    parts: list[Any] = [images] if single else list(images)  # type: ignore[arg-type]
    if not parts:
        raise DataError("no image given")
    floats = [isinstance(p, np.ndarray) and p.dtype.kind == "f" for p in parts]
    if any(floats):
        return _normalised(parts, floats, how, uint8)
    pixels = np.stack([_pixels(part, how) for part in parts])
    return pixels if uint8 else normalize(pixels, how)


def _normalised(parts: list[Any], floats: list[bool], how: Preprocessing, uint8: bool) -> Array:
    if uint8:
        raise DataError(
            "this graph takes uint8 pictures and normalises them itself; "
            "give paths, PIL images or uint8 arrays"
        )
    shape = (3, *how.size)
    if not all(floats) or any(part.shape != shape for part in parts):
        raise DataError(f"normalised images must all be float arrays {shape} or [n, {shape}]")
    batch = np.ascontiguousarray(np.stack(parts), dtype=np.float32)
    if not np.isfinite(batch).all():
        raise DataError("a normalised image holds NaN or infinity")
    return batch


def _pixels(part: Any, how: Preprocessing) -> NDArray[np.uint8]:
    if isinstance(part, (str, Path)):
        return read_image(Path(part), how)
    if isinstance(part, bytes):
        return decoded(part, how)
    if isinstance(part, np.ndarray):
        if part.dtype != np.uint8 or part.ndim != 3 or part.shape[2] != 3 or not part.size:
            raise DataError(
                f"an array of {part.dtype} {list(part.shape)} is no picture: "
                "give uint8 [h, w, 3], or normalised float [3, H, W]"
            )
        part = Image.fromarray(part)
    if not isinstance(part, Image.Image):
        raise DataError(f"{type(part).__name__} is no picture: give a path, bytes, PIL or NumPy")
    return crop(part, how)


def decoded(data: bytes, how: Preprocessing) -> NDArray[np.uint8]:
    """An encoded file's bytes to uint8 [H, W, 3]; DataError."""
    return crop(read_rgb(data), how)
