"""What each patch of an image is like: a grid of vectors, of which the direction counts."""

from __future__ import annotations

from atm_export.tasks.agreement import Cosine
from atm_export.tasks.base import BATCH, OutputSpec, Sizes, Task, Tolerance
from atm_export.tasks.judge_patches import ByPatch

PATCHES = "patches"
FP32 = Tolerance(
    1e-7,
    "the worst of an image's patches counts: FP32 sums in another order turn it by up to 1e-4 "
    "(4e-9 as 1 - cosine in DeiT-T), a patch that went into another token by 1e-2 or more; "
    "1 - cosine is half the square of that",
    noise=16.0,
    most=1e-5,
    picture=1e-4,
)


class Dense(Task):
    """The patch tokens after the last block, or after several: each patch has the token that it
    was merged into. Of several the deepest comes first, and is what commands judge."""

    name = "dense"
    judge = ByPatch()

    def outputs(self, model: Sizes) -> tuple[OutputSpec, ...]:
        named = [f"{PATCHES}_{i}" for i in model.read_after] if model.layers else [PATCHES]
        shape: tuple[str | int, ...] = (BATCH, *model.grid, model.classes)
        return tuple(OutputSpec(name, shape, Cosine.name, FP32) for name in named)
