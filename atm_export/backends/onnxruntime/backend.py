"""ONNX Runtime as a backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from atm_export.backends.base import Backend
from atm_export.backends.onnxruntime import door
from atm_export.backends.onnxruntime.providers import best_providers
from atm_export.backends.onnxruntime.runner import OnnxRuntimeRunner
from atm_export.backends.onnxruntime.serving import OnnxServer
from atm_export.backends.runner import Runner, Server, Serving
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

    def check_serving(self, how: Serving) -> None:
        return None

    def serve(self, run: Run, name: str, how: Serving) -> Server:
        opset = run.manifest.opset
        return OnnxServer(read_graph(run, name), opset, how.providers, how.threads)
