"""What a backend must offer: something that runs a graph, here or in a service.

A backend is one file: it subclasses `Backend` and registers itself in `atm_export.backends`.
Nothing here imports more than NumPy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, ClassVar

from atm_export.backends.pool import RunnerPool
from atm_export.backends.runner import Runner, Server, Serving
from atm_export.errors import (
    ConfigError,
    EngineMismatchError,
    MissingDependencyError,
    MissingFileError,
)
from atm_export.runs.engine_facts import FP32

if TYPE_CHECKING:
    import onnx_ir as ir

    from atm_export.methods.plan import Form
    from atm_export.runs.graphs import SavedGraph
    from atm_export.runs.reading import Run

GRAPH = "model.onnx"
AUTO = "auto"


class Backend(ABC):
    """Something that runs graphs, by name.

    name: as `--backend` has it; title: as messages say it. engines: it runs files that it builds of
    the graph (`backends.tensorrt`), not the graph itself. form: of the graph that it runs best; of
    another than "plain" a run has a file for it alone, where the plan has that form. precisions: of
    graphs that it runs.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    engines: ClassVar[bool] = False
    form: ClassVar[Form] = "plain"
    precisions: ClassVar[tuple[str, ...]] = (FP32,)

    def own_graph(self, precision: str = FP32) -> str:
        """File of a graph that is written for this backend alone: in its `form`, or below FP32."""
        return f"model.{precision}.{self.name}.onnx"

    def require(self) -> None:
        """MissingDependencyError or EngineMismatchError, with the remedy, where nothing can run
        here."""
        return None

    def about(self) -> str:
        """Name, version and device, as reports say what a graph was proven on."""
        return self.title

    def check_graph(self, model: ir.Model) -> None:
        """GraphLintError for the first construct that this backend refuses, or runs otherwise."""
        return None

    @abstractmethod
    def open_graph(self, graph: SavedGraph, precision: str = FP32) -> Runner:
        """A runner of a graph as it is saved, weights inside or beside it, to be entered.
        precision: that it was made for.

        Raises ConfigError where the backend runs engines alone.
        """

    def open_measured(
        self, graph: SavedGraph, precision: str = FP32, *, alone: bool = False
    ) -> Runner:
        """The same where it is measured: on the device that a service would take. alone: nothing
        else runs meanwhile, so that its threads may spin."""
        return self._opened(graph, precision)

    def quantized(self, traced: ir.Model, spans: Mapping[str, tuple[float, float]]) -> ir.Model:
        """An FP32 graph with linear layers in 8 bits. spans: least and largest input of each, by
        the name of its weight."""
        raise NotImplementedError

    def in_precision(
        self, graph: SavedGraph, precision: str, matching: Collection[str]
    ) -> SavedGraph:
        """An ONNX graph as it is run and saved in a precision. matching: names of the nodes that
        stay in FP32."""
        return graph

    def device(self, runner: Runner) -> str:
        """What an entered runner runs on, as results say it."""
        return self.title

    def artifacts(self, run: Run) -> tuple[str, ...]:
        """Files of a run that it can run, the most faithful first."""
        low = run.manifest.low_precision_of(self.name).values()
        return (run.manifest.graphs.get(self.name, GRAPH), *sorted(low))

    def check_artifact(self, run: Run, name: str) -> None:
        """EngineMismatchError, with all that differs, unless the file `name` runs here."""
        facts = run.manifest.low_precision.get(name)
        source = None if facts is None else run.manifest.files.get(facts.source.file)
        if facts is not None and (source is None or source.sha256 != facts.source.sha256):
            raise EngineMismatchError(
                f"{name} was made of another {facts.source.file}; export it again"
            )

    def open_artifact(self, run: Run, name: str) -> Runner:
        """A runner of a file of a run whose bytes are those that were checked, to be entered."""
        from atm_export.runs.graphs import read_graph

        return self._opened(read_graph(run, name), precision_of(run, name))

    def _opened(self, graph: SavedGraph, precision: str) -> Runner:
        """A backend of FP32 alone need not know of precisions."""
        return self.open_graph(graph) if precision == FP32 else self.open_graph(graph, precision)

    def check_serving(self, how: Serving) -> None:
        """ConfigError for what `serve` would ignore."""
        if how.providers is not None or how.threads:
            raise ConfigError(
                f"providers and threads are ONNX Runtime's; {self.title} takes neither"
            )

    def check_elsewhere(self) -> None:
        """ConfigError where its files run on this machine alone, and not on a cluster's nodes."""
        if self.engines:
            raise ConfigError(
                f"--ray runs graphs on other machines, and engines of {self.title} run on the GPU "
                "they were built for; leave --ray out, or take onnxruntime"
            )

    def serve(self, run: Run, name: str, how: Serving) -> Server:
        """The file as a service runs it: for any thread."""
        return RunnerPool(lambda: self.open_artifact(run, name), f"{self.about()}, {name}")


def graph_in(backend: Backend, run: Run, precision: str) -> str:
    """File of the run's graph for `backend` in a precision; ConfigError says how to add it,
    EngineMismatchError where it was made of another graph."""
    if precision == FP32:
        return backend.artifacts(run)[0]
    held = run.manifest.low_precision_of(backend.name)
    if precision not in held:
        raise ConfigError(
            f"{run.folder} has no graph in {precision} for {backend.title}; it has "
            f"{', '.join([FP32, *held])}; "
            + (
                f"{precision} is made by --backend {backend.name} --precision {precision}"
                if precision in backend.precisions
                else f"possible are {', '.join(backend.precisions)}"
            )
        )
    backend.check_artifact(run, held[precision])
    return held[precision]


def precision_of(run: Run, name: str) -> str:
    """What a graph of the run is made for."""
    facts = run.manifest.low_precision.get(name)
    return FP32 if facts is None else facts.precision


def choose_artifact(backend: Backend, run: Run, name: str = AUTO) -> str:
    """The file of `run` that `backend` runs here: `name`, or with "auto" the first that fits.

    Raises MissingFileError where there is none of that name, EngineMismatchError with each reason
    where none fits.
    """
    known = backend.artifacts(run)
    if name != AUTO:
        if name not in known:
            listed = ", ".join(known) or "none"
            raise MissingFileError(
                f"{run.folder} has no '{name}' for {backend.title}; it has: {listed}"
            )
        backend.check_artifact(run, name)
        return name
    reasons = []
    for each in known:
        try:
            backend.check_artifact(run, each)
            return each
        except (EngineMismatchError, MissingDependencyError) as error:
            reasons.append(str(error))
    raise EngineMismatchError(
        f"{run.folder} has no engine for this machine: {'; '.join(reasons) or 'none was built'}"
    )
