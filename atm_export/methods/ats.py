"""ATS (arXiv 2111.15667): tokens are sampled by the class token's attention; each image keeps what
it would keep alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from atm_export.comparison import smallest
from atm_export.errors import UnsupportedModelError
from atm_export.methods.base import Method, MethodSettings, ModelShape
from atm_export.methods.moves import Blocks, Moves, within
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

RELATIVE = 5  # FP32 noise of a score, relative to it, over that of a cosine (seen: 3 to 10)
SOFTENED = 1e-6  # what the official softmax adds to numerator (divided by n) and denominator


class AtsSettings(MethodSettings):
    """blocks: where, from 0 as in the official code; by default from 5/12 of the depth on."""

    name: Literal["ats"] = "ats"
    blocks: Blocks | None = None


@dataclass(frozen=True)
class Sampling(BlockRule):
    """Patches that `targets` samples hit, evenly spaced over the rising scores' cumulated sum."""

    asks: ClassVar[tuple[Signal, ...]] = ("attention", "values")
    drops: ClassVar[bool] = True

    targets: int

    adaptive = True

    def decide(self, signals: Signals) -> Moves:
        import torch

        order, u, share = self._sorted(signals)
        samples, borders = self._samples(u), _borders(u)
        # The nearest, and where two lie at one place the first for what lies before it.
        hit = torch.searchsorted(borders, samples)
        alive = torch.zeros_like(u, dtype=torch.bool).scatter(1, hit, True)
        moved_to = _moved_to(torch.zeros_like(alive).scatter(1, order, alive), signals.prefix)
        firm = float((borders.unsqueeze(2) - samples.unsqueeze(1)).abs().min())
        apart = _apart(share[:, 1:], share[:, :-1])[alive[:, 1:] != alive[:, :-1]].tolist()
        return Moves(moved_to, smallest([firm, *apart]))

    def _samples(self, u: Tensor) -> Tensor:
        """Evenly from the least u above 0 to 1, [B, targets]."""
        import torch

        y0 = torch.where(u > 0, u, 1.0).amin(dim=1, keepdim=True)
        steps = torch.arange(self.targets) / max(self.targets - 1, 1)
        return y0 + (1 - y0) * steps

    def _sorted(self, signals: Signals) -> tuple[Tensor, Tensor, Tensor]:
        """Patches by rising score, the cumulated score of each from 0 to 1, and the share of each
        in all scores; [B, P]."""
        from atm_export.methods.sampling import WHOLE

        assert signals.attention is not None
        row, values = signals.attention[:, :, 0], signals.values.transpose(1, 2).flatten(2)
        score = _scores(row, values, row.shape[2])[:, signals.prefix :]
        whole = (score / score.sum(dim=1, keepdim=True) * WHOLE).round()
        order = whole.argsort(dim=1, stable=True)
        whole = whole.gather(1, order)
        total = whole.long().cumsum(dim=1)
        total = total - total[:, :1]
        return order, total.float() / total[:, -1:].clamp(min=1).float(), whole / WHOLE

    def reduce(self, tokens: Tensor, sizes: Tensor, decision: Moves, prefix: int) -> Reduced:
        kept = decision.moved_to[0] >= 0
        return Reduced(tokens[:, kept], sizes[:, kept], decision.moved_to)

    def follow(self, signals: Signals, moved_to: Tensor) -> tuple[Moves, float]:
        import torch

        order, u, share = self._sorted(signals)
        own, alive = self.decide(signals), moved_to >= 0
        if not torch.equal(_moved_to(alive[:, signals.prefix :], signals.prefix), moved_to):
            raise NotFollowed("tokens move to other places than those that stay")
        given = alive[:, signals.prefix :].gather(1, order)[0]
        ours = (own.moved_to[:, signals.prefix :] >= 0).gather(1, order)[0]
        samples, end = self._samples(u)[0], torch.full((1,), torch.inf)
        ends = torch.cat([-end, _borders(u)[0], end])
        worst = 0.0
        for i in (given != ours).nonzero().flatten().tolist():
            off = torch.maximum(ends[i] - samples, samples - ends[i + 1])
            moved = off.min() if given[i] else -off[off < 0].min()
            swaps = (given != ours) & (given != given[i])  # with which it may have changed places
            apart = _apart(share[0, swaps], share[0, i])
            worst = max(worst, smallest([float(moved), *apart.tolist()]))
        return Moves(moved_to, own.firm), worst

    def apply(self, signals: GraphSignals) -> GraphReduced:
        raise UnsupportedModelError("method ats decides for each image alone")

    def apply_each(self, signals: GraphSignals) -> GraphReduced:
        import torch

        from atm_export.methods.sampling import WHOLE, inverse, left, rising
        from atm_export.methods.tokens import TINY, take_rows

        tokens, sizes, maps, values = (
            signals.tokens,
            signals.sizes,
            signals.attention,
            signals.values,
        )
        assert tokens is not None and sizes is not None
        assert maps is not None and values is not None
        here, prefix = sizes[..., 0] > 0, signals.prefix
        position = torch.arange(here.shape[1])
        patch = here & (position >= prefix)
        count = here.float().sum(dim=1, keepdim=True)
        score = _scores(maps[:, :, 0], values.flatten(2), count.unsqueeze(2))
        score = torch.where(patch, score, 0.0)
        score = score / score.sum(dim=1, keepdim=True).clamp(min=TINY)
        whole = torch.where(patch, (score * WHOLE).round(), 2.0 * WHOLE)
        order = rising(whole)
        sorted_scores = torch.where(patch, whole, 0.0).gather(1, order).int()
        total = sorted_scores.cumsum(dim=1, dtype=torch.int32)
        total = total - total[:, :1]
        u = total.float() / total[:, -1:].clamp(min=1).float()
        last = position >= count - (prefix + 1)
        y0 = torch.where(u > 0, u, 1.0).amin(dim=1, keepdim=True)
        border = torch.cat([(u[:, :-1] + u[:, 1:]) / 2, torch.ones_like(u[:, :1])], dim=1)
        reach = (border - y0) * ((self.targets - 1) / (1 - y0).clamp(min=SOFTENED))
        reach = torch.where(last, self.targets - 1.0, reach.floor().clamp(-1, self.targets - 1))
        before = torch.cat([torch.full_like(reach[:, :1], -1.0), reach[:, :-1]], dim=1)
        hit = torch.where(reach > before, 1.0, 0.0).gather(1, inverse(order)) > 0
        alive = (hit & patch) | (here & (position < prefix))
        kept, remaining = left(alive, signals.most)
        moved_to = torch.where(alive, alive.long().cumsum(dim=1) - 1, -1)
        staying = take_rows(torch.where(alive, 1.0, 0.0).unsqueeze(2), kept)
        return GraphReduced(take_rows(tokens, kept), staying, moved_to, remaining)

    def translations(self) -> Mapping[Callable[..., Any], Callable[..., Any]]:
        from atm_export.methods.onnx_sampling import TABLE

        return TABLE


def _scores(row: Tensor, values: Tensor, count: Any) -> Tensor:
    """How much each token counts [B, n]: the class token's attention row [B, H, n], summed over
    heads, times the norm of the values [B, n, H * d]; count: tokens of the image."""
    most = row.amax(dim=2, keepdim=True)
    softened = (row + SOFTENED / count * most) / (1 + SOFTENED * most)
    return softened.sum(dim=1) * values.norm(dim=2)


def _apart(one: Tensor, other: Tensor) -> Tensor:
    """How much two scores differ, in the unit of margins: within it their order is anyone's."""
    return (one - other).abs() / one.clamp(min=SOFTENED) / RELATIVE


def _borders(u: Tensor) -> Tensor:
    """Where the nearest of u [B, P] changes, [B, P - 1]."""
    return (u[:, :-1] + u[:, 1:]) / 2


def _moved_to(alive: Tensor, prefix: int) -> Tensor:
    """New place of every token [B, n] from the patches that stay [B, P]."""
    import torch

    ahead = torch.arange(prefix).expand(len(alive), -1)
    places = torch.where(alive, alive.long().cumsum(dim=1) + prefix - 1, -1)
    return torch.cat([ahead, places], dim=1)


class Ats(Method):
    """As many patches as evenly spaced samples hit, in each image by itself."""

    name = "ats"
    settings = AtsSettings
    about = "ATS (arXiv 2111.15667): patches are sampled by the class token's attention."
    ignores = ("proportional",)

    def plan(self, settings: AtsSettings, shape: ModelShape) -> MergePlan:
        if not shape.prefix:
            raise UnsupportedModelError("method ats needs a class token, this model has none")
        depth, rule = shape.depth, Sampling(shape.tokens - shape.prefix)
        usual = range(5 * depth // 12, depth)
        at = usual if settings.blocks is None else within(settings.blocks, depth)
        blocks = tuple(rule if i in at else None for i in range(depth))
        return MergePlan(blocks, proportional=False, per_image=True)

    def dial(self, settings: AtsSettings, shape: ModelShape) -> Sequence[Mapping[str, Any]]:
        """The first block; all later ones sample too."""
        return [{"blocks": tuple(range(i, shape.depth))} for i in range(shape.depth)]

    def facts(self, settings: AtsSettings, plan: MergePlan) -> dict[str, Any]:
        return {"blocks": [i for i, rule in enumerate(plan.blocks) if rule is not None]}

    def summary(self, settings: AtsSettings, plan: MergePlan, origin: str | None) -> str:
        blocks = ", ".join(map(str, self.facts(settings, plan)["blocks"]))
        return f"ATS at blocks {blocks} (from 0), each image alone"

    def label(self, settings: AtsSettings) -> str:
        return "ats" + "".join(f"-{block}" for block in settings.blocks or ())
