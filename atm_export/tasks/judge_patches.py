"""How patch features are judged: the cosine of every patch with the unmerged model's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from atm_export.errors import NonFiniteError
from atm_export.shapes import Check
from atm_export.tasks.cosine_facts import (
    COSINE,
    WORST,
    cosine_facts,
    packed_rows,
    unpacked_rows,
)
from atm_export.tasks.judge import (
    Array,
    Bound,
    Facts,
    Figure,
    Judge,
    Limits,
    Right,
    Row,
)

BLOCK = 16  # images whose patches are compared at a time, in FP64
KEPT = 0.9  # cosine that all but the worst 1 % of an image's patches reach where it says the same


@dataclass(frozen=True)
class PatchLimits(Limits):
    """min_cosine: median over all patches of all images, with the unmerged model's; max_distance:
    mean cosine distance of the final class token (or first row)."""

    min_cosine: float = 0.95
    max_distance: float = 1.0

    def lost(self, ours: Array, plain: Array, total: int) -> bool:
        found = patch_cosines(ours, plain[: len(ours)])
        return int((found < self.min_cosine).sum()) > total * found.shape[1] / 2

    def excess(self, found: Facts, known: Facts) -> list[float]:
        return [
            100 * (self.min_cosine - found["cosine"]),
            100 * (found["distance"] - self.max_distance),
        ]


class ByPatch(Judge):
    """Of patches [n, H, W, d] the direction, a patch at a time. Beside the unmerged answers all
    that is kept of them is a cosine a patch, [n, H * W] in FP32, and that of the others [n, 1]."""

    bounds = (Bound("min_cosine", -1.0, 1.0), Bound("max_distance", 0.0, 2.0))
    evaluated = ("min_cosine",)
    apart = Figure(
        "distance", "1 - cosine to unmerged",
        "1 - cosine: mean over all patches of the cosine distance from the unmerged model's; with "
        "the paired difference beside it few images rank methods.",
    )  # fmt: skip
    same = Figure("kept", "patches kept %")
    merit = Figure("cosine", "Cosine with the unmerged model's patches", "median cosine")
    columns = ("cosine", "worst_percent", "distance")
    shape: ClassVar[Mapping[str, Check]] = {"cosine": COSINE}

    def reading(self, rows: Array) -> Array:
        with np.errstate(invalid="ignore", over="ignore"):
            lengths = np.linalg.norm(rows, axis=-1).reshape(len(rows), -1)
        pointing = (np.isfinite(lengths) & (lengths > 0)).all(axis=1)
        if not pointing.all():
            raise NonFiniteError(
                f"a patch of image {int(pointing.argmin())} of a batch has no direction: it holds "
                "NaN, infinity or zeros alone"
            )
        return np.ascontiguousarray(rows, np.float32)

    def beside(self, ours: Array, plain: Array | None) -> tuple[Array, Array | None]:
        ones = np.ones((len(ours), 1), np.float32)
        if plain is None:
            return ones, None
        return patch_cosines(ours, plain).astype(np.float32), ones

    def packed(self, read: Array) -> list[Any]:
        return packed_rows(read)

    def unpacked(self, values: Sequence[Any]) -> Array:
        found = unpacked_rows(values, "cosines")
        if not (np.abs(found) <= 1.001).all():
            raise ValueError("no cosines")
        return found

    def evaluation(
        self, ours: Array, plain: Array | None, right: Sequence[Right], material: Any = None
    ) -> dict[str, Any]:
        return {} if plain is None else {"cosine": cosine_facts(ours)}

    def table(
        self, ours: Array, plain: Array | None, right: Sequence[Right]
    ) -> tuple[Sequence[str], Sequence[Row]]:
        if plain is None:
            return (), [()] * len(ours)
        facts = [cosine_facts(row) for row in ours]
        names = ("median", "worst_percent", "least")
        return (
            ("cosine", "cosine_worst_percent", "cosine_least"),
            [tuple(f"{each[name]:.6f}" for name in names) for each in facts],
        )

    def lines(self, facts: Facts, share: Callable[[Facts], str]) -> list[str]:
        cosine = facts.get("cosine")
        if not cosine:
            return []
        return [
            f"cosine     {cosine['median']:.5f} with the unmerged model's patch (median of all "
            f"patches), worst 1 % {cosine['worst_percent']:.5f}, least {cosine['least']:.5f}"
        ]

    def sentence(self, facts: Facts | None, share: Callable[[Facts], str]) -> str:
        if facts is None or "cosine" not in facts:
            return (
                "Not known yet: how far merging turns the features of patches was not measured "
                "(atm-export evaluate)."
            )
        return (
            f"If features of patches may turn: their cosine with the unmerged ones is "
            f"{facts['cosine']['median']:.4f} (median; worst 1 %: "
            f"{facts['cosine']['worst_percent']:.4f}), on {facts['data']['images']} images."
        )

    def broken(self, facts: Facts, bounds: Mapping[str, float]) -> list[str]:
        if "min_cosine" not in bounds:
            return []
        least, cosine = bounds["min_cosine"], facts["cosine"]["median"]
        return [] if cosine >= least else [f"the median cosine of {cosine:.5f} is below {least:g}"]

    def limits(self, given: Mapping[str, float]) -> Limits:
        return PatchLimits(**given)

    def anything(self) -> Limits:
        return PatchLimits(-1.0, 2.0)

    def trial(self, ours: Array, plain: Array, right: Array | None) -> dict[str, Any]:
        cosine = cosine_facts(patch_cosines(ours, plain))
        return {"cosine": cosine["median"], "worst_percent": cosine["worst_percent"]}

    def trial_text(self, facts: Facts, known: Facts) -> str:
        return (
            f"cosine a patch {facts['cosine']:.4f} (median; worst 1 % "
            f"{facts['worst_percent']:.4f}), class token within {facts['distance']:.4f}"
        )

    def distances(self, ours: Array, plain: Array) -> NDArray[np.float64]:
        return np.asarray(1 - patch_cosines(ours, plain).mean(axis=1))

    def agrees(self, ours: Array, plain: Array) -> NDArray[np.bool_]:
        return np.asarray(np.quantile(patch_cosines(ours, plain), WORST, axis=1) >= KEPT)

    def compared(self, ours: Array, plain: Array) -> dict[str, Any]:
        return {"cosine": cosine_facts(patch_cosines(ours, plain))}


def patch_cosines(ours: Array, plain: Array) -> NDArray[np.float64]:
    """The cosine of each patch of [n, ..., d] with the other's, [n, patches]."""
    found = [
        _cosines(ours[i : i + BLOCK], plain[i : i + BLOCK]) for i in range(0, len(ours), BLOCK)
    ]
    return np.concatenate(found)


def _cosines(ours: Array, plain: Array) -> NDArray[np.float64]:
    one, other = (a.reshape(len(a), -1, a.shape[-1]).astype(np.float64) for a in (ours, plain))
    products = np.einsum("npd,npd->np", one, other)
    lengths = np.linalg.norm(one, axis=2) * np.linalg.norm(other, axis=2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(products / lengths)
