"""The one door to OpenVINO: every model of this package compiles here.

What must be the same for all of them is decided here and nowhere else: the precision is FP32, how
many threads there are, an error is one line, and nothing is reported to the library's makers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from atm_export.backends.openvino.weights import array_of, weights_as_inputs
from atm_export.backends.threads import threads_or_usual
from atm_export.errors import AtmExportError, MissingDependencyError
from atm_export.runs.graphs import SavedGraph, locations

DEVICE = "CPU"
PRECISION = "f32"
TELEMETRY = "openvino_telemetry"


class Graph:
    """An FP32 graph as OpenVINO has read it, from the bytes that were checked; to be compiled.

    threads: 0: those of `backends.threads`, else OpenVINO's own number, one a physical core.
    AtmExportError with one line where OpenVINO does not take the graph; MissingDependencyError.
    """

    def __init__(self, graph: SavedGraph, *, threads: int = 0) -> None:
        library = openvino()
        self._settings = settings_of(threads)
        self._core = library.Core()
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
            return self._core.compile_model(model, DEVICE, self._settings)


@contextmanager
def _in_one_line() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise AtmExportError(f"OpenVINO does not load the model: {one_line(error)}") from error


def settings_of(threads: int = 0) -> dict[str, Any]:
    """What a model is compiled with; ConfigError for threads.

    On CPUs that have it, OpenVINO's default is bfloat16, which rounds similarities to 8 bits, and
    thresholds then decide otherwise than in PyTorch. Threads stay where the system puts them:
    pinned ones of several processes would share cores while others idle.
    """
    count = threads_or_usual(threads)
    return {
        "INFERENCE_PRECISION_HINT": PRECISION,
        "EXECUTION_MODE_HINT": "ACCURACY",
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
        **({"INFERENCE_NUM_THREADS": count} if count else {}),
    }


def one_line(error: Exception) -> str:
    """What is wrong, of an error that begins with where in OpenVINO it was raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _model(library: Any, core: Any, graph: SavedGraph) -> Any:
    """The graph as OpenVINO reads it. Weights beside it are copied: OpenVINO shares arrays only
    where it may write to them."""
    if not locations(graph.graph):
        return core.read_model(graph.graph)
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
