"""The golden vectors of a run folder, their names, types and shapes checked as they are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atm_export.errors import RunFolderError
from atm_export.runs.reading import Run, read_checked
from atm_export.runs.tensors import unpacked
from atm_export.tasks.base import Output, names
from atm_export.tasks.stated import stated

Pixels = NDArray[np.uint8]
Answers = Mapping[str, NDArray[np.float32]]
Wanted = tuple[str, Any, tuple[int, ...]]


@dataclass(frozen=True)
class Golden:
    """Pictures and PyTorch's answers for them, by output.

    images [n, H, W, 3], as after the crop; alone [n, ...]: each by itself; batch [b, ...]: the
    first b in one batch. picture [bytes]: a JPEG file; picture_pixels [H, W, 3]: it after the
    crop; shown [1, ...]: it alone.
    """

    images: Pixels
    alone: Answers
    batch: Answers
    picture: Pixels
    picture_pixels: Pixels
    shown: Answers

    def arrays(self) -> dict[str, NDArray[Any]]:
        """As the file holds them: an output's name, and it after `batch_` and `picture_`."""
        return {
            "images": self.images,
            **self.alone,
            **{f"batch_{name}": array for name, array in self.batch.items()},
            "picture": self.picture,
            "picture_pixels": self.picture_pixels,
            **{f"picture_{name}": array[0] for name, array in self.shown.items()},
        }


def read_golden(run: Run) -> Golden:
    """The golden vectors of a run; RunFolderError if it has none, or what is there proves
    nothing."""
    facts = run.manifest["golden"]
    if facts is None:
        raise RunFolderError(f"{run.folder} holds no golden vectors; export again with --force")
    file, outputs = facts["file"], stated(run.manifest).outputs
    arrays = unpacked(read_checked(run, file), file)
    wrong = _misfit(arrays, outputs, run)
    if wrong is not None:
        raise RunFolderError(f"{run.folder}: {file}: {wrong}; export again with --force")
    return Golden(
        images=arrays["images"],
        alone={name: arrays[name] for name in names(outputs)},
        batch={name: arrays[f"batch_{name}"] for name in names(outputs)},
        picture=arrays["picture"],
        picture_pixels=arrays["picture_pixels"],
        shown={name: arrays[f"picture_{name}"][None] for name in names(outputs)},
    )


def _misfit(arrays: dict[str, NDArray[Any]], outputs: tuple[Output, ...], run: Run) -> str | None:
    """What is missing or of another type or shape; None: nothing."""
    height, width = run.manifest["preprocessing"]["size"]
    main = arrays.get(f"batch_{outputs[0].name}")
    n = len(arrays["images"]) if _ranked(arrays.get("images"), 4) else 0
    b = len(main) if main is not None and main.ndim == len(outputs[0].shape) else 0
    size = arrays["picture"].size if _ranked(arrays.get("picture"), 1) else 0
    if not 1 <= b <= n or not size:
        return "it needs images, a batch of some of them, and a picture"
    wanted: list[Wanted] = [
        ("images", np.uint8, (n, height, width, 3)),
        ("picture", np.uint8, (size,)),
        ("picture_pixels", np.uint8, (height, width, 3)),
        *(answer for output in outputs for answer in _answers(output, n, b)),
    ]
    for name, kind, shape in wanted:
        array = arrays.get(name)
        if array is None or array.dtype != kind or array.shape != shape:
            found = "missing" if array is None else f"{array.dtype} {list(array.shape)}"
            return f"{name} must be {np.dtype(kind)} {list(shape)}, not {found}"
        if kind is np.float32 and not np.isfinite(array).all():
            return f"{name} holds NaN or infinity"
    return None


def _answers(output: Output, n: int, b: int) -> Iterator[Wanted]:
    row = tuple(int(length) for length in output.shape[1:])
    yield output.name, np.float32, (n, *row)
    yield f"batch_{output.name}", np.float32, (b, *row)
    yield f"picture_{output.name}", np.float32, row


def _ranked(array: NDArray[Any] | None, rank: int) -> bool:
    return array is not None and array.ndim == rank
