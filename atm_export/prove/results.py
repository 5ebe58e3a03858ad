"""What the ladder found: how far each rung was from the reference, and where one left it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from atm_export.comparison import largest, smallest
from atm_export.errors import ParityError
from atm_export.prove.tolerances import FP32_LOGITS, MARGIN, MARGIN_REASON


@dataclass(frozen=True)
class Difference:
    """Where one rung leaves the reference."""

    rung: str
    case: str
    what: str


@dataclass(frozen=True)
class Rung:
    """How far one rung was from the reference on one input."""

    name: str
    case: str
    logits_max_abs: float
    cosine: float
    top1_agreement: float
    merged_tokens: int


@dataclass(frozen=True)
class LadderResult:
    """The proof, or what speaks against it. backends: what ran, by name."""

    rungs: tuple[Rung, ...]
    differences: tuple[Difference, ...]
    margins: dict[str, float] = field(default_factory=dict)
    undecided: dict[str, float] = field(default_factory=dict)
    backends: dict[str, str] = field(default_factory=dict)

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
            "logits_max_abs": _finite(largest(r.logits_max_abs for r in self.rungs)),
            "cosine_min": _finite(smallest((r.cosine for r in self.rungs), default=1.0)),
            "top1_agreement": smallest((r.top1_agreement for r in self.rungs), default=1.0),
            "decisions_that_differ": len(self.differences),
            "tolerance": asdict(FP32_LOGITS),
            "margin": {"least": MARGIN, "reason": MARGIN_REASON},
            "ties_within_noise": self.undecided,
            "differences": [asdict(d) for d in self.differences],
            "rungs": [
                {name: _finite(value) for name, value in asdict(r).items()} for r in self.rungs
            ],
        }

    def require(self) -> None:
        """ParityError naming the first difference."""
        if self.differences:
            first = self.differences[0]
            raise ParityError(
                f"the export is not proven: {first.rung} differs on {first.case}: {first.what}"
            )


def _finite(value: Any) -> Any:
    """The value; None for a number that JSON cannot state."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
