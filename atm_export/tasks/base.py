"""What a model answers, and when two answers are equal: what a task must say.

A task is one file: it subclasses `Task` and registers itself in `atm_export.tasks`; a family's
backbone then names it. Nothing here imports more than NumPy.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from atm_export.comparison import largest, smallest
from atm_export.inputs import BATCH, IMAGE
from atm_export.tasks.agreement import Agreement, Difference, agreements, cosines
from atm_export.tasks.judge import Judge

NAME = re.compile(r"[a-z][a-z0-9_]{0,47}", re.ASCII)
TAKEN = (IMAGE, "picture", BATCH, "token", "patch_")  # of graphs and of golden vectors
MOST_AXES, MOST_LENGTH = 4, 10**7


@dataclass(frozen=True)
class Tolerance:
    """How far answers of two correct backends may lie apart, as their agreement measures it.

    Where an input is ill-conditioned (a flat image through a convolutional stem), so that PyTorch's
    own FP32 answer misses its FP64 one by more than `allowed`, `noise` times that miss, but never
    more than `most`. picture: from a JPEG file on, which another decoder may round the other way.
    """

    allowed: float
    reason: str
    noise: float
    most: float
    picture: float


@dataclass(frozen=True)
class Output:
    """One output of a graph: float32, with "batch" as its first axis and fixed lengths behind.

    agreement: when two answers are the same, a name of `agreements`.
    """

    name: str
    shape: tuple[str | int, ...]
    agreement: str

    dtype: ClassVar[str] = "float32"

    def __post_init__(self) -> None:
        fixed = self.shape[1:]
        if not NAME.fullmatch(self.name) or self.name.startswith(TAKEN):
            raise ValueError(f"'{self.name}' cannot be the name of an output")
        if self.shape[:1] != (BATCH,) or not 0 < len(fixed) < MOST_AXES:
            raise ValueError(f"{self.name}: its shape must be [batch, n, ...]")
        if not all(type(n) is int and 0 < n <= MOST_LENGTH for n in fixed):
            raise ValueError(f"{self.name}: lengths must be whole numbers up to {MOST_LENGTH}")
        if self.rule.ranks and len(fixed) != 1:
            raise ValueError(f"{self.name}: '{self.agreement}' takes rows [batch, classes]")

    @property
    def rule(self) -> Agreement:
        """When two answers agree."""
        return agreements[self.agreement]

    def holds(self, shape: Sequence[int], batch: int) -> bool:
        """Whether an array of this shape answers `batch` images."""
        return tuple(shape) == (batch, *self.shape[1:])

    def facts(self) -> dict[str, Any]:
        """As a manifest's interface states it."""
        return {"shape": list(self.shape), "dtype": self.dtype}


@dataclass(frozen=True)
class OutputSpec(Output):
    """An output, and what of it two correct backends may differ by."""

    tolerance: Tolerance


class Sizes(Protocol):
    """What a task may ask of a model: numbers that its head gives an image (or a patch), patch
    tokens and the grid that they lie in, and the blocks after which patches are read (`Backbone`).
    """

    @property
    def classes(self) -> int: ...

    @property
    def patches(self) -> int: ...

    @property
    def grid(self) -> tuple[int, ...]: ...

    @property
    def layers(self) -> tuple[int, ...]: ...

    @property
    def read_after(self) -> tuple[int, ...]: ...


class Task(ABC):
    """What is answered, by name.

    ranks: the output whose rows [batch, classes] rank classes, where there is one: labels are its,
    and a session's `classify` names them. judge: what `evaluate`, `tune` and `compare` say of that
    output, or else of the main one; without it these decline.
    """

    name: ClassVar[str]
    ranks: ClassVar[str | None] = None
    judge: ClassVar[Judge | None] = None

    @abstractmethod
    def outputs(self, model: Sizes) -> tuple[OutputSpec, ...]:
        """What a model gives, the main output first, in the order of its head's values."""

    def facts(self, specs: Sequence[OutputSpec]) -> dict[str, Any]:
        """As a manifest states it, for runtimes that do not have this task's file."""
        outputs = [{"name": spec.name, "agreement": spec.agreement} for spec in specs]
        return {"name": self.name, "ranks": self.ranks, "outputs": outputs}


def names(outputs: Sequence[Output]) -> list[str]:
    """The outputs' names, in order."""
    return [output.name for output in outputs]


def measured(
    specs: Sequence[Output], ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> dict[str, float]:
    """How far outputs of a rung are from the reference's: the largest difference of each; the least
    cosine of all; and the share of images of equal first choice, where classes are ranked."""
    found: dict[str, float] = {}
    pairs = [(spec, ours[spec.name], theirs[spec.name]) for spec in specs]
    for spec, one, other in pairs:
        found[f"{spec.name}_max_abs"] = largest(Difference().differences(one, other))
    least = smallest(cosine for _, one, other in pairs for cosine in cosines(one, other))
    found["cosine"] = round(least, 9)
    same = [one.argmax(1) == other.argmax(1) for spec, one, other in pairs if spec.rule.ranks]
    if same:
        found["top1_agreement"] = smallest(float(each.mean()) for each in same)
    return found
