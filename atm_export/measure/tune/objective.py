"""What a trial of `tune` measures: one setting of a method on cached images, stopped when hopeless.

Everything here is a plain value, so that a trial runs as well in another process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from atm_export.comparison import largest
from atm_export.inputs import Preprocessing, normalize
from atm_export.methods.base import MethodSettings
from atm_export.methods.plan import MergePlan
from atm_export.model.backbone import Backbone
from atm_export.model.flops import trace_gmacs, unmerged_gmacs
from atm_export.model.plan import plan_for
from atm_export.model.reference import run_reference
from atm_export.prove.intervals import wilson
from atm_export.subject import Pixels


@dataclass(frozen=True)
class Known:
    """The images and what the unmerged model makes of them, computed once.

    pixels [k, H, W, 3]; top1 [k]; features [k, D]: final class token; right [k] or None.
    """

    pixels: Pixels
    how: Preprocessing
    batch: int
    top1: Tensor
    features: Tensor
    right: Tensor | None
    gmacs: float

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True)
class Limits:
    """What may be lost. max_drop: top-1, in points, where labels are known; min_agreement: with the
    unmerged model, in percent; max_distance: mean cosine distance of the class token."""

    max_drop: float = 0.0
    min_agreement: float = 96.0
    max_distance: float = 1.0


@dataclass(frozen=True)
class Score:
    """What a point costs and loses. images: how many were run (fewer than all: hopeless)."""

    images: int
    gflops: float
    agree: int
    hits: int | None
    distance: float
    hopeless: bool = False

    def facts(self) -> dict[str, Any]:
        low, _ = wilson(self.agree, self.images, z=1.0)
        return {
            "images": self.images,
            "gflops": round(self.gflops, 6),
            "agreement": round(100 * self.agree / self.images, 3),
            "agreement_low": round(100 * low, 3),
            "top1": None if self.hits is None else round(100 * self.hits / self.images, 3),
            "distance": round(self.distance, 6),
        }


def know(
    backbone: Backbone, pixels: Pixels, how: Preprocessing, right: Tensor | None, batch: int
) -> Known:
    """Run the unmerged model once."""
    plan = MergePlan.unmerged(len(backbone.parts()))
    ranks = backbone.require_ranks("tune")
    top1, features = [], []
    for i in range(0, len(pixels), batch):
        image = torch.from_numpy(normalize(pixels[i : i + batch], how))
        trace = run_reference(backbone, plan, image)
        top1.append(trace.outputs[ranks].argmax(dim=1))
        features.append(trace.features)
    return Known(
        pixels, how, batch, torch.cat(top1), torch.cat(features), right, unmerged_gmacs(backbone)
    )


def score(
    backbone: Backbone,
    settings: MethodSettings,
    known: Known,
    limits: Limits,
    best: float = math.inf,
    report: Callable[[int, float], None] = lambda images, gflops: None,
) -> Score:
    """Measure a method's settings; stops where they can no longer win: too many answers differ
    already, or they cost clearly more than `best` GFLOPs, which keeps the limits."""
    plan, ranks = plan_for(backbone, settings), backbone.require_ranks("tune")
    spent, agree, hits, distance, done = 0.0, 0, 0, 0.0, 0
    for start in range(0, len(known), known.batch):
        rows = slice(start, start + known.batch)
        image = torch.from_numpy(normalize(known.pixels[rows], known.how))
        trace = run_reference(backbone, plan, image)
        top1 = trace.outputs[ranks].argmax(dim=1)
        spent += float(trace_gmacs(backbone, trace, plan.merges).sum())
        agree += int((top1 == known.top1[rows]).sum())
        if known.right is not None:
            hits += int((top1 == known.right[rows]).sum())
        cosine = F.cosine_similarity(trace.features.double(), known.features[rows].double())
        distance += float((1 - cosine).sum())
        done += len(top1)
        report(done, spent / done)
        lost = agree + len(known) - done < limits.min_agreement / 100 * len(known)
        dear = done >= 2 * known.batch and spent / done > 1.03 * best
        if done < len(known) and (lost or dear):
            return _score(known, done, spent, agree, hits, distance, hopeless=True)
    return _score(known, done, spent, agree, hits, distance)


def _score(
    known: Known,
    done: int,
    spent: float,
    agree: int,
    hits: int,
    distance: float,
    hopeless: bool = False,
) -> Score:
    labelled = None if known.right is None else hits
    return Score(done, spent / done, agree, labelled, distance / done, hopeless)


def violation(score: Mapping[str, Any], known: Mapping[str, Any], limits: Limits) -> float:
    """By how much a point breaks the limits, in points of percent; 0: it keeps them.

    Agreement must keep its limit by one standard error (the lower end of its 68 % Wilson interval):
    the best of many trials is otherwise the one that these images flatter most.
    """
    broken = [limits.min_agreement - score["agreement_low"]]
    if score["top1"] is not None and known["top1"] is not None:
        broken.append(known["top1"] - score["top1"] - limits.max_drop)
    broken.append(100 * (score["distance"] - limits.max_distance))
    return sum(largest([0.0, each]) for each in broken)
