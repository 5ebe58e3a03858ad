"""How far reducing tokens moves a model's answers, by the eager reference and the task's judge: KL
divergence or cosine distance from the unmerged model, agreement with it, accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atm_export.inputs import Pixels
from atm_export.methods.plan import MergePlan
from atm_export.model.backbone import LoadedModel
from atm_export.model.flops import trace_gmacs
from atm_export.model.reference import run_reference
from atm_export.prove.intervals import share_facts, with_intervals
from atm_export.tasks import judge_of
from atm_export.tasks.judge import Judge

BATCH = 100  # images that share r where a batch does
DRAWS = 10_000


@dataclass(frozen=True)
class Unmerged:
    """Images [k, H, W, C], the class of each [k] where it is known, and the answers [k, ...] that
    the unmerged model gives them, with the judge of both."""

    pixels: Pixels
    right: Tensor | None
    scores: Tensor
    judge: Judge

    def top1(self) -> dict[str, Any] | None:
        return None if self.right is None else _share(self.scores.argmax(dim=1) == self.right)


@dataclass(frozen=True)
class Divergence:
    """gflops: mean over the images; counted_whole: the same with every token in the last MLP, as
    methods' authors count; apart [k]: distance of each image's answer from the unmerged one's (for
    classes KL(unmerged || reduced)); agrees, hits [k]; more: what the judge says beside; merged:
    tokens that go in each block, mean."""

    gflops: float
    counted_whole: float
    judge: Judge
    apart: NDArray[np.float64]
    agrees: NDArray[np.bool_]
    hits: Tensor | None
    more: Mapping[str, Any]
    merged: tuple[float, ...] = ()

    def facts(self, other: Divergence | None = None) -> dict[str, Any]:
        """JSON values; other: what the difference in KL is taken to, image by image."""
        found = {
            "gflops": round(self.gflops, 4),
            "gflops_last_mlp_on_all": round(self.counted_whole, 4),
            self.judge.same.key: share_facts(int(self.agrees.sum()), len(self.agrees)),
            "top1": None if self.hits is None else _share(self.hits),
            self.judge.apart.key: _mean(self.apart),
            **with_intervals(self.more),
        }
        if other is not None:
            found[f"{self.judge.apart.key}_difference"] = _mean(self.apart - other.apart)
        return found


def run_unmerged(model: LoadedModel, pixels: Pixels, right: Tensor | None) -> Unmerged:
    """Run the unmerged model once."""
    judge, judged = judge_of(model.backbone.task, "compare"), model.backbone.judged
    plan = MergePlan.unmerged(len(model.backbone.parts()))
    scores = [
        run_reference(model.backbone, plan, model.tensor(pixels[i : i + BATCH])).outputs[judged]
        for i in range(0, len(pixels), BATCH)
    ]
    return Unmerged(pixels, right, torch.cat(scores), judge)


def divergence(
    model: LoadedModel,
    plan: MergePlan,
    known: Unmerged,
    progress: Callable[[int, int], None] = lambda done, total: None,
    batch: int = BATCH,
) -> Divergence:
    """Run the model under `plan` on the same images, in batches, which may share r."""
    backbone, judge = model.backbone, known.judge
    scores, spent, whole, merged = [], [], [], []
    for i in range(0, len(known.pixels), batch):
        trace = run_reference(backbone, plan, model.tensor(known.pixels[i : i + batch]))
        scores.append(trace.outputs[backbone.judged])
        spent.append(trace_gmacs(backbone, trace, plan.merges))
        whole.append(trace_gmacs(backbone, trace, merges=False))
        merged.append((trace.tokens_in - trace.tokens_out).double())
        progress(min(i + batch, len(known.pixels)), len(known.pixels))
    given, plain = torch.cat(scores), known.scores.numpy()
    ours = given.numpy()
    return Divergence(
        float(torch.cat(spent).mean()),
        float(torch.cat(whole).mean()),
        judge,
        judge.distances(ours, plain),
        judge.agrees(ours, plain),
        None if known.right is None else given.argmax(dim=1) == known.right,
        judge.compared(ours, plain),
        tuple(torch.cat(merged, dim=1).mean(dim=1).tolist()),
    )


def _mean(values: NDArray[np.float64]) -> dict[str, float]:
    """Mean, and the 95 % interval of a bootstrap with fixed draws."""
    rng, means = np.random.default_rng(0), np.empty(DRAWS)
    for i in range(DRAWS):
        means[i] = values[rng.integers(0, len(values), len(values))].mean()
    low, high = np.quantile(means, (0.025, 0.975))
    return {"mean": _six(values.mean()), "low": _six(low), "high": _six(high)}


def _six(value: Any) -> float:
    return round(float(value), 6)


def _share(hits: Tensor) -> dict[str, Any]:
    return share_facts(int(hits.sum()), len(hits))
