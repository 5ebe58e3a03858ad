"""The eager reference: a backbone that reduces its tokens, made to be read, never altered for
export."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atm_export.methods.plan import MergePlan
from atm_export.methods.rule import BlockRule, Decision, Reduced, Signals
from atm_export.methods.tokens import carried, rows
from atm_export.model.backbone import Answer, Backbone, BlockParts
from atm_export.tasks.base import OutputSpec


@dataclass(frozen=True)
class Trace:
    """One forward pass in full.

    outputs: the answers [B, ...] by name, as `specs` say. tokens_in and tokens_out [blocks, B]:
    tokens that enter a block and its MLP's input after the reduction; attended [blocks, B]: tokens
    whose values and attention output it computes. maps [blocks, B, N0]: where each of the N0
    embedded tokens is after a block (-1: dropped). features [B, D]:
    the class token (or first row) after the last block. decisions [blocks][batches]: one entry a
    batch, or one an image where r is decided per image.
    """

    outputs: Mapping[str, Tensor]
    specs: tuple[OutputSpec, ...]
    tokens_in: Tensor
    tokens_out: Tensor
    attended: Tensor
    maps: Tensor
    features: Tensor
    decisions: tuple[tuple[Decision | None, ...], ...]


class Decider(Protocol):
    """Takes decisions in the place of the rules."""

    def __call__(self, block: int, signals: Signals, rule: BlockRule) -> Decision: ...


class Step(NamedTuple):
    """What one block did: tokens that entered it, that its MLP took, and whose attention it
    computed; places [B, N0] of the embedded tokens after it (-1: dropped); what was decided."""

    tokens_in: int
    tokens_out: int
    attended: int
    places: Callable[[], Tensor]
    decision: Decision | None


class Pass(NamedTuple):
    """Tokens [B, n, D] and merging sizes [B, n, 1] after the last block, of which a head that reads
    the prefix alone gets no other rows; what each block did; and the tokens of patches
    [B, patches, D] after each block of `read_after`, every patch with the one that it is now."""

    tokens: Tensor
    sizes: Tensor
    steps: tuple[Step, ...]
    patches: tuple[Tensor, ...] = ()


@torch.inference_mode()
def run_reference(backbone: Backbone, plan: MergePlan, image: Tensor) -> Trace:
    """Run `image` [B, C, H, W], normalised, through the reduced model."""
    if plan.per_image and image.shape[0] > 1:
        return join_traces([run_batch(backbone, plan, one) for one in image.split(1)])
    return run_batch(backbone, plan, image)


@torch.inference_mode()
def run_batch(
    backbone: Backbone, plan: MergePlan, image: Tensor, decider: Decider | None = None
) -> Trace:
    """One pass in which the batch decides together."""
    done = run_blocks(backbone, plan, backbone.embed(image), decider)
    steps, batch = done.steps, image.shape[0]

    def counts(of: str) -> Tensor:
        return torch.tensor([getattr(step, of) for step in steps]).unsqueeze(1).expand(-1, batch)

    return Trace(
        backbone.named(answer_of(backbone, done)),
        backbone.outputs,
        counts("tokens_in"),
        counts("tokens_out"),
        counts("attended"),
        torch.stack([step.places() for step in steps]),
        done.tokens[:, 0],
        tuple((step.decision,) for step in steps),
    )


def answer_of(backbone: Backbone, done: Pass) -> Answer:
    """What the model answers after its blocks."""
    if not backbone.unmerges:
        return backbone.head(done.tokens, done.sizes)
    found = tuple(backbone.dense(patches) for patches in done.patches)
    return found if len(found) > 1 else found[0]


@torch.compiler.disable(recursive=False)
def run_blocks(
    backbone: Backbone,
    plan: MergePlan,
    x: Tensor,
    decider: Decider | None = None,
    margins: bool = True,
) -> Pass:
    """The blocks on embedded tokens x [B, N, D]. Gradients flow through what is merged, not through
    what decides. margins: whether anything will ask how firm decisions were."""
    batch, n, _ = x.shape
    state = _State(x, torch.ones(batch, n, 1), partial(_own_places, batch, n))
    steps: list[Step] = []
    unmerged: dict[int, Tensor] = {}
    parts = backbone.parts()
    for i, (part, rule) in enumerate(zip(parts, plan.blocks, strict=True)):
        decide = None if rule is None else rule.decide
        if rule is not None and decider is not None:
            decide = partial(decider, i, rule=rule)
        entered = state.x.shape[1]
        state, decision = _first_half(part, rule, decide, state, plan, backbone.prefix, margins)
        x, sizes, places = state
        left = x.shape[1]
        early = rule is not None and rule.before_attention
        steps.append(Step(entered, left, left if early else entered, places, decision))
        if part is parts[-1] and backbone.head_rows is not None and plan.merges:
            x, sizes = x[:, : backbone.head_rows], sizes[:, : backbone.head_rows]
        state = _State(_fed_forward(part, x), sizes, places)
        if i in backbone.read_after:
            unmerged[i] = rows(state.x, places()[:, backbone.prefix :])
    patches = tuple(unmerged[i] for i in backbone.read_after)
    return Pass(state.x, state.sizes, tuple(steps), patches)


class _State(NamedTuple):
    """Tokens [B, n, D], their merging sizes [B, n, 1], and what computes the places [B, N0] of the
    embedded ones: few ask."""

    x: Tensor
    sizes: Tensor
    places: Callable[[], Tensor]


def _own_places(batch: int, n: int) -> Tensor:
    return torch.arange(n).expand(batch, n)


def _first_half(
    part: BlockParts,
    rule: BlockRule | None,
    decide: Callable[[Signals], Decision] | None,
    state: _State,
    plan: MergePlan,
    prefix: int,
    margins: bool,
) -> tuple[_State, Decision | None]:
    """Attention and reduction; what they worked with is free again before the MLP."""
    x, sizes, places = state
    heads = _attended(part, x, sizes if plan.proportional else None)
    early = rule is not None and rule.before_attention
    x = x if early else _added(part, x, heads.out)
    if rule is None or decide is None:
        return _State(x, sizes, places), None
    signals = _signals(rule, heads, x, sizes, places, prefix, margins)
    decision, reduced = _reduced(rule, signals, decide)
    places = cache(partial(_moved, places, reduced))
    x, sizes = reduced.tokens.to(x.dtype), reduced.sizes
    if early:
        merged = rule.reduce_attention(heads.weights, decision)
        x = _added(part, x, attended_by(part, merged, part.norm1(x)))
    return _State(x, sizes, places), decision


def _attended(part: BlockParts, x: Tensor, sizes: Tensor | None) -> Attended:
    return attention(part, part.norm1(x), sizes)


def _fed_forward(part: BlockParts, x: Tensor) -> Tensor:
    return _added(part, x, _through(part.scale2, part.mlp(part.norm2(x))))


def _added(part: BlockParts, x: Tensor, branch: Tensor) -> Tensor:
    return x + branch if part.divisor == 1 else x + branch / part.divisor


@torch.compiler.disable
def _reduced(
    rule: BlockRule, signals: Signals, decide: Callable[[Signals], Decision]
) -> tuple[Decision, Reduced]:
    """What is decided, without gradients, and done, both in FP32 whatever autocast says."""
    with _exactly(signals.tokens.device.type):
        with torch.no_grad() if torch.is_grad_enabled() else nullcontext():
            decision = decide(signals)
        return decision, rule.reduce(signals.tokens, signals.sizes, decision, signals.prefix)


def _exactly(device: str) -> AbstractContextManager[Any]:
    """Without autocast, where there is any."""
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def _moved(before: Callable[[], Tensor], reduced: Reduced) -> Tensor:
    """Places [B, N0] of the embedded tokens after a reduction."""
    return carried(before(), reduced.moved_to)


@torch.compiler.disable
def _signals(
    rule: BlockRule,
    heads: Attended,
    x: Tensor,
    sizes: Tensor,
    places: Callable[[], Tensor],
    prefix: int,
    margins: bool,
) -> Signals:
    """What a rule decides by, at least FP32; of the attention map what it asks for."""
    weights = heads.weights if "attention" in rule.asks else None
    row = heads.weights[:, :, 0].mean(dim=1) if "class_attention" in rule.asks else None
    keys, values = _full(heads.keys), _full(heads.values)
    return Signals(keys, values, weights, _full(x), sizes, places, prefix, row, margins)


def _full(x: Tensor) -> Tensor:
    """At least FP32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class Attended(NamedTuple):
    """The attention branch [B, N, D]; keys and values [B, heads, N, d]; weights [B, heads, N, N]
    after the softmax, query first."""

    out: Tensor
    keys: Tensor
    values: Tensor
    weights: Tensor


def attention(part: BlockParts, x: Tensor, sizes: Tensor | None) -> Attended:
    """Attention of x [B, N, D]; sizes [B, N, 1]: proportional.

    softmax(q k^T / sqrt(d) + log s) v, s the merging sizes of the keys (arXiv 2210.09461, eq. 1).
    """
    batch, n, _ = x.shape
    q, k, v = _heads(part, x)
    q, k = _through(part.q_norm, q), _through(part.k_norm, k)
    scores = (q * part.scale) @ k.transpose(-2, -1)
    if sizes is not None:
        scores = scores + sizes.log().reshape(batch, 1, 1, n)
    weights = F.softmax(_full(scores), dim=-1)
    return Attended(_applied(part, weights, v), k, v, weights)


def attended_by(part: BlockParts, weights: Tensor, x: Tensor) -> Tensor:
    """The attention branch [B, N, D] where the map [B, heads, N, N] is given, on values of x."""
    return _applied(part, weights, _heads(part, x)[2])


def _heads(part: BlockParts, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v [B, heads, N, d]."""
    qkv = part.qkv(x).reshape(*x.shape[:2], 3, part.heads, part.head_dim)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def _applied(part: BlockParts, weights: Tensor, v: Tensor) -> Tensor:
    out = (weights.to(v.dtype) @ v).transpose(1, 2).flatten(2)
    return _through(part.scale1, part.proj(_through(part.attn_norm, out)))


def _through(module: nn.Module, x: Tensor) -> Tensor:
    """What the module makes of x; most models have nothing here, and a call costs."""
    return x if type(module) is nn.Identity else module(x)


def join_traces(traces: list[Trace]) -> Trace:
    """One trace of several passes, image after image."""
    return Trace(
        {name: torch.cat([t.outputs[name] for t in traces]) for name in traces[0].outputs},
        traces[0].specs,
        torch.cat([t.tokens_in for t in traces], dim=1),
        torch.cat([t.tokens_out for t in traces], dim=1),
        torch.cat([t.attended for t in traces], dim=1),
        torch.cat([t.maps for t in traces], dim=1),
        torch.cat([t.features for t in traces]),
        tuple(
            tuple(d for t in traces for d in t.decisions[block])
            for block in range(len(traces[0].decisions))
        ),
    )
