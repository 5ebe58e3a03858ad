"""The one door to ONNX Runtime: every session of this package opens here.

What must be the same for all of them is decided here and nowhere else: TF32 is off, an error is one
line, how many threads there are, and whether they spin while they wait.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from atm_export.backends.threads import threads_or_usual
from atm_export.errors import AtmExportError, MissingDependencyError, RuntimeVersionError
from atm_export.runs.graphs import SavedGraph

CPU = "CPUExecutionProvider"
# Less than FP32 rounds similarities (TF32 to 10 bits), and thresholds then decide otherwise than in
# PyTorch. Each provider's own switch for it:
FP32_ONLY: Mapping[str, dict[str, Any]] = {
    "CUDAExecutionProvider": {"use_tf32": 0},
    "OpenVINOExecutionProvider": {"precision": "FP32"},
}
# Providers that have no such switch, and what they do.
NOT_FP32: Mapping[str, str] = {
    "TensorrtExecutionProvider": "it computes FP32 products in TF32",
    "CoreMLExecutionProvider": "it may compute in FP16",
}
Optimizations = Literal["none", "basic", "all"]

Waiting = Literal["sleep", "spin", "spin while running"]
_SPINNING = "session.intra_op.allow_spinning"
_STOP_SPINNING = "session.force_spinning_stop"


def open_session(
    graph: SavedGraph,
    *,
    providers: Sequence[str] = (CPU,),
    threads: int = 0,
    waiting: Waiting = "sleep",
    optimizations: Optimizations = "all",
) -> Any:
    """An InferenceSession; AtmExportError with one line where ONNX Runtime does not load the graph.

    providers: full names, in order of preference. threads: intra-op threads (0: those of
    `backends.threads`, else one a core). waiting: threads that spin keep their cores, which is
    faster on an idle machine, and far slower on a loaded one; sessions that are measured in turn
    spin while they run alone, or they would compete for cores. optimizations: none runs node by
    node, with no fusion that would drop a rounding.
    """
    ort = onnxruntime()
    ort.set_default_logger_severity(4)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    level = {"none": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "all": "ORT_ENABLE_ALL"}
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level[optimizations])
    options.intra_op_num_threads = threads_or_usual(threads)
    options.add_session_config_entry(_SPINNING, str(int(waiting != "sleep")))
    options.add_session_config_entry(_STOP_SPINNING, str(int(waiting == "spin while running")))
    _give_weights(options, graph, ort.__version__)
    try:
        return ort.InferenceSession(
            graph.graph,
            options,
            providers=[
                (name, FP32_ONLY[name]) if name in FP32_ONLY else name for name in providers
            ],
        )
    except Exception as error:  # ONNX Runtime's errors share no public base class
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise AtmExportError(f"ONNX Runtime does not load the model: {line}") from error


def _give_weights(options: Any, graph: SavedGraph, version: str) -> None:
    """The files beside a graph, from memory: what was hashed is what runs. ONNX Runtime copies what
    it needs; RuntimeVersionError where it is too old to take them."""
    if not graph.beside:
        return
    if not hasattr(options, "add_external_initializers_from_files_in_memory"):
        raise RuntimeVersionError(
            f"onnxruntime {version} takes no weights beside the graph from memory; update it"
        )
    files = graph.beside
    sizes = [len(memoryview(data)) for data in files.values()]
    options.add_external_initializers_from_files_in_memory(list(files), list(files.values()), sizes)


def onnxruntime() -> Any:
    """The package; MissingDependencyError says how to install it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            "onnxruntime is not installed: pip install onnxruntime-gpu (or onnxruntime)"
        ) from error
    return onnxruntime
