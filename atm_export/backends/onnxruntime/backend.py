"""ONNX Runtime as a backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from atm_export.backends.base import FP32, Backend
from atm_export.backends.onnxruntime import door
from atm_export.backends.onnxruntime.providers import NAMES, best_providers
from atm_export.backends.onnxruntime.runner import OnnxRuntimeRunner
from atm_export.backends.onnxruntime.serving import OnnxServer
from atm_export.backends.runner import Runner, Server, Serving
from atm_export.errors import ConfigError
from atm_export.runs.graphs import SavedGraph, read_graph

if TYPE_CHECKING:
    import onnx_ir as ir

    from atm_export.runs.reading import Run


class OnnxRuntime(Backend):
    """Runs the graph itself: on the CPU where it is proven, on what a service asks for."""

    name: ClassVar[str] = "onnxruntime"
    title: ClassVar[str] = "ONNX Runtime"
    precisions: ClassVar[tuple[str, ...]] = (FP32, "int8")

    def require(self) -> None:
        door.onnxruntime()

    def about(self) -> str:
        return f"{self.title} {door.onnxruntime().__version__}, CPU"

    def open_graph(self, graph: SavedGraph, precision: str = FP32) -> Runner:
        return OnnxRuntimeRunner(graph)

    def open_measured(
        self, graph: SavedGraph, precision: str = FP32, *, alone: bool = False
    ) -> Runner:
        waiting: door.Waiting = "spin while running" if alone else "sleep"
        return OnnxRuntimeRunner(graph, providers=best_providers(), waiting=waiting)

    def quantized(self, traced: ir.Model, spans: Mapping[str, tuple[float, float]]) -> ir.Model:
        from atm_export.graph.optimize import with_int8_products

        return with_int8_products(traced, spans)

    def device(self, runner: Runner) -> str:
        assert isinstance(runner, OnnxRuntimeRunner)
        first = str(runner.session.get_providers()[0])
        return f"{self.title}, {first.removesuffix('ExecutionProvider')}"

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
