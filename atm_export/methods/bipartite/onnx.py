"""The ONNX of the merge: standard operators only, written by hand.

It follows the formulation that TensorRT parsers and builders accept: no NonZero, no Scatter,
counts reduced in float, lower bounds of 1 on every data-dependent length, a one-hot matrix product
in the place of a scatter. Every sort key is unique by construction and fits 32 bits, and the best
destination is the lowest index among equal maxima, on any backend.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnxscript import opset18 as op

from atm_export.methods.bipartite.matching import GRID
from atm_export.methods.bipartite.operators import GUARD, LEAST
from atm_export.methods.onnx_values import (
    END,
    FLOAT,
    INT32,
    INT64,
    Value,
    batch_of,
    every_other,
    head_of,
    ints,
    length_of,
    ramp,
    scalar,
    tensor,
    top,
    transposed,
)
from atm_export.methods.tokens import STRIDE, Capacity


@dataclass(frozen=True)
class Layout:
    """Sources and destinations of one merge.

    a [B, S, d] and b [B, T, d]: their metrics. slots, targets [1]: S and T. source_at: slot
    numbers to positions. target_tokens, target_sizes [B, T, *]. old: positions [n] or [B, n] in
    the order (leading prefix, slots, destinations).
    """

    a: Value
    b: Value
    slots: Value
    targets: Value
    source_at: Callable[[Value], Value]
    target_tokens: Value
    target_sizes: Value
    old: Callable[[], Value]


def reorder(x: Value, prefix: int) -> Value:
    """Even positions, then odd ones, behind the prefix."""
    first_source = prefix + prefix % 2
    first_target = prefix + 1 - prefix % 2
    ahead = [op.Slice(x, ints(0), ints(prefix), ints(1))] if prefix else []
    if prefix % 2:
        # The last prefix token stands just before the first source, one stride away.
        ahead = [op.Slice(x, ints(0), ints(prefix - 1), ints(1))] if prefix > 1 else []
        first_source = prefix - 1
    return op.Concat(*ahead, every_other(x, first_source), every_other(x, first_target), axis=1)


def merge(
    tokens: Value,
    sizes: Value,
    metric: Value,
    limit: Value,
    fixed: bool,
    prefix: int,
    by_size: bool,
    most: int,
) -> tuple[Value, Value, Value, Value]:
    """See `rewrite.operators.merge`. Slots and positions are [B, K, 1], as GatherND reads them."""
    capacity = Capacity(most)
    at = (_by_size if by_size else _alternate)(tokens, sizes, metric, prefix, capacity)
    similarity = op.Round(op.MatMul(op.Mul(at.a, scalar(float(GRID))), transposed(at.b)))
    highest, best, columns = nearest(similarity, at.slots, at.targets, prefix, capacity)
    order = ranking(highest, at.slots, capacity)
    count = limit if fixed else _count(highest, limit, tokens, sizes, prefix)
    # These bounds let a builder prove that no length is negative and no tensor empty.
    merges, some = op.Max(count, ints(0)), op.Max(count, ints(1))
    free = op.Sub(at.slots, merges)
    keep = op.Max(free, ints(1))

    merged = op.Slice(order, ints(0), some, ints(1))
    anything = op.Greater(count, ints(0))
    joins = op.Where(anything, op.GatherElements(best, merged, axis=1), scalar(-1.0))
    x, mass = _absorb(tokens, sizes, at, at.source_at(merged), joins, columns)
    start = merges if prefix else op.Sub(at.slots, keep)
    kept = at.source_at(top(op.Slice(order, start, ints(END), ints(1)), keep, largest=0)[0])
    lead = max(prefix - 1, 0)
    out_tokens = _join(tokens, lead, op.GatherND(tokens, kept, batch_dims=1), x)
    out_sizes = _join(sizes, lead, op.GatherND(sizes, kept, batch_dims=1), mass)
    if prefix == 0:
        # With every source merged, the bound on `keep` leaves one surplus row in front.
        surplus = op.Sub(keep, free)
        out_tokens, out_sizes = (
            op.Slice(t, surplus, ints(END), ints(1)) for t in (out_tokens, out_sizes)
        )
    moved_to = _moved_to(at, order, best, merges, lead, capacity)
    return out_tokens, out_sizes, moved_to, op.Shape(out_sizes, start=1, end=2)


def nearest(
    similarity: Value, slots: Value, targets: Value, prefix: int, capacity: Capacity
) -> tuple[Value, Value, Value]:
    """Highest similarity and the first destination that has it, both [B, S, 1]; numbers [T].

    Destinations are numbered in units of 1/places: similarities are whole numbers, so that a row's
    least (distance to the best + number) is the lowest number among equal maxima.
    """
    highest = op.ReduceMax(similarity, ints(2), keepdims=1)
    numbers = np.arange(capacity.places, dtype=np.float32) / capacity.places
    columns = head_of(tensor(numbers), targets)
    best = op.ReduceMin(op.Add(op.Sub(highest, similarity), columns), ints(2), keepdims=1)
    if prefix:
        highest = op.Min(highest, head_of(tensor(ceiling(capacity)[:, None]), slots))
    return highest, best, columns


def ceiling(capacity: Capacity) -> NDArray[np.float32]:
    """The highest similarity of each slot [slots], where the first holds a prefix token."""
    most = np.full(capacity.slots, -LEAST, dtype=np.float32)
    most[0] = GUARD
    return most


def ranking(highest: Value, slots: Value, capacity: Capacity) -> Value:
    """See `rewrite.operators.ranking`; [B, S, 1]."""
    slot = head_of(tensor(np.arange(capacity.slots, dtype=np.int32)[:, None]), slots)

    def order(value: Value, stride: int) -> Value:
        key = op.Mul(op.Cast(value, to=INT32), tensor(np.array(stride, dtype=np.int32)))
        return top(op.Sub(key, slot), slots, largest=1)[1]

    if capacity.one_key:
        return order(highest, STRIDE)
    high = op.Floor(op.Div(highest, scalar(float(STRIDE))))
    low = op.Sub(highest, op.Mul(high, scalar(float(STRIDE))))
    low = op.Clip(low, scalar(0.0), scalar(STRIDE - 1.0))  # says the bound; changes nothing
    first = order(low, capacity.places)
    second = order(op.GatherElements(high, first, axis=1), capacity.places)
    return op.GatherElements(first, second, axis=1)


def numbered(best: Value, capacity: Capacity) -> Value:
    """Destination as a whole number; clipped, so that a bound can be derived."""
    share = op.Clip(best, scalar(0.0), scalar(1.0))
    return op.Cast(op.Mul(share, scalar(float(capacity.places))), to=INT64)


def above(highest: Value, limit: Value) -> Value:
    """Which slots' pairs are more similar than the limit."""
    return op.Greater(op.Cast(highest, to=INT32), limit)


def mean_above(highest: Value, limit: Value, tokens: Value) -> Value:
    """Pairs above the limit [1], averaged over the batch, floored. Summed in float, since builders
    cannot bound a length that comes from an integer sum; the factor 1 + 1e-6 absorbs a rounded
    quotient, and is exact for batches below 10000."""
    pairs = op.ReduceSum(op.Cast(above(highest, limit), to=FLOAT), ints(0, 1, 2), keepdims=0)
    share = op.Div(scalar(1 + 1e-6), op.Cast(batch_of(tokens), to=FLOAT))
    return op.Cast(op.Mul(pairs, share), to=INT64)


def _count(highest: Value, limit: Value, tokens: Value, sizes: Value, prefix: int) -> Value:
    """r [1] of images that share it."""
    count = mean_above(highest, limit, tokens)
    if prefix % 2 == 0:
        # See `most_merges`: two patch tokens stay, so that there is always a destination.
        count = op.Min(count, op.Sub(length_of(sizes), ints(prefix + 2)))
    return count


def _absorb(
    tokens: Value, sizes: Value, at: Layout, merged: Value, joins: Value, columns: Value
) -> tuple[Value, Value]:
    """Size-weighted mean of destinations and the merged sources at positions `merged` [B, R, 1]."""
    moving = op.GatherND(sizes, merged, batch_dims=1)
    weight = transposed(op.Where(op.Equal(joins, columns), moving, scalar(0.0)))
    total = op.Add(at.target_sizes, op.ReduceSum(weight, ints(2), keepdims=1))
    moved = op.MatMul(op.Div(weight, total), op.GatherND(tokens, merged, batch_dims=1))
    own = op.Mul(at.target_tokens, op.Div(at.target_sizes, total))
    return op.Add(own, moved), total


def _alternate(
    tokens: Value, sizes: Value, metric: Value, prefix: int, capacity: Capacity
) -> Layout:
    """Sources at even positions, destinations at odd ones. Slot 0 is the last prefix token."""
    guarded_even = prefix > 0 and prefix % 2 == 0
    first_target = prefix + 1 if prefix % 2 == 0 else prefix
    first_source = prefix if prefix % 2 == 0 else prefix - 1
    a, b = every_other(metric, first_source), every_other(metric, first_target)
    if guarded_even:
        guard = op.Slice(metric, ints(prefix - 1), ints(prefix), ints(1))
        a = op.Concat(guard, a, axis=1)
    slots, targets = length_of(a), length_of(b)

    def source_at(slot: Value) -> Value:
        if guarded_even:
            shifted = op.Add(op.Mul(slot, scalar(2)), scalar(prefix - 2))
            return op.Max(shifted, scalar(prefix - 1))
        doubled = op.Mul(slot, scalar(2))
        return op.Add(doubled, scalar(first_source)) if first_source else doubled

    def old() -> Value:
        target_at = op.Add(op.Mul(ramp(targets, capacity), scalar(2)), scalar(first_target))
        ahead = [ints(*range(prefix - 1))] if prefix > 1 else []
        return op.Concat(*ahead, source_at(ramp(slots, capacity)), target_at, axis=0)

    return Layout(
        a,
        b,
        slots,
        targets,
        source_at,
        every_other(tokens, first_target),
        every_other(sizes, first_target),
        old,
    )


def _by_size(tokens: Value, sizes: Value, metric: Value, prefix: int, capacity: Capacity) -> Layout:
    """By ascending size, equal sizes by position: the first half are sources. Prefix first."""
    length = length_of(sizes)
    forward = np.arange(capacity.places)
    forward[:prefix] -= capacity.places**2
    key = op.Mul(whole_sizes(sizes, capacity), scalar(capacity.places))
    key = op.Add(key, head_of(tensor(forward[:, None]), length))
    order = top(key, length, largest=0)[1]
    lead = max(prefix - 1, 0)
    # Lengths are read off strided slices, whose bounds builders know; the second part is gathered.
    first = prefix - 1 if prefix else 1
    slots, targets = length_of(every_other(order, first)), length_of(every_other(order, prefix))
    cut = op.Add(slots, ints(lead)) if lead else slots
    source = op.Slice(order, ints(lead), cut, ints(1))
    target = op.Gather(order, op.Add(ramp(targets, capacity), cut), axis=1)
    return Layout(
        op.GatherND(metric, source, batch_dims=1),
        op.GatherND(metric, target, batch_dims=1),
        slots,
        targets,
        lambda slot: op.GatherElements(source, slot, axis=1),
        op.GatherND(tokens, target, batch_dims=1),
        op.GatherND(sizes, target, batch_dims=1),
        lambda: op.Squeeze(order, ints(2)),
    )


def whole_sizes(sizes: Value, capacity: Capacity) -> Value:
    """Merging sizes as whole numbers; an image's tokens together have no more than all of it."""
    return op.Cast(op.Clip(sizes, scalar(0.0), scalar(float(capacity.tokens))), to=INT64)


def _moved_to(
    at: Layout, order: Value, best: Value, merges: Value, lead: int, capacity: Capacity
) -> Value:
    """New position of every old one, [B, n]; only a traced graph keeps these nodes."""
    rank = top(op.Squeeze(order, ints(2)), at.slots, largest=0)[1]
    joined = op.Less(rank, merges)
    stays = op.Cast(op.Not(joined), to=INT64)
    kept_at = op.Add(op.CumSum(stays, scalar(1)), scalar(lead - 1))
    first_target = op.Add(op.Sub(at.slots, merges), scalar(lead))
    into = op.Add(first_target, numbered(op.Squeeze(best, ints(2)), capacity))
    of_source = op.Where(joined, into, kept_at)
    of_target = op.Add(first_target, ramp(at.targets, capacity))
    of_target = op.Expand(
        op.Unsqueeze(of_target, ints(0)), op.Concat(batch_of(order), ints(1), axis=0)
    )
    new = op.Concat(of_source, of_target, axis=1)
    if lead:
        ahead = op.Expand(ints(*range(lead)), op.Concat(batch_of(order), ints(lead), axis=0))
        new = op.Concat(ahead, new, axis=1)
    back = top(op.Expand(at.old(), op.Shape(new)), length_of(new), largest=0)[1]
    return op.GatherElements(new, back, axis=1)


def _join(x: Value, lead: int, kept: Value, target: Value) -> Value:
    ahead = [op.Slice(x, ints(0), ints(lead), ints(1))] if lead else []
    return op.Concat(*ahead, kept, target, axis=1)


TABLE: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.atm_export.reorder.default: reorder,
    torch.ops.atm_export.merge.default: merge,
}
