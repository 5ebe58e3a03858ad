"""Shards: fixed runs of pictures, in batches of their own, and the folder where they wait.

A batch never crosses a shard, so that answers that depend on the batch are the same however often
the work was cut short.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atm_export import place
from atm_export.errors import OutputError
from atm_export.runs.seal import is_sealed, sealed
from atm_export.runs.writing import WorkFolder
from atm_export.strict_json import loads

RECORD = "record.json"

Shard = tuple[range, ...]  # its batches, as numbers of pictures


def shards_of(total: int, size: int, batch: int) -> list[Shard]:
    """`total` pictures in shards of `size`, each in batches of `batch`; last ones are shorter."""
    shards = [range(i, min(i + size, total)) for i in range(0, total, size)]
    return [tuple(shard[i : i + batch] for i in range(0, len(shard), batch)) for shard in shards]


def shard_name(number: int) -> str:
    """Of its file: none that a folder of pictures could hold as one."""
    return f"shard-{number:07d}"


def key_of(record: Mapping[str, Any]) -> str:
    """One hash over everything that decides what is written."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Target:
    """The file to write, links to its folder followed. listed: where unreadable pictures are."""

    folder: Path
    name: str

    @property
    def path(self) -> Path:
        return self.folder / self.name

    @property
    def listed(self) -> str:
        return f"{self.name}.unreadable.txt"

    @property
    def work(self) -> Path:
        return self.folder / f".{self.name}.work"


def target_of(out: Path, suffix: str) -> Target:
    """OutputError unless `out` may be a file of that suffix in a folder that is there or can be."""
    try:
        is_folder = out.is_dir()
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror}; {place.REMEDY}") from error
    if is_folder:
        raise OutputError(
            f"{out} is a folder; give a file in it, such as --out {out / f'features{suffix}'}"
        )
    if out.suffix != suffix or not out.name.isprintable():
        raise OutputError(f"{out} is no name of a {suffix} file; {place.REMEDY}")
    return Target(place.target(out.parent), out.name)


@contextmanager
def waiting_shards(
    target: Target, record: Mapping[str, Any], *, force: bool
) -> Iterator[WorkFolder]:
    """The locked work folder beside the target; it stays while shards of `record` wait in it, and
    goes once all is done.

    OutputError where shards of another record wait, unless by `force`: then they go.
    """
    made = [p for p in (target.folder, *target.folder.parents) if not p.exists()]
    try:
        with place.output_errors(target.path):
            place.own_folder(target.work)
        busy = f"another prediction is writing {target.path}; wait for it, or {place.REMEDY}"
        held = place.lock(target.work / "lock", busy)
        done = False
        try:
            work = WorkFolder(target.work, key_of(record))
            with place.output_errors(target.path):
                _take_up(work, record, target, force)
            yield work
            done = True
        finally:
            if done or not any(target.work.glob("shard-*.done")):
                place.remove_own_folder(target.work)
            held.release()
    except BaseException:
        _remove_empty(made)
        raise


def _take_up(work: WorkFolder, record: Mapping[str, Any], target: Target, force: bool) -> None:
    before = _record_in(work.path)
    if before is not None and before != record and not force:
        raise OutputError(
            f"{target.path} was begun with {_difference(before, record)}; give --force to start "
            f"anew, the same again to go on, or {place.REMEDY}"
        )
    if before != record:
        for path in work.path.glob("shard-*"):
            path.unlink()
        work.write(RECORD, sealed(record))


def _record_in(folder: Path) -> dict[str, Any] | None:
    """What the waiting shards were made of; None where nothing says it."""
    path = folder / RECORD
    data = path.read_bytes() if path.is_file() else b""
    if not is_sealed(data):
        return None
    with suppress(ValueError):
        return {name: each for name, each in loads(data, dict).items() if name != "seal"}
    return None


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In words: `batch 32, not 16`."""
    names = [name for name in now if before.get(name) != now[name]]
    told = [
        f"{name.replace('_', '-')} {before.get(name)}, not {now[name]}"
        if isinstance(now[name], int) or name in ("backend", "engine")
        else f"other {name}"
        for name in names
    ]
    return " and ".join(told) or "other options"


def _remove_empty(folders: Sequence[Path]) -> None:
    """Folders that were made, the innermost first, as far as nothing lies in them."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()
