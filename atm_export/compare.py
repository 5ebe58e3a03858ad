"""Methods side by side on one model and one set of images: exported, proven, judged, timed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from atm_export.backends import ONNXRUNTIME
from atm_export.backends.threads import use_threads
from atm_export.choice import Choice, WantedTask
from atm_export.config import ModelConfig, RunConfig
from atm_export.errors import ConfigError, UnsupportedModelError, unknown_name
from atm_export.measure.accuracy.divergence import Divergence, Unmerged, divergence, run_unmerged
from atm_export.measure.budget import mean_gmacs, within_budget
from atm_export.measure.data.images import ImageSet
from atm_export.measure.data.whole import DataPlace, open_set, pixels_of
from atm_export.measure.speed.bench import Sweep, bench
from atm_export.measure.speed.candidates import UNMERGED, Candidate
from atm_export.methods import methods
from atm_export.methods.flat import flattened
from atm_export.methods.given import settings_of
from atm_export.model.backbone import LoadedModel
from atm_export.model.flops import unmerged_gmacs
from atm_export.model.plan import plan_for
from atm_export.model.zoo import load_model
from atm_export.model_configs import load_model_config
from atm_export.pipeline import export
from atm_export.resolving import Budget, default_out, resolve
from atm_export.runs.reading import open_run
from atm_export.runs.writing import versions
from atm_export.subject import Subject
from atm_export.tasks import judge_of

Say = Callable[[str], None]
ALL = "all"
FOUND_ON = 64  # images that a setting is found on
SETTING = re.compile(r":(?=\w+=)")  # before each setting of an entry
NEAR = 0.005  # GFLOPs by which a preset's may differ from those that are asked for


@dataclass(frozen=True)
class Contest:
    """What is compared, on what, and how it is timed. entries: names of methods or presets, each
    with settings behind colons (evit:keep=0.77); gflops: where entries leave the cost open (None:
    that of the model's default preset); rounds: 0: not timed; task: as for an export."""

    model: str
    weights: str
    place: DataPlace
    entries: tuple[str, ...]
    gflops: float | None
    batches: tuple[int, ...]
    rounds: int
    threads: int
    workers: int
    task: WantedTask = "auto"


@dataclass(frozen=True)
class Entrant:
    """One way to reduce tokens, settled; origin: where its settings come from."""

    name: str
    config: RunConfig
    origin: str


def compare(task: Contest, out: Path, say: Say = lambda text: None) -> dict[str, Any]:
    """The facts of the comparison; runs are exported below `out`, or reused there.

    A method that does not apply to the model stands in "left_out" with the reason. Raises
    ConfigError for entries that cannot be meant, DataError, and whatever all entries fail by.
    """
    config = load_model_config(task.model)
    entries = [_choice(task, text, config) for text in _spelled_out(task.entries)]
    say("loading the model")
    choice = Choice(model=task.model, weights=task.weights, method="none", task=task.task)
    model = load_model(resolve(choice).model)
    judge_of(model.backbone.task, "compare")
    known = _known(task, model, say)
    gflops = _cost(task, config, model, known)
    entrants, left_out = _settled(entries, gflops, model, known, say)
    runs = {each.name: _exported(each, out, say) for each in entrants}
    judged = {each.name: _judged(each, model, known, say) for each in entrants}
    timed = _timed(entrants, runs, model, known, task, say) if task.rounds else None
    first = judged[entrants[0].name]
    return {
        "model": task.model,
        "task": model.backbone.task,
        "weights": model.weights,
        "images": len(known.pixels),
        "gflops": gflops,
        "unmerged": {"gflops": unmerged_gmacs(model.backbone), "top1": known.top1()},
        "rows": [
            _row(each, model, judged[each.name].facts(None if each is entrants[0] else first))
            for each in entrants
        ],
        "left_out": left_out,
        "latency": timed,
        "versions": versions(),
    }


def _spelled_out(entries: Sequence[str]) -> list[str]:
    """Entries, "all" replaced by every method that reduces, each once."""
    every = [name for name in methods if name != "none"]
    listed = [name for text in entries for name in (every if text == ALL else [text])]
    return list(dict.fromkeys(listed))


def _choice(task: Contest, text: str, config: ModelConfig) -> tuple[str, Choice]:
    """An entry and what it chooses; ConfigError for one that is no method and no preset."""
    name, *settings = SETTING.split(text)
    if name in config.presets:
        preset, method = name, config.presets[name].method
    elif name in methods:
        preset, method = None, name
    else:
        raise unknown_name("method or preset", name, [*methods, *config.presets])
    return text, Choice(
        model=task.model,
        weights=task.weights,
        method=method,
        preset=preset,
        settings=tuple(settings),
        task=task.task,
    )


def _known(task: Contest, model: LoadedModel, say: Say) -> Unmerged:
    samples, labelled = open_set(task.place, model)
    say(f"decoding {len(samples)} images")
    pixels, right = pixels_of(samples, labelled, task.place, model, task.workers)
    say("running the unmerged model")
    return run_unmerged(model, pixels, right)


def _some(known: Unmerged) -> ImageSet:
    """Images that settings are found on."""
    return ImageSet(known.pixels[:FOUND_ON], "the compared images")


def _cost(task: Contest, config: ModelConfig, model: LoadedModel, known: Unmerged) -> float:
    """GFLOPs where entries leave them open: as given, else the default preset's, stated or
    measured."""
    if task.gflops is not None:
        return task.gflops
    preset = config.presets.get(config.default_preset or "")
    if preset is None:
        raise ConfigError(f"model '{task.model}' has no default preset; give --gflops")
    return preset.gflops or round(mean_gmacs(model, preset.chosen, _some(known)), 3)


def _settled(
    entries: Sequence[tuple[str, Choice]],
    gflops: float,
    model: LoadedModel,
    known: Unmerged,
    say: Say,
) -> tuple[list[Entrant], list[dict[str, str]]]:
    """Entries with all their settings, and those that do not apply to the model with the reason."""
    found, left_out, last = [], [], None
    for name, choice in entries:
        say(f"{name}: looking for settings")
        try:
            entrant = _entrant(name, choice, gflops, model, known)
            plan_for(model.backbone, entrant.config.method)
            found.append(entrant)
        except (ConfigError, UnsupportedModelError) as error:
            if choice.settings:
                raise
            last = error
            left_out.append({"name": name, "reason": str(error)})
    if not found:
        raise last or ConfigError("--methods names nothing to compare")
    return found, left_out


def _entrant(
    name: str, choice: Choice, gflops: float, model: LoadedModel, known: Unmerged
) -> Entrant:
    """As chosen; what names no settings takes the model's preset that states these GFLOPs, or else
    is fitted to them."""
    if choice.preset is not None or choice.settings:
        return Entrant(name, resolve(choice), "as given")
    presets = load_model_config(choice.model).presets
    for preset, told in presets.items():
        near = told.gflops is not None and abs(told.gflops - gflops) < NEAR
        if near and told.method == choice.method and not told.fine_tuned:
            return Entrant(name, resolve(replace(choice, preset=preset)), f"preset {preset}")
    start = settings_of(str(choice.method), methods[str(choice.method)].usual)
    found, _ = within_budget(model, start, _some(known), Budget(gflops, frozenset()))
    config = resolve(replace(choice, method="none"))
    return Entrant(name, config.model_copy(update={"method": found}), "fitted on these images")


def _exported(entrant: Entrant, out: Path, say: Say) -> Path:
    """Its finished run, proven; one that is there already is used again."""
    folder = out / default_out(entrant.config).name
    say(f"{entrant.name}: exporting")
    export(
        entrant.config,
        folder,
        benchmark=False,
        progress=lambda text: say(f"{entrant.name}: {text}"),
    )
    return folder


def _judged(entrant: Entrant, model: LoadedModel, known: Unmerged, say: Say) -> Divergence:
    say(f"{entrant.name}: judging")
    plan = plan_for(model.backbone, entrant.config.method)
    return divergence(
        model, plan, known, lambda done, of: say(f"{entrant.name}: {done} of {of} images")
    )


def _timed(
    entrants: Sequence[Entrant],
    runs: Mapping[str, Path],
    model: LoadedModel,
    known: Unmerged,
    task: Contest,
    say: Say,
) -> dict[str, Any]:
    """All runs and the unmerged export in turn, in ONNX Runtime."""
    subjects = {
        each.name: Subject(each.config, model, plan_for(model.backbone, each.config.method))
        for each in entrants
    }
    one = next(iter(subjects.values()))
    racing = [
        Candidate(UNMERGED, one.unmerged, one),
        *(Candidate(name, s.plan, s, open_run(runs[name])) for name, s in subjects.items()),
    ]
    sweep = Sweep((ONNXRUNTIME,), task.batches, task.rounds)
    return bench(racing, known.pixels[:FOUND_ON], sweep, use_threads(task.threads), say)


def _row(entrant: Entrant, model: LoadedModel, facts: Mapping[str, Any]) -> dict[str, Any]:
    settings = entrant.config.method
    method = methods[settings.name]
    return {
        "name": entrant.name,
        "method": settings.name,
        "settings": flattened(settings),
        "summary": method.summary(settings, plan_for(model.backbone, settings), None),
        "origin": entrant.origin,
        "run": default_out(entrant.config).name,
        **facts,
    }
