"""The golden vectors of a run folder, their names, types and shapes checked as they are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atm_export.errors import RunFolderError
from atm_export.inputs import InputSpec, Pixels
from atm_export.runs.reading import Run, read_checked
from atm_export.runs.tensors import unpacked
from atm_export.tasks.base import Output, names

Answers = Mapping[str, NDArray[np.float32]]
Wanted = tuple[str, Any, tuple[int, ...]]


@dataclass(frozen=True)
class Picture:
    """A JPEG file [bytes], its pixels [H, W, C] after the crop, and the answers [1, ...] for it."""

    file: Pixels
    pixels: Pixels
    answers: Answers


@dataclass(frozen=True)
class Golden:
    """Pictures and PyTorch's answers for them, by output.

    images [n, H, W, C], as after the crop; alone [n, ...]: each by itself; batch [b, ...]: the
    first b in one batch. picture: None where the model takes no picture files.
    """

    images: Pixels
    alone: Answers
    batch: Answers
    picture: Picture | None

    def arrays(self) -> dict[str, NDArray[Any]]:
        """As the file holds them: an output's name, and it after `batch_` and `picture_`."""
        return {
            "images": self.images,
            **self.alone,
            **{f"batch_{name}": array for name, array in self.batch.items()},
            **self._picture_arrays(),
        }

    def _picture_arrays(self) -> dict[str, NDArray[Any]]:
        if self.picture is None:
            return {}
        return {
            "picture": self.picture.file,
            "picture_pixels": self.picture.pixels,
            **{f"picture_{name}": array[0] for name, array in self.picture.answers.items()},
        }


def read_golden(run: Run) -> Golden:
    """The golden vectors of a run; RunFolderError if it has none, or what is there proves
    nothing."""
    facts = run.manifest.golden
    if facts is None:
        raise RunFolderError(f"{run.folder} holds no golden vectors; export again with --force")
    file, outputs = facts.file, run.manifest.answers.outputs
    arrays = unpacked(read_checked(run, file), file)
    spec = run.input
    wrong = _misfit(arrays, outputs, spec)
    if wrong is not None:
        raise RunFolderError(f"{run.folder}: {file}: {wrong}; export again with --force")
    return Golden(
        images=arrays["images"],
        alone={name: arrays[name] for name in names(outputs)},
        batch={name: arrays[f"batch_{name}"] for name in names(outputs)},
        picture=_picture_of(arrays, outputs) if spec.preprocessing.pictured else None,
    )


def _picture_of(arrays: Mapping[str, NDArray[Any]], outputs: tuple[Output, ...]) -> Picture:
    answers = {name: arrays[f"picture_{name}"][None] for name in names(outputs)}
    return Picture(arrays["picture"], arrays["picture_pixels"], answers)


def _misfit(
    arrays: dict[str, NDArray[Any]], outputs: tuple[Output, ...], spec: InputSpec
) -> str | None:
    """What is missing or of another type or shape; None: nothing."""
    shape, pictured = (*spec.size, spec.channels), spec.preprocessing.pictured
    main = arrays.get(f"batch_{outputs[0].name}")
    n = len(arrays["images"]) if _ranked(arrays.get("images"), 4) else 0
    b = len(main) if main is not None and main.ndim == len(outputs[0].shape) else 0
    size = arrays["picture"].size if _ranked(arrays.get("picture"), 1) else 0
    if not 1 <= b <= n or (pictured and not size):
        return "it needs images, a batch of some of them, and a picture"
    wanted: list[Wanted] = [
        ("images", np.uint8, (n, *shape)),
        *(answer for output in outputs for answer in _answers(output, n, b)),
    ]
    if pictured:
        wanted += [("picture", np.uint8, (size,)), ("picture_pixels", np.uint8, shape)]
        wanted += [(f"picture_{each.name}", np.float32, _row(each)) for each in outputs]
    return _first_misfit(arrays, wanted)


def _first_misfit(arrays: dict[str, NDArray[Any]], wanted: list[Wanted]) -> str | None:
    for name, kind, shape in wanted:
        array = arrays.get(name)
        if array is None or array.dtype != kind or array.shape != shape:
            found = "missing" if array is None else f"{array.dtype} {list(array.shape)}"
            return f"{name} must be {np.dtype(kind)} {list(shape)}, not {found}"
        if kind is np.float32 and not np.isfinite(array).all():
            return f"{name} holds NaN or infinity"
    return None


def _answers(output: Output, n: int, b: int) -> Iterator[Wanted]:
    yield output.name, np.float32, (n, *_row(output))
    yield f"batch_{output.name}", np.float32, (b, *_row(output))


def _row(output: Output) -> tuple[int, ...]:
    return tuple(int(length) for length in output.shape[1:])


def _ranked(array: NDArray[Any] | None, rank: int) -> bool:
    return array is not None and array.ndim == rank
