"""The one reader of JSON: of bounded size and depth, each key once, every number finite.

What comes from outside (manifests, reports, labels, journals, tensor headers) is read here and
nowhere else. Nothing here imports more than the standard library.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, TypeVar

from atm_export.errors import AtmExportError

Kind = TypeVar("Kind")
MOST_BYTES = 16 * 2**20
DEEPEST = 32
LARGEST = 2**63


def loads(data: bytes | str, kind: type[Kind], *, most: int = MOST_BYTES) -> Kind:
    """What `data` (UTF-8) holds, of this kind (dict, list, object); ValueError says in a few words
    what is wrong."""
    if len(data) > most:
        raise ValueError(f"{len(data)} bytes, {most} at most")
    text = data.decode("utf-8") if isinstance(data, bytes) else data
    try:
        value = json.loads(text, object_pairs_hook=_each_once, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, kind):
        raise ValueError(f"holds no {'list' if kind is list else 'object'}")
    _check(value)
    return value


def read(
    path: Path,
    error: type[AtmExportError],
    kind: type[Kind],
    *,
    fix: str = "export again",
    most: int = MOST_BYTES,
) -> Kind:
    """What a file holds, of this kind; `error` names the file and says how to `fix` it."""
    try:
        if not path.is_file():
            raise ValueError("no such file")
        if path.stat().st_size > most:
            raise ValueError(f"{path.stat().st_size} bytes, {most} at most")
        return loads(path.read_bytes(), kind, most=most)
    except (OSError, ValueError) as wrong:
        raise error(f"{path} cannot be read ({_words(wrong)}); {fix}") from wrong


def _words(wrong: OSError | ValueError) -> str:
    return (wrong.strerror if isinstance(wrong, OSError) else None) or str(wrong)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"two values for the key {twice[:40]!r}")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _check(value: Any) -> None:
    """ValueError unless numbers are finite, texts can be written, and nothing nests too deeply."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise ValueError("nested too deeply")
        below: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                below += [*each, *each.values()]
            elif isinstance(each, list):
                below += each
            elif isinstance(each, str):
                each.encode()  # half a surrogate pair cannot be printed or written
            elif isinstance(each, float) and not math.isfinite(each):
                raise ValueError("a number that is not finite")
            elif isinstance(each, int) and not -LARGEST <= each < LARGEST:
                raise ValueError("a number of more than 64 bits")
        level = below
