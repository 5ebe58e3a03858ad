"""PiToMe (arXiv 2405.16148): tokens of large clusters merge, by the energy of their keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

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

MARGIN = 0.75  # of the first block, as in the official code; the paper says 0.9
Half = Literal["first", "second"]
# Patches left alone and destinations, by place, and pairs (source, destination).
Roles = tuple[list[int], list[int], list[tuple[int, int]]]


class PitomeSettings(MethodSettings):
    """ratio: share of the patches that stay in each block; protects: the half of the blocks where
    patches of low energy never merge (the official code says "first" for MAE)."""

    name: Literal["pitome"] = "pitome"
    ratio: Annotated[float, Field(ge=0.5, le=1, allow_inf_nan=False)] = 0.945
    protects: Half = "second"


@dataclass(frozen=True)
class EnergyDecision(Decision):
    """moved_to [B, n]: new place of each token; firm: the decision's margin."""

    moved_to: Tensor
    firm: float

    def margin(self) -> float:
        return self.firm


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

    def decide(self, signals: Signals) -> EnergyDecision:
        from atm_export.methods.scores import FINE, SPAN, leads, least, ranked_gaps

        metric, energy = _seen(signals, self.margin)
        order = energy.sort(dim=1, descending=True, stable=True).indices
        source, target, rest = self._split(order)
        scores = _scores(metric, source, target)
        highest, best = scores.max(dim=2).values, scores.argmax(dim=2)
        ranked = highest.sort(dim=1, descending=True, stable=True).indices
        lead = least(leads(scores).gather(1, ranked[:, : self.r])) / SPAN
        if not self.protects:
            lead = min(lead, least(ranked_gaps(highest)[:, self.r - 1 :]) / SPAN)
        firm = min(least(ranked_gaps(energy)) / FINE, lead)
        rest = source.gather(1, ranked[:, self.r :]) if rest is None else rest
        merged, into = ranked[:, : self.r], best.gather(1, ranked[:, : self.r])
        moved_to = _moved_to(rest, target, source.gather(1, merged), into, signals.prefix)
        return EnergyDecision(moved_to, firm)

    def _split(self, order: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Sources, destinations and protected patches (None: there are none), by energy."""
        if not self.protects:
            return order[:, 0::2], order[:, 1::2], None
        pairs = order[:, : 2 * self.r]
        return pairs[:, 0::2], pairs[:, 1::2], order[:, 2 * self.r :]

    def reduce(
        self, tokens: Tensor, sizes: Tensor, decision: EnergyDecision, prefix: int
    ) -> Reduced:
        from atm_export.methods.groups import summed

        count = tokens.shape[1] - self.r
        mass = summed(sizes, decision.moved_to, count)
        total = summed(tokens * sizes, decision.moved_to, count)
        return Reduced(total / mass, mass, decision.moved_to)

    def follow(self, signals: Signals, moved_to: Tensor) -> tuple[EnergyDecision, float]:
        metric, energy = _seen(signals, self.margin)
        short = [
            self._shortfall(self._roles(to, e, signals.prefix), m, e)
            for to, m, e in zip(moved_to, metric, energy, strict=True)
        ]
        return EnergyDecision(moved_to, self.decide(signals).firm), max(short)

    def _shortfall(self, roles: Roles, metric: Tensor, energy: Tensor) -> float:
        """How far one image's energies [T] and cosines must move for these roles to be right."""
        from atm_export.methods.scores import FINE, SPAN, most

        alone, target, pairs = roles
        source = [a for a, _ in pairs] + ([] if self.protects else alone)
        order = energy.sort(descending=True).values
        at_source, at_target, rest = self._split(order.unsqueeze(0))
        of_source = energy[source].sort(descending=True).values
        moves = [(of_source - at_source).abs(), (energy[target] - at_target).abs()]
        if rest is not None:
            moves.append((energy[alone] - rest).abs())
        score = _scores(metric.unsqueeze(0), *_rows(source, target))[0]
        highest, r = score.amax(dim=1), self.r
        moves_of_pairs = [highest[:r] - score[range(r), [target.index(b) for _, b in pairs]]]
        if not self.protects and alone:
            moves_of_pairs += [highest[r:] - highest[:r].min(), highest[r + 1 :] - highest[r:-1]]
        return max(most(_joined(moves)) / FINE, most(_joined(moves_of_pairs)) / SPAN)

    def _roles(self, moved_to: Tensor, energy: Tensor, prefix: int) -> Roles:
        """What a map [n] makes of the patches. Of a group the destination is the one whose energy
        fits its place."""
        import torch

        patches = len(energy)
        targets = self.r if self.protects else patches // 2
        alone = patches - self.r - targets
        ahead = torch.arange(prefix)
        if not torch.equal(moved_to[:prefix], ahead) or not bool(
            (moved_to[prefix:] >= prefix).all()
        ):
            raise NotFollowed("prefix tokens move or merge")
        groups: list[list[int]] = [[] for _ in range(alone + targets)]
        for patch, place in enumerate((moved_to[prefix:] - prefix).tolist()):
            if place >= len(groups):
                raise NotFollowed("more places than tokens stay")
            groups[place].append(patch)
        if any(len(group) != 1 for group in groups[:alone]) or not all(groups):
            raise NotFollowed("patches merge that no pair may hold")
        fitting = energy.sort(descending=True).values[1 : 2 * targets : 2].tolist()
        target, pairs = [], []
        for group, value in zip(groups[alone:], fitting, strict=True):
            b = min(group, key=lambda patch: abs(float(energy[patch]) - value))
            target.append(b)
            pairs += [(a, b) for a in group if a != b]
        return [group[0] for group in groups[:alone]], target, pairs

    def apply(self, signals: GraphSignals) -> GraphReduced:
        import torch

        from atm_export.methods.groups import Groups
        from atm_export.methods.scores import FINE, falling, nearest, on_grid
        from atm_export.methods.tokens import take_rows

        assert signals.key_metric is not None
        prefix, metric = signals.prefix, signals.key_metric[:, signals.prefix :]
        above = metric @ metric.transpose(1, 2) - self.margin
        bent = torch.where(above > 0, above, above.clamp(max=0).exp() - 1)
        source, target, rest = self._split(falling(on_grid(bent.mean(dim=2), FINE), FINE))
        a, b = take_rows(metric, source), take_rows(metric, target)
        highest, best = nearest(on_grid(a @ b.transpose(1, 2)))
        if rest is None:
            ranked = falling(highest)
            rest = source.gather(1, ranked[:, self.r :])
            source, best = (
                source.gather(1, ranked[:, : self.r]),
                best.gather(1, ranked[:, : self.r]),
            )
        ahead = torch.arange(prefix).expand(metric.shape[0], -1)
        kept = torch.cat([ahead, rest + prefix, target + prefix], dim=1)
        groups = Groups(kept, source + prefix, best + (prefix + rest.shape[1]))
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


def _rows(*indices: list[int]) -> list[Tensor]:
    import torch

    return [torch.tensor([index], dtype=torch.int64) for index in indices]


def _joined(parts: list[Tensor]) -> Tensor:
    import torch

    return torch.cat([part.flatten() for part in parts])


def _moved_to(rest: Tensor, target: Tensor, merged: Tensor, into: Tensor, prefix: int) -> Tensor:
    """New place of every token [B, n]: prefix, patches left alone, destinations."""
    import torch

    batch, first = len(rest), prefix + rest.shape[1]
    n = first + target.shape[1] + merged.shape[1]
    moved_to = torch.arange(n).repeat(batch, 1)
    moved_to.scatter_(1, rest + prefix, torch.arange(prefix, first).expand(batch, -1))
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
