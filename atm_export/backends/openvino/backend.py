"""OpenVINO as a backend."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar

from atm_export.backends.base import Backend
from atm_export.backends.openvino import door
from atm_export.backends.openvino.runner import OpenVINORunner
from atm_export.backends.pool import RunnerPool
from atm_export.backends.runner import Runner, Server, Serving
from atm_export.bounds import checked_threads
from atm_export.errors import ConfigError
from atm_export.runs.graphs import SavedGraph, read_graph

if TYPE_CHECKING:
    import onnx_ir as ir

    from atm_export.runs.reading import Run


class OpenVINO(Backend):
    """Runs the graph itself on the CPU, in FP32 whatever the CPU would rather take."""

    name: ClassVar[str] = "openvino"
    title: ClassVar[str] = "OpenVINO"

    def require(self) -> None:
        door.openvino()

    def about(self) -> str:
        version = door.openvino().__version__.partition("-")[0]
        return f"{self.title} {version}, {door.DEVICE}, {door.PRECISION}"

    def check_graph(self, model: ir.Model) -> None:
        from atm_export.graph.lint_openvino import check_for_openvino

        check_for_openvino(model)

    def open_graph(self, graph: SavedGraph) -> Runner:
        return OpenVINORunner(partial(door.compile_graph, graph))

    def device(self, runner: Runner) -> str:
        assert isinstance(runner, OpenVINORunner)
        threads = runner.model.get_property("INFERENCE_NUM_THREADS")
        return f"{self.title}, {door.DEVICE}, {door.PRECISION}, {threads} threads"

    def check_serving(self, how: Serving) -> None:
        if how.providers is not None:
            raise ConfigError(f"providers are ONNX Runtime's; {self.title} takes threads alone")
        checked_threads(how.threads)

    def serve(self, run: Run, name: str, how: Serving) -> Server:
        """One compiled model, and a request of its own for each that is under way."""
        compiled = door.compile_graph(read_graph(run, name), threads=how.threads)
        return RunnerPool(lambda: OpenVINORunner(lambda: compiled), f"{self.about()}, {name}")
