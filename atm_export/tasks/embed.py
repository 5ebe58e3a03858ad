"""What an image is like: one vector, of which the direction counts."""

from __future__ import annotations

from atm_export.tasks.base import BATCH, OutputSpec, Sizes, Task, Tolerance
from atm_export.tasks.judge_vectors import ByDirection

EMBEDDING = "embedding"
FP32 = Tolerance(
    1e-8,
    "FP32 sums in another order turn a vector by about 1e-5, one wrong merge by 1e-3 or more; "
    "1 - cosine is half the square of that",
    noise=16.0,
    most=1e-6,
    picture=1e-5,
)


class Embed(Task):
    """The vector before a classifier, or that of a model that has none."""

    name = "embed"
    judge = ByDirection()

    def outputs(self, model: Sizes) -> tuple[OutputSpec, ...]:
        return (OutputSpec(EMBEDDING, (BATCH, model.classes), "cosine", FP32),)
