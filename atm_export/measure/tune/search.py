"""The search among a method's settings: Optuna asks, workers score, a journal remembers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

from atm_export.errors import MissingDependencyError
from atm_export.measure.tune.objective import Known, Score, score, violation
from atm_export.measure.tune.space import Point, Search
from atm_export.methods.base import MethodSettings
from atm_export.model.backbone import Backbone
from atm_export.place import output_errors, own_folder
from atm_export.tasks.judge import Limits

NEAR = 1.04  # points within 4 % in GFLOPs count as equally cheap


Timed = Callable[[MethodSettings], dict[str, Any]]  # how fast settings are, as facts of a trial


class Workers(Protocol):
    """Scores settings of a method, `width` at a time."""

    width: int

    def submit(self, settings: MethodSettings, best: float) -> Any: ...

    def wait(self, waiting: Iterable[Any]) -> tuple[Any, Score]:
        """One of the tasks that is finished, and its score."""
        ...


class LocalWorkers:
    """One trial at a time in this process: the model itself uses all cores."""

    width = 1

    def __init__(self, backbone: Backbone, known: Known, limits: Limits) -> None:
        self.backbone, self.known, self.limits = backbone, known, limits

    def submit(self, settings: MethodSettings, best: float) -> Future[Score]:
        task: Future[Score] = Future()
        task.set_result(score(self.backbone, settings, self.known, self.limits, best))
        return task

    def wait(self, waiting: Iterable[Future[Score]]) -> tuple[Future[Score], Score]:
        task = next(iter(waiting))
        return task, task.result()


def load_optuna() -> Any:
    """Optuna, quiet; MissingDependencyError names the extra."""
    try:
        import optuna
    except ImportError as error:
        raise MissingDependencyError(
            "tuning needs optuna: pip install 'atm-export[tune]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def open_study(folder: Path, key: str) -> Any:
    """The study of `key` in the journal in `folder`, with what earlier processes left; OutputError
    if that folder is not ours, all of it."""
    optuna = load_optuna()
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    with output_errors(folder):
        own_folder(folder)
    path = folder / "trials.log"
    lock = JournalFileOpenLock(str(path))
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    study = optuna.create_study(
        storage=storage, study_name=key, direction="minimize", load_if_exists=True
    )
    study.sampler = optuna.samplers.TPESampler(
        seed=len(study.trials), multivariate=True, constant_liar=True
    )
    for trial in study.trials:  # a killed process left these unfinished: measure them again
        if trial.state == optuna.trial.TrialState.RUNNING:
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            study.enqueue_trial(trial.params)
    return study


def search(
    study: Any,
    workers: Workers,
    known: dict[str, Any],
    limits: Limits,
    plan: Search,
    first: Iterable[Point],
    progress: Callable[[list[dict[str, Any]]], None] = lambda done: None,
    clock: Callable[[], float] = time.monotonic,
    timed: Timed | None = None,
) -> list[dict[str, Any]]:
    """Run trials until there are enough or time is over; returns every finished one.

    timed: what is asked for is speed; it measures points that keep the limits.
    """
    if not study.trials:
        for point in first:
            study.enqueue_trial(plan.params(point))
    until = clock() + 60 * plan.minutes
    running: dict[Any, Any] = {}
    results = finished(study)
    while True:
        enough = len(results) + len(running) >= plan.trials or clock() >= until
        if not enough and len(running) < workers.width:
            trial = study.ask()
            point = plan.suggested(trial)
            same = next((r for r in results if r["point"] == point), None)
            if same is not None:  # the grid is finite: what is known is not measured again
                _tell(study, trial, same, known, limits)
                results = finished(study)
                continue
            running[workers.submit(plan.settings(point), _best(results))] = trial
            continue
        if not running:
            return results
        task, found = workers.wait(list(running))
        trial = running.pop(task)
        point = plan.point(trial.params)
        facts = {**found.facts(), "hopeless": found.hopeless, "point": point}
        worth = timed is not None and keeps(facts, known, limits)
        speed = timed(plan.settings(point)) if timed is not None and worth else {}
        _tell(study, trial, {**facts, **speed}, known, limits)
        results = finished(study)
        progress(results)


def keeps(facts: dict[str, Any], known: dict[str, Any], limits: Limits) -> bool:
    """Whether a trial lost no more than may be lost."""
    return violation(facts, known, limits) == 0 and not facts["hopeless"]


def _tell(
    study: Any, trial: Any, facts: dict[str, Any], known: dict[str, Any], limits: Limits
) -> None:
    """Record a trial: its value is its share of the unmerged time where that was measured, else of
    the unmerged GFLOPs, and a penalty for what is lost beyond the limits."""
    optuna = load_optuna()
    share = facts["gflops"] / known["gflops"]
    cost = 1 / facts["speedup"] if "speedup" in facts else share
    value = cost + 0.2 * violation(facts, known, limits)
    trial.set_user_attr("facts", {**facts, "keeps_limits": keeps(facts, known, limits)})
    if facts["hopeless"]:
        trial.report(value, facts["images"])
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    else:
        study.tell(trial, value)


def finished(study: Any) -> list[dict[str, Any]]:
    """Facts of every trial that ended, in order."""
    return [
        {"trial": trial.number, **trial.user_attrs["facts"]}
        for trial in study.trials
        if "facts" in trial.user_attrs and trial.state.is_finished()
    ]


def _best(results: list[dict[str, Any]]) -> float:
    return min((r["gflops"] for r in results if r["keeps_limits"]), default=math.inf)


def winner(results: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Of the points that keep the limits and cost at most NEAR more than the cheapest of them (take
    at most NEAR longer than the fastest, where they were timed), the one that moves the class token
    least: a few answers more or less are chance on a few hundred images, the class token's distance
    is not."""
    kept = [r for r in results if r["keeps_limits"]]
    if fast := [r for r in kept if "speedup" in r]:
        most = max(r["speedup"] for r in fast)
        near = [r for r in fast if NEAR * r["speedup"] >= most]
    else:
        near = [r for r in kept if r["gflops"] <= NEAR * _best(kept)]
    return min(near, key=lambda r: (r["distance"], r["gflops"])) if near else None


def pareto(results: list[dict[str, Any]], merit: str = "agreement") -> list[dict[str, Any]]:
    """Whole trials that no other beats in both GFLOPs and merit (a key of their facts), by
    GFLOPs."""
    whole = sorted(
        (r for r in results if not r["hopeless"]), key=lambda r: (r["gflops"], -r[merit])
    )
    front: list[dict[str, Any]] = []
    for r in whole:
        if not front or r[merit] > front[-1][merit]:
            front.append(r)
    return front
