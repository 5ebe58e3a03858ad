"""Trials of `tune` on a Ray cluster: the same scoring, elsewhere.

The images and the model go into Ray's object store once, so that nodes share nothing but the
cluster. A trial on a node that dies runs again on another.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from atm_export.cluster import RETRIES, failure, joined_cluster, width_of
from atm_export.measure.tune.objective import Known, Score, score
from atm_export.methods.base import MethodSettings
from atm_export.methods.given import method_settings
from atm_export.model.backbone import Backbone
from atm_export.tasks.judge import Limits


class RayWorkers:
    """As many trials at a time as the cluster has room for; each takes `cpus` cores."""

    def __init__(
        self, address: str, backbone: Backbone, known: Known, limits: Limits, cpus: int = 1
    ) -> None:
        self.ray = joined_cluster(address)
        self.width = width_of(self.ray, cpus)
        self.shared = [self.ray.put(part) for part in (backbone, known, limits)]
        self.remote = self.ray.remote(num_cpus=cpus, max_retries=RETRIES)(_score_there)

    def submit(self, settings: MethodSettings, best: float) -> Any:
        return self.remote.remote(*self.shared, settings.model_dump(), best)

    def wait(self, waiting: Iterable[Any]) -> tuple[Any, Score]:
        """Raises AtmExportError with the node's own words where a trial fails for good."""
        ready, _ = self.ray.wait(list(waiting), num_returns=1)
        try:
            found: Score = self.ray.get(ready[0])
        except self.ray.exceptions.RayError as error:
            raise failure(error, "a trial") from error
        return ready[0], found


def _score_there(
    backbone: Backbone, known: Known, limits: Limits, settings: dict[str, Any], best: float
) -> Score:
    import torch

    torch.set_num_threads(1)
    return score(backbone, method_settings(settings), known, limits, best)
