"""Decoding in worker processes, ahead of the model, in order.

This module imports neither torch nor timm: workers start in a fraction of a second.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from atm_export.errors import AtmExportError
from atm_export.imagefiles import printable
from atm_export.inputs import Pixels, Preprocessing
from atm_export.measure.data.readers import Reader, content_of, read
from atm_export.pictures import read_rgb, require_pictures
from atm_export.preprocess import crop

CHUNK = 8  # images a task
AHEAD = 3  # batches decoded in advance


@dataclass(frozen=True)
class Decoded:
    """A batch: pixels [k, H, W, C] of the images `kept`, and why the others are missing. contents:
    a hash of the encoded bytes of each image asked for (empty where there are none)."""

    pixels: Pixels
    kept: tuple[int, ...]
    unreadable: tuple[tuple[int, str], ...]
    contents: tuple[str, ...]


def decode(reader: Reader, how: Preprocessing, chosen: Sequence[int]) -> Decoded:
    """Read and crop images; what cannot be decoded is named with its reason."""
    pixels, kept, bad, contents = [], [], [], []
    for i in chosen:
        contents.append("")
        try:
            data = read(reader, i)
            contents[-1] = content_of(data)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pixels.append(crop(read_rgb(data), how))
            kept.append(i)
        except MemoryError:
            raise
        except Exception as error:  # decoders of broken files raise nearly anything
            bad.append((i, _reason(error)))
    stacked = np.stack(pixels) if pixels else np.empty((0, *how.size, how.channels), np.uint8)
    return Decoded(stacked, tuple(kept), tuple(bad), tuple(contents))


def _reason(error: Exception) -> str:
    """Why an image is unreadable, in one printable line without its path."""
    return printable(" ".join(words_of(error).split())[:200])


def words_of(error: Exception) -> str:
    """What an error says, without the path of its file."""
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


def decoded(
    reader: Reader, how: Preprocessing, batches: Sequence[Sequence[int]], workers: int
) -> Iterator[Decoded]:
    """Batches in order; workers 0 decodes in this process. DataError where the model takes no
    pictures."""
    require_pictures(how.channels)
    if workers == 0:
        for batch in batches:
            yield _joined([decode(reader, how, batch)])
        return
    pool = _pool(workers, reader, how)
    waiting: deque[list[Future[Decoded]]] = deque()
    try:
        for batch in batches:
            parts = [batch[i : i + CHUNK] for i in range(0, len(batch), CHUNK)]
            with _no_main():
                waiting.append([pool.submit(_work, part) for part in parts])
            if len(waiting) > AHEAD:
                yield _joined([part.result() for part in waiting.popleft()])
        while waiting:
            yield _joined([part.result() for part in waiting.popleft()])
    except BrokenProcessPool as error:
        raise AtmExportError(
            "a decoding worker died (out of memory?); try fewer --workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _pool(workers: int, reader: Reader, how: Preprocessing) -> ProcessPoolExecutor:
    """Spawned workers, for forked ones would inherit the locks of torch and ONNX Runtime."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, _begin, (reader, how))


@contextmanager
def _no_main() -> Iterator[None]:
    """Workers that start here do not run the caller's main module again, as spawned ones would."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _joined(parts: list[Decoded]) -> Decoded:
    return Decoded(
        np.concatenate([part.pixels for part in parts]) if len(parts) > 1 else parts[0].pixels,
        tuple(i for part in parts for i in part.kept),
        tuple(entry for part in parts for entry in part.unreadable),
        tuple(data for part in parts for data in part.contents),
    )


_state: tuple[Reader, Preprocessing] | None = None


def _begin(reader: Reader, how: Preprocessing) -> None:
    global _state
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
    if hasattr(os, "nice"):
        os.nice(5)  # the model goes first
    _state = reader, how


def _work(chosen: Sequence[int]) -> Decoded:
    assert _state is not None
    return decode(*_state, chosen)
