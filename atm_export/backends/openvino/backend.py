"""OpenVINO as a backend."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, ClassVar

from atm_export.backends.base import FP32, Backend, precision_of
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

    from atm_export.methods.plan import Form
    from atm_export.runs.reading import Run

# The ladder comes with three batch sizes: one runs on a model of its own, two on that for any.
PROVEN_FIXED = 1


class OpenVINO(Backend):
    """Runs graphs on the CPU, in FP32 whatever the CPU would rather take."""

    name: ClassVar[str] = "openvino"
    title: ClassVar[str] = "OpenVINO"
    form: ClassVar[Form] = "stepped"
    precisions: ClassVar[tuple[str, ...]] = (FP32, "bf16", "int8")

    def own_graph(self, precision: str = FP32) -> str:
        name = super().own_graph(precision)
        return f"{name.removesuffix('.onnx')}.xml" if precision == "bf16" else name

    def require(self) -> None:
        door.openvino()

    def about(self, precision: str = FP32) -> str:
        version = door.openvino().__version__.partition("-")[0]
        return f"{self.title} {version}, {door.DEVICE}, {door.HINTS[precision]}"

    def check_graph(self, model: ir.Model) -> None:
        from atm_export.graph.lint_openvino import check_for_openvino

        check_for_openvino(model)

    def open_graph(self, graph: SavedGraph, precision: str = FP32) -> Runner:
        return OpenVINORunner(lambda: Models(door.Graph(graph, precision), PROVEN_FIXED))

    def open_measured(
        self, graph: SavedGraph, precision: str = FP32, *, alone: bool = False
    ) -> Runner:
        return OpenVINORunner(lambda: Models(door.Graph(graph, precision)))

    def quantized(self, traced: ir.Model, spans: Mapping[str, tuple[float, float]]) -> ir.Model:
        from atm_export.graph.optimize import quantized

        most = {name: max(-low, high) for name, (low, high) in spans.items()}
        return quantized(traced, {name: (value, value) for name, value in most.items()}, "int8")

    def in_precision(
        self, graph: SavedGraph, precision: str, matching: Collection[str]
    ) -> SavedGraph:
        from atm_export.backends.openvino.ir import with_marks

        name = self.own_graph(precision)
        return with_marks(graph, matching, name) if precision == "bf16" else graph

    def device(self, runner: Runner) -> str:
        assert isinstance(runner, OpenVINORunner) and runner.models is not None
        threads = runner.models.any_batch.get_property("INFERENCE_NUM_THREADS")
        hint = runner.models.any_batch.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        return f"{self.title}, {door.DEVICE}, {hint}, {threads} threads"

    def check_serving(self, how: Serving) -> None:
        if how.providers is not None:
            raise ConfigError(f"providers are ONNX Runtime's; {self.title} takes threads alone")
        checked_threads(how.threads)

    def serve(self, run: Run, name: str, how: Serving) -> Server:
        """Models that all requests share; each that is under way has a request of its own."""
        facts, precision = run.manifest.low_precision.get(name), precision_of(run, name)
        models = Models(door.Graph(read_graph(run, name), precision, threads=how.threads))
        told = None if facts is None else facts.document
        about = f"{self.about(precision)}, {name}"
        return RunnerPool(lambda: OpenVINORunner(lambda: models), about, told)
