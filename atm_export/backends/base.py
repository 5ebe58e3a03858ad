"""What a backend must offer: something that runs a graph, here or in a service.

A backend is one file: it subclasses `Backend` and registers itself in `atm_export.backends`.
Nothing here imports more than NumPy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from atm_export.backends.pool import RunnerPool
from atm_export.backends.runner import Runner, Server, Serving
from atm_export.errors import (
    ConfigError,
    EngineMismatchError,
    MissingDependencyError,
    MissingFileError,
)

if TYPE_CHECKING:
    import onnx_ir as ir

    from atm_export.runs.graphs import SavedGraph
    from atm_export.runs.reading import Run

GRAPH = "model.onnx"
AUTO = "auto"


class Backend(ABC):
    """Something that runs graphs, by name.

    name: as `--backend` has it; title: as messages say it. engines: it runs files that it builds of
    the graph (`backends.tensorrt`), not the graph itself.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    engines: ClassVar[bool] = False

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
    def open_graph(self, graph: SavedGraph) -> Runner:
        """A runner of an FP32 graph as it is saved, weights inside or beside it, to be entered.

        Raises ConfigError where the backend runs engines alone.
        """

    def open_measured(self, graph: SavedGraph, *, alone: bool = False) -> Runner:
        """The same where it is measured: on the device that a service would take. alone: nothing
        else runs meanwhile, so that its threads may spin."""
        return self.open_graph(graph)

    def device(self, runner: Runner) -> str:
        """What an entered runner runs on, as results say it."""
        return self.title

    def artifacts(self, run: Run) -> tuple[str, ...]:
        """Files of a run that it can run, the most faithful first."""
        return (GRAPH,)

    def check_artifact(self, run: Run, name: str) -> None:
        """EngineMismatchError, with all that differs, unless the file `name` runs here."""
        return None

    def open_artifact(self, run: Run, name: str) -> Runner:
        """A runner of a file of a run whose bytes are those that were checked, to be entered."""
        from atm_export.runs.graphs import read_graph

        return self.open_graph(read_graph(run, name))

    def check_serving(self, how: Serving) -> None:
        """ConfigError for what `serve` would ignore."""
        if how.providers is not None or how.threads:
            raise ConfigError(
                f"providers and threads are ONNX Runtime's; {self.title} takes neither"
            )

    def serve(self, run: Run, name: str, how: Serving) -> Server:
        """The file as a service runs it: for any thread."""
        return RunnerPool(lambda: self.open_artifact(run, name), f"{self.about()}, {name}")


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
