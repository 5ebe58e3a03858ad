"""One rung against the reference on one input: counts, places, logits, top-1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atm_export.comparison import Comparison, flips
from atm_export.model.reference import Trace
from atm_export.prove.margins import first_difference
from atm_export.prove.results import Rung
from atm_export.prove.tolerances import FP32_LOGITS


def measure(rung: str, case: str, trace: Trace, logits: Any) -> Rung:
    ours, theirs = trace.logits.double(), torch.as_tensor(np.asarray(logits)).double()
    same = ours.argmax(dim=1) == theirs.argmax(dim=1)
    cosine = torch.nn.functional.cosine_similarity(ours, theirs, dim=1)
    merged = int((trace.tokens_in[0] - trace.tokens_out[-1]).sum())
    return Rung(
        rung,
        case,
        float((ours - theirs).abs().max()),
        round(float(cosine.min()), 9),
        float(same.double().mean()),
        merged,
    )


def compare(
    trace: Trace, logits: Any, counts: Any, maps: Any, noise: Callable[[], Tensor]
) -> str | None:
    """What differs, located; None if nothing does."""
    if counts is not None:
        expected = trace.tokens_out
        given = torch.as_tensor(np.asarray(counts))
        given = given.unsqueeze(1) if given.ndim == 1 else given.T
        if not torch.equal(expected, given.expand_as(expected)):
            block, image = torch.nonzero(expected != given)[0].tolist()
            return (
                f"block {block + 1} keeps {int(given.expand_as(expected)[block, image])} tokens of "
                f"image {image}, the reference {int(expected[block, image])}"
                f"{_margin_note(trace, block, image)}"
            )
        where = first_difference(trace.maps, torch.as_tensor(np.asarray(maps)))
        if where is not None:
            return (
                f"block {where[0] + 1} merges other tokens of image {where[1]}"
                f"{_margin_note(trace, *where)}"
            )
    return _compare_logits(trace.logits, torch.as_tensor(np.asarray(logits)), noise)


def _compare_logits(ours: Tensor, theirs: Tensor, noise: Callable[[], Tensor]) -> str | None:
    """What differs: `theirs` [B, K] are not finite, differ by more than is allowed, or have another
    top-1 where `ours`, the reference's, are clear."""
    gap = (ours - theirs).abs().amax(dim=1)
    if not bool(torch.isfinite(gap).all()):
        return "logits are not finite"
    limit = torch.full_like(gap, FP32_LOGITS.logits)
    if not bool((gap <= limit).all()):
        allowed = FP32_LOGITS.noise * noise().to(limit)
        limit = allowed.clamp(FP32_LOGITS.logits, FP32_LOGITS.most)
    image = int((gap - limit).argmax())
    worst = Comparison(f"logits of image {image}", float(gap[image]), float(limit[image]))
    if not worst.ok:
        return f"{worst.what} differ by {worst.difference:.2e} (at most {worst.allowed:.1e})"
    flipped = flips(theirs.numpy(), ours.numpy(), FP32_LOGITS.logits)
    return f"top-1 of image {int(flipped.argmax())} differs" if flipped.any() else None


def _margin_note(trace: Trace, block: int, image: int) -> str:
    found = trace.decisions[block]
    decision = found[image] if len(found) > 1 else found[0]
    if decision is None:
        return ""
    return f" (the reference decided there with a margin of {decision.margin():.1e})"
