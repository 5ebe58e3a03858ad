"""Labels from files: one class an image, ReaL's several, and the `.cls` files of WebDataset."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from atm_export.errors import DataError
from atm_export.imagefiles import open_regular, printable
from atm_export.measure.data.classes import natural
from atm_export.measure.data.imagenet import synset_index
from atm_export.strict_json import loads

Right = tuple[int, ...]  # the classes that count as right; none: the image has no valid label
_NUMBER = re.compile(r"[0-9]{1,9}")
_OFFICIAL = re.compile(r"^(ILSVRC2012_val_\d{8}).*")


def from_file(path: Path, names: Sequence[str], classes: int, stored_order: bool) -> list[Right]:
    """The class of each image of `names`. One a line: `name label`, parted by white space or a
    comma (a name may hold both, or stand in quotes as in CSV); or labels alone in the order of the
    images. stored_order: images have an order of their own, which no sorting made.

    DataError if an image has no label, a line fits several images, or an image several lines.
    """
    rows = _rows(path)
    alone = [number for number, name, _ in rows if name is None]
    if alone and len(alone) < len(rows):
        raise DataError(f"{path}: line {alone[0]} has no image name, but others have")
    found = [label for _, _, label in rows]
    if not alone:
        found = [rows[k][2] for k in _matched(path, rows, names)]
    elif len(rows) != len(names):
        raise DataError(f"{path} has {len(rows)} labels, but there are {len(names)} images")
    elif not stored_order and sorted(names, key=natural) != sorted(names):
        k = next(k for k, (a, b) in enumerate(_both_orders(names)) if a != b)
        raise DataError(
            f"{path}: labels alone are ambiguous for images named by numbers: "
            f"'{sorted(names)[k]}' or '{sorted(names, key=natural)[k]}' may be number {k + 1}; "
            "give `name label` a line"
        )
    return [(class_of(label, classes, str(path)),) for label in found]


def _both_orders(names: Sequence[str]) -> zip[tuple[str, str]]:
    return zip(sorted(names), sorted(names, key=natural), strict=True)


def class_of(text: str, classes: int, where: str) -> int:
    """A class as a number or an ImageNet-1k synset; DataError if the model has none such."""
    label = synset_index().get(text) if classes == 1000 else None
    if label is None and _NUMBER.fullmatch(text):
        label = int(text)
    if label is None or label >= classes:
        raise DataError(
            f"{where}: '{printable(text[:40])}' is no class of a model of {classes} classes"
        )
    return label


def _rows(path: Path) -> list[tuple[int, str | None, str]]:
    """Line number, image name (None: the label stands alone) and label of each line."""
    rows = []
    for number, line in enumerate(_text(path).split("\n"), start=1):
        line = line.strip()
        if not line:
            continue
        cut = max(line.rfind(mark) for mark in " \t,") + 1  # a label holds none of them
        if cut == len(line):
            raise DataError(f"{path}: line {number} holds no label")
        name = _unquoted(line[:cut].rstrip(" \t,")) if cut else None
        rows.append((number, name, _unquoted(line[cut:])))
    return rows


def _unquoted(cell: str) -> str:
    if len(cell) < 2 or cell[0] != '"' or cell[-1] != '"':
        return cell
    return next(csv.reader([cell]))[0]


def _matched(
    path: Path, rows: Sequence[tuple[int, str | None, str]], names: Sequence[str]
) -> list[int]:
    """The row of each image: by its whole name, else by its file name alone where just one row and
    just one image have it."""
    whole, short = _numbered(path, rows)
    images: dict[str, list[str]] = defaultdict(list)
    for name in names:
        images[PurePosixPath(name).name].append(name)
    chosen = []
    for name in names:
        file = PurePosixPath(name).name
        if name in whole:
            chosen.append(whole[name])
            continue
        fits = short.get(file, [])
        if not fits:
            raise DataError(
                f"{path} has {len(rows)} labels for {len(names)} images; none for {printable(name)}"
            )
        if len(fits) > 1 or len(images[file]) > 1:
            lines = ", ".join(str(rows[k][0]) for k in fits[:3])
            raise DataError(
                f"{path}: '{printable(file)}' is the name of line {lines} and of "
                f"{len(images[file])} images; name them in full, as '{printable(name)}'"
            )
        chosen += fits
    return chosen


def _numbered(
    path: Path, rows: Sequence[tuple[int, str | None, str]]
) -> tuple[dict[str, int], dict[str, list[int]]]:
    """Rows by whole name and by file name; DataError if two have one whole name."""
    whole: dict[str, int] = {}
    short: dict[str, list[int]] = defaultdict(list)
    for k, (number, name, _) in enumerate(rows):
        assert name is not None
        key = name.removeprefix("./")
        if key in whole:
            raise DataError(
                f"{path}: line {number} names '{printable(key)}' again (line {rows[whole[key]][0]})"
            )
        whole[key] = k
        short[PurePosixPath(key).name].append(k)
    return whole, short


def from_real(path: Path, names: Sequence[str], classes: int) -> list[Right]:
    """ReaL: a JSON list, entry k - 1 holds the right classes of ILSVRC2012_val_<k> (none: the
    image is left out); or a JSON table by file name. (L. Beyer et al., arXiv 2006.07159)"""
    table = _real_table(path, classes)
    # class folders sometimes put the synset after the official name
    stems = [_OFFICIAL.sub(r"\1", PurePosixPath(name).stem) for name in names]
    missing = [name for name in stems if name not in table]
    if missing:
        raise DataError(
            f"{path} has no ReaL labels for {printable(missing[0])} ({len(missing)} images)"
        )
    first: dict[str, str] = {}
    for stem, name in zip(stems, names, strict=True):
        if stem in first:
            raise DataError(
                f"{path}: its labels for '{printable(stem)}' fit two images, "
                f"{printable(first[stem])} and {printable(name)}"
            )
        first[stem] = name
    return [table[stem] for stem in stems]


def _real_table(path: Path, classes: int) -> dict[str, Right]:
    try:
        real = loads(_text(path), object)
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    if isinstance(real, list):
        real = {f"ILSVRC2012_val_{i + 1:08d}": right for i, right in enumerate(real)}
    if not isinstance(real, dict):
        raise DataError(f"{path} is neither a list nor a table of ReaL labels")
    table: dict[str, Right] = {}
    for name, right in real.items():
        stem = PurePosixPath(name).stem
        if stem in table:
            raise DataError(f"{path}: two entries are for '{printable(stem)}'")
        table[stem] = _real_entry(right, classes, f"{path}: '{printable(name)}'")
    return table


def _real_entry(right: Any, classes: int, where: str) -> Right:
    if not isinstance(right, list):
        raise DataError(f"{where} has no list of classes")
    for label in right:
        if type(label) is not int or not 0 <= label < classes:
            text = str(label)[:40]
            raise DataError(f"{where}: {text} is no class of a model of {classes} classes")
    return tuple(sorted(set(right)))


def from_cls(
    names: Sequence[str], given: Mapping[str, str], classes: int, where: str
) -> list[Right]:
    """The class of each image NAME.png by the text of NAME.cls beside it; DataError if one has
    none, or a `.cls` file no image."""
    keys = [str(PurePosixPath(name).with_suffix("")) for name in names]
    missing = [name for name, key in zip(names, keys, strict=True) if key not in given]
    if missing:
        raise DataError(
            f"{where}: {len(missing)} images ({printable(missing[0])}, ...) have no .cls file, "
            "though others have; give --labels FILE"
        )
    orphans = sorted(set(given) - set(keys))
    if orphans:
        raise DataError(
            f"{where}: {printable(orphans[0])}.cls has no image beside it ({len(orphans)} such)"
        )
    return [(class_of(given[key], classes, f"{printable(key)}.cls"),) for key in keys]


def _text(path: Path) -> str:
    try:
        with open_regular(path) as file:
            data = file.read()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if b"\0" in data:
        raise DataError(f"{path} is no plain text (UTF-16?); save it as UTF-8")
    return data.decode("utf-8-sig", "surrogateescape").replace("\r\n", "\n")
