"""What a rung is compared with: the reference, or the reference following choices as good."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atm_export.methods.plan import MergePlan
from atm_export.methods.rule import NotFollowed
from atm_export.model.backbone import LoadedModel
from atm_export.model.reference import Trace, run_reference
from atm_export.prove.follow import follow
from atm_export.prove.inputs import Case, Pixels
from atm_export.prove.margins import first_difference, trace_margin
from atm_export.prove.tolerances import MARGIN
from atm_export.tasks.agreement import Floats

MOST_CANDIDATES = 4  # with random weights hardly any input has a margin, and each try is a run


def with_margin(model: LoadedModel, plan: MergePlan, case: Case) -> tuple[Pixels, Trace, float]:
    """The first candidate that the reference decides with a margin, or the one with the largest."""
    best: tuple[Pixels, Trace, float] | None = None
    for pixels in case.candidates[:MOST_CANDIDATES]:
        feed = model.tensor(pixels)
        trace = run_reference(model.backbone, plan, feed)
        margin = trace_margin(trace)
        if best is None or margin > best[2]:
            best = pixels, trace, margin
        if margin >= MARGIN:
            break
    assert best is not None
    return best


def judge(
    model: LoadedModel, plan: MergePlan, pixels: Pixels, trace: Trace, margin: float, maps: Any
) -> Trace:
    """The trace to compare with: the reference's own; or, where the reference decided on less than
    FP32 noise and a choice as good was taken, the reference following that choice."""
    given = torch.as_tensor(np.asarray(maps))
    if margin >= MARGIN or first_difference(trace.maps, given) is None:
        return trace
    feed = model.tensor(pixels)
    try:
        followed, worst = follow(model.backbone, plan, feed, given)
    except NotFollowed:
        return trace
    return followed if worst <= MARGIN else trace


def own_noise(
    model: LoadedModel, plan: MergePlan, pixels: Pixels, trace: Trace
) -> dict[str, Floats]:
    """How far the reference's own FP32 outputs are from FP64 ones with the same choices, [B]."""
    exact = copy.deepcopy(model.backbone).double()
    feed = model.tensor(pixels).double()
    try:
        outputs = follow(exact, plan, feed, trace.maps)[0].outputs
    except NotFollowed:  # FP64 decides otherwise: nothing is known of the noise
        return {spec.name: np.zeros(len(pixels)) for spec in trace.specs}
    return noise_of(trace, outputs)


def noise_of(trace: Trace, exact: Mapping[str, Tensor]) -> dict[str, Floats]:
    """How far each output of a trace is from FP64 ones, as its agreement measures it, [B]."""
    return {
        spec.name: spec.rule.differences(trace.outputs[spec.name].numpy(), exact[spec.name].numpy())
        for spec in trace.specs
    }
