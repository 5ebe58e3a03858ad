"""How answers that rank classes are judged: first choices, accuracy where labels are known, and KL
to the unmerged model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from atm_export.shapes import Check, fields, maybe, number
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

SHARE = fields({"percent": maybe(number()), "low": maybe(number()), "high": maybe(number())})


@dataclass(frozen=True)
class ClassLimits(Limits):
    """max_drop: top-1, in points, where labels are known; min_agreement: with the unmerged model,
    in percent; max_distance: mean cosine distance of the class token.

    Agreement must keep its limit by one standard error (the lower end of its 68 % Wilson interval):
    the best of many trials is otherwise the one that these images flatter most.
    """

    max_drop: float = 0.0
    min_agreement: float = 96.0
    max_distance: float = 1.0

    def lost(self, ours: Array, plain: Array, total: int) -> bool:
        same = int((ours[:, 0] == plain[: len(ours), 0]).sum())
        return same + total - len(ours) < self.min_agreement / 100 * total

    def excess(self, found: Facts, known: Facts) -> list[float]:
        broken = [self.min_agreement - found["agreement_low"]]
        if found["top1"] is not None and known["top1"] is not None:
            broken.append(known["top1"] - found["top1"] - self.max_drop)
        return [*broken, 100 * (found["distance"] - self.max_distance)]


class ByClasses(Judge):
    """Of rows [n, classes] the five best classes; equal ones by class number."""

    bounds = (
        Bound("max_drop", 0.0, 100.0),
        Bound("min_agreement", 0.0, 100.0),
        Bound("max_distance", 0.0, 2.0),
    )
    evaluated = ("min_agreement",)
    apart = Figure(
        "kl", "KL to unmerged",
        "KL: mean over the images of KL(unmerged || method). Few images rank methods by KL and by "
        "the paired difference beside it; their top-1 is too uncertain to.",
    )  # fmt: skip
    same = Figure("agreement", "same answer as unmerged %")
    merit = Figure("agreement", "Agreement with the unmerged model", "agreement %")
    columns = ("agreement", "top1", "distance")
    shape: ClassVar[Mapping[str, Check]] = {
        "top1": SHARE,
        "top5": SHARE,
        "agreement": SHARE,
        "unmerged": fields({}, {"top1": SHARE, "top5": SHARE}),
    }

    def reading(self, rows: Array) -> Array:
        return np.argsort(-rows, axis=1, kind="stable")[:, :5]

    def packed(self, read: Array) -> list[Any]:
        return [[int(k) for k in five] for five in read]

    def unpacked(self, values: Sequence[Any]) -> Array:
        good = all(
            isinstance(five, list) and all(type(k) is int and 0 <= k < 2**31 for k in five)
            for five in values
        )
        if not good or len({len(five) for five in values}) != 1 or not 0 < len(values[0]) <= 5:
            raise ValueError("no classes")
        return np.array(values, np.int64)

    def evaluation(
        self, ours: Array, plain: Array | None, right: Sequence[Right], material: Any = None
    ) -> dict[str, Any]:
        known = any(right)
        found: dict[str, Any] = accuracy(ours, right) if known else {}
        if plain is not None:
            found["agreement"] = Count(int((ours[:, 0] == plain[:, 0]).sum()), len(ours))
            found["unmerged"] = accuracy(plain, right) if known else {}
        return found

    def table(
        self, ours: Array, plain: Array | None, right: Sequence[Right]
    ) -> tuple[Sequence[str], Sequence[Row]]:
        other = [""] * len(ours) if plain is None else [str(five[0]) for five in plain]
        rows = [
            (" ".join(map(str, ok)), int(five[0]), " ".join(map(str, five)), one)
            for ok, five, one in zip(right, ours, other, strict=True)
        ]
        return ("right", "top1", "top5", "unmerged_top1"), rows

    def lines(self, facts: Facts, share: Callable[[Facts], str]) -> list[str]:
        found = []
        for k in ("top1", "top5"):
            if k in facts:
                plain = facts.get("unmerged", {}).get(k)
                beside = f", unmerged {share(plain)}" if plain else ""
                found.append(f"{k:10s} {share(facts[k])}{beside}; 95 % intervals")
        if "agreement" in facts:
            found.append(f"agreement  {share(facts['agreement'])} with the unmerged model")
        return found

    def sentence(self, facts: Facts | None, share: Callable[[Facts], str]) -> str:
        return "Not known yet: what merging loses was not measured on labelled images."

    def broken(self, facts: Facts, bounds: Mapping[str, float]) -> list[str]:
        least = bounds.get("min_agreement")
        if least is None or facts["agreement"]["high"] >= least:
            return []
        return [f"agreement of {facts['agreement']['percent']:g} % is below {least:g} %"]

    def limits(self, given: Mapping[str, float]) -> Limits:
        return ClassLimits(**given)

    def anything(self) -> Limits:
        return ClassLimits(100.0, 0.0, 2.0)

    def trial(self, ours: Array, plain: Array, right: Array | None) -> dict[str, Any]:
        first = ours[:, 0]
        hits = None if right is None else Count(int((first == right).sum()), len(ours))
        return {"agreement": Count(int((first == plain[:, 0]).sum()), len(ours)), "top1": hits}

    def trial_text(self, facts: Facts, known: Facts) -> str:
        top1 = ""
        if facts["top1"] is not None:
            top1 = f"top-1 {facts['top1']:.2f} %, unmerged {known['top1']:.2f} %; "
        return (
            f"{top1}agreement {facts['agreement']:.2f} %, "
            f"class token within {facts['distance']:.4f}"
        )

    def distances(self, ours: Array, plain: Array) -> NDArray[np.float64]:
        given, kept = _log_softmax(ours), _log_softmax(plain)
        return np.asarray((np.exp(kept) * (kept - given)).sum(axis=1))

    def agrees(self, ours: Array, plain: Array) -> NDArray[np.bool_]:
        return np.asarray(ours.argmax(axis=1) == plain.argmax(axis=1))

    def compared(self, ours: Array, plain: Array) -> dict[str, Any]:
        return {}


def accuracy(best: Array, right: Sequence[Right]) -> dict[str, Count]:
    """top1 and top5 of the best classes [n, 5] over the images that have a valid label."""
    pairs = zip(best.tolist(), right, strict=True)
    scored = [(set(five[:1]), set(five), set(ok)) for five, ok in pairs if ok]
    return {
        "top1": Count(sum(bool(first & ok) for first, _, ok in scored), len(scored)),
        "top5": Count(sum(bool(five & ok) for _, five, ok in scored), len(scored)),
    }


def _log_softmax(rows: Array) -> NDArray[np.float64]:
    rows = rows.astype(np.float64)
    rows = rows - rows.max(axis=1, keepdims=True)
    return np.asarray(rows - np.log(np.exp(rows).sum(axis=1, keepdims=True)))
