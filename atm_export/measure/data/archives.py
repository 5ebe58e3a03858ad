"""The one door to tar archives: every member found, or the archive refused.

An archive is indexed once and read by offset, so that images are decoded in parallel and an
interrupted evaluation goes on where it was. Nothing is unpacked.
"""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from atm_export.errors import DataError
from atm_export.imagefiles import is_image, open_regular

PACKED = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".rar")
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
_BLOCK = 512
_PADDING = 16 * 2**20  # zeros that may follow the end; tar pads to a record of a few KiB
_HOPS = 40  # links to links, as a file system allows them


@dataclass(frozen=True)
class Entry:
    """A file in an archive: its path there, where its bytes lie, or why they cannot be read."""

    name: str
    offset: int
    size: int
    problem: str = ""


def entries(path: Path) -> list[Entry]:
    """Every file in the archive at `path`, in its order.

    DataError if it is cut off, damaged, compressed, goes on behind its end, holds a file twice, or
    points to folders elsewhere.
    """
    try:
        with open_regular(path) as file:
            _refuse_compressed(file, path)
            members, end = _members(file, path)
            _check_end(file, end, len(members), path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    return list(_files(members, path))


def read_entry(path: Path, entry: Entry) -> bytes:
    """The bytes of a file in the archive at `path`; OSError says why there are none."""
    if entry.problem:
        raise OSError(entry.problem)
    with open_regular(path) as file:
        file.seek(entry.offset)
        data = file.read(entry.size)
    if len(data) != entry.size:
        raise OSError(f"{path.name} was shortened")
    return data


def _refuse_compressed(file: IO[bytes], path: Path) -> None:
    start = file.read(8)
    file.seek(0)
    for magic, kind in _MAGIC.items():
        if start.startswith(magic):
            raise DataError(f"{path} is {kind}, no plain tar archive; unpack it first")


def _members(file: IO[bytes], path: Path) -> tuple[list[tarfile.TarInfo], int]:
    """Members up to where tarfile stops (it stops silently at what it cannot read), and where."""
    members: list[tarfile.TarInfo] = []
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            members.extend(archive)
            return members, archive.offset
    except MemoryError:
        raise
    except Exception as error:  # damaged headers raise nearly anything
        line = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(
            f"cannot read {path}: {line} behind {len(members)} files; is it cut off?"
        ) from error


def _check_end(file: IO[bytes], end: int, count: int, path: Path) -> None:
    """A whole archive ends in a block of zeros, and nothing but zeros follows."""
    file.seek(end)
    if file.read(_BLOCK) != bytes(_BLOCK):
        raise DataError(
            f"{path} is cut off or damaged at byte {end}, behind {count} files; fetch it again"
        )
    rest = file.read(_PADDING)
    if file.read(1) or rest.strip(b"\0"):
        raise DataError(
            f"{path} goes on behind its end at byte {end} (two archives joined?); give each alone"
        )


def _files(members: list[tarfile.TarInfo], path: Path) -> Iterator[Entry]:
    table = {_normal(info.name): info for info in members if not info.isdir()}
    seen: set[str] = set()
    for info in members:
        if info.isdir():
            continue
        name = _normal(info.name)
        if name in seen:
            raise DataError(f"{path} holds '{name}' twice; which one counts is open")
        seen.add(name)
        if name.lower().endswith(".tar"):
            raise DataError(f"{path} holds the archive '{name}'; unpack the outer one first")
        yield _entry(info, name, table, path)


def _entry(
    info: tarfile.TarInfo, name: str, table: Mapping[str, tarfile.TarInfo], path: Path
) -> Entry:
    target = _target(info, table)
    if target is None and (info.issym() or info.islnk()):
        if not is_image(name):
            raise DataError(
                f"{path}: '{name}' is a link to '{info.linkname}', which is no file in it; "
                "pack the files themselves (tar --dereference)"
            )
        return Entry(name, 0, 0, f"a link to '{info.linkname}', which is not in the archive")
    if target is None:
        return Entry(name, 0, 0, "no regular file in the archive")
    if target.issparse():
        return Entry(name, 0, 0, "stored with holes (tar --sparse)")
    return Entry(name, target.offset_data, target.size)


def _target(
    info: tarfile.TarInfo | None, table: Mapping[str, tarfile.TarInfo]
) -> tarfile.TarInfo | None:
    """The regular file that a member is or links to, if there is one."""
    for _ in range(_HOPS):
        if info is None or info.isreg():
            return info
        if not (info.issym() or info.islnk()):
            return None
        folder = posixpath.dirname(info.name) if info.issym() else ""
        info = table.get(_normal(posixpath.join(folder, info.linkname)))
    return None


def _normal(name: str) -> str:
    return posixpath.normpath(name).lstrip("/")
