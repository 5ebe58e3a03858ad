"""The ONNX of the stepped merge, for backends to which a length that they have not seen is dear.

One length is decided by data, that of what is left, and it goes in steps. What merges is marked,
not gathered: a matrix over all sources and destinations carries it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from onnxscript import opset18 as op

import atm_export.methods.bipartite.ragged  # noqa: F401  (registers the operator named below)
from atm_export.methods.bipartite.matching import GRID
from atm_export.methods.bipartite.onnx import above, ceiling, mean_above, numbered
from atm_export.methods.bipartite.onnx_ragged import Sides, left, moved_to_of, sides_of
from atm_export.methods.bipartite.operators import EMPTY, NOWHERE
from atm_export.methods.onnx_values import (
    FLOAT,
    INT32,
    INT64,
    Value,
    head_of,
    ints,
    length_of,
    scalar,
    tensor,
    transposed,
)
from atm_export.methods.tokens import STRIDE, TINY, Capacity


def merge_stepped(
    tokens: Value,
    sizes: Value,
    metric: Value,
    limit: Value,
    each: bool,
    prefix: int,
    by_size: bool,
    most: int,
    step: int,
) -> tuple[Value, Value, Value, Value]:
    """See `ragged.merge_stepped`. Rows of sources are [B, 1, S], columns of destinations
    [B, T, 1]."""
    capacity = Capacity(most)
    at = sides_of(sizes, prefix, by_size, capacity)
    slots, targets = length_of(at.own), length_of(at.mass)
    own = op.Reshape(at.own, ints(0, 1, -1))
    highest, behind, best = _nearest(at, metric, own, slots, targets, prefix, capacity)
    key = op.Mul(op.Cast(highest, to=INT32), tensor(np.array(STRIDE, dtype=np.int32)))
    slot = head_of(tensor(np.arange(capacity.slots, dtype=np.int32)), slots)
    key = op.Sub(key, slot)
    merged = (_of_each if each else _of_all)(key, highest, limit, slots, sizes, prefix)

    into = op.Where(merged, best, scalar(-1.0))
    weight = op.Where(op.Equal(behind, into), own, scalar(0.0))
    total = op.Add(at.mass, op.ReduceSum(weight, ints(2), keepdims=1))
    safe = op.Max(total, scalar(TINY))
    sources = at.sources(tokens)
    moved = op.MatMul(op.Div(weight, safe), sources)
    x = op.Add(op.Mul(at.targets(tokens), op.Div(at.mass, safe)), moved)

    lead = max(prefix - 1, 0)
    ahead = [op.Slice(t, ints(0), ints(lead), ints(1)) for t in (tokens, sizes)] if lead else []
    staying = op.Reshape(op.Where(merged, scalar(0.0), own), ints(0, -1, 1))
    listed = op.Concat(*ahead[:1], sources, x, axis=1)
    listed_sizes = op.Concat(*ahead[1:], staying, total, axis=1)
    alive = op.Greater(listed_sizes, scalar(0.0))
    living = op.Cast(alive, to=FLOAT)
    chosen, per_image, position = left(alive, living, capacity, step)
    moved_to = moved_to_of(
        at,
        sizes,
        living,
        op.Reshape(merged, ints(0, -1, 1)),
        numbered(op.Reshape(best, ints(0, -1, 1)), capacity),
        position,
        lead,
        slots,
        capacity,
    )
    count = op.Cast(per_image, to=INT64)
    return (
        op.GatherND(listed, chosen, batch_dims=1),
        op.GatherND(listed_sizes, chosen, batch_dims=1),
        moved_to,
        count if each else op.Slice(count, ints(0), ints(1), ints(0)),
    )


def _nearest(
    at: Sides,
    metric: Value,
    own: Value,
    slots: Value,
    targets: Value,
    prefix: int,
    capacity: Capacity,
) -> tuple[Value, Value, Value]:
    """Each slot's highest similarity [B, 1, S]; how far destinations are behind it, with their
    number in units of 1/places [B, T, S]; the least of that [B, 1, S], of the first that has it.
    """
    b = op.Mul(at.targets(metric), scalar(float(GRID)))
    similarity = op.Round(op.MatMul(b, transposed(at.sources(metric))))
    real = op.Greater(at.mass, scalar(0.0))
    similarity = op.Where(real, similarity, scalar(float(NOWHERE)))
    highest = op.ReduceMax(similarity, ints(1), keepdims=1)
    numbers = np.arange(capacity.places, dtype=np.float32)[:, None] / capacity.places
    behind = op.Add(op.Sub(highest, similarity), head_of(tensor(numbers), targets))
    best = op.ReduceMin(behind, ints(1), keepdims=1)
    if prefix:
        highest = op.Min(highest, head_of(tensor(ceiling(capacity)), slots))
    highest = op.Where(op.Greater(own, scalar(0.0)), highest, scalar(float(EMPTY)))
    return highest, behind, best


def _of_each(
    key: Value, highest: Value, limit: Value, slots: Value, sizes: Value, prefix: int
) -> Value:
    """Which slots merge where each image decides: all above the limit, but two patch tokens stay
    (see `most_merges`)."""
    merged = above(highest, limit)
    if prefix % 2:
        return merged
    most = op.Sub(_present(sizes), scalar(prefix + 2))
    last = op.Max(op.Sub(op.Min(most, slots), scalar(1)), scalar(0))
    least = op.GatherElements(_sorted(key, slots), last, axis=2)
    allowed = op.And(op.GreaterOrEqual(key, least), op.Greater(most, scalar(0)))
    return op.And(merged, allowed)


def _of_all(
    key: Value, highest: Value, limit: Value, slots: Value, sizes: Value, prefix: int
) -> Value:
    """Which slots merge where images share r: those with the r largest keys."""
    count = mean_above(highest, limit, sizes)
    if prefix % 2 == 0:
        first = op.Slice(sizes, ints(0), ints(1), ints(0))
        most = op.Sub(op.Reshape(_present(first), ints(-1)), ints(prefix + 2))
        count = op.Min(count, most)
    last = op.Max(op.Sub(count, ints(1)), ints(0))
    least = op.Gather(_sorted(key, slots), last, axis=2)
    return op.And(op.GreaterOrEqual(key, least), op.Greater(count, ints(0)))


def _present(sizes: Value) -> Value:
    """Tokens of each image, [B, 1, 1]."""
    present = op.Cast(op.Greater(sizes, scalar(0.0)), to=FLOAT)
    return op.Cast(op.ReduceSum(present, ints(1), keepdims=1), to=INT64)


def _sorted(key: Value, slots: Value) -> Value:
    return op.TopK(key, slots, axis=2, largest=1, sorted=1)[0]


TABLE: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.atm_export.merge_stepped.default: merge_stepped,
}
