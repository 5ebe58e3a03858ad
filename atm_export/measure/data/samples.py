"""A data set as numbered images with the classes that count as right.

Every image is counted, named as unreadable when it is decoded, or the data set is refused; what
lies beside the images is counted by its suffix.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from atm_export.errors import ConfigError, DataError
from atm_export.imagefiles import is_image, printable, walk
from atm_export.measure.data.archives import PACKED, Entry, entries, read_entry
from atm_export.measure.data.classes import ClassOrder, Numbering
from atm_export.measure.data.labels import Right, from_cls, from_file, from_real
from atm_export.measure.data.readers import (
    ArchiveReader,
    FileReader,
    HuggingFaceReader,
    Reader,
    content,
)

_CLS_BYTES = 64


@dataclass(frozen=True)
class Samples:
    """Images, the classes that are right for each, and in words where both come from. others: how
    many files lie beside them that are no images by their names, by suffix."""

    reader: Reader
    right: tuple[Right, ...]
    source: str
    others: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.right)

    def name(self, index: int) -> str:
        """What a report calls an image."""
        return printable(self.reader.name(index))

    def listing(self) -> str:
        """A hash over all names and labels, without reading an image."""
        return self._hash((self.reader.name(i), self.right[i]) for i in range(len(self)))

    def digest(
        self, chosen: Sequence[int] | None = None, contents: Sequence[str] | None = None
    ) -> str:
        """A hash over names, labels and bytes of the `chosen` images (None: all). contents: the
        hash of each one's bytes (`readers.content`), where they were read before."""
        chosen = range(len(self)) if chosen is None else chosen
        if contents is None:
            contents = [content(self.reader, i) for i in chosen]
        rows = zip(chosen, contents, strict=True)
        return self._hash((self.reader.name(i), self.right[i], data) for i, data in rows)

    @staticmethod
    def _hash(rows: Iterable[object]) -> str:
        digest = hashlib.sha256()
        for row in rows:
            digest.update(ascii(row).encode())
        return digest.hexdigest()


def open_samples(
    place: str,
    classes: int,
    names: Sequence[str] | None = None,
    *,
    labels: Path | None = None,
    real: Path | None = None,
    split: str = "validation",
    unlabelled: bool = False,
    order: ClassOrder | None = None,
) -> Samples:
    """The data set at `place`, with labels in the numbering of a model of `classes` classes.

    place: a folder of class folders, a flat folder with a labels file, a .tar or a folder of them
    (class folders inside, or WebDataset), or hfds/NAME and folders of parquet files. names: the
    model's class names where it states them. real: ReaL labels. order: how class folders are
    numbered whose names state no class.
    """
    if labels is not None and real is not None:
        raise ConfigError("--labels and --real both say what is right; give one")
    if not place.strip():
        raise ConfigError("the place of the images is empty; give a folder, a .tar or hfds/NAME")
    try:
        opened = _open(place, split, Numbering(classes, names, order))
    except OSError as error:
        raise DataError(f"cannot read {place}: {error.strerror or error}") from error
    found = opened.samples
    if not len(found):
        raise DataError(f"no images in {place}")
    if labels is not None or real is not None:
        called = [found.reader.name(i) for i in range(len(found))]
        if real is not None:
            return replace(
                found, right=tuple(from_real(real, called, classes)), source="ReaL labels"
            )
        assert labels is not None
        stored = not isinstance(found.reader, FileReader)
        right = from_file(labels, called, classes, stored)
        return replace(found, right=tuple(right), source="labels file")
    return found if unlabelled else opened.label()


@dataclass(frozen=True)
class _Labelled:
    """Images without labels, and how the data set itself labels them."""

    samples: Samples
    label: Callable[[], Samples]


def _open(place: str, split: str, numbering: Numbering) -> _Labelled:
    path = Path(place)
    if place.startswith("hfds/"):
        return _hugging_face(place.removeprefix("hfds/"), split, numbering)
    if path.is_dir():
        return _folder(path, split, numbering)
    if not path.exists():
        raise DataError(f"no image folder or archive at {path}")
    if path.suffix.lower() != ".tar":
        raise DataError(f"{path} is a file, but no .tar; unpack it, and give the folder")
    return _tar([path], path.parent, numbering, by_archive=False)


def _folder(path: Path, split: str, numbering: Numbering) -> _Labelled:
    folders, files = [], []
    for place, below, names in walk(path):
        folders += [place / name for name in below]
        files += [place / name for name in names]
    images = sorted(file for file in files if is_image(file.name))
    tars = sorted(file for file in files if _kind(file) == ".tar")
    tables = [file for file in files if _kind(file) == ".parquet"]
    kinds = [kind for kind in (images, tars, tables) if kind]
    if len(kinds) > 1:
        raise DataError(
            f"{path} holds {len(images)} images, {len(tars)} tar and {len(tables)} parquet files "
            f"({', '.join(kind[0].name for kind in kinds)}, ...); give a folder with one kind"
        )
    packed = [file for file in files if _kind(file) in PACKED]
    if packed and not images:
        raise DataError(
            f"{path}: {packed[0].name} is compressed or no tar archive; unpack it first"
        )
    if tables:
        return _hugging_face(str(path), split, numbering)
    if tars:
        return _tar(tars, path, numbering, by_archive=True)
    reader = FileReader(path, tuple(images))
    others = _suffixes(file.name for file in files if not is_image(file.name))
    found = Samples(reader, ((),) * len(images), "", others)
    below_root = [PurePosixPath(folder.relative_to(path).as_posix()) for folder in folders]
    return _Labelled(found, lambda: _by_folders(found, str(path), numbering, below_root))


def _kind(file: Path) -> str:
    return "" if file.name.startswith("._") else file.suffix.lower()


def _suffixes(names: Iterable[str]) -> dict[str, int]:
    """How many files have which suffix; `._` for what macOS keeps beside a file."""
    kinds = ("._" if _base(n).startswith("._") else Path(n).suffix or "none" for n in names)
    return dict(sorted(Counter(printable(kind) for kind in kinds).items()))


def _base(name: str) -> str:
    return PurePosixPath(name).name


def _by_folders(
    found: Samples, where: str, numbering: Numbering, folders: Sequence[PurePosixPath] = ()
) -> Samples:
    reader = found.reader
    assert isinstance(reader, FileReader | ArchiveReader)
    places = [reader.folder(i) for i in range(len(found))]
    flat = [found.name(i) for i, place in enumerate(places) if place is None]
    if flat:
        raise DataError(
            f"{where}: {len(flat)} images ({flat[0]}, ...) lie in no class folder; "
            "give --labels FILE"
        )
    own = [place for place in places if place is not None]
    used = {step for place in own for step in (place, *place.parents)}
    beside = [f.name for f in folders if f.parent == own[0].parent and f not in used]
    empty = [name for name in beside if not name.startswith(".")]
    table = numbering.table(own, where, empty)
    right = tuple((table[place.name],) for place in own)
    source = "class folders" if isinstance(reader, FileReader) else "class folders in tar files"
    return replace(found, right=right, source=source)


def _tar(paths: Sequence[Path], root: Path, numbering: Numbering, by_archive: bool) -> _Labelled:
    files = [(path, entry) for path in paths for entry in entries(path)]
    images = tuple((path, entry) for path, entry in files if is_image(entry.name))
    reader = ArchiveReader(root, images, by_archive)
    beside = [(path, entry) for path, entry in files if not is_image(entry.name)]
    others = _suffixes(entry.name for _, entry in beside)
    found = Samples(reader, ((),) * len(images), "", others)
    given = [(path, entry) for path, entry in beside if entry.name.endswith(".cls")]
    where = str(paths[0] if len(paths) == 1 else root)

    def label() -> Samples:
        if not given:
            return _by_folders(found, where, numbering)
        names = [reader.name(i) for i in range(len(reader))]
        texts = {key: text for path, entry in given for key, text in [_cls(path, root, entry)]}
        right = from_cls(names, texts, numbering.classes, where)
        return replace(found, right=tuple(right), source="WebDataset .cls files")

    return _Labelled(found, label)


def _cls(path: Path, root: Path, entry: Entry) -> tuple[str, str]:
    """The key of a `.cls` file, as images are named without suffix, and its text."""
    key = f"{path.relative_to(root).as_posix()}/{entry.name.removesuffix('.cls')}"
    try:
        if entry.size > _CLS_BYTES:
            raise DataError(f"{path}: {printable(entry.name)} is no class but {entry.size} bytes")
        return key, read_entry(path, entry).decode("utf-8", "surrogateescape").strip()
    except OSError as error:
        raise DataError(f"{path}: cannot read {printable(entry.name)}: {error}") from error


def _hugging_face(name: str, split: str, numbering: Numbering) -> _Labelled:
    reader = HuggingFaceReader(name, split)
    found = Samples(reader, ((),) * len(reader), "")
    return _Labelled(found, lambda: _hugging_face_labels(found, name, reader, numbering))


def _hugging_face_labels(
    found: Samples, name: str, reader: HuggingFaceReader, numbering: Numbering
) -> Samples:
    own, labels = reader.class_names(), reader.classes()
    direct = len(own) == numbering.classes or not own
    valid = range(numbering.classes) if direct else own
    bad = [label for label in labels if label not in valid]
    if bad:
        raise DataError(f"{name}: class {bad[0]}, but there are {len(valid)}; give --labels FILE")
    if direct:
        right = tuple((label,) for label in labels)
        return replace(found, right=right, source="Hugging Face labels")
    table = numbering.table([PurePosixPath(own[i]) for i in sorted(own)], name)
    right = tuple((table[PurePosixPath(own[i]).name],) for i in labels)
    return replace(found, right=right, source="Hugging Face class names")
