"""Batches on a Ray cluster: the same counts, elsewhere.

The model and the graph go into the object store once, the images of a batch with its task, as
encoded bytes: nodes need no disk of this machine's.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any

from atm_export.backends.threads import use_threads
from atm_export.cluster import Reply, Shared, Tasks
from atm_export.measure.accuracy.batches import Options, answers_of, entry_of
from atm_export.measure.accuracy.runners import Carried, Engine, open_carried
from atm_export.measure.data.carried import CarriedReader, carried
from atm_export.measure.data.decode import decode
from atm_export.measure.data.samples import Samples
from atm_export.pictures import require_pictures
from atm_export.runs.carried import require_versions
from atm_export.runs.writing import versions
from atm_export.subject import Subject

NONE = CarriedReader({}, {})


class RayCounts:
    """Counts batches on the cluster at `address`, each with `threads` cores. busy: seconds of the
    whole cluster's in which a model ran."""

    def __init__(self, address: str, runner: Carried, subject: Subject, threads: int) -> None:
        require_pictures(subject.model.preprocessing.channels)
        self.tasks, self.tokens_from = Tasks(address, _counted_there, cpus=threads), runner.source
        model = replace(subject.model, own_images=None)  # may be what no other process can import
        values = {"subject": replace(subject, model=model), "runner": runner}
        self.model = self.tasks.shared(values.items())
        self.opening = Opening(threads, versions())
        self.start = 0.0

    @property
    def device(self) -> str:
        """What nodes run on; asks one where all was counted before."""
        if not self.tasks.device:
            list(self.tasks.replies([(0, (self.model, self.opening, NONE, False))]))
        return self.tasks.device

    @property
    def busy(self) -> float:
        return self.tasks.share * (time.perf_counter() - self.start)

    def entries(
        self, samples: Samples, batches: Mapping[int, range], options: Options
    ) -> Generator[tuple[int, dict[str, Any]]]:
        """As they come; the task decodes, whatever `options.workers` says. Raises
        `cluster.failure`."""
        self.start = time.perf_counter()
        calls = self._calls(samples, batches, options.unmerged)
        with closing(self.tasks.replies(calls)) as found:
            for k, (batch, answers) in found:
                yield k, entry_of(samples, batch, answers)

    def _calls(
        self, samples: Samples, batches: Mapping[int, range], unmerged: bool
    ) -> Iterator[tuple[int, tuple[Any, ...]]]:
        for k, batch in batches.items():
            names = {i: samples.name(i) for i in batch}
            reader = carried(samples.reader, names, batch)
            yield k, (self.model, self.opening, reader, unmerged)


@dataclass(frozen=True)
class Opening:
    """How a node opens the runner."""

    threads: int
    versions: Mapping[str, str]

    def opened(self, values: Mapping[str, Any]) -> tuple[Subject, Engine, ExitStack]:
        """The subject and its engine, entered for as long as the stack lives."""
        import torch

        require_versions(self.versions)
        torch.set_num_threads(use_threads(self.threads))
        subject, stack = values["subject"], ExitStack()
        return subject, stack.enter_context(open_carried(values["runner"], subject)), stack


def _counted_there(
    shared: Shared, opening: Opening, reader: CarriedReader, unmerged: bool
) -> Reply:
    subject, engine, _ = shared.kept(opening.opened)
    start = time.perf_counter()
    batch = decode(reader, subject.model.preprocessing, sorted(reader.pieces))
    begin = time.perf_counter()
    answers = answers_of(subject, engine, batch.pixels, unmerged) if batch.kept else {}
    end = time.perf_counter()
    value = replace(batch, pixels=batch.pixels[:0]), answers
    return Reply(value, engine.device, end - begin, end - start)
