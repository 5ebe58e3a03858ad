"""When two answers to the same images are the same, by the name that manifests state.

Each is known to the Python and to the C++ runtime, so that a run folder is proven where neither the
task's own file nor PyTorch is. NaN never agrees. Nothing here imports more than NumPy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from atm_export.comparison import Comparison, largest
from atm_export.registry import Registry

Array = NDArray[Any]
Floats = NDArray[np.float64]


class Agreement(ABC):
    """One way to compare answers [n, ...] of two implementations, image by image.

    ranks: whether answers are rows [n, classes] whose order counts.
    """

    name: ClassVar[str]
    ranks: ClassVar[bool] = False

    @abstractmethod
    def differences(self, ours: Array, theirs: Array) -> Floats:
        """How far the answer to each image is from the other, [n]; NaN where either is no number.
        `theirs` is what is right."""

    def flips(self, ours: Array, theirs: Array, allowed: float) -> NDArray[np.bool_]:
        """Which answers [n] say another thing, however small the difference."""
        return np.zeros(len(ours), np.bool_)

    def compare(self, what: str, ours: Array, theirs: Array, allowed: float) -> Comparison:
        """All images at once."""
        difference = largest(self.differences(ours, theirs), default=np.nan)
        return Comparison(what, difference, allowed, not self.flips(ours, theirs, allowed).any())


class Difference(Agreement):
    """The largest absolute difference of two numbers."""

    name = "difference"

    def differences(self, ours: Array, theirs: Array) -> Floats:
        with np.errstate(invalid="ignore"):
            gaps = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
        return np.asarray(gaps.reshape(len(gaps), -1).max(axis=1))


class Top1(Difference):
    """Rows [n, classes] that rank classes: the largest difference, and the first choice, but where
    the two best of `theirs` lie so close together that either is right."""

    name = "top1"
    ranks = True

    def flips(self, ours: Array, theirs: Array, allowed: float) -> NDArray[np.bool_]:
        ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
        two = np.sort(theirs, axis=1)[:, -2:]
        with np.errstate(invalid="ignore"):
            tied = two[:, -1] - two[:, 0] <= 2 * allowed
        return np.asarray(~tied & (ours.argmax(axis=1) != theirs.argmax(axis=1)))


class Cosine(Agreement):
    """The widest angle of two vectors along the last axis, as 1 - cosine."""

    name = "cosine"

    def differences(self, ours: Array, theirs: Array) -> Floats:
        return 1 - cosines(ours, theirs)


def cosines(ours: Array, theirs: Array) -> Floats:
    """The least cosine along the last axis of the answers to each image, [n]; NaN of a vector
    without direction."""
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        norms = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
        found = (ours * theirs).sum(axis=-1) / norms
    return np.asarray(found.reshape(len(found), -1).min(axis=1))


agreements: Registry[Agreement] = Registry("agreement")
for _agreement in (Difference(), Top1(), Cosine()):
    agreements.add(_agreement.name, _agreement)
