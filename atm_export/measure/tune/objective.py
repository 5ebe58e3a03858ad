"""What a trial of `tune` measures: one setting of a method on cached images, stopped when hopeless.

Everything here is a plain value, so that a trial runs as well in another process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
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
from atm_export.tasks import judge_of
from atm_export.tasks.judge import Count, Limits


@dataclass(frozen=True)
class Known:
    """The images and what the unmerged model makes of them, computed once.

    pixels [k, H, W, 3]; answers [k, ...]: what the judge read; features [k, D]: final class token;
    right [k] or None.
    """

    pixels: Pixels
    how: Preprocessing
    batch: int
    answers: NDArray[Any]
    features: Tensor
    right: Tensor | None
    gmacs: float

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True)
class Score:
    """What a point costs and loses. images: how many were run (fewer than all: hopeless); figures:
    what the judge says, counts for shares; distance: mean cosine distance of the class token."""

    images: int
    gflops: float
    figures: Mapping[str, Any]
    distance: float
    hopeless: bool = False

    def facts(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "gflops": round(self.gflops, 6),
            **percents(self.figures),
            "distance": round(self.distance, 6),
        }


def percents(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of a trial as JSON values: of a count the percent, and what it is by one standard
    error less (the lower end of its 68 % Wilson interval)."""
    found: dict[str, Any] = {}
    for name, value in figures.items():
        if isinstance(value, Count):
            low, _ = wilson(value.hits, value.of, z=1.0)
            found[name] = round(100 * value.hits / value.of, 3)
            found[f"{name}_low"] = round(100 * low, 3)
        else:
            found[name] = value
    return found


def know(
    backbone: Backbone, pixels: Pixels, how: Preprocessing, right: Tensor | None, batch: int
) -> Known:
    """Run the unmerged model once."""
    plan = MergePlan.unmerged(len(backbone.parts()))
    judge, answers, features = judge_of(backbone.task, "tune"), [], []
    for i in range(0, len(pixels), batch):
        image = torch.from_numpy(normalize(pixels[i : i + batch], how))
        trace = run_reference(backbone, plan, image)
        answers.append(judge.reading(trace.outputs[backbone.judged].numpy()))
        features.append(trace.features)
    seen, cost = np.concatenate(answers), unmerged_gmacs(backbone)
    return Known(pixels, how, batch, seen, torch.cat(features), right, cost)


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
    plan, judge = plan_for(backbone, settings), judge_of(backbone.task, "tune")
    spent, distance, done, answers = 0.0, 0.0, 0, known.answers[:0]
    for start in range(0, len(known), known.batch):
        rows = slice(start, start + known.batch)
        image = torch.from_numpy(normalize(known.pixels[rows], known.how))
        trace = run_reference(backbone, plan, image)
        read = judge.reading(trace.outputs[backbone.judged].numpy())
        answers = np.concatenate([answers, read])
        spent += float(trace_gmacs(backbone, trace, plan.merges).sum())
        cosine = F.cosine_similarity(trace.features.double(), known.features[rows].double())
        distance += float((1 - cosine).sum())
        done += len(read)
        report(done, spent / done)
        lost = limits.lost(answers, known.answers, len(known))
        dear = done >= 2 * known.batch and spent / done > 1.03 * best
        if done < len(known) and (lost or dear):
            break
    right = None if known.right is None else known.right.numpy()[:done]
    figures = judge.trial(answers, known.answers[:done], right)
    return Score(done, spent / done, figures, distance / done, done < len(known))


def violation(score: Mapping[str, Any], known: Mapping[str, Any], limits: Limits) -> float:
    """By how much a point breaks the limits, in points of percent; 0: it keeps them."""
    return sum(largest([0.0, each]) for each in limits.excess(score, known))
