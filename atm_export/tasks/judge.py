"""What `evaluate`, `tune` and `compare` say of a task's answers: how far those of the merged model
lie from the unmerged model's, and whether they say the same.

A task states its judge beside its outputs. Shares are counts here; commands add their intervals.
Nothing here imports more than NumPy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from atm_export.errors import ConfigError
from atm_export.shapes import Check

Array = NDArray[Any]
Right = tuple[int, ...]  # the classes that count as right for an image; none: not known
Facts = Mapping[str, Any]
Row = Sequence[object]  # a line of a table


@dataclass(frozen=True)
class Count:
    """A share: `hits` of `of` images. An image that is right in part counts as that part, which
    leaves the interval of whole hits wider than it need be."""

    hits: float
    of: int


@dataclass(frozen=True)
class Figure:
    """A number that comparisons show: its key in JSON, its title, and what explains it."""

    key: str
    title: str
    about: str = ""


@dataclass(frozen=True)
class Bound:
    """A bound that a user may set, by the name of its option (min_cosine: --min-cosine)."""

    name: str
    low: float
    high: float

    @property
    def option(self) -> str:
        return f"--{self.name.replace('_', '-')}"


@dataclass(frozen=True)
class Limits(ABC):
    """What a search may lose: a frozen dataclass whose fields are bounds of its judge."""

    @abstractmethod
    def lost(self, ours: Array, plain: Array, total: int) -> bool:
        """Whether the first answers of `total` images [n, ...] already break a limit for good."""

    @abstractmethod
    def excess(self, found: Facts, known: Facts) -> list[float]:
        """By how much a trial breaks each limit, in points of percent; NaN where it cannot be
        told. known: what is known of the unmerged model."""


class Judge(ABC):
    """How answers of the merged and of the unmerged model to the same images are compared.

    bounds: what `tune` takes; evaluated: the ones of these that `evaluate` takes. apart, same: the
    distance of two answers, and whether they say the same, for `compare`; merit: what a search
    plots against GFLOPs. columns: of a search's table. shape: what it adds to
    evaluation-RUNNER.json.
    """

    bounds: ClassVar[tuple[Bound, ...]]
    evaluated: ClassVar[tuple[str, ...]]
    apart: ClassVar[Figure]
    same: ClassVar[Figure]
    merit: ClassVar[Figure]
    columns: ClassVar[tuple[str, ...]]
    shape: ClassVar[Mapping[str, Check]]

    @abstractmethod
    def reading(self, rows: Array) -> Array:
        """Of a batch's answers [n, ...] what is judged, [n, ...]; NonFiniteError."""

    def beside(self, ours: Array, plain: Array | None) -> tuple[Array, Array | None]:
        """What a count over many images keeps of the readings of a batch, each [n, ...], for
        `evaluation` and `table`: the readings themselves, unless those are large. plain: None where
        the unmerged model was not run."""
        return ours, plain

    @abstractmethod
    def packed(self, read: Array) -> list[Any]:
        """What is kept as a JSON value an image."""

    @abstractmethod
    def unpacked(self, values: Sequence[Any]) -> Array:
        """What was packed, one image or more; ValueError for anything else."""

    @abstractmethod
    def evaluation(
        self, ours: Array, plain: Array | None, right: Sequence[Right], material: Any = None
    ) -> dict[str, Any]:
        """What evaluation-RUNNER.json says (`shape`), with counts for shares. plain: None where
        the unmerged model was not run. material: what the user gave to judge by."""

    @abstractmethod
    def table(
        self, ours: Array, plain: Array | None, right: Sequence[Right]
    ) -> tuple[Sequence[str], Sequence[Row]]:
        """Columns of predictions-RUNNER.csv, and a row an image."""

    @abstractmethod
    def lines(self, facts: Facts, share: Callable[[Facts], str]) -> list[str]:
        """An evaluation in words, a figure a line; share: how a share is written."""

    @abstractmethod
    def sentence(self, facts: Facts | None, share: Callable[[Facts], str]) -> str:
        """What an evaluation (None: there is none) says of shipping a run."""

    @abstractmethod
    def broken(self, facts: Facts, bounds: Mapping[str, float]) -> list[str]:
        """The bounds that an evaluation breaks, in words; a share breaks one where its 95 %
        interval excludes it."""

    @abstractmethod
    def limits(self, given: Mapping[str, float]) -> Limits:
        """What a search may lose, the usual where nothing is given."""

    @abstractmethod
    def anything(self) -> Limits:
        """Limits that nothing breaks."""

    @abstractmethod
    def trial(self, ours: Array, plain: Array, right: Array | None) -> dict[str, Any]:
        """Figures of a trial, with counts for shares. right [n]: the class of each image."""

    @abstractmethod
    def trial_text(self, facts: Facts, known: Facts) -> str:
        """A trial in words, beside what is known of the unmerged model."""

    @abstractmethod
    def distances(self, ours: Array, plain: Array) -> NDArray[np.float64]:
        """How far whole answers [n, ...] lie apart, [n] (`apart`)."""

    @abstractmethod
    def agrees(self, ours: Array, plain: Array) -> NDArray[np.bool_]:
        """Which whole answers [n, ...] say the same, [n] (`same`)."""

    @abstractmethod
    def compared(self, ours: Array, plain: Array) -> dict[str, Any]:
        """What a comparison says more of whole answers, with counts for shares."""

    def check(self, given: Mapping[str, float], task: str, known: Sequence[str]) -> None:
        """ConfigError for bounds beyond `known` ones, or that cannot be meant; NaN is none."""
        table = {bound.name: bound for bound in self.bounds if bound.name in known}
        for name, value in given.items():
            bound = table.get(name)
            if bound is None:
                option, more = Bound(name, 0, 0).option, [b.option for b in table.values()]
                raise ConfigError(
                    f"{option} says nothing of the task '{task}'; it has {', '.join(more)}"
                )
            if not bound.low <= value <= bound.high:
                raise ConfigError(f"{bound.option} {value:g}: give {bound.low:g} to {bound.high:g}")
