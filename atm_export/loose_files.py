"""Files of ours in a folder that may be the user's: written beside a list that says so."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from atm_export.marks import LIST, entries_of, matches
from atm_export.place import REMEDY, output_errors, plain, refuse_loss, write_whole
from atm_export.runs.seal import sealed, sha256


def put_files(folder: Path, files: Mapping[str, bytes], remedy: str = REMEDY) -> None:
    """Write loose files into `folder`, made if missing, and list them as ours there.

    OutputError, before anything is written, if one would replace what is not ours; a file that
    holds these very bytes already is left as it is.
    """
    folder = plain(folder)
    files = {name: data for name, data in files.items() if not _holds(folder / name, data)}
    if not files:
        return
    refuse_loss(folder, [*files, LIST], remedy=remedy)
    with output_errors(folder, remedy):
        folder.mkdir(parents=True, exist_ok=True)
        _list_ours(folder, {n: hashlib.sha256(data).hexdigest() for n, data in files.items()})
        for name, data in files.items():
            write_whole(folder / name, data)


def put_written(
    folder: Path,
    files: Mapping[str, Path],
    key: str,
    *,
    force: bool = False,
    remedy: str = REMEDY,
) -> None:
    """Move files that lie whole on the same file system into `folder`, by name, and list them as
    ours there with `key`, which says what they were made of (`key_of`).

    OutputError, before anything is moved, as refuse_loss.
    """
    refuse_loss(folder, [*files, LIST], force=force, remedy=remedy)
    with output_errors(folder, remedy):
        _list_ours(folder, {name: sha256(path) for name, path in files.items()}, key)
        for name, path in files.items():
            path.replace(folder / name)


def key_of(path: Path) -> str | None:
    """What a loose file of ours was made of, as `put_written` was told; None where it is not ours,
    or was changed."""
    entry = entries_of(path.parent / LIST).get(path.name, {})
    return entry.get("key") if matches(path, frozenset({str(entry.get("sha256"))})) else None


def _list_ours(folder: Path, hashes: Mapping[str, str], key: str | None = None) -> None:
    entries = entries_of(folder / LIST)
    for name, digest in hashes.items():
        before = entries.get(name, {}).get("sha256")
        told = {"sha256": digest, "before": before, "key": key}
        entries[name] = {what: value for what, value in told.items() if value}
    write_whole(folder / LIST, sealed({"files": entries}))


def _holds(path: Path, data: bytes) -> bool:
    same = path.is_file() and not path.is_symlink() and path.stat().st_size == len(data)
    return same and path.read_bytes() == data
