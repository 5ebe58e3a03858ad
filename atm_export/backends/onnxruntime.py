"""ONNX Runtime as a Runner."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import onnx

from atm_export.backends.runner import Array
from atm_export.errors import AtmExportError

_shared_threads = 0


def share_threads(threads: int = 0) -> int:
    """Give all sessions of this process one thread pool; returns its size.

    Sessions that are measured in turn otherwise compete for cores: idle pools spin. ONNX Runtime
    allows this once, before the first session; later calls return the size that is in force.
    """
    global _shared_threads
    import onnxruntime as ort

    count = threads or os.cpu_count() or 1
    if not _shared_threads:
        try:
            ort.set_global_thread_pool_sizes(count, 1)
        except Exception:  # a host program made a pool of its own before
            return count
        _shared_threads = count
    return _shared_threads


class OnnxRuntimeRunner:
    """Runs an ONNX model on the CPU (or other providers, in order of preference).

    threads: intra-op threads, 0 for ONNX Runtime's own choice; after `share_threads` every session
    uses the one pool of the process instead. exact: run the graph node by node, with no fusion that
    would drop a rounding.
    """

    def __init__(
        self,
        model: onnx.ModelProto | Path,
        *,
        threads: int = 0,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        exact: bool = False,
    ) -> None:
        self.model = model
        self.exact = exact
        self.threads = threads
        self.providers = tuple(providers)
        self.session: Any = None

    def __enter__(self) -> Self:
        import onnxruntime as ort

        ort.set_default_logger_severity(4)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        if self.exact:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if _shared_threads:
            options.use_per_session_threads = False
        else:
            options.intra_op_num_threads = self.threads
        source = self.model
        try:
            self.session = ort.InferenceSession(
                str(source) if isinstance(source, Path) else source.SerializeToString(),
                options,
                providers=list(self.providers),
            )
        except Exception as error:  # ONNX Runtime's errors share no public base class
            line = str(error).splitlines()[0]
            raise AtmExportError(f"ONNX Runtime does not load the model: {line}") from error
        self.names = [output.name for output in self.session.get_outputs()]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.session = None

    def run(self, image: Array) -> Mapping[str, Array]:
        """Outputs by name; image as the graph's input wants it."""
        return dict(zip(self.names, self.session.run(None, {"image": image}), strict=True))
