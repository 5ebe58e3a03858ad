"""One prediction, from a run folder and a place of pictures to a Parquet file."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atm_export import loose_files, place
from atm_export.backends.base import AUTO, Backend
from atm_export.bounds import MAX_BATCH, MAX_COUNT, MAX_WORKERS, checked_threads, whole
from atm_export.errors import DataError, OutputError
from atm_export.marks import LIST
from atm_export.pictures import require_pictures
from atm_export.predict.answering import Answering, answering_of
from atm_export.predict.asking import Asked
from atm_export.predict.pictures import Pictures, open_pictures
from atm_export.predict.ray_shards import RayAsked
from atm_export.predict.shards import (
    Target,
    key_of,
    shard_name,
    shards_of,
    target_of,
    waiting_shards,
)
from atm_export.predict.table import Unreadable, joined, load_pyarrow, schema_of, shard_bytes
from atm_export.runs.reading import Run, open_run
from atm_export.runs.writing import WorkFolder, versions
from atm_export.runtime.session import chosen_backend, load

SUFFIX = ".parquet"
Say = Callable[[str], None]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Options:
    """How to predict. top_k: of a classifier (None: 5); batch: pictures that share r, as the
    adaptive policy runs them; shard_size: pictures that are kept together where the work is cut
    short; backend, engine, providers: as `runtime.load` takes them; threads: 0 for all cores; ray:
    the address of a cluster whose tasks answer, each with `threads` cores (0: one)."""

    top_k: int | None = None
    batch: int = 32
    shard_size: int = 512
    workers: int = 2
    backend: str | None = None
    engine: str | None = None
    providers: tuple[str, ...] | None = None
    threads: int = 0
    ray: str | None = None

    @property
    def cores(self) -> int:
        """Threads that the model has."""
        return self.threads or (1 if self.ray is not None else os.cpu_count() or 1)

    def check(self) -> None:
        """ConfigError for numbers that cannot be meant."""
        whole(self.batch, "--batch", 1, MAX_BATCH)
        whole(self.shard_size, "--shard-size", 1, MAX_COUNT)
        whole(self.workers, "--workers", 0, MAX_WORKERS)
        checked_threads(self.threads, "--threads")


@dataclass(frozen=True)
class Predicted:
    """What was written: the file, rows, what could not be read and where that is listed; of this
    session pictures, seconds, and seconds that the model ran. reused: all was there already."""

    out: Path
    rows: int = 0
    unreadable: Unreadable = ()
    listed: Path | None = None
    pictures: int = 0
    seconds: float = 0.0
    busy: float = 0.0
    reused: bool = False


@dataclass(frozen=True)
class _Job:
    """What is done: the run, its pictures, what is kept of answers, and how."""

    run: Run
    pictures: Pictures
    answering: Answering
    options: Options
    backend: Backend

    def facts(self) -> dict[str, str]:
        """What the file says of itself."""
        manifest = self.run.manifest
        return {
            "run": _run_hash(self.run, self.backend, self.options.engine),
            "model": manifest.model,
            "task": manifest.answers.task,
            "backend": self.backend.name,
            "batch": str(self.options.batch),
        }

    def record(self) -> dict[str, Any]:
        """All that decides the rows; how many workers decode does not."""
        options = self.options
        return {
            "run": self.facts()["run"],
            "pictures": self.pictures.digest,
            "top_k": self.answering.top_k or 0,
            "batch": options.batch,
            "shard_size": options.shard_size,
            "backend": self.backend.name,
            "engine": options.engine or AUTO,
            "providers": list(options.providers or ()),
            "threads": options.cores,
            "versions": versions(),
        }


def predict_run(
    folder: Path,
    images: str,
    out: Path,
    options: Options,
    *,
    force: bool = False,
    say: Say = lambda text: None,
    progress: Progress = lambda done, total: None,
) -> Predicted:
    """Answers of the run in `folder` to all pictures at `images` (`open_pictures`), as a Parquet
    file at `out`; goes on where the same prediction was cut short.

    force: replace a file of ours, and shards of another prediction. Raises what `runtime.load` and
    `open_pictures` raise, OutputError, and DataError if no picture can be read.
    """
    options.check()
    load_pyarrow()
    target = target_of(out, SUFFIX)
    run = open_run(folder)
    require_pictures(run.input.channels)
    answering = answering_of(run, options.top_k)
    say("looking for pictures")
    backend = chosen_backend(options.backend, options.engine)
    if options.ray is not None:
        backend.check_elsewhere()
    job = _Job(run, open_pictures(images), answering, options, backend)
    record = job.record()
    if _is_done(target, key_of(record), force):
        return Predicted(target.path, reused=True)
    with waiting_shards(target, record, force=force) as work:
        return _written(job, target, work, say, progress)


def _written(
    job: _Job, target: Target, work: WorkFolder, say: Say, progress: Progress
) -> Predicted:
    schema, total = schema_of(job.answering, job.facts()), len(job.pictures)
    shards = shards_of(total, job.options.shard_size, job.options.batch)
    todo = [k for k in range(len(shards)) if work.finished(shard_name(k)) is None]
    count = sum(len(batch) for k in todo for batch in shards[k])
    done, busy, start = total - count, 0.0, time.perf_counter()
    progress(done, total)
    if todo:
        say("loading the model")
        asked = _asked(job)
        start = time.perf_counter()
        chosen = {k: shards[k] for k in todo}
        with closing(asked.numbered(job.pictures, chosen, job.options.workers)) as found:
            for k, rows in found:
                work.write(shard_name(k), shard_bytes(schema, rows))
                done += sum(map(len, shards[k]))
                progress(done, total)
        busy = asked.busy
    seconds = time.perf_counter() - start
    rows_there, bad = _joined(work, target, len(shards), schema)
    listed = target.folder / target.listed if bad else None
    return Predicted(target.path, rows_there, bad, listed, count, seconds, busy)


def _asked(job: _Job) -> Asked | RayAsked:
    options = job.options
    how: dict[str, Any] = {
        "backend": options.backend,
        "providers": options.providers,
        "engine": options.engine,
        "threads": options.threads,
    }
    if options.ray is None:
        return Asked(load(job.run.folder, **how), job.answering)
    return RayAsked(options.ray, job.run, job.answering, {**how, "threads": options.cores})


def _joined(work: WorkFolder, target: Target, count: int, schema: Any) -> tuple[int, Unreadable]:
    """Join the shards and move the whole to its place, what could not be read first."""
    shards = [work.path / shard_name(k) for k in range(count)]
    with place.output_errors(target.path):
        rows, bad = joined(shards, schema, work.path / "joined")
    if not rows:
        for shard in work.path.glob("shard-*"):
            shard.unlink()
        name, reason = bad[0]
        raise DataError(f"none of {len(bad)} pictures can be read, the first: {name} ({reason})")
    files = {}
    with place.output_errors(target.path):
        if bad or (target.folder / target.listed).exists():
            (work.path / "unreadable").write_text(_lines(bad), encoding="utf-8", newline="\n")
            files[target.listed] = work.path / "unreadable"
    files[target.name] = work.path / "joined"
    loose_files.put_written(target.folder, files, work.key, force=True)
    return rows, bad


def _lines(unreadable: Sequence[tuple[str, str]]) -> str:
    """One picture a line: its name, a tab, the reason."""
    return "".join(f"{name}\t{reason}\n" for name, reason in unreadable)


def _is_done(target: Target, key: str, force: bool) -> bool:
    """Whether the file is there, of this very prediction, and need not be written again.

    OutputError if it is of another one (unless by `force`), or not ours.
    """
    place.refuse_loss(target.folder, [target.name, target.listed, LIST], force=force)
    if force or not target.path.exists():
        return False
    if loose_files.key_of(target.path) == key:
        return True
    raise OutputError(
        f"{target.path} was made of another run, other pictures or other options; give --force to "
        f"replace it, or {place.REMEDY}"
    )


def _run_hash(run: Run, backend: Backend, engine: str | None) -> str:
    """A hash of what answers: the export's key, its weights, and the files that may run. What is
    added to the folder later, such as an evaluation, does not change it."""
    names = backend.artifacts(run) if engine in (None, AUTO) else (engine,)
    files = run.manifest.files
    held = {name: files[name].sha256 for name in sorted(files) if name.startswith(tuple(names))}
    parts = [run.manifest.run_key, run.manifest.weights.sha256, held]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
