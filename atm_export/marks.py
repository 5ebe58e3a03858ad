"""Marks of files that are ours: a sealed list beside them names the hash of their bytes.

A run's manifest.json is such a list, and so is `.atm-export.json` beside loose files. What carries
no mark, or was changed since, is a user's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atm_export.runs.reading import MANIFEST
from atm_export.runs.seal import is_sealed, sha256
from atm_export.strict_json import loads

LIST = ".atm-export.json"  # the sealed list of our files in a folder

Marks = Mapping[str, frozenset[str]]


def marks(*lists: Path) -> Marks:
    """sha256 of every file that these sealed lists name; what is no sealed list names none."""
    found: dict[str, frozenset[str]] = {}
    for path in lists:
        for name, entry in entries_of(path).items():
            hashes = frozenset(str(entry[key]) for key in ("sha256", "before") if key in entry)
            found[name] = found.get(name, frozenset()) | hashes
    return found


def is_ours(path: Path, known: Marks) -> bool:
    """Whether a file carries our mark, and nothing changed in it since."""
    if path.is_symlink() or not path.is_file():
        return False
    if path.name in (MANIFEST, LIST):
        return is_sealed(path.read_bytes())
    return matches(path, known.get(path.name, frozenset()))


def matches(path: Path, hashes: frozenset[str]) -> bool:
    """Whether a file is there, and has one of these hashes."""
    return path.is_file() and not path.is_symlink() and sha256(path) in hashes


def entries_of(path: Path) -> dict[str, dict[str, Any]]:
    """What a sealed list says of each file."""
    files = read_list(path).get("files")
    entries = files.items() if isinstance(files, dict) else ()
    return {name: entry for name, entry in entries if isinstance(entry, dict)}


def read_list(path: Path) -> dict[str, Any]:
    """A sealed list, or nothing."""
    if path.is_symlink() or not path.is_file():
        return {}
    data = path.read_bytes()
    try:
        return loads(data, dict) if is_sealed(data) else {}
    except ValueError:
        return {}
