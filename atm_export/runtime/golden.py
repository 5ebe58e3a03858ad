"""Does this machine give the numbers that PyTorch gave at export time?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from atm_export.preprocess import normalize
from atm_export.runtime.pictures import decoded

if TYPE_CHECKING:
    from atm_export.runtime.session import Session

Array = NDArray[Any]


@dataclass(frozen=True)
class Finding:
    """One comparison: what was compared, the largest difference, and what is allowed."""

    what: str
    difference: float
    allowed: float
    same_top1: bool = True

    @property
    def ok(self) -> bool:
        return bool(self.difference <= self.allowed) and self.same_top1

    @property
    def line(self) -> str:
        text = f"{self.what}: differs by {self.difference:.2g}, {self.allowed:g} allowed"
        return text if self.same_top1 else f"{text}; another top-1"


def check_golden(session: Session) -> list[Finding]:
    """Every golden vector of the session's run: each image alone, a batch, a JPEG file."""
    from atm_export.runtime.session import golden_arrays

    arrays = golden_arrays(session.run_folder)
    return [
        compare_alone(session, arrays, len(arrays["images"])),
        _compare_batch(session, arrays),
        *_compare_picture(session, arrays),
    ]


def compare_alone(session: Session, arrays: Mapping[str, Array], count: int) -> Finding:
    """The first `count` images, each as a batch of one."""
    logits = [_run(session, pixels[None]) for pixels in arrays["images"][:count]]
    return _finding(session, "single images", np.concatenate(logits), arrays["logits"], "logits")


def _compare_batch(session: Session, arrays: Mapping[str, Array]) -> Finding:
    theirs = arrays["batch_logits"]
    logits = _run(session, arrays["images"][: len(theirs)])
    return _finding(session, f"a batch of {len(theirs)}", logits, theirs, "logits")


def _compare_picture(session: Session, arrays: Mapping[str, Array]) -> list[Finding]:
    pixels = decoded(arrays["picture"].tobytes(), session.preprocessing)
    levels = np.abs(pixels.astype(int) - arrays["picture_pixels"]).max()
    logits = session.predict(arrays["picture"].tobytes())
    theirs = arrays["picture_logits"][None]
    return [
        Finding("grey levels of a JPEG file", float(levels), _allowed(session, "grey_levels")),
        _finding(session, "a JPEG file", logits, theirs, "picture_logits"),
    ]


def _run(session: Session, pixels: Array) -> Array:
    image = pixels if session.uint8 else normalize(pixels, session.preprocessing)
    return session.run(image)["logits"]


def _allowed(session: Session, what: str) -> float:
    tolerance = session.manifest["golden"]["tolerance"]
    return float(tolerance["picture_grey_levels" if what == "grey_levels" else what])


def _finding(session: Session, what: str, ours: Array, theirs: Array, tolerance: str) -> Finding:
    """Logits within the tolerance; of an engine, which may round more, their angle."""
    theirs = theirs[: len(ours)]
    if session.engine is not None:
        least = float(session.engine["validation"]["tolerance"]["min_cosine_logits"])
        norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
        cosine = float(((ours * theirs).sum(axis=1) / norms).min())
        return Finding(f"angle of the logits of {what} (1 - cosine)", 1 - cosine, 1 - least)
    allowed = _allowed(session, tolerance)
    two = np.sort(theirs, axis=1)[:, -2:]
    tied = two[:, -1] - two[:, 0] <= 2 * allowed  # either class is right
    same = bool((tied | (ours.argmax(axis=1) == theirs.argmax(axis=1))).all())
    return Finding(f"logits of {what}", float(np.abs(ours - theirs).max()), allowed, same)
