"""What may differ between PyTorch and an export, and why that much."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    """Largest absolute difference of logits, with its reason.

    Where an input is ill-conditioned (a flat image through a convolutional stem), so that PyTorch's
    own FP32 logits miss its FP64 ones by more than that, `noise` times that miss, but never more
    than `most`.
    """

    logits: float
    reason: str
    noise: float
    most: float


FP32_LOGITS = Tolerance(
    1e-4,
    "FP32 sums in another order differ by about 1e-7 of the largest term; over 12 to 24 blocks "
    "that gives 1e-5 to 5e-5 on logits of magnitude 10, while one wrong merge gives 1e-2 or more; "
    "an ill-conditioned input may differ by 4 times what PyTorch's own FP32 logits miss FP64 by",
    noise=4.0,
    most=1e-3,
)

MARGIN = 2e-6
MARGIN_REASON = (
    "FP32 similarities of two correct backends differ by up to 1e-6, so inputs are chosen whose "
    "cosines clear every threshold and rank by 2e-6; where none does (flat images, random "
    "weights), a choice within 2e-6 of the best counts as the same, and logits are compared with "
    "the reference following that choice"
)
