"""A data set as numbered images with the classes that count as right."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from atm_export.errors import ConfigError, DataError
from atm_export.evaluate.imagenet import synset_index
from atm_export.evaluate.readers import FileReader, Reader, ShardReader, TimmReader, shard_members
from atm_export.preprocess import list_images
from atm_export.strict_json import loads

Right = tuple[int, ...]  # the classes that count as right; none: the image has no valid label
_SYNSET = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class Samples:
    """Images, the classes that are right for each, and in words where both come from."""

    reader: Reader
    right: tuple[Right, ...]
    source: str

    def __len__(self) -> int:
        return len(self.right)

    def digest(self) -> str:
        """A hash over names, labels, and for files sizes and times."""
        digest = hashlib.sha256()
        files = self.reader.files if isinstance(self.reader, FileReader) else None
        for i, right in enumerate(self.right):
            stat = files[i].stat() if files else None
            facts = (self.reader.name(i), right, stat and (stat.st_size, stat.st_mtime_ns))
            digest.update(repr(facts).encode())
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
) -> Samples:
    """The data set at `place`, with labels in the numbering of a model of `classes` classes.

    place: a folder of class folders, a flat folder with a labels file, a .tar or a folder of them
    (class folders inside, or WebDataset), or hfds/NAME and folders of parquet files. names: the
    model's class names where it states them. real: ReaL labels.
    """
    path = Path(place)
    if labels is not None and real is not None:
        raise ConfigError("--labels and --real both say what is right; give one")
    numbering = _Numbering(classes, names)
    if place.startswith("hfds/") or (path.is_dir() and _holds(path, ".parquet")):
        found = _hugging_face(place.removeprefix("hfds/"), split, numbering)
    elif path.suffix == ".tar" or (path.is_dir() and _holds(path, ".tar")):
        found = _tar(path, numbering)
    else:
        found = _folder(
            path, numbering, with_labels=labels is None and real is None and not unlabelled
        )
    if labels is not None:
        found = Samples(found.reader, _from_file(labels, found.reader, classes), "labels file")
    if real is not None:
        found = Samples(found.reader, _from_real(real, found.reader), "ReaL labels")
    if not len(found):
        raise DataError(f"no images in {place}")
    return found


@dataclass(frozen=True)
class _Numbering:
    """How class folders get the model's class numbers."""

    classes: int
    names: Sequence[str] | None

    def table(self, found: Sequence[str], where: str) -> dict[str, int]:
        """Class index of each folder name in `found`."""
        if self.classes == 1000 and any(_SYNSET.fullmatch(name) for name in found):
            table: Mapping[str, int] = synset_index()
            kind = "ImageNet-1k synset"
        elif self.names is not None and set(found) & set(self.names):
            table = {name: i for i, name in enumerate(self.names)}
            kind = "class of the model"
        elif len(found) == self.classes:
            return {name: i for i, name in enumerate(sorted(found))}
        else:
            raise DataError(
                f"{where} has {len(found)} class folders ({', '.join(sorted(found)[:2])}, ...), "
                f"which are no ImageNet-1k synsets, and the model has {self.classes} classes; "
                "give --labels FILE"
            )
        strange = sorted(set(found) - set(table))
        if strange:
            more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
            raise DataError(f"{where}: folder '{strange[0]}'{more} is no {kind}")
        return {name: table[name] for name in found}


def _folder(path: Path, numbering: _Numbering, with_labels: bool) -> Samples:
    files = list_images(path)
    reader = FileReader(path, tuple(files))
    if not with_labels:
        return Samples(reader, ((),) * len(files), "")
    flat = [file for file in files if file.parent == path]
    if flat:
        raise DataError(
            f"{path}: {len(flat)} images ({flat[0].name}, ...) lie in no class folder; "
            "give --labels FILE"
        )
    table = numbering.table(sorted({file.parent.name for file in files}), str(path))
    return Samples(reader, tuple((table[file.parent.name],) for file in files), "class folders")


def _tar(path: Path, numbering: _Numbering) -> Samples:
    if not path.exists():
        raise DataError(f"no data set at {path}")
    shards = [path] if path.is_file() else sorted(path.glob("*.tar"))
    members, labels = shard_members(shards)
    if any(label is not None for label in labels):
        right = tuple((label,) if label is not None else () for label in labels)
        return Samples(ShardReader(tuple(members)), right, "WebDataset .cls files")
    if not members:
        raise DataError(f"{path}: no images in {len(shards)} tar files")
    reader = TimmReader("tar", str(path), "", None)
    table = numbering.table(sorted(reader.class_names().values()), str(path))
    own = reader.class_names()
    right = tuple((table[own[label]],) for label in reader.classes())
    return Samples(reader, right, "class folders in tar files")


def _hugging_face(name: str, split: str, numbering: _Numbering) -> Samples:
    reader = TimmReader("hfds", name, split, None)
    own = reader.class_names()
    labels = reader.classes()
    if len(own) == numbering.classes or not own:
        bad = [label for label in labels if not 0 <= label < numbering.classes]
        if bad:
            raise DataError(f"{name}: class {bad[0]}, but the model has {numbering.classes}")
        return Samples(reader, tuple((label,) for label in labels), "Hugging Face labels")
    table = numbering.table(sorted(own.values()), name)
    return Samples(reader, tuple((table[own[i]],) for i in labels), "Hugging Face class names")


def _from_file(path: Path, reader: Reader, classes: int) -> tuple[Right, ...]:
    """One label a line: `file label`, or the label alone in the order of the images."""
    lines = [line.replace(",", " ").split() for line in _text(path).splitlines() if line.strip()]
    if all(len(line) == 1 for line in lines):
        if len(lines) != len(reader):
            raise DataError(f"{path} has {len(lines)} labels, but there are {len(reader)} images")
        return tuple((_label(line[0], classes, path),) for line in lines)
    table = {line[0]: line[-1] for line in lines if len(line) > 1}
    short = {Path(name).name: label for name, label in table.items()}
    names = [reader.name(i) for i in range(len(reader))]
    missing = [name for name in names if name not in table and Path(name).name not in short]
    if missing:
        raise DataError(
            f"{path} has {len(table)} labels for {len(names)} images; none for {missing[0]}"
        )
    found = [table.get(name, short.get(Path(name).name, "")) for name in names]
    return tuple((_label(label, classes, path),) for label in found)


def _label(text: str, classes: int, path: Path) -> int:
    label = synset_index()[text] if classes == 1000 and text in synset_index() else None
    if label is None and text.isdecimal():
        label = int(text)
    if label is None or label >= classes:
        raise DataError(f"{path}: '{text}' is no class of a model of {classes} classes")
    return label


def _from_real(path: Path, reader: Reader) -> tuple[Right, ...]:
    """ReaL: a JSON list, entry k - 1 holds the right classes of ILSVRC2012_val_<k> (none: the
    image is left out); or a JSON table by file name. (L. Beyer et al., arXiv 2006.07159)"""
    try:
        real = loads(_text(path), object)
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    if isinstance(real, list):
        real = {f"ILSVRC2012_val_{i + 1:08d}": classes for i, classes in enumerate(real)}
    if not isinstance(real, dict):
        raise DataError(f"{path}: give a JSON list of ReaL labels, or a table by file name")
    table = {Path(name).stem: classes for name, classes in real.items()}
    names = [Path(reader.name(i)).stem for i in range(len(reader))]
    # class folders sometimes put the synset after the official name
    names = [re.sub(r"^(ILSVRC2012_val_\d{8}).*", r"\1", name) for name in names]
    missing = [name for name in names if name not in table]
    if missing:
        raise DataError(f"{path} has no ReaL labels for {missing[0]} ({len(missing)} images)")
    return tuple(tuple(int(i) for i in table[name]) for name in names)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _holds(path: Path, suffix: str) -> bool:
    return any(path.rglob(f"*{suffix}")) if suffix != ".tar" else any(path.glob("*.tar"))
