"""The export-friendly operators that every block needs: torch custom operators with a fixed ONNX
form each.

`torch.export` keeps them whole, and `graph/translations.py` writes the ONNX of each by hand. The
eager bodies here follow that ONNX form step by step, so that the twin can be compared with the
reference before any graph exists. Shapes: tokens [B, n, D], merging sizes [B, n, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("atm_export::split_heads", mutates_args=())
def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, n, heads * d] to [B, n, heads, d]."""
    return x.reshape(x.shape[0], x.shape[1], heads, -1).clone()


@split_heads.register_fake
def _(x: Tensor, heads: int) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], heads, x.shape[2] // heads)


@torch.library.custom_op("atm_export::attend", mutates_args=())
def attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, heads_first: bool = False
) -> Tensor:
    """Attention of scaled q [B, m, H, d] on k, v [B, n, H, d] as [B, m, H * d]; heads_first: they
    are [B, H, m, d] and [B, H, n, d].

    bias [B, n, 1]: log sizes, added to every query's scores.
    """
    if not heads_first:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    weights = q @ k.transpose(2, 3)
    if bias is not None:
        weights = weights + bias.reshape(bias.shape[0], 1, 1, -1)
    out = torch.softmax(weights, dim=-1) @ v
    return out.transpose(1, 2).reshape(q.shape[0], q.shape[2], -1).clone()


@attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, heads_first: bool = False) -> Tensor:
    rows, heads = (2, 1) if heads_first else (1, 2)
    return q.new_empty(q.shape[0], q.shape[rows], q.shape[heads] * v.shape[3])


@torch.library.custom_op("atm_export::attend_with_weights", mutates_args=())
def attend_with_weights(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`attend`, and its weights [B, H, m, n] after the softmax."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    weights = q @ k.transpose(2, 3)
    if bias is not None:
        weights = weights + bias.reshape(bias.shape[0], 1, 1, -1)
    weights = torch.softmax(weights, dim=-1)
    out = (weights @ v).transpose(1, 2)
    return out.reshape(q.shape[0], q.shape[2], -1).clone(), weights


@attend_with_weights.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    batch, queries, heads, _ = q.shape
    out = q.new_empty(batch, queries, heads * v.shape[3])
    return out, q.new_empty(batch, heads, queries, k.shape[1])


@torch.library.custom_op("atm_export::class_attention", mutates_args=())
def class_attention(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    """The first query's weights in `attend`, mean over heads: [B, n]. Computed apart, so that the
    attention product itself stays one that backends fuse."""
    scores = q[:, :1].transpose(1, 2) @ k.permute(0, 2, 3, 1)
    if bias is not None:
        scores = scores + bias.reshape(bias.shape[0], 1, 1, -1)
    return torch.softmax(scores, dim=-1).mean(dim=(1, 2))


@class_attention.register_fake
def _(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    return k.new_empty(k.shape[0], k.shape[1])


@torch.library.custom_op("atm_export::attention_map", mutates_args=())
def attention_map(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    """The weights of `attend` after the softmax, [B, H, m, n]."""
    weights = q.transpose(1, 2) @ k.permute(0, 2, 3, 1)
    if bias is not None:
        weights = weights + bias.reshape(bias.shape[0], 1, 1, -1)
    return torch.softmax(weights, dim=-1)


@attention_map.register_fake
def _(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], k.shape[1])


@torch.library.custom_op("atm_export::applied", mutates_args=())
def applied(weights: Tensor, v: Tensor) -> Tensor:
    """Attention weights [B, H, m, n] on v [B, n, H, d] as [B, m, H * d]."""
    out = (weights @ v.transpose(1, 2)).transpose(1, 2)
    return out.reshape(out.shape[0], out.shape[1], -1).clone()


@applied.register_fake
def _(weights: Tensor, v: Tensor) -> Tensor:
    return v.new_empty(v.shape[0], weights.shape[2], v.shape[2] * v.shape[3])


@torch.library.custom_op("atm_export::key_metric", mutates_args=())
def key_metric(k: Tensor, shift: Tensor | None, heads_first: bool = False) -> Tensor:
    """Keys [B, n, H, d] (heads_first: [B, H, n, d]) summed over heads, plus shift [d], and
    L2-normalised: [B, n, d]."""
    total = k.float().sum(dim=1 if heads_first else 2)
    if shift is not None:
        total = total + shift
    return total / total.norm(dim=-1, keepdim=True).clamp_min(1e-12)


@key_metric.register_fake
def _(k: Tensor, shift: Tensor | None, heads_first: bool = False) -> Tensor:
    return k.new_empty(k.shape[0], k.shape[2 if heads_first else 1], k.shape[3])


@torch.library.custom_op("atm_export::look_up", mutates_args=())
def look_up(table: Tensor, index: Tensor) -> Tensor:
    """table [n] at index [B, N0]."""
    return table[index]


@look_up.register_fake
def _(table: Tensor, index: Tensor) -> Tensor:
    return torch.empty_like(index)
