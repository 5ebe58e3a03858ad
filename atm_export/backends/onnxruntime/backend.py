"""ONNX Runtime as a backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from atm_export.backends.base import GRAPH, Backend
from atm_export.backends.onnxruntime import door
from atm_export.backends.onnxruntime.providers import NAMES, best_providers
from atm_export.backends.onnxruntime.runner import OnnxRuntimeRunner
from atm_export.backends.onnxruntime.serving import OnnxServer
from atm_export.backends.runner import Runner, Server, Serving
from atm_export.errors import ConfigError, EngineMismatchError
from atm_export.runs.graphs import SavedGraph, read_graph

if TYPE_CHECKING:
    from atm_export.runs.reading import Run


class OnnxRuntime(Backend):
    """Runs the graph itself: on the CPU where it is proven, on what a service asks for."""

    name: ClassVar[str] = "onnxruntime"
    title: ClassVar[str] = "ONNX Runtime"

    def require(self) -> None:
        door.onnxruntime()

    def about(self) -> str:
        return f"{self.title} {door.onnxruntime().__version__}, CPU"

    def open_graph(self, graph: SavedGraph) -> Runner:
        return OnnxRuntimeRunner(graph)

    def open_measured(self, graph: SavedGraph, *, alone: bool = False) -> Runner:
        waiting: door.Waiting = "spin while running" if alone else "sleep"
        return OnnxRuntimeRunner(graph, providers=best_providers(), waiting=waiting)

    def device(self, runner: Runner) -> str:
        assert isinstance(runner, OnnxRuntimeRunner)
        first = str(runner.session.get_providers()[0])
        return f"{self.title}, {first.removesuffix('ExecutionProvider')}"

    def artifacts(self, run: Run) -> tuple[str, ...]:
        low = run.manifest.low_precision
        return (GRAPH, *sorted(name for name, facts in low.items() if facts.backend == self.name))

    def check_artifact(self, run: Run, name: str) -> None:
        facts = run.manifest.low_precision.get(name)
        source = None if facts is None else run.manifest.files.get(facts.source.file)
        if facts is not None and (source is None or source.sha256 != facts.source.sha256):
            raise EngineMismatchError(
                f"{name} was made of another {facts.source.file}; export it again"
            )

    def check_serving(self, how: Serving) -> None:
        return None

    def serve(self, run: Run, name: str, how: Serving) -> Server:
        facts, providers = run.manifest.low_precision.get(name), how.providers
        if facts is not None:
            providers = _on_the_cpu(name, providers)
        server = OnnxServer(read_graph(run, name), run.manifest.opset, providers, how.threads)
        if facts is not None:
            server.facts, server.about = facts.document, f"{server.about}, {name}"
        return server


def _on_the_cpu(name: str, providers: Sequence[str] | None) -> list[str]:
    """The one provider that low precision is proven on; ConfigError where another is asked for."""
    others = [each for each in providers or () if NAMES.get(each.lower(), each) != door.CPU]
    if others:
        raise ConfigError(f"{name} is made for CPUs; take providers cpu, not {others[0]}")
    return [door.CPU]
