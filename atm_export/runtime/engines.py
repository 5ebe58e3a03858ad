"""TensorRT engines of a run folder, checked before they are deserialised.

Running one takes the exporter's TensorRT backend, which keeps GPU memory with PyTorch.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from numpy.typing import NDArray

from atm_export.errors import EngineMismatchError, MissingDependencyError, MissingFileError
from atm_export.fit import Here, check_fit
from atm_export.runs.reading import Run, read_checked

Array = NDArray[Any]


def check_engine(run: Run, name: str, here: Here) -> Mapping[str, Any]:
    """The engine's facts; EngineMismatchError or EngineVersionError say what does not fit."""
    facts: Mapping[str, Any] | None = run.manifest.get("engines", {}).get(name)
    if facts is None or name not in run.manifest["files"]:
        known = ", ".join(run.manifest.get("engines", {})) or "none"
        raise MissingFileError(f"{run.folder} has no engine '{name}'; it has: {known}")
    check_fit(name, facts, here)
    source = facts["source"]
    if run.manifest["files"].get(source["file"], {}).get("sha256") != source["sha256"]:
        raise EngineMismatchError(f"{name} was built from another {source['file']}; build it again")
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


def open_engine(run: Run, name: str) -> EngineBackend:
    """A backend on a TensorRT engine of the run ("auto": the first that fits)."""
    try:
        api = import_module("atm_export.backends.tensorrt.api")
        sm = api.gpu_sm()
        loaded = api.load_api()
    except ImportError as error:
        raise MissingDependencyError(
            "engines need TensorRT and PyTorch: pip install 'atm-export[trt]' or 'atm-export[rtx]'"
        ) from error
    if sm is None:
        raise EngineMismatchError("engines need an NVIDIA GPU, and none is here")
    here = Here(loaded.flavor.value, loaded.version, sm)
    name = pick_engine(run, here) if name == "auto" else name
    return EngineBackend(run, name, check_engine(run, name, here))


class EngineBackend:
    """Runners of one engine, one for each request under way at once; a runner serves one thread."""

    def __init__(self, run: Run, name: str, facts: Mapping[str, Any]) -> None:
        read_checked(run, name)
        self.about = f"TensorRT {facts['flavor']} {facts['tensorrt']}, {name}"
        self.providers: tuple[str, ...] = (f"TensorRT {facts['flavor']}",)
        self.facts = facts
        self._plan = run.folder / name
        self._static = run.manifest["method"]["merge"] == "frozen"
        self._free: list[Any] = []
        self._lock = threading.Lock()

    def run(self, image: Array) -> dict[str, Array]:
        """Outputs by name."""
        runner = self._take()
        outputs = dict(runner.run(image))  # a runner that failed is not used again
        with self._lock:
            self._free.append(runner)
        return outputs

    def _take(self) -> Any:
        with self._lock:
            if self._free:
                return self._free.pop()
        module = import_module("atm_export.backends.tensorrt.runner")
        return module.TensorRTRunner(self._plan, self.facts, static=self._static).__enter__()
