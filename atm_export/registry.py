"""A name-to-object table that refuses duplicates, lists what it knows, and asks plugins for what it
does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from atm_export.errors import unknown_name
from atm_export.plugins import load_plugins

T = TypeVar("T")


class Registry(Generic[T]):
    """Objects of one kind by name."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._items: dict[str, T] = {}

    def add(self, name: str, item: T) -> T:
        """Register `item`; raises ValueError if the name is taken."""
        if name in self._items:
            raise ValueError(f"{self._kind} '{name}' is registered twice")
        self._items[name] = item
        return item

    def remove(self, name: str) -> None:
        """Take `name` out again (tests register throw-away entries)."""
        del self._items[name]

    def __getitem__(self, name: str) -> T:
        if name not in self:
            raise unknown_name(self._kind, name, self._items)
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        return name in self._items or (load_plugins() and name in self._items)

    def __iter__(self) -> Iterator[str]:
        load_plugins()
        return iter(sorted(self._items))
