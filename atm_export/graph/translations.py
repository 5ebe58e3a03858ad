"""The ONNX of the operators that every block needs: standard operators only, written by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset18 as op

import atm_export.methods.tokens
import atm_export.rewrite.operators
import atm_export.rewrite.stepped  # noqa: F401  (all register operators named below)
from atm_export.methods.onnx_values import Value, ints, scalar


def split_heads(x: Value, heads: int) -> Value:
    """[B, n, heads * d] to [B, n, heads, d]; 0 copies a length, known or not."""
    return op.Reshape(x, ints(0, 0, heads, x.shape[2] // heads))


def split_qkv(x: Value, heads: int) -> tuple[Value, Value, Value]:
    """[B, n, 3 * heads * d] to three of [B, heads, n, d]."""
    parts = op.Reshape(x, ints(0, 0, 3, heads, x.shape[2] // (3 * heads)))
    parts = op.Transpose(parts, perm=[2, 0, 3, 1, 4])
    q, k, v = (op.Gather(parts, scalar(i), axis=0) for i in range(3))
    return q, k, v


def attend(q: Value, k: Value, v: Value, bias: Value | None, heads_first: bool = False) -> Value:
    """MatMul and Softmax rather than the Attention operator: every backend builds it in FP32."""
    width = q.shape[1 if heads_first else 2] * v.shape[3]
    turned = _as_it_is if heads_first else _heads_first
    keys = op.Transpose(turned(k), perm=[0, 1, 3, 2])
    scores = op.MatMul(turned(q), keys)
    if bias is not None:
        scores = op.Add(scores, op.Reshape(bias, ints(0, 1, 1, -1)))
    out = op.MatMul(op.Softmax(scores, axis=-1), turned(v))
    return op.Reshape(_heads_first(out), ints(0, 0, width))


def attend_with_weights(q: Value, k: Value, v: Value, bias: Value | None) -> tuple[Value, Value]:
    """As `attend`; the weights are read off the softmax."""
    weights = attention_map(q, k, bias)
    return applied(weights, v), weights


def attention_map(q: Value, k: Value, bias: Value | None) -> Value:
    """The softmax of `attend`."""
    scores = op.MatMul(_heads_first(q), op.Transpose(_heads_first(k), perm=[0, 1, 3, 2]))
    if bias is not None:
        scores = op.Add(scores, op.Reshape(bias, ints(0, 1, 1, -1)))
    return op.Softmax(scores, axis=-1)


def applied(weights: Value, v: Value) -> Value:
    """What comes after it."""
    out = _heads_first(op.MatMul(weights, _heads_first(v)))
    return op.Reshape(out, ints(0, 0, v.shape[2] * v.shape[3]))


def class_attention(q: Value, k: Value, bias: Value | None) -> Value:
    """One row of scores a head, [B, H, 1, n], and its softmax; see `attend`."""
    first = op.Slice(q, ints(0), ints(1), ints(1))
    scores = op.MatMul(_heads_first(first), op.Transpose(_heads_first(k), perm=[0, 1, 3, 2]))
    if bias is not None:
        scores = op.Add(scores, op.Reshape(bias, ints(0, 1, 1, -1)))
    return op.ReduceMean(op.Softmax(scores, axis=-1), ints(1, 2), keepdims=0)


def key_metric(k: Value, shift: Value | None, heads_first: bool = False) -> Value:
    """Sum over heads (in the layout that attention needs anyway), then L2 norm 1."""
    total = op.ReduceSum(k if heads_first else _heads_first(k), ints(1), keepdims=0)
    if shift is not None:
        total = op.Add(total, shift)
    return op.LpNormalization(total, axis=-1, p=2)


def _heads_first(x: Value) -> Value:
    """[B, n, H, d] to [B, H, n, d], or back."""
    return op.Transpose(x, perm=[0, 2, 1, 3])


def _as_it_is(x: Value) -> Value:
    return x


def look_up(table: Value, index: Value) -> Value:
    """table at index."""
    return op.Gather(table, index, axis=0)


def take_rows(x: Value, index: Value) -> Value:
    """Whole rows of each image."""
    return op.GatherND(x, op.Unsqueeze(index, ints(2)), batch_dims=1)


TABLE: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.atm_export.split_heads.default: split_heads,
    torch.ops.atm_export.split_qkv.default: split_qkv,
    torch.ops.atm_export.attend.default: attend,
    torch.ops.atm_export.attend_with_weights.default: attend_with_weights,
    torch.ops.atm_export.class_attention.default: class_attention,
    torch.ops.atm_export.attention_map.default: attention_map,
    torch.ops.atm_export.applied.default: applied,
    torch.ops.atm_export.key_metric.default: key_metric,
    torch.ops.atm_export.look_up.default: look_up,
    torch.ops.atm_export.take_rows.default: take_rows,
}
