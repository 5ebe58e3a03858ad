"""A backend in one file: ONNX's own evaluator, which runs a graph node by node in NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from atm_export.backends import backends
from atm_export.backends.base import Backend
from atm_export.backends.runner import Array, Runner
from atm_export.graph.saving import graph_from_memory
from atm_export.runs.graphs import SavedGraph


class Evaluated:
    """A graph as a Runner: a context manager with `run`."""

    def __init__(self, graph: SavedGraph) -> None:
        self.model = ir.to_proto(graph_from_memory(graph))
        self.evaluator: Any = None

    def __enter__(self) -> Self:
        self.evaluator = ReferenceEvaluator(self.model)
        return self

    def __exit__(self, *error: object) -> None:
        self.evaluator = None

    def run(self, image: Array) -> Mapping[str, Array]:
        names = self.evaluator.output_names
        feeds = {self.evaluator.input_names[0]: image}
        return dict(zip(names, self.evaluator.run(None, feeds), strict=True))


class Reference(Backend):
    """Slow, and independent of every optimisation."""

    name: ClassVar[str] = "reference"
    title: ClassVar[str] = "ONNX reference"

    def about(self) -> str:
        return f"{self.title} {onnx.__version__}"

    def open_graph(self, graph: SavedGraph) -> Runner:
        return Evaluated(graph)


def register() -> None:
    """What an entry point of the group `atm_export.plugins` names."""
    backends.add(Reference.name, Reference())
