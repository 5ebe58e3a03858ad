"""The one door to ONNX Runtime: every session of this package opens here.

What must be the same for all of them is decided here and nowhere else: TF32 is off, an error is one
line, who shares threads, and whether waiting threads spin.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from atm_export.bounds import checked_threads
from atm_export.errors import AtmExportError, MissingDependencyError

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

_shared_threads = 0


def share_threads(threads: int = 0) -> int:
    """Give measured sessions of this process one thread pool; returns the threads in force.

    Sessions that are measured in turn otherwise compete for cores: idle pools spin. ONNX Runtime
    allows this once, before the first session; later calls return the size that is in force.
    """
    global _shared_threads
    count = checked_threads(threads) or os.cpu_count() or 1
    if not _shared_threads:
        try:
            onnxruntime().set_global_thread_pool_sizes(count, 1)
        except Exception:  # a host program made a pool of its own before
            return count
        _shared_threads = count
    return _shared_threads


def open_session(
    graph: bytes | Path,
    *,
    providers: Sequence[str] = (CPU,),
    threads: int = 0,
    measured: bool = False,
    spin: bool = False,
    optimizations: Optimizations = "all",
) -> Any:
    """An InferenceSession; AtmExportError with one line where ONNX Runtime does not load the graph.

    providers: full names, in order of preference. threads: intra-op threads (0: those of
    `share_threads`, else one a core). measured: use the pool of `share_threads`, which spins.
    spin: waiting threads keep their cores, which is faster on an idle machine, and far slower on a
    loaded one. optimizations: none runs node by node, with no fusion that would drop a rounding.
    """
    ort = onnxruntime()
    ort.set_default_logger_severity(4)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    level = {"none": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "all": "ORT_ENABLE_ALL"}
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level[optimizations])
    if measured and _shared_threads:
        options.use_per_session_threads = False
    else:
        options.intra_op_num_threads = checked_threads(threads) or _shared_threads
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    try:
        return ort.InferenceSession(
            str(graph) if isinstance(graph, Path) else graph,
            options,
            providers=[
                (name, FP32_ONLY[name]) if name in FP32_ONLY else name for name in providers
            ],
        )
    except Exception as error:  # ONNX Runtime's errors share no public base class
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise AtmExportError(f"ONNX Runtime does not load the model: {line}") from error


def onnxruntime() -> Any:
    """The package; MissingDependencyError says how to install it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            "onnxruntime is not installed: pip install onnxruntime-gpu (or onnxruntime)"
        ) from error
    return onnxruntime
