"""How fast a trial's settings are: the graph that would ship, in turn with the unmerged one."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from atm_export.backends import backends
from atm_export.backends.base import Backend
from atm_export.backends.runner import Runner
from atm_export.config import RunConfig
from atm_export.errors import ConfigError
from atm_export.graph.optimize import with_outputs
from atm_export.graph.saving import in_memory
from atm_export.inputs import Pixels
from atm_export.measure.speed.latency import interleave, row_of
from atm_export.methods.base import MethodSettings
from atm_export.methods.plan import MergePlan
from atm_export.model.backbone import LoadedModel
from atm_export.model.plan import plan_for
from atm_export.subject import Subject
from atm_export.tasks.base import names

ROUNDS = {1: 40, 8: 15}  # by batch, the nearest at or below


@dataclass(frozen=True)
class Race:
    """Where a search measures speed."""

    backend: str
    batch: int

    def backend_of(self) -> Backend:
        """ConfigError where it runs no graphs."""
        found = backends[self.backend]
        if found.engines:
            raise ConfigError(
                f"--backend {self.backend} runs engines, which a search cannot build by the dozen; "
                "take a backend that runs graphs"
            )
        return found


class Timer:
    """Times settings on `pixels` [k, H, W, C], in batches, against the unmerged export; a context
    manager that holds the latter's runner."""

    def __init__(self, config: RunConfig, model: LoadedModel, pixels: Pixels, race: Race) -> None:
        self.config, self.model, self.race = config, model, race
        self.backend = race.backend_of()
        self.backend.require()
        count = max(1, min(8, len(pixels) // race.batch))
        self.chunks = [pixels[i * race.batch : (i + 1) * race.batch] for i in range(count)]
        self.stack = ExitStack()

    def __enter__(self) -> Self:
        plan = MergePlan.unmerged(len(self.model.backbone.parts()))
        self.unmerged = self.stack.enter_context(self._runner(plan))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stack.close()

    def __call__(self, settings: MethodSettings) -> dict[str, Any]:
        """median_ms a batch; speedup: median of paired ratios."""
        rounds = ROUNDS[max(batch for batch in ROUNDS if batch <= self.race.batch)]
        subject = Subject(self.config, self.model, plan_for(self.model.backbone, settings))
        feeds = [dict.fromkeys(("unmerged", "merged"), subject.feed(c)) for c in self.chunks]
        with self._runner(subject.plan) as runner:
            seconds = interleave({"unmerged": self.unmerged, "merged": runner}, feeds, rounds)
        row = row_of(seconds["merged"], seconds["unmerged"], self.race.batch, 1.0)
        return {"median_ms": row["median_ms"], "speedup": row["speedup"]["median"]}

    def _runner(self, plan: MergePlan) -> Runner:
        subject = Subject(self.config, self.model, plan)
        graph = subject.graph(plan, self.backend.form)
        graph = with_outputs(graph, names(self.model.backbone.outputs))
        return self.backend.open_measured(in_memory(graph), alone=True)
