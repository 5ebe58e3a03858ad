"""One evaluation of a run folder, from the data set's place to the numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from atm_export.backends.threads import use_threads
from atm_export.bounds import MAX_BATCH, MAX_COUNT, MAX_WORKERS, checked_threads, whole
from atm_export.errors import ConfigError, unknown_name
from atm_export.imagefiles import printable
from atm_export.measure.accuracy.batches import (
    Counter,
    Counts,
    Options,
    count_batches,
    summarize,
)
from atm_export.measure.accuracy.journal import journal
from atm_export.measure.accuracy.place import Place, samples_of
from atm_export.measure.accuracy.predictions import predictions_csv
from atm_export.measure.accuracy.ray_batches import RayCounts
from atm_export.measure.accuracy.runners import (
    EAGER,
    carried_runner,
    file_of,
    open_runner,
    runner_names,
)
from atm_export.measure.data.samples import Samples
from atm_export.place import beside
from atm_export.runs.reading import Run
from atm_export.runs.writing import versions
from atm_export.subject import Subject, exported_subject
from atm_export.tasks import judge_of


@dataclass(frozen=True)
class Evaluation:
    """The numbers, one line an image, the journal behind them, and the bounds that they break."""

    facts: dict[str, Any]
    predictions: str
    journal: Path
    broken: tuple[str, ...] = ()

    def files(self) -> dict[str, bytes]:
        """What goes into the run folder, by name."""
        text = json.dumps(self.facts, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        names = result_names(self.facts["runner"])
        return dict(zip(names, (text.encode(), self.predictions.encode()), strict=True))


def result_names(runner: str) -> tuple[str, str]:
    """Files of an evaluation: its numbers, and one line an image."""
    return f"evaluation-{runner}.json", f"predictions-{runner}.csv"


def evaluate_run(
    run: Run,
    place: Place,
    options: Options,
    *,
    bounds: Mapping[str, float] | None = None,
    weights: str | None = None,
    threads: int = 0,
    ray: str | None = None,
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Evaluate a run; goes on where an interrupted evaluation of the same things stopped. bounds:
    what the task's judge may find, by name (`Judge.evaluated`). ray: the address of a cluster whose
    tasks count the batches, each with `threads` cores (0: one)."""
    _check(options)
    checked_threads(threads, "--threads")
    threads = use_threads(threads or (0 if ray is None else 1))
    task, bounds = run.manifest.answers.task, bounds or {}
    judge = judge_of(task, "evaluate")
    judge.check(bounds, task, judge.evaluated)
    if bounds and not options.unmerged:
        raise ConfigError("bounds compare with the unmerged model; leave out --no-unmerged")
    say("looking through the data set")
    samples, vectors = samples_of(run, place)
    say("loading the model")
    needed = options.unmerged or options.runner == EAGER
    subject = exported_subject(
        run.manifest, f"{run.folder}/manifest.json", weights, need_weights=needed
    )
    path = beside(run.folder, f"evaluation-{options.runner}.jsonl")
    say(f"opening the runner {options.runner}")
    key = _key(run, subject, samples, options)
    counting = _counting(run, subject, options, ray, threads)
    with counting as counter, journal(path, key) as book:
        rate = count_batches(judge, counter, samples, options, book, progress)
        facts = summarize(subject, counter, samples, options, book, vectors)
        facts["data"]["place"] = printable(Path(place.images).name)
        facts |= {"threads": threads, "rate": rate, "versions": versions()}
        table = predictions_csv(samples, judge, book)
        return Evaluation(facts, table, path, tuple(judge.broken(facts, bounds)))


@contextmanager
def _counting(
    run: Run, subject: Subject, options: Options, ray: str | None, threads: int
) -> Iterator[Counter]:
    """What counts batches, here or on a cluster."""
    if ray is None:
        with open_runner(options.runner, run, subject) as engine:
            yield Counts(subject, engine)
    else:
        yield RayCounts(ray, carried_runner(options.runner, run, subject), subject, threads)


def _check(options: Options) -> None:
    """ConfigError for names and numbers that cannot be meant."""
    if options.runner not in runner_names():
        raise unknown_name("runner", options.runner, runner_names())
    whole(options.batch, "--batch", 1, MAX_BATCH)
    whole(options.workers, "--workers", 0, MAX_WORKERS)
    whole(options.max_unreadable, "--max-unreadable", 0, MAX_COUNT)
    if options.limit is not None:
        whole(options.limit, "--limit", 1, MAX_COUNT)


def _key(run: Run, subject: Subject, samples: Samples, options: Options) -> str:
    """Everything that decides what a batch gives but the images' bytes, which each batch notes; how
    many workers decode does not."""
    chosen = asdict(options)
    for name in ("workers", "max_unreadable", "limit"):
        chosen.pop(name)
    facts = {
        "graph": run.manifest.files[file_of(options.runner, run)].sha256,
        "weights": subject.same_weights,
        "samples": samples.listing(),
        "options": chosen,
        "limit": options.limit,
        "versions": versions(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
