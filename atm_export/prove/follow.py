"""Follow another implementation's decisions through the reference, and say how good they were.

Where scores tie within FP32 noise, two correct backends may choose differently. Such a run is right
if each of its choices was, by the reference's own scores, as good as the best, and if the reference
gives the same logits for those choices.
"""

from __future__ import annotations

import torch
from torch import Tensor

from atm_export.comparison import largest
from atm_export.methods.plan import MergePlan
from atm_export.methods.rule import BlockRule, Decision, NotFollowed, Signals
from atm_export.model.backbone import Backbone
from atm_export.model.reference import Trace, join_traces, run_batch


def follow(backbone: Backbone, plan: MergePlan, image: Tensor, maps: Tensor) -> tuple[Trace, float]:
    """The reference's trace with the decisions in maps [blocks, B, N0] (-1: dropped), and by how
    much (a score as a cosine) the worst of them fell short of the reference's own choice.
    NotFollowed where no choice gives these maps."""
    if plan.per_image and image.shape[0] > 1:
        parts = [
            follow(backbone, plan, image[i : i + 1], maps[:, i : i + 1]) for i in range(len(image))
        ]
        return join_traces([trace for trace, _ in parts]), largest(worst for _, worst in parts)
    shortfalls: list[float] = []

    def decider(block: int, signals: Signals, rule: BlockRule) -> Decision:
        decision, short = rule.follow(signals, _moved(signals, maps[block]))
        shortfalls.append(short)
        return decision

    trace = run_batch(backbone, plan, image, decider)
    if not torch.equal(trace.maps, maps):
        raise NotFollowed("tokens stand in another order than the method leaves them in")
    return trace, largest(shortfalls)


def _moved(signals: Signals, after: Tensor) -> Tensor:
    """Where the tokens of a block went [B, N], from the places of the embedded ones after it
    [B, N0]; dropped ones tell nothing."""
    batch, n = signals.sizes.shape[:2]
    moved = torch.full((batch, n + 1), -1)
    held = torch.where(signals.where < 0, n, signals.where)
    return moved.scatter(1, held, after)[:, :n]
