"""What the ladder found: how far each rung was from the reference, and where one left it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from atm_export.comparison import largest, smallest
from atm_export.errors import ParityError
from atm_export.prove.tolerances import MARGIN, MARGIN_REASON
from atm_export.tasks.base import OutputSpec


@dataclass(frozen=True)
class Difference:
    """Where one rung leaves the reference."""

    rung: str
    case: str
    what: str


@dataclass(frozen=True)
class Rung:
    """How far one rung was from the reference on one input; measured: see `tasks.base.measured`."""

    name: str
    case: str
    measured: Mapping[str, float]
    merged_tokens: int

    def facts(self) -> dict[str, Any]:
        values = {name: _finite(value) for name, value in self.measured.items()}
        where = {"name": self.name, "case": self.case}
        return {**where, **values, "merged_tokens": self.merged_tokens}


@dataclass(frozen=True)
class LadderResult:
    """The proof, or what speaks against it. backends: what ran, by name; specs: of what was
    compared."""

    rungs: tuple[Rung, ...]
    differences: tuple[Difference, ...]
    margins: dict[str, float] = field(default_factory=dict)
    undecided: dict[str, float] = field(default_factory=dict)
    backends: dict[str, str] = field(default_factory=dict)
    specs: tuple[OutputSpec, ...] = ()

    @property
    def proven(self) -> bool:
        return not self.differences

    def facts(self) -> dict[str, Any]:
        """As the report states it."""
        return {
            "proven": self.proven,
            "inputs": len(self.margins),
            "comparisons": len(self.rungs),
            "backends": self.backends,
            **{f"{spec.name}_max_abs": self._largest(spec) for spec in self.specs},
            "cosine_min": self._smallest("cosine"),
            **self._top1(),
            "decisions_that_differ": len(self.differences),
            "tolerance": _tolerances(self.specs),
            "margin": {"least": MARGIN, "reason": MARGIN_REASON},
            "ties_within_noise": self.undecided,
            "differences": [asdict(d) for d in self.differences],
            "rungs": [rung.facts() for rung in self.rungs],
        }

    def _largest(self, spec: OutputSpec) -> Any:
        return _finite(largest(r.measured[f"{spec.name}_max_abs"] for r in self.rungs))

    def _smallest(self, name: str) -> Any:
        return _finite(smallest((r.measured[name] for r in self.rungs), default=1.0))

    def _top1(self) -> dict[str, Any]:
        """The share of equal first choices, where classes are ranked."""
        ranked = any(spec.rule.ranks for spec in self.specs)
        return {"top1_agreement": self._smallest("top1_agreement")} if ranked else {}

    def require(self) -> None:
        """ParityError naming the first difference."""
        if self.differences:
            first = self.differences[0]
            raise ParityError(
                f"the export is not proven: {first.rung} differs on {first.case}: {first.what}"
            )


def _tolerances(specs: Sequence[OutputSpec]) -> dict[str, Any]:
    """What of each output may differ, and why; those behind the main one under their names."""
    found: dict[str, Any] = {}
    for i, spec in enumerate(specs):
        before, allowed = "" if i == 0 else f"{spec.name}_", spec.tolerance
        found[spec.name] = allowed.allowed
        more = {"reason": allowed.reason, "noise": allowed.noise, "most": allowed.most}
        found |= {f"{before}{name}": value for name, value in more.items()}
    return found


def _finite(value: Any) -> Any:
    """The value; None for a number that JSON cannot state."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
