"""The images that a run proves and measures itself on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atm_export import photos
from atm_export.imagefiles import printable
from atm_export.inputs import Preprocessing
from atm_export.model.backbone import OwnImages
from atm_export.pictures import require_pictures
from atm_export.preprocess import list_images, read_images, sample

LIMIT = 64


@dataclass(frozen=True)
class ImageSet:
    """pixels [k, H, W, C] uint8, what they are, and classes and names where they are known."""

    pixels: NDArray[np.uint8]
    source: str
    labels: NDArray[np.int64] | None = None
    names: tuple[str, ...] = ()

    def digest(self) -> str:
        return hashlib.sha256(np.ascontiguousarray(self.pixels).data).hexdigest()


def load_images(
    folder: str | None, how: Preprocessing, own: Callable[[], OwnImages] | None = None
) -> ImageSet:
    """Up to 64 images of `folder`, evenly spread over its sorted files; without a folder the
    model's own ones, all of them, or else the photographs that ship."""
    if folder is not None:
        require_pictures(how.channels)
        files = list_images(Path(folder))
        step = max(1, len(files) / LIMIT)
        chosen = [files[int(i * step)] for i in range(min(LIMIT, len(files)))]
        names = tuple(printable(file.name) for file in chosen)
        return ImageSet(read_images(chosen, how), "images of the given folder", names=names)
    if own is not None:
        brought = own()
        pixels = np.stack([sample(image, how) for image in brought.images])
        return ImageSet(pixels, brought.source, brought.labels)
    pixels = np.stack([sample(view.image(), how) for view in photos.VIEWS])
    names = tuple(photos.credit(view.photo) for view in photos.VIEWS)
    return ImageSet(
        pixels, "views of photographs that ship (give --images DIR for yours)", None, names
    )
