"""A finished run against the eager reference, built again from the manifest."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from atm_export.comparison import largest
from atm_export.errors import AtmExportError, ManifestError, OtherWeightsError, ParityError
from atm_export.model.reference import Trace, run_reference
from atm_export.preprocess import drawn
from atm_export.prove.golden_vectors import scene
from atm_export.prove.margins import trace_margin
from atm_export.prove.tolerances import MARGIN
from atm_export.runs.manifest import Manifest
from atm_export.runtime import Session, load
from atm_export.subject import Subject, exported_subject

BATCHES = (1, 3)
TRIES = 12


class NotHere(AtmExportError):
    """The reference cannot be built here: its weights are not at hand."""


@cache
def prove_again(folder: Path) -> float:
    """Compare with the reference on drawn scenes at batch 1 and 3; the largest difference.

    Scenes are taken whose decisions clear FP32 noise. ParityError where an output differs;
    NotHere where the weights of the export are not at hand.
    """
    session = load(folder, warm_up=False)
    subject = _rebuilt(session.run_folder.manifest)
    found = []
    for batch in BATCHES:
        pixels, trace = _decided(subject, batch)
        found += _compare(session, subject.feed(pixels), trace, batch)
    return largest(found)


def _rebuilt(manifest: Manifest) -> Subject:
    try:
        return exported_subject(manifest, "manifest.json")
    except (ManifestError, OtherWeightsError):
        raise
    except AtmExportError as error:
        raise NotHere(f"the weights of the export are not at hand ({error})") from error


def _decided(subject: Subject, batch: int) -> tuple[np.ndarray[Any, Any], Trace]:
    """Scenes [batch, H, W, C] with the firmest decisions, and what the reference makes of them."""
    model, how = subject.model, subject.model.preprocessing
    best: tuple[float, Any, Any] | None = None
    for seed in range(TRIES):
        size = how.size[::-1]
        scenes = [scene(size, 5000 + seed * batch + i) for i in range(batch)]
        pixels = np.stack([drawn(image, how) for image in scenes])
        trace = run_reference(model.backbone, subject.plan, subject.tensor(pixels))
        margin = trace_margin(trace)
        if best is None or margin > best[0]:
            best = (margin, pixels, trace)
        if margin >= MARGIN:
            break
    assert best is not None
    return best[1], best[2]


def _compare(session: Session, image: Any, trace: Trace, batch: int) -> list[float]:
    """The largest difference of each output; ParityError where it, or a clear top-1, is not the
    reference's."""
    outputs, found = session.outputs(image), []
    for spec in trace.specs:
        what = f"{spec.name} at batch {batch} against the eager reference"
        theirs = trace.outputs[spec.name].numpy()
        found.append(spec.rule.compare(what, outputs[spec.name], theirs, spec.tolerance.allowed))
        if not found[-1].ok:
            raise ParityError(f"{session.run_folder.folder}: {found[-1].line}")
    return [each.difference for each in found]
