"""MCTF (arXiv 2403.10030): tokens that are alike, little attended to and small merge, both ways,
before the block's attention is applied."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from atm_export.errors import ConfigError, UnsupportedModelError
from atm_export.methods.base import Knob, Method, MethodSettings, ModelShape, SearchSpace
from atm_export.methods.plan import MergePlan
from atm_export.methods.rule import (
    BlockRule,
    Decision,
    GraphReduced,
    GraphSignals,
    NotFollowed,
    Reduced,
    Signal,
    Signals,
)

if TYPE_CHECKING:
    from torch import Tensor

TAU_INFO, TAU_SIZE = 20, 40  # how little attention and size count beside the cosine
LEAST_TOKENS = 10


def _count_or_share(r: int | float) -> int | float:
    if r >= 1 and r != int(r):
        raise ValueError("give a whole number of tokens, or a share below 1")
    return int(r) if r >= 1 else r


class MctfSettings(MethodSettings):
    """r: tokens that merge in a block, or their share (below 1) of all but the class token.
    blocks: where, from 0 as in the official code; by default, for a number, all but the first, for
    a share, at a quarter, half and three quarters of the depth."""

    name: Literal["mctf"] = "mctf"
    r: Annotated[
        Annotated[int, Field(ge=0, le=65_536)]
        | Annotated[float, Field(ge=0, le=65_536, allow_inf_nan=False)],
        AfterValidator(_count_or_share),
    ] = 0.22
    blocks: tuple[Annotated[int, Field(ge=0)], ...] | None = None


@dataclass(frozen=True)
class FusionDecision(Decision):
    """moved_to [B, n]: new place of each token; weights [B, n, 1]: by which they are averaged;
    firm: the decision's margin."""

    moved_to: Tensor
    weights: Tensor
    firm: float

    def margin(self) -> float:
        return self.firm


@dataclass(frozen=True)
class Fusion(BlockRule):
    """r tokens of one block merge: half of them (floor) even ones into odd ones, then the others
    odd ones into even ones. Order after: even ones, then odd ones by falling score."""

    asks: ClassVar[tuple[Signal, ...]] = ("attention",)
    static: ClassVar[bool] = True
    before_attention: ClassVar[bool] = True

    r: int

    adaptive = False

    def tokens_after(self, tokens: int, prefix: int) -> int:
        return tokens - self.r

    def decide(self, signals: Signals) -> FusionDecision:
        import torch

        score, weights = _seen(signals)
        r1, r2 = self.r // 2, self.r - self.r // 2
        highest, best = score.max(dim=2).values, score.argmax(dim=2)
        ranked = highest.sort(dim=1, descending=True, stable=True).indices
        kept = ranked[:, r1:].sort(dim=1).values
        back = score.gather(1, kept.unsqueeze(2).expand(-1, -1, score.shape[2])).transpose(1, 2)
        highest_back, best_back = back.max(dim=2).values, back.argmax(dim=2)
        ranked_back = highest_back.sort(dim=1, descending=True, stable=True).indices
        evens = kept.shape[1]
        place_of_b = evens - r2 + ranked_back.argsort(dim=1)
        place_of_b.scatter_(1, ranked_back[:, :r2], best_back.gather(1, ranked_back[:, :r2]))
        merged = ranked[:, :r1]
        moved_to = torch.zeros(len(score), sum(score.shape[1:]), dtype=torch.int64)
        moved_to[:, 1::2] = place_of_b
        moved_to.scatter_(1, 2 * kept, torch.arange(evens).expand(len(score), -1))
        moved_to.scatter_(1, 2 * merged, place_of_b.gather(1, best.gather(1, merged)))
        firm = min(
            _firmness(score, highest, ranked, r1, in_order=False),
            _firmness(back, highest_back, ranked_back, r2, in_order=True),
        )
        return FusionDecision(moved_to, weights, firm)

    def reduce(
        self, tokens: Tensor, sizes: Tensor, decision: FusionDecision, prefix: int
    ) -> Reduced:
        from atm_export.methods.groups import summed

        count, moved_to = tokens.shape[1] - self.r, decision.moved_to
        total = summed(tokens * decision.weights, moved_to, count)
        mean = total / summed(decision.weights, moved_to, count)
        return Reduced(mean, summed(sizes, moved_to, count), moved_to)

    def reduce_attention(self, weights: Tensor, decision: FusionDecision) -> Tensor:
        """Keys are summed, then queries averaged."""
        from atm_export.methods.groups import summed

        batch, heads, n, _ = weights.shape
        moved_to = decision.moved_to.repeat_interleave(heads, dim=0)
        share = decision.weights.repeat_interleave(heads, dim=0)
        keys_first = weights.flatten(0, 1).transpose(1, 2)
        by_query = summed(keys_first, moved_to, n - self.r).transpose(1, 2)
        mass = summed(share, moved_to, n - self.r)
        return (summed(by_query * share, moved_to, n - self.r) / mass).unflatten(0, (batch, heads))

    def follow(self, signals: Signals, moved_to: Tensor) -> tuple[FusionDecision, float]:
        from atm_export.methods.scores import SPAN

        score, weights = _seen(signals)
        short = [self._shortfall(s, to) for s, to in zip(score, moved_to, strict=True)]
        return FusionDecision(moved_to, weights, self.decide(signals).firm), max(short) / SPAN

    def _shortfall(self, score: Tensor, moved_to: Tensor) -> float:
        """How far one image's scores [evens, odds] must move for this map [n] to be right."""
        highest = score.amax(dim=1)
        kept, kept_back, pairs, pairs_back = self._roles(score, highest, moved_to.tolist())
        back = score[kept].T
        highest_back = back.amax(dim=1)
        short = [float(highest[a] - score[a, b]) for a, b in pairs]
        short += [float(highest_back[b] - score[a, b]) for b, a in pairs_back]
        if pairs:
            worst = min(float(highest[a]) for a, _ in pairs)
            short += [float(highest[a]) - worst for a in kept]
        ranked = [min(float(highest_back[b]) for b, _ in pairs_back)] if pairs_back else []
        ranked += [float(highest_back[b]) for b in kept_back]
        short += [after - before for before, after in zip(ranked, ranked[1:], strict=False)]
        return max(0.0, *short)

    def _roles(
        self, score: Tensor, highest: Tensor, moved_to: list[int]
    ) -> tuple[list[int], list[int], list[tuple[int, int]], list[tuple[int, int]]]:
        """Evens and odds that stay, by place, and the pairs (even, odd) and (odd, even) that merge.
        Of several evens in a group the one stays that the first direction ranks last."""
        evens, odds = score.shape
        groups: list[tuple[list[int], list[int]]] = [
            ([], []) for _ in range(len(moved_to) - self.r)
        ]
        for token, place in enumerate(moved_to):
            if not 0 <= place < len(groups):
                raise NotFollowed("other counts than the method leaves")
            groups[place][token % 2].append(token // 2)
        staying = evens - self.r // 2
        kept, kept_back = [], []
        pairs: list[tuple[int, int]] = []
        pairs_back: list[tuple[int, int]] = []
        for place, (a, b) in enumerate(groups):
            if place < staying:
                if not a or (len(a) > 1 and not b):
                    raise NotFollowed("even tokens merge without an odd one")
                stays = min(a, key=lambda i: (float(highest[i]), -i))
                kept.append(stays)
                pairs_back += [(j, stays) for j in b]
            else:
                if len(b) != 1:
                    raise NotFollowed("odd tokens merge without an even one")
                stays = -1
                kept_back.append(b[0])
            pairs += [(i, max(b, key=lambda j, i=i: float(score[i, j]))) for i in a if i != stays]
        if kept != sorted(kept) or len(pairs) != self.r // 2:
            raise NotFollowed("even tokens stand in another order")
        return kept, kept_back, pairs, pairs_back

    def apply(self, signals: GraphSignals) -> GraphReduced:
        import torch

        from atm_export.methods.groups import Groups
        from atm_export.methods.scores import falling, nearest
        from atm_export.methods.tokens import sorted_by, take_rows

        tokens, maps, sizes = signals.tokens, signals.attention, signals.sizes
        assert tokens is not None and maps is not None
        sizes = torch.ones_like(maps[:, 0, :, :1]) if sizes is None else sizes
        score, weights = _scored(tokens, maps, sizes, signals.prefix)
        r1, r2 = self.r // 2, self.r - self.r // 2
        highest, best = nearest(score)
        ranked = falling(highest)
        merged = ranked[:, :r1]
        kept = torch.topk(ranked[:, r1:], ranked.shape[1] - r1, dim=1, largest=False).values
        back, best_back = nearest(take_rows(score, kept).transpose(1, 2))
        ranked_back = falling(back)
        rank = sorted_by(ranked_back, largest=False)
        place_of_b = torch.where(rank < r2, best_back, rank + (kept.shape[1] - r2))
        merged_back = ranked_back[:, :r2]
        into = [place_of_b.gather(1, best.gather(1, merged)), best_back.gather(1, merged_back)]
        groups = Groups(
            torch.cat([2 * kept, 2 * ranked_back[:, r2:] + 1], dim=1),
            torch.cat([2 * merged, 2 * merged_back + 1], dim=1),
            torch.cat(into, dim=1),
        )
        shares = groups.shares(weights)
        batch, heads, n, _ = maps.shape
        left = n - self.r
        by_key = groups.sums(maps.permute(0, 3, 1, 2).reshape(batch, n, heads * n))
        by_query = by_key.reshape(batch, left, heads, n).permute(0, 3, 2, 1)
        fused = shares.means(by_query.reshape(batch, n, heads * left))
        fused = fused.reshape(batch, left, heads, left).transpose(1, 2)
        mass = groups.sums(sizes)
        return GraphReduced(shares.means(tokens), mass, groups.moved_to(), attention=fused)

    def translations(self) -> Mapping[Callable[..., Any], Callable[..., Any]]:
        import torch
        from onnxscript import opset18 as op

        return {
            torch.ops.atm_export.unit_rows.default: lambda x: op.LpNormalization(x, axis=-1, p=2)
        }


def _seen(signals: Signals) -> tuple[Tensor, Tensor]:
    assert signals.attention is not None
    return _scored(signals.tokens, signals.attention, signals.sizes, signals.prefix)


def _scored(tokens: Tensor, maps: Tensor, sizes: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """How readily each even token and each odd one merge [B, evens, odds], on the grid (the class
    token's row: -1), and the weight of each token in a mean [B, n, 1]: attention received times
    size."""
    import torch

    from atm_export.methods.scores import on_grid, unit_rows
    from atm_export.methods.tokens import TINY

    received = maps.float().mean(dim=(1, 2)).unsqueeze(2).clamp(min=TINY)
    size = sizes.clamp(min=TINY)
    x = unit_rows(tokens)
    a, b = x[:, 0::2], x[:, 1::2]
    ready = (_behind(received) / TAU_INFO + _behind(size) / TAU_SIZE).exp()
    score = (a @ b.transpose(1, 2) + 1) / 2 * ready[:, 0::2] * ready[:, 1::2].transpose(1, 2)
    score = on_grid(score)
    if prefix:
        guard = torch.arange(a.shape[1]).unsqueeze(1) == 0
        score = torch.where(guard, -1.0, score)
    return score, received * size / size.amax(dim=1, keepdim=True)


def _behind(x: Tensor) -> Tensor:
    """log(min x / x): 0 for the least of an image, below for others."""
    log = x.log()
    return log.amin(dim=1, keepdim=True) - log


def _firmness(
    score: Tensor, highest: Tensor, ranked: Tensor, merges: int, *, in_order: bool
) -> float:
    """The margin of one direction: partners, who merges, and the order of the others if it counts."""
    from atm_export.methods.scores import SPAN, leads, least, ranked_gaps

    gaps = ranked_gaps(highest)
    gaps = gaps[:, max(merges - 1, 0) :] if in_order else gaps[:, max(merges - 1, 0) : merges]
    return min(least(leads(score).gather(1, ranked[:, :merges])), least(gaps)) / SPAN


class Mctf(Method):
    """The same number of tokens in every image, by similarity, attention received and size."""

    name = "mctf"
    settings = MctfSettings
    about = "MCTF (arXiv 2403.10030): tokens merge by likeness, attention received and size."

    def plan(self, settings: MctfSettings, shape: ModelShape) -> MergePlan:
        if shape.prefix > 1:
            raise UnsupportedModelError(
                f"method mctf takes one class token, this model has {shape.prefix} leading tokens"
            )
        depth, n, blocks = shape.depth, shape.tokens, list[Fusion | None]()
        share = settings.r < 1
        usual = {depth // 4, depth // 2, 3 * depth // 4} if share else set(range(1, depth))
        at = usual if settings.blocks is None else set(settings.blocks)
        if max(at, default=0) >= depth:
            raise ConfigError(
                f"blocks: {max(at)} lies beyond the model's {depth} blocks, counted from 0"
            )
        for i in range(depth):
            r = int((n - 1) * settings.r) if share else int(settings.r)
            r = max(min(r, (n - 1) // 2, n - LEAST_TOKENS), 0) if i in at else 0
            blocks.append(Fusion(r) if r else None)
            n -= r
        return MergePlan(tuple(blocks), settings.proportional is not False)

    def facts(self, settings: MctfSettings, plan: MergePlan) -> dict[str, Any]:
        r = [rule.r if isinstance(rule, Fusion) else 0 for rule in plan.blocks]
        return {"r_per_block": r, "proportional_attention": plan.proportional}

    def summary(self, settings: MctfSettings, plan: MergePlan, origin: str | None) -> str:
        return f"MCTF, r = {' '.join(map(str, self.facts(settings, plan)['r_per_block']))}"

    def label(self, settings: MctfSettings) -> str:
        blocks = "" if settings.blocks is None else "-at-" + "-".join(map(str, settings.blocks))
        return f"mctf-{settings.r:g}{blocks}"

    def search_space(self, shape: ModelShape, settings: Any = None) -> SearchSpace:
        return SearchSpace((Knob("r", 0.05, 0.5, 0.01),), ({"r": 0.22}, {"r": 0.35}))
