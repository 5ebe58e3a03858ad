"""The one door to OpenVINO: every model of this package compiles here.

What must be the same for all of them is decided here and nowhere else: the precision is said, FP32
but for a graph that was made for a lower one, how many threads there are, an error is one line, and
nothing is reported to the library's makers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from atm_export.backends.openvino.marks import marked, require_marks
from atm_export.backends.openvino.weights import array_of, weights_as_inputs
from atm_export.backends.threads import threads_or_usual
from atm_export.errors import AtmExportError, MissingDependencyError
from atm_export.runs.graphs import SavedGraph, locations

DEVICE = "CPU"
# By what a graph was made for: a graph of 8 bits says itself where they are, the rest is FP32.
HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
XML = b"<?xml"  # how a file of OpenVINO's own format begins
TELEMETRY = "openvino_telemetry"


class Graph:
    """A graph as OpenVINO has read it, from the bytes that were checked; to be compiled.

    precision: that it was made for. threads: 0: those of `backends.threads`, else OpenVINO's own
    number, one a physical core.
    AtmExportError with one line where OpenVINO does not take the graph; MissingDependencyError.
    """

    def __init__(self, graph: SavedGraph, precision: str = "fp32", *, threads: int = 0) -> None:
        library = openvino()
        self._settings = settings_of(threads, HINTS[precision])
        self._core = library.Core()
        self._kept = marked(graph.graph) if graph.graph.startswith(XML) else frozenset()
        with _in_one_line():
            self._model = _model(library, self._core, graph)

    @property
    def takes_any_batch(self) -> bool:
        """Whether the first axis of its input is free."""
        return bool(self._model.inputs[0].partial_shape[0].is_dynamic)

    def compiled(self, batch: int | None = None) -> Any:
        """A CompiledModel, for any batch or for one size alone."""
        with _in_one_line():
            model = self._model
            if batch is not None:
                model = model.clone()
                model.reshape([batch, *list(model.inputs[0].partial_shape)[1:]])
            compiled = self._core.compile_model(model, DEVICE, self._settings)
        if self._kept:
            require_marks(compiled, self._kept)
        return compiled


@contextmanager
def _in_one_line() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise AtmExportError(f"OpenVINO does not load the model: {one_line(error)}") from error


def settings_of(threads: int = 0, hint: str = "f32") -> dict[str, Any]:
    """What a model is compiled with; ConfigError for threads.

    On CPUs that have it, OpenVINO's default is bfloat16, which rounds similarities to 8 bits, and
    thresholds then decide otherwise than in PyTorch. Threads stay where the system puts them:
    pinned ones of several processes would share cores while others idle.
    """
    count = threads_or_usual(threads)
    return {
        "INFERENCE_PRECISION_HINT": hint,
        "EXECUTION_MODE_HINT": "ACCURACY",
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
        **({"INFERENCE_NUM_THREADS": count} if count else {}),
    }


def one_line(error: Exception) -> str:
    """What is wrong, of an error that begins with where in OpenVINO it was raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def library_and_model(graph: SavedGraph) -> tuple[Any, Any]:
    """OpenVINO, and the graph as it reads it."""
    library = openvino()
    with _in_one_line():
        return library, _model(library, library.Core(), graph)


def _model(library: Any, core: Any, graph: SavedGraph) -> Any:
    """The graph as OpenVINO reads it. Weights beside it are copied: OpenVINO shares arrays only
    where it may write to them."""
    if graph.graph.startswith(XML):
        (binary,) = graph.beside.values()
        return core.read_model(graph.graph, bytes(binary))
    if not locations(graph.graph):
        return _lean(core.read_model(graph.graph))
    text, weights = weights_as_inputs(graph.graph)
    model = core.read_model(text)
    parameters = {name: each for each in model.get_parameters() for name in each.output(0).names}
    for weight in weights:
        constant = library.op.Constant(array_of(weight, graph.beside))
        constant.set_friendly_name(weight.name)
        if weight.name in parameters:  # what nothing reads is gone
            parameters[weight.name].output(0).replace(constant.output(0))
            model.remove_parameter(parameters[weight.name])
    model.validate_nodes_and_infer_types()
    return _lean(model)


def _lean(model: Any) -> Any:
    """The same without the copies that OpenVINO's reader of ONNX puts in front of GatherND, in case
    batches differ; ours are of the same images."""
    for node in model.get_ordered_ops():
        if node.get_type_name() != "GatherND":
            continue
        for given in node.inputs():
            copy = given.get_source_output().get_node()
            if copy.get_type_name() == "Broadcast":
                own = copy.input_value(0)
                if own.get_partial_shape().rank == copy.output(0).get_partial_shape().rank:
                    given.replace_source_output(own)
    model.validate_nodes_and_infer_types()
    return model


def openvino() -> Any:
    """The package, without its telemetry; MissingDependencyError says how to install it."""
    try:
        with _without_telemetry():
            import openvino
    except ImportError as error:
        raise MissingDependencyError(
            'OpenVINO is not installed: pip install "atm-export[openvino]"'
        ) from error
    return openvino


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """OpenVINO's import sends an event and writes an identifier into the user's home folder, unless
    its package of telemetry is absent; so it is, meanwhile. A program that imported either before
    has made its own choice."""
    if TELEMETRY in sys.modules or "openvino" in sys.modules:
        yield
        return
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[TELEMETRY]
