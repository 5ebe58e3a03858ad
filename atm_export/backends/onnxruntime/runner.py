"""ONNX Runtime as a Runner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from atm_export.backends.onnxruntime import door
from atm_export.backends.runner import Array
from atm_export.runs.graphs import SavedGraph


class OnnxRuntimeRunner:
    """Runs an ONNX model on the CPU (or other providers, in order of preference).

    The keywords are those of `door.open_session`.
    """

    def __init__(
        self,
        graph: SavedGraph,
        *,
        threads: int = 0,
        providers: Sequence[str] = (door.CPU,),
        waiting: door.Waiting = "sleep",
        optimizations: door.Optimizations = "all",
    ) -> None:
        self.graph = graph
        self.options: dict[str, Any] = {
            "threads": threads,
            "providers": tuple(providers),
            "waiting": waiting,
            "optimizations": optimizations,
        }
        self.session: Any = None

    def __enter__(self) -> Self:
        self.session = door.open_session(self.graph, **self.options)
        self.input = self.session.get_inputs()[0].name
        self.names = [output.name for output in self.session.get_outputs()]
        return self

    def __exit__(self, *error: object) -> None:
        self.session = None

    def run(self, image: Array) -> Mapping[str, Array]:
        """Outputs by name; image as the graph's input wants it."""
        return dict(zip(self.names, self.session.run(None, {self.input: image}), strict=True))
