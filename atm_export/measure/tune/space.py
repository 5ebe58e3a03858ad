"""What is searched: values of the settings that a method lets be turned."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atm_export.config import ModelConfig
from atm_export.errors import ConfigError, unknown_name
from atm_export.methods import methods
from atm_export.methods.base import Knob, MethodSettings, ModelShape, SearchSpace
from atm_export.methods.given import settings_of

Value = float | str | None
Point = Mapping[str, Value]


@dataclass(frozen=True)
class Search:
    """What to search and how long: trials in all (those of an interrupted search count), and
    minutes. A point is a value of each knob of the method, None for those that are not turned.
    """

    trials: int
    minutes: float
    method: str
    knobs: tuple[Knob, ...]
    optional: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The settings that make a point."""
        return tuple(knob.name for knob in self.knobs)

    @property
    def turned(self) -> tuple[Knob, ...]:
        """All knobs, but of those that have a usual value the ones that `optional` names."""
        return tuple(k for k in self.knobs if k.usual is None or k.name in self.optional)

    def params(self, point: Point) -> dict[str, float | str]:
        """The nearest point of the grid; what `point` leaves open is as usual, or in the middle."""
        found: dict[str, float | str] = {}
        for knob in self.turned:
            middle = (knob.low + knob.high) / 2 if knob.usual is None else knob.usual
            value = point.get(knob.name)
            found[knob.name] = knob.nearest(middle if value is None else value)
        return found

    def suggested(self, trial: Any) -> Point:
        """The point that Optuna asks for."""
        for knob in self.turned:
            if knob.choices:
                trial.suggest_categorical(knob.name, knob.choices)
            elif knob.whole:
                trial.suggest_int(knob.name, int(knob.low), int(knob.high), step=int(knob.step))
            else:
                trial.suggest_float(knob.name, knob.low, knob.high, step=knob.step)
        return self.point(trial.params)

    def point(self, params: Mapping[str, Any]) -> Point:
        """The point of a trial's parameters."""
        turned = {knob.name for knob in self.turned}
        return {n: _rounded(params[n]) if n in turned else None for n in self.names}

    def settings(self, point: Point) -> MethodSettings:
        """The method's settings at a point."""
        return settings_of(self.method, said(point), "point")


def _rounded(value: float | str) -> float | str:
    return value if isinstance(value, str) else round(value, 6)


def said(point: Point) -> dict[str, float | str]:
    """The values that a point does say."""
    return {name: value for name, value in point.items() if value is not None}


def space_of(method: str, shape: ModelShape, optional: Sequence[str] = ()) -> SearchSpace:
    """What the method lets search; ConfigError where that is nothing, or not what is asked for."""
    space = methods[method].search_space(shape)
    if space is None or not space.knobs:
        raise ConfigError(f"method {method} has nothing to tune")
    known = [knob.name for knob in space.knobs if knob.usual is not None]
    for name in optional:
        if name not in known:
            raise unknown_name(f"optional setting to tune of method {method}", name, known)
    return space


def first_points(config: ModelConfig, method: str, space: SearchSpace) -> list[Point]:
    """Points that are worth a first trial: the usual one, the model's own presets, the method's."""
    own = [p.settings for p in config.presets.values() if p.method == method and not p.fine_tuned]
    points = [methods[method].usual, *own[:6], *space.starts]
    return list({json.dumps(said(p), sort_keys=True): p for p in points if p}.values())
