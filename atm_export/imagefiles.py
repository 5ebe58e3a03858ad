"""Files from outside: which lie in a folder, how they are opened, and how their names are written.

Folders behind links count; each folder counts once. Only regular files are opened.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from atm_export.errors import DataError

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\udc80-\udcff]")


def is_image(name: str) -> bool:
    """Whether a file is an image by its name; macOS keeps attributes, not images, in `._NAME`."""
    path = Path(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("._")


def is_folder(path: Path) -> bool:
    """Whether a folder is there; what the system cannot even look up (a name too long) is none."""
    try:
        return path.is_dir()
    except OSError:
        return False


def walk(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Each folder from `folder` down with the names of its folders and files, links followed.

    DataError where a folder cannot be listed, or is reached twice (a link that leads back, two
    links to one folder): its images would count twice.
    """
    seen: dict[str, Path] = {}
    for name, folders, files in os.walk(folder, followlinks=True, onerror=_unlisted):
        path, real = Path(name), os.path.realpath(name)
        if real in seen:
            raise DataError(
                f"{path} and {seen[real]} are one folder, by a link; its images would count twice, "
                "so remove one of them"
            )
        seen[real] = path
        folders.sort()
        yield path, folders, files


def _unlisted(error: OSError) -> None:
    raise DataError(f"cannot list {error.filename}: {error.strerror}") from error


def open_regular(path: Path) -> IO[bytes]:
    """Open a file to read; OSError if it is a pipe, a device or the like, which may never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("is no regular file")
    file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError("is no regular file")
    return os.fdopen(file, "rb")


def printable(name: str) -> str:
    """A file's name as reports write it, without loss: a backslash is doubled; each byte that is
    no UTF-8, and each byte of a control character, is written \\xNN."""
    return _UNPRINTABLE.sub(
        lambda found: "".join(
            f"\\x{byte:02x}" for byte in found[0].encode("utf-8", "surrogateescape")
        ),
        name.replace("\\", "\\\\"),
    )
