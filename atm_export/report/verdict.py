"""What a reader wants to know first: may this run be shipped, and on which conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atm_export.report.documents import judge_in
from atm_export.report.evaluation import share_text
from atm_export.runs.manifest import Manifest

GOOD, OPEN, BAD = "good", "open", "bad"


@dataclass(frozen=True)
class Verdict:
    """kind: good, open (the reader's decision) or bad; answer: one sentence; conditions: others."""

    kind: str
    answer: str
    conditions: tuple[str, ...]


@dataclass(frozen=True)
class Accuracy:
    """Top-1 in percent, of the run and unmerged (None: not known), on `images` images; gflops of
    both; shares: as evaluations state them, with their intervals."""

    top1: Mapping[str, Any]
    unmerged: Mapping[str, Any] | None
    gflops: tuple[float, float]
    images: int


def accuracy_of(
    report: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]]
) -> Accuracy | None:
    """Of the first evaluation with labels, else of the export's own images."""
    for facts in evaluations:
        if "top1" in facts and facts["top1"]["percent"] is not None:
            plain = facts["unmerged"]["top1"] if facts.get("unmerged") else None
            flops = facts["gflops"]
            return Accuracy(
                facts["top1"], plain, (flops["mean"], flops["unmerged"]), facts["data"]["images"]
            )
    own, flops = report.get("accuracy"), report["gflops"]
    if own is None:
        return None
    return Accuracy(
        {"percent": own["top1"]},
        {"percent": own["unmerged_top1"]},
        (flops["mean"], flops["unmerged"]),
        own["images"],
    )


def verdict(
    manifest: Manifest,
    report: Mapping[str, Any],
    accuracy: Accuracy | None,
    evaluations: Sequence[Mapping[str, Any]] = (),
) -> Verdict:
    """Written so that a missing figure or NaN is never a yes."""
    conditions = []
    if manifest.method.merge == "adaptive":
        conditions.append(
            "An answer depends on the other images of its batch: serve one image at a time, or "
            "export with --merge per-image or frozen."
        )
    if manifest.licence:
        conditions.append(f"Licence: {manifest.licence}.")
    kind, answer = _answer(manifest, report, accuracy, evaluations)
    return Verdict(kind, answer, tuple(conditions))


def _answer(
    manifest: Manifest,
    report: Mapping[str, Any],
    accuracy: Accuracy | None,
    evaluations: Sequence[Mapping[str, Any]],
) -> tuple[str, str]:
    if not (manifest.proven and report["parity"]["proven"]):
        return BAD, "No: it is unproven, and every runtime refuses it."
    if report["weights"].get("meaningless_accuracy"):
        return BAD, "No: its weights are random."
    if accuracy is None or accuracy.unmerged is None:
        judge = judge_in({"task": manifest.answers.task})
        if judge is None:
            return OPEN, "Not known yet: nothing here judges the task of this run."
        return OPEN, judge.sentence(next(iter(evaluations), None), share_text)
    lost = accuracy.unmerged["percent"] - accuracy.top1["percent"]
    where = f"on {accuracy.images} images"
    if lost <= 0:
        return GOOD, f"Yes: top-1 is no lower than unmerged {where}."
    return OPEN, f"If {lost:.2f} points of top-1 {where} may go."
