"""What a folder holds, to be compared before and after."""

from __future__ import annotations

import hashlib
from pathlib import Path


def snapshot(folder: Path) -> dict[str, tuple[object, ...]]:
    """Every name below `folder` with what it is: a link's target, a file's hash and time."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = ("link", str(path.readlink()))
        elif path.is_file():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found[name] = ("file", digest, path.stat().st_mtime_ns)
        else:
            found[name] = ("folder",)
    return found
