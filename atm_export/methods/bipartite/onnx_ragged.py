"""The ONNX of the merge of images that keep different numbers of tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from onnxscript import opset18 as op

import atm_export.methods.bipartite.ragged  # noqa: F401  (registers the operator named below)
from atm_export.methods.bipartite.matching import GRID
from atm_export.methods.bipartite.onnx import above, nearest, numbered, ranking, whole_sizes
from atm_export.methods.bipartite.operators import EMPTY, NOWHERE
from atm_export.methods.onnx_values import (
    END,
    FLOAT,
    INT64,
    Value,
    every_other,
    ints,
    length_of,
    ramp,
    scalar,
    top,
    transposed,
)
from atm_export.methods.tokens import TINY, Capacity


@dataclass(frozen=True)
class Sides:
    """Sources and destinations: how to take their rows, their sizes (0: no token), positions."""

    sources: Callable[[Value], Value]
    targets: Callable[[Value], Value]
    own: Value
    mass: Value
    source_at: Value
    target_at: Value


def merge_each(
    tokens: Value,
    sizes: Value,
    metric: Value,
    limit: Value,
    prefix: int,
    by_size: bool,
    most: int,
) -> tuple[Value, Value, Value, Value]:
    """See `rewrite.ragged.merge_each`."""
    capacity = Capacity(most)
    at = sides_of(sizes, prefix, by_size, capacity)
    slots, targets = length_of(at.own), length_of(at.mass)
    similarity = _similarity(at, metric)
    highest, best, columns = nearest(similarity, slots, targets, prefix, capacity)
    highest = op.Where(op.Greater(at.own, scalar(0.0)), highest, scalar(float(EMPTY)))
    merged = above(highest, limit)
    order = ranking(highest, slots, capacity)
    if prefix % 2 == 0:
        merged = _two_stay(merged, order, slots, sizes, prefix)

    source_tokens = at.sources(tokens)
    x, total = _absorb(at, source_tokens, at.targets(tokens), best, order, merged, columns)
    lead = max(prefix - 1, 0)
    staying = op.Where(merged, scalar(0.0), at.own)
    listed = _concat(_ahead(tokens, lead), source_tokens, x)
    listed_sizes = _concat(_ahead(sizes, lead), staying, total)

    alive = op.Greater(listed_sizes, scalar(0.0))
    living = op.Cast(alive, to=FLOAT)
    chosen, per_image, position = left(alive, living, capacity)
    moved_to = moved_to_of(
        at, sizes, living, merged, numbered(best, capacity), position, lead, slots, capacity
    )
    return (
        op.GatherND(listed, chosen, batch_dims=1),
        op.GatherND(listed_sizes, chosen, batch_dims=1),
        moved_to,
        op.Cast(per_image, to=INT64),
    )


def _similarity(at: Sides, metric: Value) -> Value:
    """Sources to targets, on the grid; NOWHERE to targets that are padding."""
    similarity = op.Mul(at.sources(metric), scalar(float(GRID)))
    similarity = op.Round(op.MatMul(similarity, transposed(at.targets(metric))))
    real = op.Greater(transposed(at.mass), scalar(0.0))
    return op.Where(real, similarity, scalar(float(NOWHERE)))


def _two_stay(merged: Value, order: Value, slots: Value, sizes: Value, prefix: int) -> Value:
    """See `most_merges`: two patch tokens stay in each image."""
    rank = top(order, slots, largest=0)[1]
    present = op.Cast(op.Greater(sizes, scalar(0.0)), to=FLOAT)
    count = op.Cast(op.ReduceSum(present, ints(1), keepdims=1), to=INT64)
    return op.And(merged, op.Less(rank, op.Sub(count, scalar(prefix + 2))))


def left(
    alive: Value, living: Value, capacity: Capacity, step: int = 1
) -> tuple[Value, Value, Value]:
    """Rows that are left, in order, and padding up to a multiple of `step`; tokens per image [B];
    positions [N, 1]."""
    per_image = op.ReduceSum(living, ints(1, 2), keepdims=0)
    longest = op.Cast(op.ReduceMax(per_image, ints(0), keepdims=1), to=INT64)
    if step > 1:
        steps = op.Div(op.Add(longest, scalar(step - 1)), scalar(step))
        longest = op.Min(op.Mul(steps, scalar(step)), length_of(alive))
    position = op.Unsqueeze(ramp(length_of(alive), capacity), ints(1))
    place = op.Where(alive, position, op.Add(position, scalar(capacity.places)))
    return top(place, op.Max(longest, ints(1)), largest=0)[1], per_image, position


def _absorb(
    at: Sides, sources: Value, x: Value, best: Value, order: Value, merged: Value, columns: Value
) -> tuple[Value, Value]:
    """Size-weighted means at the destinations, [B, T, D], and their sizes [B, T, 1]."""
    counts = op.ReduceSum(op.Cast(merged, to=FLOAT), ints(1, 2), keepdims=0)
    most = op.Cast(op.ReduceMax(counts, ints(0), keepdims=1), to=INT64)
    order = op.Slice(order, ints(0), op.Max(most, ints(1)), ints(1))
    into = op.Where(merged, best, scalar(-1.0))
    joins = op.Equal(op.GatherElements(into, order, axis=1), columns)
    weight = op.Where(joins, op.GatherElements(at.own, order, axis=1), scalar(0.0))
    weight = transposed(weight)
    total = op.Add(at.mass, op.ReduceSum(weight, ints(2), keepdims=1))
    safe = op.Max(total, scalar(TINY))
    moved = op.MatMul(op.Div(weight, safe), op.GatherND(sources, order, batch_dims=1))
    return op.Add(op.Mul(x, op.Div(at.mass, safe)), moved), total


def sides_of(sizes: Value, prefix: int, by_size: bool, capacity: Capacity) -> Sides:
    """How a block's tokens part into sources and destinations."""
    return (_by_size if by_size else _alternate)(sizes, prefix, capacity)


def _alternate(sizes: Value, prefix: int, capacity: Capacity) -> Sides:
    """Even positions and odd positions; slot 0 is the last prefix token."""
    guarded_even = prefix > 0 and prefix % 2 == 0
    first_target = prefix + 1 if prefix % 2 == 0 else prefix
    first_source = prefix if prefix % 2 == 0 else prefix - 1

    def sources(x: Value) -> Value:
        rows = every_other(x, first_source)
        if guarded_even:
            rows = op.Concat(op.Slice(x, ints(prefix - 1), ints(prefix), ints(1)), rows, axis=1)
        return rows

    def targets(x: Value) -> Value:
        return every_other(x, first_target)

    own, mass = sources(sizes), targets(sizes)
    position = op.Unsqueeze(ramp(length_of(sizes), capacity), ints(0, 2))
    return Sides(sources, targets, own, mass, sources(position), targets(position))


def _by_size(sizes: Value, prefix: int, capacity: Capacity) -> Sides:
    """Each image's tokens by size: its own first half are sources, the rest destinations."""
    n = length_of(sizes)
    position = op.Unsqueeze(ramp(n, capacity), ints(1))
    present = op.Greater(sizes, scalar(0.0))
    size = op.Where(present, whole_sizes(sizes, capacity), scalar(capacity.places))
    key = op.Add(op.Mul(size, scalar(capacity.places)), position)
    if prefix:
        key = op.Where(op.Less(position, scalar(prefix)), position, key)
    order = top(key, n, largest=0)[1]
    lead, guards = max(prefix - 1, 0), int(prefix > 0)
    count = op.ReduceSum(op.Cast(present, to=FLOAT), ints(1), keepdims=1)
    half = op.Div(op.Sub(op.Cast(count, to=INT64), scalar(prefix)), scalar(2))

    first = prefix - 1 if prefix else 1
    slots, targets = length_of(every_other(order, first)), length_of(every_other(order, prefix))
    source_at = op.Slice(order, ints(lead), op.Add(slots, ints(lead)), ints(1))
    slot = op.Unsqueeze(ramp(slots, capacity), ints(0, 2))
    real = op.Less(slot, op.Add(half, scalar(guards)))
    own = op.Where(real, op.GatherND(sizes, source_at, batch_dims=1), scalar(0.0))
    column = op.Unsqueeze(ramp(targets, capacity), ints(0, 2))
    at = op.Add(op.Add(half, scalar(lead + guards)), column)
    target_at = op.GatherElements(order, op.Min(at, op.Sub(n, ints(1))), axis=1)
    mass = op.GatherND(sizes, target_at, batch_dims=1)
    mass = op.Where(op.Less(at, n), mass, scalar(0.0))
    return Sides(
        lambda x: op.GatherND(x, source_at, batch_dims=1),
        lambda x: op.GatherND(x, target_at, batch_dims=1),
        own,
        mass,
        source_at,
        target_at,
    )


def moved_to_of(
    at: Sides,
    sizes: Value,
    living: Value,
    merged: Value,
    best: Value,
    position: Value,
    lead: int,
    slots: Value,
    capacity: Capacity,
) -> Value:
    """New position of every old one, [B, n]; only a traced graph keeps these nodes."""
    after = op.Cast(op.Sub(op.CumSum(living, scalar(1)), scalar(1.0)), to=INT64)
    first_target = op.Add(slots, ints(lead))
    joined = op.Add(best, first_target)
    of_merged = op.GatherElements(after, joined, axis=1)
    of_kept = op.Slice(after, ints(lead), first_target, ints(1))
    of_target = op.Slice(after, first_target, ints(END), ints(1))
    new = _concat(_ahead(after, lead), op.Where(merged, of_merged, of_kept), of_target)
    zero = op.Mul(op.Cast(sizes, to=INT64), scalar(0))
    here = op.Add(zero, op.Unsqueeze(ramp(length_of(sizes), capacity), ints(0, 2)))
    blank = op.Slice(zero, ints(0), ints(1), ints(1))
    old = _concat(_ahead(here, lead), op.Add(at.source_at, blank), op.Add(at.target_at, blank))
    real = op.Greater(_concat(_ahead(sizes, lead), at.own, at.mass), scalar(0.0))
    late = op.Add(old, op.Mul(op.Add(position, scalar(1)), scalar(capacity.places)))
    back = top(op.Where(real, old, late), length_of(old), largest=0)[1]
    return op.Squeeze(op.GatherElements(new, back, axis=1), ints(2))


def _ahead(x: Value, lead: int) -> list[Value]:
    return [op.Slice(x, ints(0), ints(lead), ints(1))] if lead else []


def _concat(ahead: list[Value], *rest: Value) -> Value:
    return op.Concat(*ahead, *rest, axis=1)


TABLE: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.atm_export.merge_each.default: merge_each,
}
