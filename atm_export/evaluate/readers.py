"""Where images lie: files, tar archives, WebDataset shards, Hugging Face data sets.

A reader is small and picklable: decoding workers open their own copy. `name(i)` is what a report
calls an image; `open(i)` gives a file object to decode.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Protocol

from atm_export.errors import DataError, MissingDependencyError
from atm_export.preprocess import IMAGE_SUFFIXES


class Reader(Protocol):
    """Images by number."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def open(self, index: int) -> IO[bytes]: ...


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
        return self.files[index].open("rb")


@dataclass(frozen=True)
class ShardReader:
    """WebDataset shards: images by (shard, offset, bytes, key).

    Indexed once instead of streamed (as timm's `wds/` reader does), so that images are decoded in
    parallel, and an interrupted evaluation goes on where it was.
    """

    members: tuple[tuple[Path, int, int, str], ...]

    def __len__(self) -> int:
        return len(self.members)

    def name(self, index: int) -> str:
        shard, _, _, key = self.members[index]
        return f"{shard.name}/{key}"

    def open(self, index: int) -> IO[bytes]:
        shard, offset, size, _ = self.members[index]
        with shard.open("rb") as file:
            file.seek(offset)
            return io.BytesIO(file.read(size))


class TimmReader:
    """One of timm's readers (`timm.data.readers`), opened on first use in each process."""

    def __init__(self, kind: str, root: str, split: str, class_map: dict[str, int] | None) -> None:
        self.kind, self.root, self.split, self.class_map = kind, root, split, class_map

    def __getstate__(self) -> dict[str, Any]:
        return {key: self.__dict__[key] for key in ("kind", "root", "split", "class_map")}

    @cached_property
    def inner(self) -> Any:
        try:
            if self.kind == "tar":
                from timm.data.readers.reader_image_in_tar import ReaderImageInTar

                return ReaderImageInTar(self.root, class_map=self.class_map, cache_tarinfo=False)
            from timm.data.readers.reader_factory import create_reader

            return create_reader(f"hfds/{self.root}", None, split=self.split)
        except ImportError as error:
            raise MissingDependencyError(
                "Hugging Face data sets need the package datasets: pip install 'atm-export[data]'"
            ) from error
        except Exception as error:  # archives and data sets fail in many ways
            line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(f"cannot read {self.root} (split {self.split}): {line}") from error

    def __len__(self) -> int:
        return len(self.inner)

    def name(self, index: int) -> str:
        return str(self.inner.filename(index) or f"{self.split}[{index}]")

    def open(self, index: int) -> IO[bytes]:
        file: IO[bytes] = self.inner[index][0]
        return file

    def classes(self) -> list[int]:
        """The data set's own class of each image."""
        if self.kind == "tar":
            return [int(target) for target in self.inner.targets]
        return [int(target) for target in self.inner.iter_targets()]

    def class_names(self) -> dict[int, str]:
        """Names of the data set's classes, where it has any."""
        inner = self.inner
        table = inner.class_name_to_idx if self.kind == "tar" else inner.class_to_idx
        return {int(index): name for name, index in (table or {}).items()}


def shard_members(
    shards: Sequence[Path],
) -> tuple[list[tuple[Path, int, int, str]], list[int | None]]:
    """Images of WebDataset shards, and the class that `.cls` files beside them give."""
    members: list[tuple[Path, int, int, str]] = []
    labels: list[int | None] = []
    for shard in shards:
        images: dict[str, tuple[Path, int, int, str]] = {}
        classes: dict[str, int] = {}
        try:
            with tarfile.open(shard) as archive:
                for info in archive:
                    path = Path(info.name)
                    key = str(path.with_suffix(""))
                    if path.suffix.lower() in IMAGE_SUFFIXES:
                        images[key] = (shard, info.offset_data, info.size, key)
                    elif path.suffix == ".cls":
                        content = archive.extractfile(info)
                        assert content is not None
                        classes[key] = int(content.read())
        except (tarfile.TarError, OSError, ValueError) as error:
            raise DataError(f"cannot read {shard}: {error}") from error
        members += images.values()
        labels += [classes.get(key) for key in images]
    return members, labels
