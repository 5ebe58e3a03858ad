"""How class folders get the model's class numbers: never by a guess."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from atm_export.errors import ClassOrderError, DataError
from atm_export.measure.data.imagenet import synset_index

ClassOrder = Literal["name", "natural", "index"]
_SYNSET = re.compile(r"n\d{8}")
_NUMBER = re.compile(r"[0-9]{1,9}")
_DECIDE = (
    "give --class-order name, natural or index (see `atm-export evaluate --help`), or --labels"
)


def natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """A key that sorts numbers in names by value, and letters without case, as timm does."""
    parts = re.split(r"([0-9]+)", name.lower())
    return [(int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts)], name


@dataclass(frozen=True)
class Numbering:
    """classes: of the model; names: its own, where it states them; order: what the user says of
    folders that are neither synsets nor the model's names.

    Without `order`: ImageNet-1k synsets have their canonical classes; names of the model theirs; a
    model of 1000 classes takes folders named by numbers below 1000 as those classes, also a subset
    of them. Else there must be a folder for each class, and the two orders in which training codes
    number folders (by name: torchvision; naturally: timm) must agree.
    """

    classes: int
    names: Sequence[str] | None = None
    order: ClassOrder | None = None

    def table(
        self, folders: Iterable[PurePosixPath], where: str, empty: Sequence[str] = ()
    ) -> dict[str, int]:
        """Class of each folder's own name. empty: folders beside them that hold no image. DataError
        says what is unknown or ambiguous."""
        places = sorted(set(folders))
        found = sorted({place.name for place in places})
        if self.order == "index":
            return self._by_index(found, where)
        if self.order is None:
            known = self._known(found, where)
            if known is not None:
                return {name: known[name] for name in found}
        return self._by_order(places, where, empty)

    def _known(self, found: list[str], where: str) -> Mapping[str, int] | None:
        """Numbers that the names themselves state."""
        if self.classes == 1000 and any(_SYNSET.fullmatch(name) for name in found):
            return _all_in(found, synset_index(), "ImageNet-1k synset", where)
        if self.names is not None and set(found) & set(self.names):
            double = [name for name, n in Counter(self.names).items() if n > 1 and name in found]
            if double:
                raise DataError(
                    f"{where}: the model has two classes '{double[0]}'; name the folders by "
                    "synsets or numbers, or give --labels FILE"
                )
            own = {name: i for i, name in enumerate(self.names)}
            return _all_in(found, own, "class of the model", where)
        numbers = all(_NUMBER.fullmatch(name) for name in found)
        if numbers and self.classes == 1000 and max(map(int, found)) < 1000:
            return self._by_index(found, where)
        if self.names is not None and not numbers:
            raise DataError(
                f"{where}: folder '{found[0]}' is no class of the model ('{self.names[0]}', ...), "
                f"nor is any other; {_DECIDE} FILE"
            )
        return None

    def _by_index(self, found: list[str], where: str) -> dict[str, int]:
        table: dict[int, str] = {}
        for name in found:
            if not _NUMBER.fullmatch(name) or int(name) >= self.classes:
                raise DataError(
                    f"{where}: folder '{name}' is no class number of a model of {self.classes}"
                )
            if int(name) in table:
                raise DataError(
                    f"{where}: folders '{table[int(name)]}' and '{name}' are one class number"
                )
            table[int(name)] = name
        return {name: number for number, name in table.items()}

    def _by_order(
        self, places: list[PurePosixPath], where: str, empty: Sequence[str]
    ) -> dict[str, int]:
        deep = [place for place in places if place.parent != places[0].parent]
        if deep:
            raise DataError(
                f"{where}: class folders must lie side by side to be numbered, but there are "
                f"'{places[0]}' and '{deep[0]}'; give --labels FILE"
            )
        names = {place.name for place in places} | set(empty)
        if len(names) != self.classes:
            some = ", ".join(sorted(names)[:2])
            indices = all(_NUMBER.fullmatch(name) for name in names)
            number = ", or --class-order index if the names are class numbers" if indices else ""
            without = f", {len(empty)} of them without images" if empty else ""
            raise DataError(
                f"{where} has {len(names)} class folders ({some}, ...){without}, "
                f"which are no ImageNet-1k synsets, and the model has {self.classes} classes; "
                f"give --labels FILE{number}"
            )
        by_name, by_nature = sorted(names), sorted(names, key=natural)
        if self.order is None and by_name != by_nature:
            k = next(i for i, name in enumerate(by_name) if name != by_nature[i])
            raise ClassOrderError(
                f"{where}: the order of the class folders is ambiguous: class {k} is "
                f"'{by_name[k]}' by name (as torchvision trains) and '{by_nature[k]}' in natural "
                f"order (as timm trains); {_DECIDE} FILE"
            )
        chosen = by_nature if self.order == "natural" else by_name
        return {name: i for i, name in enumerate(chosen)}


def _all_in(found: list[str], table: Mapping[str, int], kind: str, where: str) -> Mapping[str, int]:
    strange = [name for name in found if name not in table]
    if strange:
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        raise DataError(f"{where}: folder '{strange[0]}'{more} is no {kind}")
    return table
