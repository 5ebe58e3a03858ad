"""A file of class vectors or of a linear probe, which makes classes of embeddings.

An .npz without pickles: `vectors` [classes, d] (a class each, such as CLIP's text embeddings; the
largest cosine wins), or `weight` [classes, d] and `bias` [classes] (a linear probe); and, where
classes have names, `labels` [classes]. Nothing here imports more than NumPy.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atm_export.errors import DataError
from atm_export.imagefiles import open_regular
from atm_export.tasks.neighbours import directions

HOW = "save it by numpy.savez with `vectors` [classes, d], or `weight` [classes, d] and `bias`"
ROWS = 4096  # embeddings at a time


@dataclass(frozen=True)
class ClassVectors:
    """weight [classes, d]; bias [classes] of a linear probe, or None: weight are directions, and
    the embeddings' directions count. labels: names of the classes, or None."""

    weight: NDArray[np.float64]
    bias: NDArray[np.float64] | None
    labels: tuple[str, ...] | None

    @property
    def classes(self) -> int:
        return len(self.weight)

    @property
    def kind(self) -> str:
        return "zero-shot" if self.bias is None else "linear probe"

    def best(self, rows: NDArray[Any]) -> NDArray[np.int64]:
        """The (up to) five best classes of each embedding [n, d], [n, 5]; equal ones by number."""
        parts = [self._best(rows[i : i + ROWS]) for i in range(0, len(rows), ROWS)]
        return np.concatenate(parts)

    def _best(self, rows: NDArray[Any]) -> NDArray[np.int64]:
        if self.bias is None:
            scores = directions(rows) @ self.weight.T
        else:
            scores = rows.astype(np.float64) @ self.weight.T + self.bias
        return np.argsort(-scores, axis=1, kind="stable")[:, :5]


def read_class_vectors(path: Path, dim: int) -> ClassVectors:
    """The classes of a file, for embeddings of `dim` numbers; DataError says what is wrong."""
    arrays = _arrays(path)
    vectors, weight, bias = (arrays.get(name) for name in ("vectors", "weight", "bias"))
    if (vectors is None) == (weight is None) or (weight is None) != (bias is None):
        raise DataError(f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}; {HOW}")
    rows = _numbers(path, "vectors" if weight is None else "weight", arrays)
    if rows.ndim != 2 or not len(rows) or rows.shape[1] != dim:
        raise DataError(
            f"{path}: class vectors {list(rows.shape)} do not fit embeddings of {dim} numbers"
        )
    if bias is None:
        rows = directions(rows)
        if not np.isfinite(rows).all():
            bad = int(np.isfinite(rows).all(axis=1).argmin())
            raise DataError(f"{path}: the vector of class {bad} has no direction")
        return ClassVectors(rows, None, _labels(path, arrays, len(rows)))
    offset = _numbers(path, "bias", arrays)
    if offset.shape != (len(rows),):
        raise DataError(f"{path}: bias {list(offset.shape)} does not fit {len(rows)} classes")
    return ClassVectors(rows, offset, _labels(path, arrays, len(rows)))


def _arrays(path: Path) -> Mapping[str, NDArray[Any]]:
    try:
        with open_regular(path) as file, np.load(file, allow_pickle=False) as found:
            if not isinstance(found, np.lib.npyio.NpzFile):
                raise DataError(f"{path} is no .npz; {HOW}")
            names = [n for n in ("vectors", "weight", "bias", "labels") if n in found.files]
            return {name: found[name] for name in names}
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is no .npz that is read without pickles; {HOW}") from error


def _numbers(path: Path, name: str, arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    found = arrays[name]
    if found.dtype.kind not in "fiu":
        raise DataError(f"{path}: {name} holds {found.dtype}, and no numbers")
    values = found.astype(np.float64)
    if not np.isfinite(values).all():
        raise DataError(f"{path}: {name} holds NaN or infinity")
    return values


def _labels(path: Path, arrays: Mapping[str, NDArray[Any]], classes: int) -> tuple[str, ...] | None:
    found = arrays.get("labels")
    if found is None:
        return None
    if found.dtype.kind not in "US" or found.shape != (classes,):
        raise DataError(f"{path}: labels must be {classes} texts")
    texts = np.char.decode(found, "utf-8") if found.dtype.kind == "S" else found
    return tuple(texts.tolist())
