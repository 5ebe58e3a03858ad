"""One search from a model's name and a folder of images to a preset."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atm_export.bounds import MAX_BATCH, MAX_COUNT, MAX_WORKERS, whole
from atm_export.choice import WantedTask
from atm_export.config import ModelConfig, ModelSpec, RunConfig
from atm_export.errors import AtmExportError, ConfigError
from atm_export.measure.data.classes import ClassOrder
from atm_export.measure.data.whole import DataPlace, open_set, pixels_of
from atm_export.measure.tune.latency import Race, Timer
from atm_export.measure.tune.objective import Known, know, percents, score
from atm_export.measure.tune.search import (
    LocalWorkers,
    Workers,
    open_study,
    search,
    winner,
)
from atm_export.measure.tune.space import Point, Search, first_points, space_of
from atm_export.methods import methods
from atm_export.methods.given import settings_of
from atm_export.model.backbone import LoadedModel
from atm_export.model.plan import shape_of
from atm_export.model.zoo import load_model
from atm_export.model_configs import load_model_config
from atm_export.settings import validated
from atm_export.subject import Pixels
from atm_export.tasks import judge_of
from atm_export.tasks.judge import Judge, Limits

Progress = Callable[[list[dict[str, Any]]], None]


@dataclass(frozen=True)
class Tuning:
    """What to tune, on what, and within which limits (those given, by name: `Judge.bounds`; the
    usual for others). task: as for an export. use: images to tune on; the others, if there
    are any, confirm the result. methods: searched one after another, `trials` each; optional: their
    settings that are searched where asked for. race: where speed is measured, if that is what
    counts; else GFLOPs do.
    """

    model: str
    weights: str
    images: str
    labels: Path | None
    class_order: ClassOrder | None
    use: int | None
    batch: int
    workers: int
    limits: Mapping[str, float]
    trials: int
    minutes: float
    methods: tuple[str, ...]
    optional: tuple[str, ...] = ()
    race: Race | None = None
    task: WantedTask = "auto"


@dataclass(frozen=True)
class Tuned:
    """Every trial, the unmerged model's facts, the chosen one, and how it does on images that the
    search has not seen. names: the settings that make a point, of all methods."""

    results: list[dict[str, Any]]
    known: dict[str, Any]
    chosen: dict[str, Any] | None
    confirmed: dict[str, Any] | None
    labelled: bool
    names: tuple[str, ...]
    judge: Judge
    task: str


@dataclass(frozen=True)
class Material:
    """The model, and what it makes unmerged of the images to tune on and of the others."""

    model: LoadedModel
    seen: Known
    unseen: Known | None
    labelled: bool


def tune(
    task: Tuning,
    journal: Path,
    make_workers: Callable[[Any, Known, Limits], Workers] = LocalWorkers,
    say: Callable[[str], None] = lambda text: None,
    progress: Progress = lambda results: None,
) -> Tuned:
    """Search, and confirm the winner on the images left over."""
    _check(task)
    config = load_model_config(task.model)
    spec = _spec(task, config)
    say("loading the model")
    model = load_model(spec)
    answers = model.backbone.task
    judge = judge_of(answers, "tune")
    judge.check(task.limits, answers, [bound.name for bound in judge.bounds])
    limits = judge.limits(task.limits)
    searches = _searches(task, model)
    material = _material(task, model, say)
    seen, facts = material.seen, known_facts(judge, material.seen)
    workers = make_workers(model.backbone, seen, limits)
    results: list[dict[str, Any]] = []
    with ExitStack() as stack:
        timed = None
        if task.race is not None:
            say("preparing the unmerged export")
            run = RunConfig(model=spec, method=settings_of("none", {}))
            timed = stack.enter_context(Timer(run, model, seen.pixels, task.race))
        for plan, first in searches:
            study = open_study(journal, _key(task, limits, model, seen.pixels, plan))
            say(f"searching settings of {plan.method}")
            found = search(study, workers, facts, limits, plan, first, progress, timed=timed)
            results += [{**each, "method": plan.method} for each in found]
    chosen = winner(results)
    plans = {plan.method: plan for plan, _ in searches}
    confirmed = _confirmed(judge, chosen, plans, material, say)
    points = dict.fromkeys(name for plan in plans.values() for name in plan.names)
    return Tuned(
        results, facts, chosen, confirmed, material.labelled, tuple(points), judge, answers
    )


def _searches(task: Tuning, model: LoadedModel) -> list[tuple[Search, list[Point]]]:
    """The search of each method, and its first points; an optional setting is asked of the methods
    that have it, one of them at least."""
    found, config = [], load_model_config(task.model)
    for method in task.methods:
        shape = shape_of(model.backbone)
        optional = task.optional
        if len(task.methods) > 1:
            known = methods[method].search_space(shape)
            own = [knob.name for knob in known.knobs] if known else []
            optional = tuple(name for name in optional if name in own)
        space = space_of(method, shape, optional)
        plan = Search(task.trials, task.minutes, method, space.knobs, optional)
        found.append((plan, first_points(config, method, space)))
    return found


def _spec(task: Tuning, config: ModelConfig) -> ModelSpec:
    values = {"name": task.model, "config": config, "weights": task.weights, "task": task.task}
    spec: ModelSpec = validated(ModelSpec, values, "model")
    return spec


def _material(task: Tuning, model: LoadedModel, say: Callable[[str], None]) -> Material:
    place = DataPlace(task.images, task.labels, task.class_order)
    samples, labelled = open_set(place, model)
    say(f"decoding {len(samples)} images")
    pixels, right = pixels_of(samples, labelled, place, model, task.workers)
    cut = min(task.use or len(pixels), len(pixels))
    say("running the unmerged model")
    seen, unseen = _known(model, pixels, right, slice(0, cut), task), None
    if cut < len(pixels):
        unseen = _known(model, pixels, right, slice(cut, None), task)
    return Material(model, seen, unseen, labelled)


def _confirmed(
    judge: Judge,
    chosen: dict[str, Any] | None,
    plans: Mapping[str, Search],
    material: Material,
    say: Callable[[str], None],
) -> dict[str, Any] | None:
    """How the winner does on images that the search has not seen."""
    unseen = material.unseen
    if chosen is None or unseen is None:
        return None
    say("confirming on the other images")
    settings = plans[chosen["method"]].settings(chosen["point"])
    found = score(material.model.backbone, settings, unseen, judge.anything())
    return {**found.facts(), "unmerged": known_facts(judge, unseen)}


def known_facts(judge: Judge, known: Known) -> dict[str, Any]:
    """The unmerged model on these images, judged beside itself."""
    right = None if known.right is None else known.right.numpy()
    figures = percents(judge.trial(known.answers, known.answers, right))
    return {"images": len(known), "gflops": round(known.gmacs, 6), **figures}


def _check(task: Tuning) -> None:
    if not 0 <= task.minutes <= 10**6:
        raise ConfigError(f"--minutes {task.minutes:g}: give 0 to 1e+06")
    if task.race is not None:
        whole(task.race.batch, "--batch", 1, MAX_BATCH)
    whole(task.trials, "--trials", 1, 10**6)
    whole(task.batch, "--batch", 1, MAX_BATCH)
    whole(task.workers, "--workers", 0, MAX_WORKERS)
    if task.use is not None:
        whole(task.use, "--use", 1, MAX_COUNT)


def _known(
    model: LoadedModel, pixels: Pixels, right: torch.Tensor | None, part: slice, task: Tuning
) -> Known:
    chosen = None if right is None else right[part]
    return know(model.backbone, pixels[part], model.preprocessing, chosen, task.batch)


def _key(task: Tuning, limits: Limits, model: LoadedModel, pixels: Pixels, plan: Search) -> str:
    """Trials of the same key can be compared, and an interrupted search goes on among them."""
    facts = {
        "weights": model.weights["sha256"],
        "images": hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest(),
        "limits": asdict(limits),
        "batch": task.batch,
        "method": plan.method,
        "knobs": [asdict(knob) for knob in plan.turned],
    }
    if task.race is not None:
        facts["race"] = {**asdict(task.race), "threads": torch.get_num_threads()}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def require(tuned: Tuned) -> dict[str, Any]:
    """The chosen trial; AtmExportError says how near the search came."""
    if tuned.chosen is not None:
        return tuned.chosen
    whole = [r for r in tuned.results if not r["hopeless"]]
    merit = tuned.judge.merit.key
    near = max(whole, key=lambda r: r[merit], default=None)
    came = f"; the nearest: {tuned.judge.trial_text(near, tuned.known)}" if near else ""
    options = " or ".join(bound.option for bound in tuned.judge.bounds)
    raise AtmExportError(
        f"no operating point kept the limits in {len(tuned.results)} trials{came}; give more "
        f"--trials, or an easier {options}"
    )
