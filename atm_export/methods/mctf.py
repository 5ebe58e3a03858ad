"""MCTF (arXiv 2403.10030): tokens that are alike, little attended to and small merge, both ways,
before the block's attention is applied."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator

from atm_export.errors import UnsupportedModelError
from atm_export.methods.base import Knob, Method, MethodSettings, ModelShape, SearchSpace
from atm_export.methods.moves import Blocks, Moves, at_place, least_ranked, within
from atm_export.methods.plan import MergePlan
from atm_export.methods.rule import (
    BlockRule,
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
LEAST_TOKENS, MOST_TOKENS = 10, 65_536


def _count_or_share(r: Any) -> int | float:
    """r as given, alone or as a list of one (`-r 8`)."""
    r = r[0] if isinstance(r, list | tuple) and len(r) == 1 else r
    number = isinstance(r, int | float) and not isinstance(r, bool)
    if not number or not 0 <= r <= MOST_TOKENS or (r >= 1 and r != int(r)):
        raise ValueError("give a whole number of tokens, or a share of them below 1")
    return int(r) if r >= 1 else r


class MctfSettings(MethodSettings):
    """r: tokens that merge in a block, or their share (below 1) of all but the class token.
    blocks: where, from 0 as in the official code; by default, for a number, all but the first, for
    a share, at a quarter, half and three quarters of the depth."""

    name: Literal["mctf"] = "mctf"
    r: Annotated[int | float, BeforeValidator(_count_or_share)] = 0.22
    blocks: Blocks | None = None


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

    def decide(self, signals: Signals) -> Moves:
        import torch

        from atm_export.methods.scores import firmness
        from atm_export.methods.tokens import rows

        score, weights = _scored(signals, signals.sizes)
        r1, r2 = self.r // 2, self.r - self.r // 2
        highest, best = score.max(dim=2).values, score.argmax(dim=2)
        ranked = highest.sort(dim=1, descending=True, stable=True).indices
        merged, kept = ranked[:, :r1], ranked[:, r1:].sort(dim=1).values
        back = rows(score, kept).transpose(1, 2)
        highest_back, best_back = back.max(dim=2).values, back.argmax(dim=2)
        ranked_back = highest_back.sort(dim=1, descending=True, stable=True).indices
        merged_back, staying = ranked_back[:, :r2], kept.shape[1]
        place_of_odd = staying - r2 + ranked_back.argsort(dim=1)
        place_of_odd.scatter_(1, merged_back, best_back.gather(1, merged_back))
        moved_to = torch.zeros(len(score), sum(score.shape[1:]), dtype=torch.int64)
        moved_to[:, 1::2] = place_of_odd
        moved_to.scatter_(1, 2 * kept, torch.arange(staying).expand(len(score), -1))
        moved_to.scatter_(1, 2 * merged, place_of_odd.gather(1, best.gather(1, merged)))
        firm = firmness(score, highest, ranked, r1, in_order=False)
        firm_back = firmness(back, highest_back, ranked_back, r2, in_order=True)
        return Moves(moved_to, min(firm, firm_back), weights)

    def reduce(self, tokens: Tensor, sizes: Tensor, decision: Moves, prefix: int) -> Reduced:
        from atm_export.methods.groups import means, summed

        assert decision.weights is not None
        moved_to, count = decision.moved_to, tokens.shape[1] - self.r
        mean, _ = means(tokens, decision.weights, moved_to, count)
        return Reduced(mean, summed(sizes, moved_to, count), moved_to)

    def reduce_attention(self, weights: Tensor, decision: Moves) -> Tensor:
        from atm_export.methods.groups import fused

        assert decision.weights is not None
        count = weights.shape[2] - self.r
        return fused(weights, decision.weights, decision.moved_to, count)

    def follow(self, signals: Signals, moved_to: Tensor) -> tuple[Moves, float]:
        score, weights = _scored(signals, signals.sizes)
        short = max(self._shortfall(s, to) for s, to in zip(score, moved_to, strict=True))
        return Moves(moved_to, self.decide(signals).firm, weights), short

    def _shortfall(self, score: Tensor, moved_to: Tensor) -> float:
        """How far scores [evens, odds] of an image must move for its map [n] to be right. Of the
        even tokens in a place, the one stays that the first direction ranks last."""
        from atm_export.methods.scores import SPAN, most

        to, to_of_odd = moved_to[0::2].tolist(), moved_to[1::2].tolist()
        highest, staying = score.amax(dim=1), len(to) - self.r // 2
        try:
            kept = least_ranked([at_place(to, k) for k in range(staying)], highest)
            alone = [at_place(to_of_odd, k)[0] for k in range(staying, len(moved_to) - self.r)]
            merged = sorted(set(range(len(to))) - set(kept))
            best = [max(score[i, at_place(to_of_odd, to[i])].tolist()) for i in merged]
        except (IndexError, ValueError):
            raise NotFollowed("not what two directions of merging give") from None
        back = [i for i, place in enumerate(to_of_odd) if place < staying]
        if kept != sorted(kept) or len(alone) + len(back) != len(to_of_odd):
            raise NotFollowed("tokens stand in another order")
        chosen = score[[kept[to_of_odd[i]] for i in back], back]
        highest_back, first = score[kept].amax(dim=0), highest[merged]
        order = score.new_tensor([highest_back[back].min(), *highest_back[alone]])
        short = [order[1:] - order[:-1], first - score.new_tensor(best)]
        short += [highest_back[back] - chosen]
        if merged:
            short += [highest[kept] - first.min()]
        return most(*short) / SPAN

    def apply(self, signals: GraphSignals) -> GraphReduced:
        import torch

        from atm_export.methods.groups import Groups
        from atm_export.methods.scores import falling, nearest
        from atm_export.methods.tokens import sorted_by, take_rows

        tokens, maps, sizes = signals.tokens, signals.attention, signals.sizes
        assert tokens is not None and maps is not None
        sizes = torch.ones_like(maps[:, 0, :, :1]) if sizes is None else sizes
        score, weights = _scored(signals, sizes)
        r1, r2 = self.r // 2, self.r - self.r // 2
        highest, best = nearest(score)
        ranked = falling(highest)
        merged = ranked[:, :r1]
        kept = torch.topk(ranked[:, r1:], ranked.shape[1] - r1, dim=1, largest=False).values
        back, best_back = nearest(take_rows(score, kept).transpose(1, 2))
        ranked_back = falling(back)
        rank = sorted_by(ranked_back, largest=False)
        place_of_odd = torch.where(rank < r2, best_back, rank + (kept.shape[1] - r2))
        merged_back = ranked_back[:, :r2]
        going, into = 2 * merged_back + 1, best_back.gather(1, merged_back)
        if r1:
            going = torch.cat([2 * merged, going], dim=1)
            into = torch.cat([place_of_odd.gather(1, best.gather(1, merged)), into], dim=1)
        staying = torch.cat([2 * kept, 2 * ranked_back[:, r2:] + 1], dim=1)
        groups = Groups(staying, going, into)
        shares = groups.shares(weights)
        return GraphReduced(
            shares.means(tokens),
            groups.shares(sizes).total,
            groups.moved_to(),
            shares=shares,
        )

    def translations(self) -> Mapping[Callable[..., Any], Callable[..., Any]]:
        from atm_export.methods.onnx_scores import TABLE

        return TABLE


def _scored(signals: Signals | GraphSignals, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """How readily each even token and each odd one merge [B, evens, odds], on the grid (the class
    token's row: -1), and the weight of each token in a mean [B, n, 1]: attention received times
    size."""
    import torch

    from atm_export.methods.scores import on_grid, unit_rows
    from atm_export.methods.tokens import TINY

    tokens, maps, prefix = signals.tokens, signals.attention, signals.prefix
    assert tokens is not None and maps is not None
    received = maps.float().mean(dim=(1, 2)).unsqueeze(2).clamp(min=TINY)
    size, x = sizes.clamp(min=TINY), unit_rows(tokens)
    ready = (_behind(received) / TAU_INFO + _behind(size) / TAU_SIZE).exp()
    alike = (x[:, 0::2] @ x[:, 1::2].transpose(1, 2) + 1) / 2
    score = on_grid(alike * ready[:, 0::2] * ready[:, 1::2].transpose(1, 2))
    if prefix:
        score = torch.where(torch.arange(score.shape[1]).unsqueeze(1) < prefix, -1.0, score)
    return score, received * size / size.amax(dim=1, keepdim=True)


def _behind(x: Tensor) -> Tensor:
    """log(min x / x): 0 for the least of an image, below for others."""
    log = x.log()
    return log.amin(dim=1, keepdim=True) - log


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
        usual = (depth // 4, depth // 2, 3 * depth // 4) if share else range(1, depth)
        at = usual if settings.blocks is None else within(settings.blocks, depth)
        for i in range(depth):
            r = int((n - 1) * settings.r) if share else int(settings.r)
            r = max(min(r, (n - 1) // 2, n - LEAST_TOKENS), 0) if i in at else 0
            blocks.append(Fusion(r) if r else None)
            n -= r
        return MergePlan(tuple(blocks), settings.proportional is not False)

    def facts(self, settings: MctfSettings, plan: MergePlan) -> dict[str, Any]:
        r = [rule.r if isinstance(rule, Fusion) else 0 for rule in plan.blocks]
        told = {**settings.model_dump(mode="json", include={"r", "blocks"}), "r_per_block": r}
        return {**told, "proportional_attention": plan.proportional}

    def summary(self, settings: MctfSettings, plan: MergePlan, origin: str | None) -> str:
        return f"MCTF, r = {' '.join(map(str, self.facts(settings, plan)['r_per_block']))}"

    def label(self, settings: MctfSettings) -> str:
        blocks = "" if settings.blocks is None else "-at-" + "-".join(map(str, settings.blocks))
        return f"mctf-{settings.r:g}{blocks}"

    def dial(self, settings: MctfSettings, shape: ModelShape) -> Sequence[Mapping[str, Any]]:
        """A number of tokens where r is one, else a share."""
        if settings.r >= 1:
            return [{"r": r} for r in range(shape.tokens // 2, 0, -1)]
        return [{"r": i / 200} for i in range(140, 0, -1)]

    def search_space(self, shape: ModelShape, settings: Any = None) -> SearchSpace:
        return SearchSpace((Knob("r", 0.05, 0.5, 0.01),), ({"r": 0.22}, {"r": 0.35}))
