"""OpenVINO as a backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from atm_export.backends.base import Backend
from atm_export.backends.openvino import door
from atm_export.backends.openvino.models import Models
from atm_export.backends.openvino.runner import OpenVINORunner
from atm_export.backends.pool import RunnerPool
from atm_export.backends.runner import Runner, Server, Serving
from atm_export.bounds import checked_threads
from atm_export.errors import ConfigError
from atm_export.runs.graphs import SavedGraph, read_graph

if TYPE_CHECKING:
    import onnx_ir as ir

    from atm_export.runs.reading import Run

# The ladder comes with three batch sizes: two run on models of their own, one on that for any.
PROVEN_FIXED = 2


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
        return OpenVINORunner(lambda: Models(door.Graph(graph), PROVEN_FIXED))

    def open_measured(self, graph: SavedGraph, *, alone: bool = False) -> Runner:
        return OpenVINORunner(lambda: Models(door.Graph(graph)))

    def device(self, runner: Runner) -> str:
        assert isinstance(runner, OpenVINORunner) and runner.models is not None
        threads = runner.models.any_batch.get_property("INFERENCE_NUM_THREADS")
        return f"{self.title}, {door.DEVICE}, {door.PRECISION}, {threads} threads"

    def check_serving(self, how: Serving) -> None:
        if how.providers is not None:
            raise ConfigError(f"providers are ONNX Runtime's; {self.title} takes threads alone")
        checked_threads(how.threads)

    def serve(self, run: Run, name: str, how: Serving) -> Server:
        """Models that all requests share; each that is under way has a request of its own."""
        models = Models(door.Graph(read_graph(run, name), threads=how.threads))
        return RunnerPool(lambda: OpenVINORunner(lambda: models), f"{self.about()}, {name}")
