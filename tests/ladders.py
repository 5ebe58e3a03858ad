"""Graphs of any model on the parity ladder, without a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from atm_export.backends import ONNXRUNTIME
from atm_export.choice import Choice
from atm_export.methods.plan import MergePlan
from atm_export.model.backbone import LoadedModel
from atm_export.prove import ladder
from atm_export.prove.inputs import Pixels
from atm_export.prove.results import LadderResult
from atm_export.resolving import resolve
from atm_export.subject import Progress, Subject


@dataclass(frozen=True)
class Climber:
    """A model under a plan, with its traced graph and the one that ships."""

    model: LoadedModel
    plan: MergePlan
    traced: ir.Model
    shipped: ir.Model
    uint8_input: bool = False


def climb(
    climber: Climber,
    images: Pixels,
    progress: Progress = lambda text: None,
    on: Sequence[str] = (ONNXRUNTIME,),
) -> LadderResult:
    """The ladder with all its rungs."""
    config = resolve(Choice(model="demo", uint8_input=climber.uint8_input))
    subject = Subject(config, climber.model, climber.plan)
    return ladder.climb(subject, climber.traced, climber.shipped, images, progress, on)
