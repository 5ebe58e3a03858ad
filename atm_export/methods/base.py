"""What a reduction method must offer: settings, a plan, and words for both.

A method is one file: it subclasses `MethodSettings`, `BlockRule` (what it does in a block) and
`Method`, and registers the latter in `atm_export.methods.methods`. Nothing here imports torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

from atm_export.errors import ConfigError
from atm_export.methods.plan import MergePlan
from atm_export.settings import Settings


class MergePolicy(StrEnum):
    """Who shares one r: adaptive, the batch (as in the paper); frozen, every batch the same;
    per-image, nobody: each image gets what it would get alone."""

    ADAPTIVE = "adaptive"
    FROZEN = "frozen"
    PER_IMAGE = "per-image"


class MethodSettings(Settings):
    """How tokens are reduced in this run; a method's own settings add fields.

    preset: the model's preset that the numbers come from. proportional: attention weighs keys by
    their merging sizes (None: as the model's family usually does).
    """

    name: str
    preset: str | None = None
    proportional: bool | None = None

    @property
    def policy(self) -> MergePolicy | None:
        """Who shares one r, where the method leaves a choice."""
        return None


@dataclass(frozen=True)
class ModelShape:
    """What a plan needs to know of a model.

    tokens: embedded tokens, prefix included; pooled: the head reads all tokens, not the prefix
    alone; proportional: whether the family usually uses proportional attention; width: channels of
    a token (0: not said).
    """

    depth: int
    tokens: int
    prefix: int
    pooled: bool
    proportional: bool
    width: int = 0


@dataclass(frozen=True)
class Knob:
    """One setting that a search may turn: low to high in steps; whole: integers alone. usual: its
    value where nothing says it; such a knob is turned only where it is asked for."""

    name: str
    low: float
    high: float
    step: float
    whole: bool = False
    usual: float | None = None

    def nearest(self, value: float) -> float:
        """The value of its grid nearest to `value`."""
        steps = round((value - self.low) / self.step)
        found = round(min(max(self.low + self.step * steps, self.low), self.high), 6)
        return round(found) if self.whole else found


@dataclass(frozen=True)
class SearchSpace:
    """What tune searches: values of settings, and points that are worth a trial on any model."""

    knobs: tuple[Knob, ...]
    starts: tuple[Mapping[str, float], ...] = ()


class Method(ABC):
    """A way to reduce tokens, by name."""

    name: ClassVar[str]
    settings: ClassVar[type[MethodSettings]]
    about: ClassVar[str] = ""  # a sentence for the report's page
    ignores: ClassVar[tuple[str, ...]] = ()  # settings of every method that mean nothing to it
    usual: ClassVar[Mapping[str, Any]] = {}  # flat settings of models that have no presets

    @abstractmethod
    def plan(self, settings: Any, shape: ModelShape) -> MergePlan:
        """What each block does; ConfigError where the settings do not fit the model."""

    @abstractmethod
    def summary(self, settings: Any, plan: MergePlan, origin: str | None) -> str:
        """One line; origin: what the counts of a frozen schedule come from."""

    @abstractmethod
    def label(self, settings: Any) -> str:
        """The settings as part of a folder's name."""

    def facts(self, settings: Any, plan: MergePlan) -> dict[str, Any]:
        """What manifest and report say beside name, policy and summary; JSON values."""
        return {}

    def exported(self, plan: MergePlan, facts: Mapping[str, Any]) -> MergePlan:
        """The plan of a finished run from the plan of its settings and its manifest's "method";
        ManifestError where they do not fit."""
        return plan

    def columns(self, settings: Mapping[str, Any]) -> Mapping[str, str]:
        """A preset's flat settings as `atm-export list` shows them."""
        return {name: shown(value) for name, value in settings.items()}

    def shorthand(self, text: str) -> MethodSettings:
        """Settings from the part behind NAME: (as in `bench --against tome:8`)."""
        raise ConfigError(f"method {self.name} has no short form")

    def search_space(self, shape: ModelShape, settings: Any = None) -> SearchSpace | None:
        """What tune may search; None: nothing."""
        return None


def shown(value: Any) -> str:
    """A setting in a table."""
    if isinstance(value, list | tuple):
        return ",".join(shown(each) for each in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def proportional(settings: MethodSettings, shape: ModelShape) -> bool:
    """Whether the settings, or else the model's family, ask for proportional attention."""
    return shape.proportional if settings.proportional is None else settings.proportional
