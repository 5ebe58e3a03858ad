"""Does this machine give the numbers that PyTorch gave at export time?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atm_export.comparison import Comparison, compare_angles, compare_logits
from atm_export.preprocess import normalize
from atm_export.runs.golden import Golden, read_golden
from atm_export.runtime.pictures import decoded

if TYPE_CHECKING:
    from atm_export.runtime.session import Session

Array = NDArray[Any]


def check_golden(session: Session) -> list[Comparison]:
    """Every golden vector of the session's run: each image alone, a batch, a JPEG file."""
    golden = read_golden(session.run_folder)
    return [
        compare_alone(session, golden, len(golden.images)),
        _compare_batch(session, golden),
        *_compare_picture(session, golden),
    ]


def compare_alone(session: Session, golden: Golden, count: int) -> Comparison:
    """The first `count` images, each as a batch of one."""
    logits = [_logits(session, pixels[None]) for pixels in golden.images[:count]]
    theirs = golden.logits[: len(logits)]
    return _compare(session, "single images", np.concatenate(logits), theirs, "logits")


def _compare_batch(session: Session, golden: Golden) -> Comparison:
    theirs = golden.batch_logits
    logits = _logits(session, golden.images[: len(theirs)])
    return _compare(session, f"a batch of {len(theirs)}", logits, theirs, "logits")


def _compare_picture(session: Session, golden: Golden) -> list[Comparison]:
    pixels = decoded(golden.picture.tobytes(), session.preprocessing)
    levels = np.abs(pixels.astype(int) - golden.picture_pixels).max()
    logits = _logits(session, pixels[None])
    theirs = golden.picture_logits[None]
    allowed = _allowed(session, "picture_grey_levels")
    return [
        Comparison("grey levels of a JPEG file", float(levels), allowed),
        _compare(session, "a JPEG file", logits, theirs, "picture_logits"),
    ]


def _logits(session: Session, pixels: Array) -> Array:
    """Logits [n, classes] of pictures as after the crop; NaN is left for the verdict to find."""
    image = pixels if session.uint8 else normalize(pixels, session.preprocessing)
    return session.outputs(image)["logits"]


def _allowed(session: Session, what: str) -> float:
    return float(session.manifest["golden"]["tolerance"][what])


def _compare(session: Session, what: str, ours: Array, theirs: Array, tolerance: str) -> Comparison:
    """Logits within the tolerance; of an engine, which may round more, their angle."""
    if session.engine is not None:
        least = float(session.engine["validation"]["tolerance"]["min_cosine_logits"])
        return compare_angles(f"angle of the logits of {what} (1 - cosine)", ours, theirs, least)
    return compare_logits(f"logits of {what}", ours, theirs, _allowed(session, tolerance))
