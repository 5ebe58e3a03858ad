"""Where the images of an evaluation are, and what is right for them: the run's classes, those of a
file of class vectors, or nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from atm_export.errors import ClassOrderError, ConfigError, DataError
from atm_export.measure.data.classes import ClassOrder
from atm_export.measure.data.samples import Samples, open_samples
from atm_export.runs.reading import Run
from atm_export.tasks.class_vectors import ClassVectors, read_class_vectors


@dataclass(frozen=True)
class Place:
    """Images and their labels as `open_samples` takes them; class_vectors: of embeddings."""

    images: str
    labels: Path | None = None
    real: Path | None = None
    split: str = "validation"
    class_order: ClassOrder | None = None
    class_vectors: Path | None = None

    @property
    def labelled(self) -> bool:
        """Whether the user says what is right."""
        return any(each is not None for each in (self.labels, self.real, self.class_order))

    def open(self, classes: int, names: tuple[str, ...] | None) -> Samples:
        return open_samples(
            self.images,
            classes,
            names,
            labels=self.labels,
            real=self.real,
            split=self.split,
            order=self.class_order,
        )


def samples_of(run: Run, place: Place) -> tuple[Samples, ClassVectors | None]:
    """The images with the classes that are right for each, and the class vectors. Embeddings need
    no labels: a folder whose classes are not those of the vectors is just a folder."""
    answers = run.manifest.answers
    if answers.ranks is not None:
        if place.class_vectors is not None:
            raise ConfigError(
                f"--class-vectors makes classes of embeddings, and {run.folder} answers the task "
                f"'{answers.task}'; leave it out"
            )
        labels = run.manifest.labels
        return place.open(answers.classes, None if labels is None else tuple(labels)), None
    if place.class_vectors is None:
        if place.labelled:
            raise ConfigError(
                f"{run.folder} answers the task '{answers.task}', which has no classes; labels "
                "need --class-vectors FILE"
            )
        return _unlabelled(place), None
    vectors = read_class_vectors(place.class_vectors, int(answers.main.shape[-1]))
    try:
        return place.open(vectors.classes, vectors.labels), vectors
    except ClassOrderError:
        raise
    except DataError:
        if place.labelled:
            raise
    return _unlabelled(place), vectors


def _unlabelled(place: Place) -> Samples:
    return open_samples(place.images, 0, split=place.split, unlabelled=True)
