"""Shards on a Ray cluster: the same answers, elsewhere.

The run's files go into the object store once, the pictures of a shard with its task, as encoded
bytes: nodes need no disk of this machine's.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from atm_export.cluster import Reply, Shared, Tasks
from atm_export.measure.data.carried import CarriedReader, carried
from atm_export.predict.answering import Answering
from atm_export.predict.asking import Asked
from atm_export.predict.pictures import Pictures
from atm_export.predict.shards import Shard
from atm_export.predict.table import Rows
from atm_export.runs.carried import packed, require_versions, unpacked
from atm_export.runs.reading import Run
from atm_export.runs.writing import versions
from atm_export.runtime.session import load

ON_GPUS = ("cuda", "tensorrt", "rocm")  # providers, as their names begin


@dataclass(frozen=True)
class Loading:
    """How a node loads the run that `folder` is here, by `load`'s keywords, and what it keeps of
    answers."""

    folder: str
    how: Mapping[str, Any]
    answering: Answering
    versions: Mapping[str, str]

    def asked(self, files: Mapping[str, bytes]) -> Asked:
        """The session of unpacked files; raises what `load` raises."""
        require_versions(self.versions)
        with unpacked(files, self.folder) as there:
            session = load(there, **self.how)
        session.run_folder = replace(session.run_folder, folder=Path(self.folder))
        return Asked(session, self.answering)


class RayAsked:
    """Answers of a run to shards on the cluster at `address`. how: `load`'s keywords, its threads
    the cores of a task. busy: seconds of the whole cluster's in which the model ran."""

    def __init__(
        self, address: str, run: Run, answering: Answering, how: Mapping[str, Any]
    ) -> None:
        gpus = any(name.lower().startswith(ON_GPUS) for name in how["providers"] or ())
        self.tasks = Tasks(address, _answered_there, cpus=how["threads"], gpus=int(gpus))
        self.loading = Loading(str(run.folder), how, answering, versions())
        self.files = self.tasks.shared(packed(run))
        self.start = 0.0

    @property
    def busy(self) -> float:
        return self.tasks.share * (time.perf_counter() - self.start)

    def numbered(
        self, pictures: Pictures, shards: Mapping[int, Shard], workers: int
    ) -> Generator[tuple[int, Rows]]:
        """Rows of each shard by its number, as they come; a thread of each task decodes, whatever
        `workers` says. Raises what a session's `run` raises, and `cluster.failure`."""
        self.start = time.perf_counter()
        with closing(self.tasks.replies(self._calls(pictures, shards))) as found:
            yield from found

    def _calls(
        self, pictures: Pictures, shards: Mapping[int, Shard]
    ) -> Iterator[tuple[int, tuple[Any, ...]]]:
        for k, shard in shards.items():
            chosen = [i for batch in shard for i in batch]
            names = {i: pictures.names[i] for i in chosen}
            yield k, (self.files, self.loading, carried(pictures.reader, names, chosen), shard)


def _answered_there(shared: Shared, loading: Loading, reader: CarriedReader, shard: Shard) -> Reply:
    asked: Asked = shared.kept(loading.asked)
    start, before = time.perf_counter(), asked.busy
    (rows,) = asked.shards(reader, reader.names, [shard], workers=0)
    seconds = time.perf_counter() - start
    return Reply(rows, asked.session.about, asked.busy - before, seconds)
