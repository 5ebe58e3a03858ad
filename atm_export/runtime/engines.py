"""TensorRT engines of a run folder: is this one made for this machine, before it is deserialised.

An engine runs on the TensorRT version and compute capability it was built for, and on no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from atm_export.errors import (
    EngineMismatchError,
    EngineVersionError,
    MissingDependencyError,
    MissingFileError,
)
from atm_export.runfolder import Run


@dataclass(frozen=True)
class Here:
    """What this machine has: flavor (enterprise or rtx), TensorRT version, SM (90 for 9.0)."""

    flavor: str
    version: str
    sm: int


def check_engine(run: Run, name: str, here: Here) -> Mapping[str, Any]:
    """The engine's facts; EngineMismatchError or EngineVersionError say what does not fit."""
    facts: Mapping[str, Any] | None = run.manifest.get("engines", {}).get(name)
    if facts is None or name not in run.manifest["files"]:
        known = ", ".join(run.manifest.get("engines", {})) or "none"
        raise MissingFileError(f"{run.folder} has no engine '{name}'; it has: {known}")
    if facts["flavor"] != here.flavor:
        raise EngineMismatchError(
            f"{name} is for TensorRT {facts['flavor']}, this is {here.flavor}; build it again here"
        )
    if here.sm not in [int(sm) for sm in facts["sms"]]:
        raise EngineMismatchError(
            f"{name} was built for SM {', '.join(map(str, facts['sms']))}, this GPU is "
            f"SM {here.sm}; build it again here"
        )
    if facts["tensorrt"] != here.version:
        raise EngineVersionError(
            f"{name} was built by TensorRT {facts['tensorrt']}, {here.version} is installed; "
            "install that version or build it again"
        )
    source = facts.get("onnx_sha256")
    if source is not None and source != run.manifest["files"]["model.onnx"]["sha256"]:
        raise EngineMismatchError(f"{name} was built from another model.onnx; build it again")
    return facts


def pick_engine(run: Run, here: Here) -> str:
    """The first engine of the run that fits this machine; EngineMismatchError with each reason."""
    reasons = []
    for name in sorted(run.manifest.get("engines", {})):
        try:
            check_engine(run, name, here)
            return name
        except EngineMismatchError as error:
            reasons.append(str(error))
    raise EngineMismatchError(
        f"{run.folder} has no engine for this machine: {'; '.join(reasons) or 'none was built'}"
    )


def open_engine(run: Run, name: str) -> Any:
    """A backend on a TensorRT engine of the run ("auto": the first that fits)."""
    try:
        tensorrt: Any = import_module("atm_export.backends.tensorrt")
    except ImportError as error:
        raise MissingDependencyError(
            "engines need TensorRT: pip install 'atm-export[trt]' or 'atm-export[rtx]'"
        ) from error
    return tensorrt.open_engine(run, name)
