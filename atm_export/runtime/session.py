"""A run folder as a session: checked, loaded, warmed up, thread-safe."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from atm_export.errors import ConfigError, DataError, GoldenMismatchError, RunFolderError
from atm_export.runfolder import Run, open_run, read_checked
from atm_export.runtime import engines, golden
from atm_export.runtime.onnx_session import OnnxSession
from atm_export.runtime.pictures import Picture, batch_of, preprocessing
from atm_export.tensors import unpacked

Array = NDArray[Any]
log = logging.getLogger("atm_export.runtime")


@dataclass(frozen=True)
class Label:
    """One class of an answer; the probability is the softmax over all classes."""

    index: int
    name: str
    probability: float


class Backend(Protocol):
    """What runs the graph."""

    about: str
    providers: tuple[str, ...]

    def run(self, image: Array) -> dict[str, Array]: ...


class Session:
    """Asks one loaded model; safe to share between threads. Made by `load`.

    run_folder: the checked folder; manifest: what it says. about: one line on what runs the model
    and why. engine: facts of the TensorRT engine that answers, or None. policy: adaptive (an answer
    depends on the other images of its batch, as in the paper), per-image or frozen (it never does).
    """

    def __init__(self, run: Run, backend: Backend) -> None:
        self.run_folder = run
        self.manifest: Mapping[str, Any] = run.manifest
        self.about = backend.about
        self.providers = backend.providers
        self.policy: str = run.manifest["method"]["merge"]
        self.labels: list[str] | None = run.manifest["labels"]
        self.preprocessing = preprocessing(run.manifest)
        self.uint8 = run.input["dtype"] == "uint8"
        self.engine: Mapping[str, Any] | None = getattr(backend, "facts", None)
        self._backend = backend

    def predict(
        self, images: Picture | Sequence[Picture], *, batch_size: int | None = None
    ) -> NDArray[np.float32]:
        """Logits [n, classes] of one picture or several.

        A picture is a path, encoded bytes, a PIL image, a uint8 array [h, w, 3] of any size, or an
        already normalised float array [3, H, W]. All go in as one batch unless batch_size says
        otherwise; with the policy "adaptive", what shares a batch shares its number of merges.
        """
        batch = self.prepare(images)
        step = len(batch) if batch_size is None else batch_size
        if step < 1:
            raise ConfigError(f"batch_size {batch_size}: give 1 or more")
        parts = [self.run(batch[i : i + step])["logits"] for i in range(0, len(batch), step)]
        return np.concatenate(parts)

    def classify(
        self,
        images: Picture | Sequence[Picture],
        top_k: int = 5,
        *,
        batch_size: int | None = None,
    ) -> list[list[Label]]:
        """For each picture its `top_k` classes, the likeliest first."""
        return self.ranked(self.predict(images, batch_size=batch_size), top_k)

    def ranked(self, logits: NDArray[np.float32], top_k: int = 5) -> list[list[Label]]:
        """Labels of logits [n, classes]; the softmax is taken in FP64."""
        if top_k < 1:
            raise ConfigError(f"top_k {top_k}: give 1 or more")
        scores = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
        return [
            [Label(int(k), self._name(int(k)), float(row[k])) for k in best]
            for best, row in zip(order, scores, strict=True)
        ]

    def prepare(self, images: Picture | Sequence[Picture]) -> Array:
        """The array that `run` takes, by the manifest's preprocessing."""
        return batch_of(images, self.preprocessing, self.uint8)

    def run(self, image: Array) -> dict[str, Array]:
        """All outputs by name; image: float32 [n, 3, H, W], or uint8 [n, H, W, 3]."""
        facts = self.run_folder.input
        fits = image.ndim == 4 and list(image.shape[1:]) == list(facts["shape"][1:])
        if not fits or image.dtype != facts["dtype"] or not len(image):
            raise DataError(
                f"the graph takes {facts['dtype']} {facts['shape']}, "
                f"not {image.dtype} {list(image.shape)}"
            )
        return self._backend.run(np.ascontiguousarray(image))

    def _name(self, index: int) -> str:
        return self.labels[index] if self.labels is not None else str(index)


def load(
    folder: Path | str,
    *,
    providers: Sequence[str] | None = None,
    engine: str | None = None,
    threads: int = 0,
    warm_up: bool = True,
    allow_unproven: bool = False,
) -> Session:
    """Check every byte of a run folder and load it.

    providers: ONNX Runtime providers in order of preference ("cuda", "cpu", or full names); None
    takes the GPU where there is one. engine: a TensorRT engine of the folder instead ("auto": the
    one that fits this GPU). threads: intra-op threads, 0 for all cores. warm_up: run golden images
    first and compare, so that a machine that computes something else is refused.

    Raises RunFolderError (a subclass for each mismatch), ConfigError for providers, and
    MissingDependencyError. Nothing is written.
    """
    run = open_run(folder, allow_unproven=allow_unproven)
    backend: Backend
    if engine is not None:
        backend = engines.open_engine(run, engine)
    else:
        graph = read_checked(run, "model.onnx")
        backend = OnnxSession(graph, int(run.manifest["opset"]), providers, threads)
    session = Session(run, backend)
    log.info("%s: %s", folder, session.about)
    if warm_up:
        _warm_up(session)
    return session


def golden_arrays(run: Run) -> dict[str, Array]:
    """The golden vectors of a run; RunFolderError if it has none."""
    facts = run.manifest.get("golden")
    if facts is None:
        raise RunFolderError(f"{run.folder} holds no golden vectors; export again with --force")
    return unpacked(read_checked(run, facts["file"]), facts["file"])


def _warm_up(session: Session) -> None:
    """First runs allocate and tune; two golden images also prove this machine's numbers."""
    if session.manifest.get("golden") is None:
        return
    arrays = golden_arrays(session.run_folder)
    found = golden.compare_alone(session, arrays, count=2)
    if not found.ok:
        raise GoldenMismatchError(
            f"{session.run_folder.folder}: {found.line}; this machine ({session.about}) does not "
            "compute what was exported: see `atm-export verify`"
        )
