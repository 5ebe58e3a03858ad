"""Classes of an image: one row of logits, ranked."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from atm_export.tasks.agreement import Top1
from atm_export.tasks.base import BATCH, OutputSpec, Sizes, Task, Tolerance
from atm_export.tasks.judge_classes import ByClasses

LOGITS = "logits"
FP32 = Tolerance(
    1e-4,
    "FP32 sums in another order differ by about 1e-7 of the largest term; over 12 to 24 blocks "
    "that gives 1e-5 to 5e-5 on logits of magnitude 10, while one wrong merge gives 1e-2 or more; "
    "an ill-conditioned input may differ by 4 times what PyTorch's own FP32 logits miss FP64 by",
    noise=4.0,
    most=1e-3,
    picture=1e-3,
)


class Classify(Task):
    """The class of an image; every run without a word about its task is this."""

    name = "classify"
    ranks = LOGITS
    judge = ByClasses()

    def outputs(self, model: Sizes) -> tuple[OutputSpec, ...]:
        return (OutputSpec(LOGITS, (BATCH, model.classes), Top1.name, FP32),)


def likeliest(rows: NDArray[Any], top_k: int) -> list[list[tuple[int, float]]]:
    """The `top_k` classes of each row [n, classes] with their softmax, taken in FP64; equal ones by
    class number."""
    scores = np.exp(rows.astype(np.float64) - rows.max(axis=1, keepdims=True))
    scores /= scores.sum(axis=1, keepdims=True)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    return [
        [(int(k), float(row[k])) for k in best] for best, row in zip(order, scores, strict=True)
    ]
