"""Batches that were counted, on disk at once: an interrupted evaluation loses none."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import IO, Any

from atm_export.errors import OutputError
from atm_export.imagefiles import open_regular
from atm_export.place import lock, output_errors, write_whole
from atm_export.strict_json import loads


class Journal:
    """Lines of JSON, each with a digest; what follows a torn or broken line is dropped on opening.

    The first line is the key of what is counted: another key starts anew. A file with another first
    line is no journal, and is left as it is.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        self.entries: dict[int, Any] = {}
        self._file: IO[str] | None = None

    def open(self) -> None:
        """Read what is there, cut off what is not whole, and go on behind it; OutputError if it is
        no journal."""
        lines = self._whole_lines()
        self.entries = {int(entry["batch"]): entry for entry in lines}
        with output_errors(self.path):
            text = "".join(_line(entry) for entry in ({"key": self.key}, *lines))
            write_whole(self.path, text.encode())
            self._file = self.path.open("a", encoding="utf-8")

    def add(self, entry: dict[str, Any]) -> None:
        """Count one batch (its number under "batch"), on disk before this returns."""
        assert self._file is not None
        with output_errors(self.path):
            self._file.write(_line(entry))
            self._file.flush()
            os.fsync(self._file.fileno())
        self.entries[int(entry["batch"])] = entry

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _whole_lines(self) -> list[dict[str, Any]]:
        """The batches of this key up to the first broken line; OutputError if there is what is no
        journal at all."""
        if self.path.is_symlink():
            raise OutputError(f"{self.path} is a link, and no journal of atm-export; move it away")
        if not self.path.exists():
            return []
        with output_errors(self.path), open_regular(self.path) as file:
            lines = file.read().split(b"\n")
        first = _entry(lines[0])
        if first is None or set(first) != {"key"}:
            raise OutputError(
                f"{self.path} is no journal of atm-export, or a broken one; move it away, or "
                "remove it to start anew"
            )
        if first != {"key": self.key}:
            return []
        found = takewhile(lambda entry: entry is not None, map(_entry, lines[1:]))
        return [entry for entry in found if entry is not None and type(entry.get("batch")) is int]


def _entry(line: bytes) -> dict[str, Any] | None:
    """The entry of a whole line, or None."""
    digest, _, text = line.partition(b" ")
    if hashlib.sha256(text).hexdigest()[:16].encode() != digest:
        return None
    try:
        return loads(text, dict)
    except ValueError:
        return None


def _line(entry: dict[str, Any]) -> str:
    text = json.dumps(entry, separators=(",", ":"))
    return f"{hashlib.sha256(text.encode()).hexdigest()[:16]} {text}\n"


@contextmanager
def journal(path: Path, key: str) -> Iterator[Journal]:
    """The journal at `path`, held by one process; it stays on disk until `path` is removed."""
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    held = lock(path.with_suffix(".lock"), f"another evaluation is writing {path}; wait for it")
    book = Journal(path, key)
    try:
        book.open()
        yield book
    finally:
        book.close()
        held.release()
        path.with_suffix(".lock").unlink(missing_ok=True)
