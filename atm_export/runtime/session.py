"""A run folder as a session: checked, loaded, warmed up, thread-safe."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atm_export.backends import ONNXRUNTIME, TENSORRT, backends
from atm_export.backends.base import AUTO, Backend, choose_artifact
from atm_export.backends.runner import Server, Serving
from atm_export.bounds import MAX_BATCH, MAX_TOP_K, checked_threads, whole
from atm_export.errors import (
    ConfigError,
    DataError,
    GoldenMismatchError,
    NonFiniteError,
    RunFolderError,
)
from atm_export.runs.golden import read_golden
from atm_export.runs.reading import Run, open_run
from atm_export.runtime import check
from atm_export.runtime.pictures import Picture, batch_of
from atm_export.tasks.base import names
from atm_export.tasks.classify import likeliest

Array = NDArray[Any]
log = logging.getLogger("atm_export.runtime")
PICTURES = (str, Path, bytes, Image.Image, np.ndarray, list, tuple)


@dataclass(frozen=True)
class Label:
    """One class of an answer; the probability is the softmax over all classes."""

    index: int
    name: str
    probability: float


class Session:
    """Asks one loaded model; safe to share between threads. Made by `load`.

    run_folder: the checked folder, and what it says as values; manifest: the same as JSON has it.
    about: one line on what runs the model and why. input: what the graph takes. answers: the task
    and its outputs; classes: how many are ranked (0: none). engine: facts of the TensorRT engine or
    of the graph in low precision that answers, or None. policy: adaptive (an answer depends on the
    other images of its batch, as in the paper), per-image or frozen (it never does).
    """

    def __init__(self, run: Run, server: Server) -> None:
        self.run_folder = run
        told = run.manifest
        self.manifest: Mapping[str, Any] = told.document
        self.about = server.about
        self.providers = server.providers
        self.policy: str = told.method.merge
        self.labels = None if told.labels is None else list(told.labels)
        self.input = told.input
        self.answers = told.answers
        self.classes = self.answers.classes
        self.engine: Mapping[str, Any] | None = server.facts
        self._server = server

    def predict(
        self, images: Picture | Sequence[Picture], *, batch_size: int | None = None
    ) -> NDArray[np.float32]:
        """The task's main output of one picture or several (of a classifier logits [n, classes]).

        A picture is a path, encoded bytes, a PIL image, a uint8 array [h, w, 3] of any size, or an
        already normalised float array [C, H, W]. All go in as one batch unless batch_size says
        otherwise; with the policy "adaptive", what shares a batch shares its number of merges.

        Raises DataError for what is no picture, ConfigError for batch_size, NonFiniteError for an
        answer that is none.
        """
        return self._answers(self.answers.main.name, images, batch_size)

    def embed(
        self, images: Picture | Sequence[Picture], *, batch_size: int | None = None
    ) -> NDArray[np.float32]:
        """Embeddings [n, dim] of one picture or several; the direction counts.

        Raises ConfigError where the task is another, and what `predict` raises.
        """
        name = self.answers.require_embedding(self.run_folder.folder)
        return self._answers(name, images, batch_size)

    def classify(
        self,
        images: Picture | Sequence[Picture],
        top_k: int = 5,
        *,
        batch_size: int | None = None,
    ) -> list[list[Label]]:
        """For each picture its `top_k` classes (all, if there are fewer), the likeliest first.

        Raises ConfigError where the task ranks no classes, and what `predict` raises.
        """
        whole(top_k, "top_k", 1, MAX_TOP_K)
        ranks = self.answers.require_ranks("classify", self.run_folder.folder)
        return self.ranked(self._answers(ranks, images, batch_size), top_k)

    def ranked(self, rows: NDArray[np.float32], top_k: int = 5) -> list[list[Label]]:
        """Labels of rows [n, classes] of the output that ranks classes; the softmax is taken in
        FP64. ConfigError where the task has none."""
        top_k = whole(top_k, "top_k", 1, MAX_TOP_K)
        self.answers.require_ranks("ranked", self.run_folder.folder)
        return [
            [Label(k, self._name(k), share) for k, share in best] for best in likeliest(rows, top_k)
        ]

    def prepare(self, images: Picture | Sequence[Picture]) -> Array:
        """The array that `run` takes, by the manifest's preprocessing; DataError."""
        if not isinstance(images, PICTURES):
            kind = type(images).__name__
            raise DataError(
                f"{kind} is no picture: give a path, bytes, PIL or NumPy, or a list of them"
            )
        return batch_of(images, self.input)

    def run(self, image: Array) -> dict[str, Array]:
        """All outputs by name; image: of `input`'s shape and type.

        Raises DataError for another shape or type, NonFiniteError for an answer that is none.
        """
        outputs = self.outputs(image)
        for name in names(self.answers.outputs):
            finite = np.isfinite(outputs[name]).reshape(len(image), -1).all(axis=1)
            if not finite.all():
                raise NonFiniteError(
                    f"the {name} of image {int(finite.argmin())} hold NaN or infinity: the image "
                    f"does, or this machine ({self.about}) computes something else; see "
                    "`atm-export verify`"
                )
        return outputs

    def outputs(self, image: Array) -> dict[str, Array]:
        """What `run` returns, finite or not."""
        self.input.check(image)
        outputs = self._server.run(np.ascontiguousarray(image))
        for spec in self.answers.outputs:
            found = outputs.get(spec.name)
            if found is None or not spec.holds(found.shape, len(image)):
                shape = "missing" if found is None else list(found.shape)
                raise RunFolderError(
                    f"{self.run_folder.folder}: the graph's {spec.name} are {shape}, the manifest "
                    f"says {[len(image), *spec.shape[1:]]}; export again"
                )
        return outputs

    def _answers(
        self, name: str, images: Picture | Sequence[Picture], batch_size: int | None
    ) -> NDArray[np.float32]:
        size = None if batch_size is None else whole(batch_size, "batch_size", 1, MAX_BATCH)
        batch = self.prepare(images)
        step = size or len(batch)
        parts = [self.run(batch[i : i + step])[name] for i in range(0, len(batch), step)]
        return np.concatenate(parts)

    def _name(self, index: int) -> str:
        return self.labels[index] if self.labels is not None else str(index)


def load(
    folder: Path | str,
    *,
    backend: str | None = None,
    providers: Sequence[str] | None = None,
    engine: str | None = None,
    threads: int = 0,
    warm_up: bool = True,
    allow_unproven: bool = False,
) -> Session:
    """Check every byte of a run folder and load it.

    backend: what runs it (`atm_export.backends`; None: ONNX Runtime, or what a named engine is made
    for). providers: ONNX Runtime providers in order of preference ("cuda", "cpu", or full names);
    None takes the GPU where there is one. engine: an engine of the folder ("auto": the first that
    fits this GPU, FP32 before lower precisions), or a graph of it in low precision, such as
    "model.int8.onnxruntime.onnx". threads: of the CPU, 0 for all cores.
    warm_up: run golden images first and compare, so that a machine that computes something else is
    refused.

    Raises RunFolderError (a subclass for each mismatch), ConfigError for what cannot be meant, and
    MissingDependencyError. Nothing is written.
    """
    _check_options(folder, providers, threads)
    chosen, how = chosen_backend(backend, engine), Serving(providers, threads)
    chosen.check_serving(how)
    run = open_run(folder, allow_unproven=allow_unproven)
    chosen.require()
    session = Session(run, chosen.serve(run, choose_artifact(chosen, run, engine or AUTO), how))
    log.info("%s: %s", folder, session.about)
    if warm_up:
        _warm_up(session)
    return session


def chosen_backend(backend: str | None, engine: str | None) -> Backend:
    """What `load` runs a folder with; ConfigError for an unknown name."""
    if backend is None:
        backend = ONNXRUNTIME if engine is None else _backend_of(engine)
    return backends[backend]


def _backend_of(engine: str) -> str:
    """By its name: a graph in low precision says whose it is, all else is TensorRT's."""
    named = [name for name in backends if engine.endswith((f".{name}.onnx", f".{name}.xml"))]
    return named[0] if named else TENSORRT


def _check_options(folder: Any, providers: Any, threads: Any) -> None:
    """ConfigError for what cannot be meant."""
    if not isinstance(folder, str | os.PathLike) or not os.fspath(folder):
        raise ConfigError(f"run folder {folder!r}: give the path that `atm-export MODEL` wrote")
    checked_threads(threads)
    if providers is not None and (
        not isinstance(providers, list | tuple) or not all(isinstance(p, str) for p in providers)
    ):
        raise ConfigError(f"providers {providers!r}: give a list of names, such as ['cuda', 'cpu']")


def _warm_up(session: Session) -> None:
    """First runs allocate and tune; two golden images also prove this machine's numbers."""
    if session.run_folder.manifest.golden is None:
        return
    for found in check.compare_alone(session, read_golden(session.run_folder), count=2):
        if not found.ok:
            raise GoldenMismatchError(
                f"{session.run_folder.folder}: {found.line}; this machine ({session.about}) does "
                "not compute what was exported: see `atm-export verify`"
            )
