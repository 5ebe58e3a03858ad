"""The pictures of a folder, of tar archives or of a list, in an order of their own."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from atm_export.errors import DataError
from atm_export.imagefiles import is_folder, is_image, open_regular, printable, walk
from atm_export.measure.data.archives import PACKED, entries
from atm_export.measure.data.readers import ArchiveReader, FileReader, Reader

TAR = ".tar"
MOST_LIST_BYTES = 2**30
MOST_PATH_BYTES = 4096


@dataclass(frozen=True)
class Pictures:
    """Pictures by number. names: what the user knows each by (`imagefiles.printable`): the path
    below the folder, the member of the archive, the line of the list. digest: a hash of the names,
    and of sizes and times of change of the files; another one means other pictures."""

    reader: Reader
    names: tuple[str, ...]
    digest: str

    def __len__(self) -> int:
        return len(self.names)


def open_pictures(place: str) -> Pictures:
    """The pictures at `place`: a folder with all below it, sorted; a .tar or a folder of them, in
    the order of the archives; or a text file that lists files.

    DataError where there are none, or where they cannot be listed. No picture is read.
    """
    path = Path(place)
    try:
        if is_folder(path):
            return _folder(path)
        if path.suffix.lower() == TAR:
            return _archives([path], path.parent, alone=True)
        if path.suffix.lower() in PACKED:
            raise DataError(f"{path} is compressed or no tar archive; unpack it first")
        if is_image(path.name):
            raise DataError(f"{path} is one picture; give a folder, a .tar or a list of files")
        return _listed(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _folder(path: Path) -> Pictures:
    files = sorted(place / name for place, _, names in walk(path) for name in names)
    images = tuple(file for file in files if is_image(file.name))
    tars = [f for f in files if f.suffix.lower() == TAR and not f.name.startswith("._")]
    if images and tars:
        raise DataError(
            f"{path} holds {len(images)} images and {len(tars)} tar files ({images[0].name}, "
            f"{tars[0].name}, ...); give a folder with one kind"
        )
    if tars:
        return _archives(tars, path, alone=False)
    if not images:
        raise DataError(f"no images in {path}")
    reader = FileReader(path, images)
    return _pictures(reader, (reader.name(i) for i in range(len(reader))), images)


def _archives(paths: Sequence[Path], root: Path, alone: bool) -> Pictures:
    """Members of an archive given alone by their path in it; of a folder's, `ARCHIVE/PATH`."""
    found = [(path, each) for path in paths for each in entries(path) if is_image(each.name)]
    if not found:
        raise DataError(f"no images in {paths[0] if alone else root}")
    reader = ArchiveReader(root, tuple(found))
    if alone:
        return _pictures(reader, (entry.name for _, entry in found), paths)
    return _pictures(reader, (reader.name(i) for i in range(len(reader))), paths)


def _listed(path: Path) -> Pictures:
    """Files of a list, whose relative paths start at its own folder; none needs to be there."""
    lines = [os.fsdecode(line) for line in _lines(path)]
    if not lines:
        raise DataError(f"no images in {path}: it lists nothing")
    files = tuple(path.parent / line for line in lines)
    return _pictures(FileReader(path.parent, files), lines, files)


def _lines(path: Path) -> list[bytes]:
    """Lines that hold something; with a NUL in it, what lies between NULs (`find -print0`)."""
    if not path.exists():
        raise DataError(f"no image folder, archive or list at {path}")
    with open_regular(path) as file:
        data = file.read(MOST_LIST_BYTES + 1)
    if len(data) > MOST_LIST_BYTES:
        raise DataError(f"{path} has more than {MOST_LIST_BYTES} bytes; split the list")
    if b"\0" in data:
        lines = data.split(b"\0")
    else:
        lines = [line.removesuffix(b"\r") for line in data.split(b"\n")]
    for number, line in enumerate(lines, start=1):
        if len(line) > MOST_PATH_BYTES:
            raise DataError(
                f"{path}: entry {number} has {len(line)} bytes and is no path; give a text file of "
                "paths, one a line"
            )
    return [line for line in lines if line.strip()]


def _pictures(reader: Reader, names: Iterable[str], files: Iterable[Path]) -> Pictures:
    shown = tuple(map(printable, names))
    digest = hashlib.sha256()
    for part in (*shown, *_states(files)):
        digest.update(f"{part}\n".encode())
    return Pictures(reader, shown, digest.hexdigest())


def _states(files: Iterable[Path]) -> Iterator[str]:
    """Size and time of change of each file, as far as it can be looked up."""
    for file in files:
        try:
            found = file.stat()
        except OSError:
            yield "absent"
        else:
            yield f"{found.st_size} {found.st_mtime_ns}"
