"""PiToMe (arXiv 2405.16148): tokens of large clusters merge, by the energy of their keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from atm_export.methods.base import Knob, Method, MethodSettings, ModelShape, SearchSpace
from atm_export.methods.moves import Moves
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

MARGIN = 0.75  # of the first block, as in the official code; the paper says 0.9
ALIKE = 64.0  # steps of an energy: about 2e-6, within the noise of FP32
Half = Literal["first", "second"]


class PitomeSettings(MethodSettings):
    """ratio: share of the patches that stay in each block; protects: the half of the blocks where
    patches of low energy never merge (the official code says "first" for MAE)."""

    name: Literal["pitome"] = "pitome"
    ratio: Annotated[float, Field(ge=0.5, le=1, allow_inf_nan=False)] = 0.945
    protects: Half = "second"


@dataclass(frozen=True)
class EnergyMerge(BlockRule):
    """r pairs of one block merge. protects: pairs form among the 2r patches of highest energy and
    all of them merge; else among all patches, and the most similar pairs merge."""

    asks: ClassVar[tuple[Signal, ...]] = ("key_metric",)
    static: ClassVar[bool] = True
    spares_tokens: ClassVar[bool] = True

    r: int
    margin: float
    protects: bool

    adaptive = False

    def tokens_after(self, tokens: int, prefix: int) -> int:
        return tokens - self.r

    def decide(self, signals: Signals) -> Moves:
        from atm_export.methods.scores import FINE, firmness, least, ranked_gaps

        metric, energy = _seen(signals, self.margin)
        order = energy.sort(dim=1, descending=True, stable=True).indices
        source, target, alone = self._split(order)
        score = _scores(metric, source, target)
        highest, best = score.max(dim=2).values, score.argmax(dim=2)
        ranked = highest.sort(dim=1, descending=True, stable=True).indices
        firm = firmness(score, highest, ranked, self.r, in_order=not self.protects)
        ranked, left = ranked[:, : self.r], ranked[:, self.r :]
        alone = source.gather(1, left) if alone is None else alone
        merged, into = source.gather(1, ranked), best.gather(1, ranked)
        moved_to = _moved_to(alone, target, merged, into, signals.prefix)
        return Moves(moved_to, min(firm, least(ranked_gaps(energy)) / FINE))

    def _split(self, order: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Sources, destinations and protected patches (None: there are none), by energy."""
        if not self.protects:
            return order[:, 0::2], order[:, 1::2], None
        pairs = order[:, : 2 * self.r]
        return pairs[:, 0::2], pairs[:, 1::2], order[:, 2 * self.r :]

    def reduce(self, tokens: Tensor, sizes: Tensor, decision: Moves, prefix: int) -> Reduced:
        from atm_export.methods.groups import means

        count = tokens.shape[1] - self.r
        return Reduced(*means(tokens, sizes, decision.moved_to, count), decision.moved_to)

    def follow(self, signals: Signals, moved_to: Tensor) -> tuple[Moves, float]:
        import torch

        metric, energy = _seen(signals, self.margin)
        ahead = torch.arange(signals.prefix).expand(len(moved_to), -1)
        if not torch.equal(moved_to[:, : signals.prefix], ahead):
            raise NotFollowed("prefix tokens move")
        places = (moved_to[:, signals.prefix :] - signals.prefix).tolist()
        each = zip(places, metric, energy, strict=True)
        return Moves(moved_to, self.decide(signals).firm), max(
            self._shortfall(*one) for one in each
        )

    def _shortfall(self, places: list[int], metric: Tensor, energy: Tensor) -> float:
        """How far one image's cosines and energies [T] must move for the places [T] to be right. Of
        several patches in a place, the destination is the one whose energy fits it; of those
        that fit alike, the one at the least price."""
        groups: list[list[int]] = [[] for _ in range(len(places) - self.r)]
        for patch, place in enumerate(places):
            if not 0 <= place < len(groups):
                raise NotFollowed("other counts than the method leaves")
            groups[place].append(patch)
        fitting = self._split(energy.sort(descending=True).values[None])[1][0].tolist()
        alone = len(groups) - len(fitting)
        if any(len(group) != 1 for group in groups[:alone]) or not all(groups):
            raise NotFollowed("patches merge that no pair may hold")
        fit = [
            [i for _, i in sorted((abs(float(energy[i]) - value), i) for i in group)]
            for group, value in zip(groups[alone:], fitting, strict=True)
        ]
        best = self._price(groups, [group[0] for group in fit], metric, energy)
        for k, group in enumerate(fit):
            for i in group[1:]:
                if abs(float(energy[i] - energy[group[0]])) <= ALIKE:
                    fit[k] = [i, *(j for j in group if j != i)]
                    price = self._price(groups, [each[0] for each in fit], metric, energy)
                    fit[k] = fit[k] if price < best else group
                    best = min(best, price)
        return best

    def _price(
        self, groups: list[list[int]], target: list[int], metric: Tensor, energy: Tensor
    ) -> float:
        """The same with these destinations."""
        from atm_export.methods.scores import FINE, SPAN, most

        left = [group[0] for group in groups[: -len(target)]]
        joined = groups[len(left) :]
        pairs = [(i, k) for k, b in enumerate(target) for i in joined[k] if i != b]
        source = [i for i, _ in pairs] + ([] if self.protects else left)
        ranked = energy.sort(descending=True).values[None]
        fitting, fitting_target, fitting_left = self._split(ranked)
        moves = [energy[source].sort(descending=True).values - fitting]
        moves.append(energy[target] - fitting_target)
        if fitting_left is not None:
            moves.append(energy[left] - fitting_left)
        both = (energy.new_tensor(rows).long()[None] for rows in (source, target))
        score, r = _scores(metric[None], *both)[0], self.r
        highest = score.amax(dim=1)
        short = [highest[:r] - score[range(r), [k for _, k in pairs]]]
        short += [highest[r:] - highest[:r].min(), highest[r + 1 :] - highest[r:-1]]
        return max(most(*(move.abs() for move in moves)) / FINE, most(*short) / SPAN)

    def apply(self, signals: GraphSignals) -> GraphReduced:
        import torch

        from atm_export.methods.groups import Groups
        from atm_export.methods.scores import FINE, falling, nearest, on_grid
        from atm_export.methods.tokens import take_rows

        assert signals.key_metric is not None
        prefix, metric = signals.prefix, signals.key_metric[:, signals.prefix :]
        above = metric @ metric.transpose(1, 2) - self.margin
        bent = torch.where(above > 0, above, above.clamp(max=0).exp() - 1)
        source, target, alone = self._split(falling(on_grid(bent.mean(dim=2), FINE), FINE))
        a, b = take_rows(metric, source), take_rows(metric, target)
        highest, best = nearest(on_grid(a @ b.transpose(1, 2)))
        if alone is None:
            ranked = falling(highest)
            alone, ranked = source.gather(1, ranked[:, self.r :]), ranked[:, : self.r]
            source, best = source.gather(1, ranked), best.gather(1, ranked)
        ahead = torch.arange(prefix).expand(metric.shape[0], -1)
        kept = torch.cat([ahead, alone + prefix, target + prefix], dim=1)
        groups = Groups(kept, source + prefix, best + (prefix + alone.shape[1]))
        sizes = signals.sizes
        sizes = torch.ones_like(signals.key_metric[..., :1]) if sizes is None else sizes
        shares = groups.shares(sizes)
        tokens = shares.total if signals.tokens is None else shares.means(signals.tokens)
        return GraphReduced(tokens, shares.total, groups.moved_to())


def _seen(signals: Signals, margin: float) -> tuple[Tensor, Tensor]:
    """Metric [B, T, d] and energy [B, T], on the grid, of the patches: the mean over all of
    ELU(cosine - margin)."""
    import torch.nn.functional as F

    from atm_export.methods.bipartite.matching import key_metric
    from atm_export.methods.scores import FINE, on_grid

    metric = key_metric(signals.keys)[:, signals.prefix :]
    return metric, on_grid(F.elu(metric @ metric.transpose(1, 2) - margin).mean(dim=2), FINE)


def _scores(metric: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Cosines on the grid, [B, S, T]."""
    from atm_export.methods.scores import on_grid
    from atm_export.methods.tokens import rows

    return on_grid(rows(metric, source) @ rows(metric, target).transpose(1, 2))


def _moved_to(alone: Tensor, target: Tensor, merged: Tensor, into: Tensor, prefix: int) -> Tensor:
    """New place of every token [B, n]: prefix, patches left alone, destinations."""
    import torch

    batch, first = len(alone), prefix + alone.shape[1]
    n = first + target.shape[1] + merged.shape[1]
    moved_to = torch.arange(n).repeat(batch, 1)
    moved_to.scatter_(1, alone + prefix, torch.arange(prefix, first).expand(batch, -1))
    places = torch.arange(first, first + target.shape[1]).expand(batch, -1)
    moved_to.scatter_(1, target + prefix, places)
    return moved_to.scatter(1, merged + prefix, first + into)


class Pitome(Method):
    """The same number of pairs in every image, from clusters of high energy."""

    name = "pitome"
    settings = PitomeSettings
    about = "PiToMe (arXiv 2405.16148): tokens of large clusters merge first, rare ones stay."

    def plan(self, settings: PitomeSettings, shape: ModelShape) -> MergePlan:
        patches, blocks = shape.tokens - shape.prefix, list[EnergyMerge | None]()
        for i in range(shape.depth):
            r = int(patches - patches * settings.ratio)
            half: Half = "first" if i < (shape.depth + 1) // 2 else "second"
            margin = MARGIN - MARGIN * i / shape.depth
            blocks.append(EnergyMerge(r, margin, half == settings.protects) if r else None)
            patches -= r
        return MergePlan(tuple(blocks), settings.proportional is True)

    def facts(self, settings: PitomeSettings, plan: MergePlan) -> dict[str, Any]:
        r = [rule.r if isinstance(rule, EnergyMerge) else 0 for rule in plan.blocks]
        told = {"ratio": settings.ratio, "protects": settings.protects, "r_per_block": r}
        return {**told, "proportional_attention": plan.proportional}

    def summary(self, settings: PitomeSettings, plan: MergePlan, origin: str | None) -> str:
        return f"PiToMe, {settings.ratio:g} of the patches stay in each block"

    def label(self, settings: PitomeSettings) -> str:
        label = f"pitome-{settings.ratio:g}"
        return label if settings.protects == "second" else f"{label}-first"

    def search_space(self, shape: ModelShape, settings: Any = None) -> SearchSpace:
        starts: tuple[Mapping[str, float], ...] = ({"ratio": 0.945}, {"ratio": 0.975})
        return SearchSpace((Knob("ratio", 0.85, 0.99, 0.005),), starts)
