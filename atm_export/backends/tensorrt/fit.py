"""Whether an engine fits a machine, told from its manifest entry before anything is deserialised.

An engine runs on the TensorRT version and GPU that it was built for, unless it was built
compatible.
"""

from __future__ import annotations

from dataclasses import dataclass

from atm_export.errors import EngineMismatchError, EngineVersionError
from atm_export.runs.engine_facts import BuiltFacts

AMPERE = 80  # hardware-compatible engines run from here on


@dataclass(frozen=True)
class Here:
    """What this machine has: flavor (tensorrt or rtx), TensorRT version, SM (90 for 9.0; None: no
    GPU)."""

    flavor: str
    version: str
    sm: int | None


def check_fit(name: str, facts: BuiltFacts, here: Here) -> None:
    """EngineMismatchError, with all that differs, unless the engine `name` of `facts` runs here;
    EngineVersionError where the TensorRT version alone differs."""
    found = []
    if facts.flavor != here.flavor:
        found.append(f"built by TensorRT's flavor {facts.flavor}, this is {here.flavor}")
    targets = ", ".join(f"SM{target}" for target in facts.sms)
    if here.sm is None:
        found.append(f"built for {targets}, and no GPU is here")
    elif facts.hardware_compatible:
        if here.sm < AMPERE:
            found.append(f"built for SM{AMPERE} and later, this GPU is SM{here.sm}")
    elif here.sm not in facts.sms:
        found.append(f"built for {targets}, this GPU is SM{here.sm}")
    parts = 1 if facts.version_compatible else 3
    if facts.tensorrt.split(".")[:parts] != here.version.split(".")[:parts]:
        version = f"built by TensorRT {facts.tensorrt}, {here.version} is installed"
        if not found:
            raise EngineVersionError(
                f"{name} does not fit: {version}; install that version or build it again"
            )
        found.append(version)
    if found:
        raise EngineMismatchError(f"{name} does not fit: {'; '.join(found)}; build it again here")
