"""Batches that were counted, on disk at once: an interrupted evaluation loses none."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from atm_export.errors import OutputError
from atm_export.place import lock, output_errors, write_whole


class Journal:
    """Lines of JSON, each with a digest; a torn or foreign tail is dropped on opening.

    The first line is the key of what is counted: another key starts anew.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        self.entries: dict[int, Any] = {}
        self._file: IO[str] | None = None

    def open(self) -> None:
        """Read what is there, cut off what is not whole, and go on behind it; OutputError if it is
        no journal."""
        self._refuse_other_files()
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

    def _refuse_other_files(self) -> None:
        if not os.path.lexists(self.path):
            return
        first = b""
        if self.path.is_file() and not self.path.is_symlink():
            with self.path.open("rb") as file:
                first = file.readline(4096)
        digest, _, text = first.rstrip(b"\n").partition(b" ")
        if hashlib.sha256(text).hexdigest()[:16].encode() != digest:
            raise OutputError(f"{self.path} is no journal of atm-export; move it away")

    def _whole_lines(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        found: list[dict[str, Any]] = []
        for number, line in enumerate(self.path.read_text(encoding="utf-8").splitlines()):
            digest, _, text = line.partition(" ")
            if hashlib.sha256(text.encode()).hexdigest()[:16] != digest:
                break
            entry = json.loads(text)
            if number == 0 and entry != {"key": self.key}:
                return []
            found += [entry] if number else []
        return found


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
