"""The golden vectors of a run folder, their names, types and shapes checked as they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atm_export.errors import RunFolderError
from atm_export.runs.reading import Run, read_checked
from atm_export.runs.tensors import unpacked

Pixels = NDArray[np.uint8]
Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Golden:
    """Pictures and PyTorch's logits for them.

    images [n, H, W, 3], as after the crop; logits [n, K]: each alone; batch_logits [b, K]: the
    first b in one batch. picture [bytes]: a JPEG file; picture_pixels [H, W, 3]: it after the
    crop; picture_logits [K]: it alone.
    """

    images: Pixels
    logits: Logits
    batch_logits: Logits
    picture: Pixels
    picture_pixels: Pixels
    picture_logits: Logits


def read_golden(run: Run) -> Golden:
    """The golden vectors of a run; RunFolderError if it has none, or what is there proves
    nothing."""
    facts = run.manifest["golden"]
    if facts is None:
        raise RunFolderError(f"{run.folder} holds no golden vectors; export again with --force")
    file = facts["file"]
    arrays = unpacked(read_checked(run, file), file)
    wrong = _misfit(arrays, run)
    if wrong is not None:
        raise RunFolderError(f"{run.folder}: {file}: {wrong}; export again with --force")
    return Golden(**{name: arrays[name] for name in Golden.__dataclass_fields__})


def _misfit(arrays: dict[str, NDArray[Any]], run: Run) -> str | None:
    """What is missing or of another type or shape; None: nothing."""
    height, width = run.manifest["preprocessing"]["size"]
    classes = run.manifest["interface"]["outputs"]["logits"]["shape"][1]
    n = len(arrays["images"]) if _ranked(arrays.get("images"), 4) else 0
    b = len(arrays["batch_logits"]) if _ranked(arrays.get("batch_logits"), 2) else 0
    size = arrays["picture"].size if _ranked(arrays.get("picture"), 1) else 0
    if not 1 <= b <= n or not size:
        return "it needs images, a batch of some of them, and a picture"
    wanted: dict[str, tuple[Any, tuple[int, ...]]] = {
        "images": (np.uint8, (n, height, width, 3)),
        "logits": (np.float32, (n, classes)),
        "batch_logits": (np.float32, (b, classes)),
        "picture": (np.uint8, (size,)),
        "picture_pixels": (np.uint8, (height, width, 3)),
        "picture_logits": (np.float32, (classes,)),
    }
    for name, (kind, shape) in wanted.items():
        array = arrays.get(name)
        if array is None or array.dtype != kind or array.shape != shape:
            found = "missing" if array is None else f"{array.dtype} {list(array.shape)}"
            return f"{name} must be {np.dtype(kind)} {list(shape)}, not {found}"
        if kind is np.float32 and not np.isfinite(array).all():
            return f"{name} holds NaN or infinity"
    return None


def _ranked(array: NDArray[Any] | None, rank: int) -> bool:
    return array is not None and array.ndim == rank
