"""DiffRate (arXiv 2305.17997): a schedule says how many patches each block prunes, those with the
least class attention, and how many of the next ones join the patch most like them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from atm_export.errors import ConfigError
from atm_export.methods.base import Knob, Method, MethodSettings, ModelShape, SearchSpace, shown
from atm_export.methods.diffrate_schedules import PUBLISHED, Published
from atm_export.methods.keep import one_class_token
from atm_export.methods.plan import MergePlan
from atm_export.methods.rule import (
    BlockRule,
    GraphReduced,
    GraphSignals,
    Reduced,
    Signal,
    Signals,
)

if TYPE_CHECKING:
    from torch import Tensor

    from atm_export.methods.joining import Assigned, Cuts

Counts = tuple[Annotated[int, Field(ge=2, le=65_536)], ...]
OWN = "give --set prune=... and --set merge=..., one count a block"


class DiffrateSettings(MethodSettings):
    """target: the GFLOPs of a published schedule of the model; or prune and merge: tokens that
    pruning and then merging leave in each block, class token included. A count above what is there
    changes nothing."""

    name: Literal["diffrate"] = "diffrate"
    target: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] | None = None
    prune: Counts | None = None
    merge: Counts | None = None

    @model_validator(mode="after")
    def _one_schedule(self) -> DiffrateSettings:
        lists = sum(given is not None for given in (self.prune, self.merge))
        if lists != (2 if self.target is None else 0):
            raise ValueError(f"a schedule is --set target=..., else {OWN}")
        return self


@dataclass(frozen=True)
class PruneAndMerge(BlockRule):
    """pruned, merged: tokens that pruning, and then merging, leave; class token included.

    A merged token is the plain mean of what it holds now, however much that held before; its size
    grows by the sizes of what joins, each times its cosine (never below 0). But for that bound all
    of it is as in the authors' own code.
    """

    asks: ClassVar[tuple[Signal, ...]] = ("class_attention",)
    drops: ClassVar[bool] = True
    static: ClassVar[bool] = True
    adaptive = False

    pruned: int
    merged: int

    def tokens_after(self, tokens: int, prefix: int) -> int:
        return self.merged

    def _cuts(self, prefix: int) -> Cuts:
        from atm_export.methods.joining import Cuts

        return Cuts(self.merged - prefix, self.pruned - prefix)

    def _score(self, signals: Signals | GraphSignals) -> Tensor:
        from atm_export.methods.ranked import ceiling, on_grid

        assert signals.class_attention is not None
        row = signals.class_attention[:, signals.prefix :]
        return on_grid(row, ceiling(row.shape[1], self.merged - signals.prefix))

    def decide(self, signals: Signals) -> Assigned:
        from atm_export.methods.joining import assign
        from atm_export.methods.ranked import rank

        cuts = self._cuts(signals.prefix)
        return assign(signals, rank(self._score(signals), (cuts.first, cuts.last)), cuts)

    def reduce(self, tokens: Tensor, sizes: Tensor, decision: Assigned, prefix: int) -> Reduced:
        from atm_export.methods.joining import join

        return join(tokens, sizes, decision, prefix)

    def follow(self, signals: Signals, moved_to: Tensor) -> tuple[Assigned, float]:
        from atm_export.methods.joining import forced

        return forced(signals, self.decide(signals), moved_to, self._cuts(signals.prefix))

    def apply(self, signals: GraphSignals) -> GraphReduced:
        from atm_export.methods.joining import pruned_and_joined

        return pruned_and_joined(signals, self._score(signals), self._cuts(signals.prefix))


class Diffrate(Method):
    """Prunes and merges by schedule."""

    name = "diffrate"
    settings = DiffrateSettings
    usual: ClassVar[Mapping[str, Any]] = {"target": 0.9}
    about = "DiffRate (arXiv 2305.17997): learnt schedules prune and then merge in every block."

    def plan(self, settings: DiffrateSettings, shape: ModelShape) -> MergePlan:
        """Attention is proportional where nothing says otherwise, as the authors have it for every
        model."""
        one_class_token(shape, self.name)
        tokens, blocks = shape.tokens, []
        for prune, merge in zip(*_schedule(settings, shape), strict=True):
            pruned, merged = min(prune, tokens), min(prune, merge, tokens)
            blocks.append(PruneAndMerge(pruned, merged) if merged < tokens else None)
            tokens = merged
        return MergePlan(tuple(blocks), settings.proportional is not False)

    def facts(self, settings: DiffrateSettings, plan: MergePlan) -> dict[str, Any]:
        rules = [rule if isinstance(rule, PruneAndMerge) else None for rule in plan.blocks]
        return {
            "target": settings.target,
            "proportional_attention": plan.proportional,
            "pruned_to_per_block": [rule and rule.pruned for rule in rules],
            "merged_to_per_block": [rule and rule.merged for rule in rules],
        }

    def summary(self, settings: DiffrateSettings, plan: MergePlan, origin: str | None) -> str:
        by = "own" if settings.target is None else f"published {settings.target:g} GFLOPs"
        left = " ".join(str(m or "-") for m in self.facts(settings, plan)["merged_to_per_block"])
        return f"DiffRate, {by} schedule: {left} tokens left"

    def label(self, settings: DiffrateSettings) -> str:
        if settings.target is not None:
            return f"diffrate-{settings.target:g}"
        assert settings.merge is not None
        return f"diffrate-own-{settings.merge[len(settings.merge) // 2]}-{settings.merge[-1]}"

    def dial(self, settings: DiffrateSettings, shape: ModelShape) -> Sequence[Mapping[str, Any]]:
        """The published schedules."""
        return [{"target": target} for target in _targets(shape)]

    def search_space(self, shape: ModelShape, settings: Any = None) -> SearchSpace | None:
        """The published schedules, where their targets are a grid."""
        targets = _targets(shape)
        gaps = {round(b - a, 6) for a, b in pairwise(targets)}
        if len(gaps) != 1:
            return None
        return SearchSpace(
            (Knob("target", targets[0], targets[-1], gaps.pop()),), ({"target": targets[-1]},)
        )


def _schedule(settings: DiffrateSettings, shape: ModelShape) -> tuple[Counts, Counts]:
    if settings.target is not None:
        return _published(settings.target, shape)
    assert settings.prune is not None and settings.merge is not None
    for name, counts in (("prune", settings.prune), ("merge", settings.merge)):
        if len(counts) != shape.depth:
            raise ConfigError(
                f"{name}={shown(counts)} lists {len(counts)} counts, but the model has "
                f"{shape.depth} blocks; give one a block"
            )
    return settings.prune, settings.merge


def _model_of(shape: ModelShape) -> Published | None:
    if (shape.tokens, shape.depth) != (197, 12):
        return None
    kind = (shape.width, shape.pooled)
    return next((m for m in PUBLISHED if (m.width, m.pooled) == kind), None)


def _targets(shape: ModelShape) -> list[float]:
    """Those that are published for the model, from the cheapest on."""
    model = _model_of(shape)
    return sorted(model.schedules) if model else []


def _published(target: float, shape: ModelShape) -> tuple[Counts, Counts]:
    model = _model_of(shape)
    if model is None:
        names = ", ".join(m.model for m in PUBLISHED)
        raise ConfigError(
            f"target={target:g}: schedules are published for {names} at 224 pixels, not for this "
            f"model; {OWN}"
        )
    if target not in model.schedules:
        known = ", ".join(f"{each:g}" for each in model.schedules)
        raise ConfigError(f"target={target:g}: published for {model.model} are {known}; or {OWN}")
    return model.schedules[target]
