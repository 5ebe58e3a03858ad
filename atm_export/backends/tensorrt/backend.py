"""TensorRT and TensorRT-RTX as a backend: engines, built ahead of time or where they run."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from atm_export.backends.base import FP32, Backend
from atm_export.backends.pool import RunnerPool
from atm_export.backends.runner import Runner, Server, Serving
from atm_export.backends.tensorrt.fit import Here, check_fit
from atm_export.errors import (
    ConfigError,
    EngineMismatchError,
    MissingDependencyError,
    MissingFileError,
)
from atm_export.runs.reading import read_checked

if TYPE_CHECKING:
    import onnx_ir as ir

    from atm_export.runs.engine_facts import EngineFacts
    from atm_export.runs.graphs import SavedGraph
    from atm_export.runs.reading import Run


class TensorRT(Backend):
    """Runs engines of a run; what keeps GPU memory is PyTorch."""

    name: ClassVar[str] = "tensorrt"
    title: ClassVar[str] = "TensorRT"
    engines: ClassVar[bool] = True

    def require(self) -> None:
        here()

    def about(self) -> str:
        found = here()
        return f"{self.title} {found.flavor} {found.version}, SM{found.sm}"

    def check_graph(self, model: ir.Model) -> None:
        from atm_export.graph.lint_tensorrt import check_for_tensorrt

        check_for_tensorrt(model)

    def open_graph(self, graph: SavedGraph, precision: str = FP32) -> Runner:
        raise ConfigError("TensorRT runs engines, which are built at export (--trt)")

    def artifacts(self, run: Run) -> tuple[str, ...]:
        entries = run.manifest.engines
        return tuple(sorted(entries, key=lambda name: (entries[name].precision != "fp32", name)))

    def check_artifact(self, run: Run, name: str) -> None:
        check_engine(run, name, here(_entry(run, name).flavor))

    def open_artifact(self, run: Run, name: str) -> Runner:
        from atm_export.backends.tensorrt.runner import TensorRTRunner

        static = run.manifest.method.merge == "frozen"
        return TensorRTRunner(
            run.folder / name,
            _entry(run, name),
            static=static,
            read=lambda: read_checked(run, name),
        )

    def serve(self, run: Run, name: str, how: Serving) -> Server:
        facts = _entry(run, name)
        read_checked(run, name)  # refused now, not at the first request
        about = f"TensorRT {facts.flavor} {facts.tensorrt}, {name}"
        return RunnerPool(lambda: self.open_artifact(run, name), about, facts.document)


def here(flavor: str | None = None) -> Here:
    """What this machine has, of a flavor (None: what is installed); MissingDependencyError without
    TensorRT or PyTorch, EngineMismatchError without a GPU."""
    try:
        from atm_export.backends.tensorrt import api
        from atm_export.backends.tensorrt.settings import Flavor

        sm = api.gpu_sm()
        loaded = api.load_api(Flavor(flavor) if flavor else None)
    except ImportError as error:
        raise MissingDependencyError(
            "engines need TensorRT and PyTorch: pip install 'atm-export[trt]' or 'atm-export[rtx]'"
        ) from error
    if sm is None:
        raise EngineMismatchError("engines need an NVIDIA GPU, and none is here")
    return Here(loaded.flavor.value, loaded.version, sm)


def check_engine(run: Run, name: str, there: Here) -> EngineFacts:
    """The engine's facts; EngineMismatchError or EngineVersionError say what does not fit."""
    facts = _entry(run, name)
    check_fit(name, facts, there)
    source = run.manifest.files.get(facts.source.file)
    if source is None or source.sha256 != facts.source.sha256:
        raise EngineMismatchError(
            f"{name} was built from another {facts.source.file}; build it again"
        )
    return facts


def _entry(run: Run, name: str) -> EngineFacts:
    """The engine's facts; MissingFileError where the run has none of that name."""
    engines = run.manifest.engines
    if name not in engines:
        known = ", ".join(engines) or "none"
        raise MissingFileError(f"{run.folder} has no engine '{name}'; it has: {known}")
    return engines[name]
