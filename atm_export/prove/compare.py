"""One rung against the reference on one input: counts, places, and every output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from atm_export.comparison import Comparison
from atm_export.model.reference import Trace
from atm_export.prove.margins import first_difference
from atm_export.prove.results import Rung
from atm_export.tasks.agreement import Array, Floats
from atm_export.tasks.base import OutputSpec, measured

Outputs = Mapping[str, Any]
Noise = Callable[[], Mapping[str, Floats]]


def measure(rung: str, case: str, trace: Trace, outputs: Outputs) -> Rung:
    ours = {name: value.numpy() for name, value in trace.outputs.items()}
    merged = int((trace.tokens_in[0] - trace.tokens_out[-1]).sum())
    return Rung(rung, case, measured(trace.specs, ours, outputs), merged)


def compare(trace: Trace, outputs: Outputs, counts: Any, maps: Any, noise: Noise) -> str | None:
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
    found = (
        compare_output(
            spec, trace.outputs[spec.name].numpy(), np.asarray(outputs[spec.name]), noise
        )
        for spec in trace.specs
    )
    return next((what for what in found if what is not None), None)


def compare_output(spec: OutputSpec, ours: Array, theirs: Array, noise: Noise) -> str | None:
    """What differs in one output [B, ...]: `theirs` are not finite, differ by more than is allowed,
    or say another thing where `ours`, the reference's, are clear."""
    name, allowed = spec.name, spec.tolerance
    gap = spec.rule.differences(theirs, ours)
    if not np.isfinite(gap).all():
        return f"{name} are not finite"
    limit = np.full_like(gap, allowed.allowed)
    if not bool((gap <= limit).all()):
        limit = np.clip(allowed.noise * noise()[name], allowed.allowed, allowed.most)
    image = int((gap - limit).argmax())
    worst = Comparison(f"{name} of image {image}", float(gap[image]), float(limit[image]))
    if not worst.ok:
        return f"{worst.what} differ by {worst.difference:.2e} (at most {worst.allowed:.1e})"
    flipped = spec.rule.flips(theirs, ours, allowed.allowed)
    return f"top-1 of image {int(flipped.argmax())} differs" if flipped.any() else None


def _margin_note(trace: Trace, block: int, image: int) -> str:
    found = trace.decisions[block]
    decision = found[image] if len(found) > 1 else found[0]
    if decision is None:
        return ""
    return f" (the reference decided there with a margin of {decision.margin():.1e})"
