"""How embeddings are judged: the cosine with the unmerged model's, the nearest neighbours that both
find, and classes where a file of class vectors makes some of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from atm_export.errors import NonFiniteError
from atm_export.shapes import Check, fields, table, text, whole
from atm_export.tasks.agreement import cosines
from atm_export.tasks.class_vectors import ClassVectors
from atm_export.tasks.cosine_facts import COSINE, cosine_facts, packed_rows, unpacked_rows
from atm_export.tasks.judge import (
    Array,
    Bound,
    Count,
    Facts,
    Figure,
    Judge,
    Limits,
    Right,
    Row,
)
from atm_export.tasks.judge_classes import SHARE, accuracy
from atm_export.tasks.neighbours import directions, nearest, recalled, shared

KS = (1, 5, 10)
_ZERO_SHOT = dict.fromkeys(("top1", "top5", "agreement"), SHARE)


@dataclass(frozen=True)
class VectorLimits(Limits):
    """min_cosine: median over the images, with the unmerged embedding; min_recall: images whose
    nearest neighbour stays the same, in percent, kept by one standard error; max_distance: mean
    cosine distance of the final class token (or pooled row)."""

    min_cosine: float = 0.98
    min_recall: float = 75.0
    max_distance: float = 1.0

    def lost(self, ours: Array, plain: Array, total: int) -> bool:
        low = int((cosines(ours, plain[: len(ours)]) < self.min_cosine).sum())
        return low > total / 2

    def excess(self, found: Facts, known: Facts) -> list[float]:
        broken = [
            100 * (self.min_cosine - found["cosine"]),
            100 * (found["distance"] - self.max_distance),
        ]
        if self.min_recall > 0:
            low = found.get("recall_low")
            broken.append(np.nan if low is None else self.min_recall - low)
        return broken


class ByDirection(Judge):
    """Of embeddings [n, d] the direction, kept in FP32."""

    bounds = (
        Bound("min_cosine", -1.0, 1.0),
        Bound("min_recall", 0.0, 100.0),
        Bound("max_distance", 0.0, 2.0),
    )
    evaluated = ("min_cosine", "min_recall")
    apart = Figure(
        "distance", "1 - cosine to unmerged",
        "1 - cosine: mean over the images of the cosine distance from the unmerged model's "
        "embedding; with the paired difference beside it few images rank methods.",
    )  # fmt: skip
    same = Figure("recall", "same nearest neighbour %")
    merit = Figure("cosine", "Cosine with the unmerged model's embedding", "median cosine")
    columns = ("cosine", "worst_percent", "recall", "distance")
    shape: ClassVar[Mapping[str, Check]] = {
        "cosine": COSINE,
        "neighbours": fields({"overlap": table(SHARE), "recall": table(SHARE)}),
        "zero_shot": fields(
            {"classes": whole(1), "kind": text}, {**_ZERO_SHOT, "unmerged": fields({}, _ZERO_SHOT)}
        ),
    }

    def reading(self, rows: Array) -> Array:
        finite = np.isfinite(directions(rows)).all(axis=1)
        if not finite.all():
            raise NonFiniteError(
                f"the embedding of image {int(finite.argmin())} of a batch has no direction: it "
                "holds NaN, infinity or zeros alone"
            )
        return np.ascontiguousarray(rows, np.float32)

    def packed(self, read: Array) -> list[Any]:
        return packed_rows(read)

    def unpacked(self, values: Sequence[Any]) -> Array:
        return self.reading(unpacked_rows(values, "embeddings"))

    def evaluation(
        self, ours: Array, plain: Array | None, right: Sequence[Right], material: Any = None
    ) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if plain is not None:
            found["cosine"] = cosine_facts(cosines(ours, plain))
            found["neighbours"] = neighbour_facts(ours, plain)
        if isinstance(material, ClassVectors):
            found["zero_shot"] = zero_shot(material, ours, plain, right)
        return found

    def table(
        self, ours: Array, plain: Array | None, right: Sequence[Right]
    ) -> tuple[Sequence[str], Sequence[Row]]:
        if plain is None:
            return (), [()] * len(ours)
        return ("cosine",), [(f"{cosine:.6f}",) for cosine in cosines(ours, plain)]

    def lines(self, facts: Facts, share: Callable[[Facts], str]) -> list[str]:
        found = []
        if cosine := facts.get("cosine"):
            found.append(
                f"cosine     {cosine['median']:.5f} with the unmerged embedding (median), worst "
                f"1 % {cosine['worst_percent']:.5f}, least {cosine['least']:.5f}"
            )
        near = facts.get("neighbours", {"overlap": {}, "recall": {}})
        for k in _by_number(near["recall"]):
            found.append(
                f"{f'recall@{k}':10s} {share(near['recall'][k])} of the images keep their unmerged "
                f"nearest neighbour among {k}; 95 % intervals"
            )
        for k in _by_number(near["overlap"]):
            found.append(f"{f'overlap@{k}':10s} {share(near['overlap'][k])} of the {k} nearest")
        return [*found, *_zero_shot_lines(facts.get("zero_shot"), share)]

    def sentence(self, facts: Facts | None, share: Callable[[Facts], str]) -> str:
        if facts is None or "cosine" not in facts:
            return (
                "Not known yet: how far merging turns embeddings was not measured "
                "(atm-export evaluate)."
            )
        keep = facts["neighbours"]["recall"].get("1")
        near = f", and {share(keep)} of the images keep their nearest neighbour" if keep else ""
        return (
            f"If embeddings may turn: their cosine with the unmerged ones is "
            f"{facts['cosine']['median']:.4f} (median; worst 1 %: "
            f"{facts['cosine']['worst_percent']:.4f}){near}, on {facts['data']['images']} images."
        )

    def broken(self, facts: Facts, bounds: Mapping[str, float]) -> list[str]:
        if not bounds:  # then the unmerged model may not have been run
            return []
        found, cosine = [], facts["cosine"]["median"]
        least, recall = bounds.get("min_cosine"), bounds.get("min_recall")
        if least is not None and not cosine >= least:
            found.append(f"the median cosine of {cosine:.5f} is below {least:g}")
        if recall is not None:
            keep = facts["neighbours"]["recall"].get("1")
            if keep is None:
                found.append("one image has no neighbours, so that recall@1 is not known")
            elif not keep["high"] >= recall:
                found.append(
                    f"recall@1 of {keep['percent']:g} % (to {keep['high']:g}) is below {recall:g} %"
                )
        return found

    def limits(self, given: Mapping[str, float]) -> Limits:
        return VectorLimits(**given)

    def anything(self) -> Limits:
        return VectorLimits(-1.0, 0.0, 2.0)

    def trial(self, ours: Array, plain: Array, right: Array | None) -> dict[str, Any]:
        cosine = cosine_facts(cosines(ours, plain))
        found: dict[str, Any] = {
            "cosine": cosine["median"],
            "worst_percent": cosine["worst_percent"],
        }
        if len(ours) > 1:
            found["recall"] = Count(int(self.agrees(ours, plain).sum()), len(ours))
        return found

    def trial_text(self, facts: Facts, known: Facts) -> str:
        near = f"same nearest neighbour {facts['recall']:.2f} %, " if "recall" in facts else ""
        return (
            f"cosine {facts['cosine']:.4f} (median; worst 1 % {facts['worst_percent']:.4f}), "
            f"{near}class token within {facts['distance']:.4f}"
        )

    def distances(self, ours: Array, plain: Array) -> NDArray[np.float64]:
        return 1 - cosines(ours, plain)

    def agrees(self, ours: Array, plain: Array) -> NDArray[np.bool_]:
        if len(ours) < 2:
            return np.ones(len(ours), np.bool_)
        return recalled(nearest(ours, 1), nearest(plain, 1), 1)

    def compared(self, ours: Array, plain: Array) -> dict[str, Any]:
        return {
            "cosine": cosine_facts(cosines(ours, plain)),
            "neighbours": neighbour_facts(ours, plain),
        }


def neighbour_facts(ours: Array, plain: Array) -> dict[str, dict[str, Count]]:
    """overlap@k and recall@k of embeddings [n, d], for each k that n - 1 others allow."""
    ks = [k for k in KS if k < len(ours)]
    if not ks:
        return {"overlap": {}, "recall": {}}
    one, other, n = nearest(ours, ks[-1]), nearest(plain, ks[-1]), len(ours)
    return {
        "overlap": {str(k): Count(round(float(shared(one, other, k).sum()), 6), n) for k in ks},
        "recall": {str(k): Count(int(recalled(one, other, k).sum()), n) for k in ks},
    }


def zero_shot(
    classes: ClassVectors, ours: Array, plain: Array | None, right: Sequence[Right]
) -> dict[str, Any]:
    """Classes of embeddings by a file: agreement with the unmerged answers, and accuracy where
    labels are known."""
    found: dict[str, Any] = {"classes": classes.classes, "kind": classes.kind}
    best = classes.best(ours)
    if any(right):
        found |= accuracy(best, right)
    if plain is not None:
        other = classes.best(plain)
        found["agreement"] = Count(int((best[:, 0] == other[:, 0]).sum()), len(best))
        found["unmerged"] = accuracy(other, right) if any(right) else {}
    return found


def _by_number(shares: Facts) -> list[str]:
    return sorted(shares, key=lambda k: (len(k), k))


def _zero_shot_lines(facts: Facts | None, share: Callable[[Facts], str]) -> list[str]:
    if facts is None:
        return []
    found = [f"classes    {facts['classes']} by the file of class vectors ({facts['kind']})"]
    for k in ("top1", "top5"):
        if k in facts:
            plain = facts.get("unmerged", {}).get(k)
            beside = f", unmerged {share(plain)}" if plain else ""
            found.append(f"{k:10s} {share(facts[k])}{beside}")
    if "agreement" in facts:
        found.append(f"same class {share(facts['agreement'])} as the unmerged embedding")
    return found
