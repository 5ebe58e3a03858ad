"""All images of a data set at once, decoded, with what is right for each where that is known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from atm_export.errors import ClassOrderError, ConfigError, DataError
from atm_export.inputs import Pixels
from atm_export.measure.data.classes import ClassOrder
from atm_export.measure.data.decode import decoded
from atm_export.measure.data.samples import Samples, open_samples
from atm_export.model.backbone import LoadedModel


@dataclass(frozen=True)
class DataPlace:
    """Where images are and what their labels are (see `open_samples`)."""

    images: str
    labels: Path | None = None
    class_order: ClassOrder | None = None


def open_set(place: DataPlace, model: LoadedModel) -> tuple[Samples, bool]:
    """The images, and whether each has one class. Without labels files, class folders that are none
    of the model are just folders; those that may be are refused where their order is ambiguous."""
    classes = model.backbone.classes
    if model.backbone.ranks is None:
        if place.labels is not None or place.class_order is not None:
            raise ConfigError(
                f"{model.name} ranks no classes (task '{model.backbone.task}'), and labels say "
                "classes; leave --labels and --class-order out"
            )
        return open_samples(place.images, classes, unlabelled=True), False
    try:
        found = open_samples(
            place.images, classes, model.labels, labels=place.labels, order=place.class_order
        )
        return found, all(len(right) == 1 for right in found.right)
    except ClassOrderError:
        raise
    except DataError:
        if place.labels is not None or place.class_order is not None:
            raise
    return open_samples(place.images, classes, unlabelled=True), False


def pixels_of(
    samples: Samples, labelled: bool, place: DataPlace, model: LoadedModel, workers: int
) -> tuple[Pixels, Tensor | None]:
    """The samples, decoded."""
    order = np.random.default_rng(0).permutation(len(samples)).tolist()
    batches = [order[i : i + 32] for i in range(0, len(order), 32)]
    parts = list(decoded(samples.reader, model.preprocessing, batches, workers))
    bad = [(samples.name(i), why) for part in parts for i, why in part.unreadable]
    if len(bad) > max(1, len(samples) // 20):
        raise DataError(f"{len(bad)} images cannot be read, the first: {bad[0][0]} ({bad[0][1]})")
    pixels = np.concatenate([part.pixels for part in parts])
    if not len(pixels):
        raise DataError(f"no readable image in {place.images}")
    if not labelled:
        return pixels, None
    kept = [i for part in parts for i in part.kept]
    return pixels, torch.tensor([samples.right[i][0] for i in kept])
