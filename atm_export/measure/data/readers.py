"""Where images lie: files, tar archives, WebDataset shards, Hugging Face data sets.

A reader is small and picklable: decoding workers open their own copy. `name(i)` is what labels call
an image; `open(i)` gives a file object to read.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

from atm_export.errors import DataError, MissingDependencyError
from atm_export.imagefiles import open_regular
from atm_export.measure.data.archives import Entry, read_entry
from atm_export.pictures import MOST_BYTES


class Reader(Protocol):
    """Images by number."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def open(self, index: int) -> IO[bytes]: ...


def read(reader: Reader, index: int) -> bytes:
    """An image's encoded bytes; OSError or DataError says why there are none."""
    with reader.open(index) as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise DataError(f"larger than {MOST_BYTES // 2**20} MiB")
    return data


def content(reader: Reader, index: int) -> str:
    """A hash of an image's encoded bytes; empty if they cannot be read."""
    try:
        return content_of(read(reader, index))
    except MemoryError:
        raise
    except Exception:  # as when it is decoded
        return ""


def content_of(data: bytes) -> str:
    """The hash of encoded bytes."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class FileReader:
    """Image files, named by their path below `root`."""

    root: Path
    files: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        return self.files[index].relative_to(self.root).as_posix()

    def open(self, index: int) -> IO[bytes]:
        return open_regular(self.files[index])

    def folder(self, index: int) -> PurePosixPath | None:
        """The class folder of an image, from the root; None: it lies in none."""
        parent = PurePosixPath(self.name(index)).parent
        return parent if parent.name else None


@dataclass(frozen=True)
class ArchiveReader:
    """Images in tar archives, named `ARCHIVE/PATH`; archives by their path below `root`.
    by_archive: an image in no folder of its archive belongs to the class that the archive names."""

    root: Path
    members: tuple[tuple[Path, Entry], ...]
    by_archive: bool = False

    def __len__(self) -> int:
        return len(self.members)

    def name(self, index: int) -> str:
        path, entry = self.members[index]
        return f"{path.relative_to(self.root).as_posix()}/{entry.name}"

    def open(self, index: int) -> IO[bytes]:
        path, entry = self.members[index]
        if entry.size > MOST_BYTES:
            raise DataError(f"larger than {MOST_BYTES // 2**20} MiB")
        return io.BytesIO(read_entry(path, entry))

    def folder(self, index: int) -> PurePosixPath | None:
        """The class folder of an image, from the top of its archive; None: it lies in none."""
        path, entry = self.members[index]
        parent = PurePosixPath(entry.name).parent
        if parent.name or not self.by_archive:
            return parent if parent.name else None
        return PurePosixPath(path.relative_to(self.root).with_suffix(""))


class HuggingFaceReader:
    """A Hugging Face data set through timm's reader, opened on first use in each process."""

    def __init__(self, root: str, split: str) -> None:
        self.root, self.split = root, split

    def __getstate__(self) -> dict[str, Any]:
        return {key: self.__dict__[key] for key in ("root", "split")}

    @cached_property
    def inner(self) -> Any:
        try:
            from timm.data.readers.reader_factory import create_reader

            return create_reader(f"hfds/{self.root}", None, split=self.split)
        except ImportError as error:
            raise MissingDependencyError(
                "Hugging Face data sets need the package datasets: pip install 'atm-export[data]'"
            ) from error
        except Exception as error:  # data sets fail in many ways
            raise self._cannot(error) from error

    def __len__(self) -> int:
        return len(self.inner)

    def name(self, index: int) -> str:
        return str(self.inner.filename(index) or f"{self.split}[{index}]")

    def open(self, index: int) -> IO[bytes]:
        file: IO[bytes] = self.inner[index][0]
        return file

    def classes(self) -> list[int]:
        """The data set's own class of each image."""
        try:
            return [int(target) for target in self.inner.iter_targets()]
        except (TypeError, ValueError, KeyError) as error:
            raise self._cannot(error) from error

    def class_names(self) -> dict[int, str]:
        """Names of the data set's classes, where it has any."""
        return {int(index): name for name, index in (self.inner.class_to_idx or {}).items()}

    def _cannot(self, error: Exception) -> DataError:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        return DataError(f"cannot read {self.root} (split {self.split}): {line}")
