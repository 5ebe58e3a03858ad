"""A finished run against the eager reference, built again from the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atm_export.comparison import compare_logits, largest
from atm_export.errors import AtmExportError, ManifestError, OtherWeightsError, ParityError
from atm_export.model.reference import run_reference
from atm_export.prove.golden_vectors import scene
from atm_export.prove.margins import trace_margin
from atm_export.prove.tolerances import FP32_LOGITS, MARGIN
from atm_export.runtime import Session, load
from atm_export.subject import Subject, exported_subject

BATCHES = (1, 3)
TRIES = 12


class NotHere(AtmExportError):
    """The reference cannot be built here: its weights are not at hand."""


@cache
def prove_again(folder: Path) -> float:
    """Compare with the reference on drawn scenes at batch 1 and 3; the largest difference.

    Scenes are taken whose decisions clear FP32 noise. ParityError where logits or top-1 differ;
    NotHere where the weights of the export are not at hand.
    """
    session = load(folder, warm_up=False)
    subject = _rebuilt(session.manifest)
    found = []
    for batch in BATCHES:
        pixels, logits = _decided(subject, batch)
        image = subject.feed(pixels)
        found.append(_compare(session, image, logits, batch))
    return largest(found)


def _rebuilt(manifest: Mapping[str, Any]) -> Subject:
    try:
        return exported_subject(manifest, "manifest.json")
    except (ManifestError, OtherWeightsError):
        raise
    except AtmExportError as error:
        raise NotHere(f"the weights of the export are not at hand ({error})") from error


def _decided(subject: Subject, batch: int) -> tuple[np.ndarray[Any, Any], torch.Tensor]:
    """Scenes [batch, H, W, 3] with the firmest decisions, and the reference's logits."""
    model = subject.model
    best: tuple[float, Any, Any] | None = None
    for seed in range(TRIES):
        size = model.preprocessing.size[::-1]
        scenes = [scene(size, 5000 + seed * batch + i) for i in range(batch)]
        pixels = np.stack([np.asarray(image) for image in scenes])
        trace = run_reference(model.backbone, subject.plan, subject.tensor(pixels))
        margin = trace_margin(trace)
        if best is None or margin > best[0]:
            best = (margin, pixels, trace.logits)
        if margin >= MARGIN:
            break
    assert best is not None
    return best[1], best[2]


def _compare(session: Session, image: Any, logits: torch.Tensor, batch: int) -> float:
    """The largest difference; ParityError where it, or a clear top-1, is not the reference's."""
    ours = session.outputs(image)["logits"]
    what = f"logits at batch {batch} against the eager reference"
    found = compare_logits(what, ours, logits.numpy(), FP32_LOGITS.logits)
    if not found.ok:
        raise ParityError(f"{session.run_folder.folder}: {found.line}")
    return found.difference
