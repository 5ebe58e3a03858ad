"""What a document read from outside must look like: checks of values that are put together.

A check takes a value and its place in the document and raises Misfit; later code may then rely on
types, ranges and keys. Nothing here imports more than the standard library.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any, str], None]


class Misfit(ValueError):
    """Where a document is not what it must be, and how."""


def _misfit(at: str, wanted: str, value: Any) -> Misfit:
    shown = repr(value)
    return Misfit(f"{at} must be {wanted}, not {shown if len(shown) < 60 else shown[:57] + '...'}")


def anything(value: Any, at: str) -> None:
    """Nothing is asked of it."""


def text(value: Any, at: str) -> None:
    """A string."""
    if not isinstance(value, str):
        raise _misfit(at, "a text", value)


def flag(value: Any, at: str) -> None:
    """true or false."""
    if not isinstance(value, bool):
        raise _misfit(at, "true or false", value)


def matching(pattern: str, words: str) -> Check:
    """A string of a pattern, which `words` tell."""
    compiled = re.compile(pattern, re.ASCII)

    def check(value: Any, at: str) -> None:
        if not isinstance(value, str) or not compiled.fullmatch(value):
            raise _misfit(at, words, value)

    return check


sha256 = matching("[0-9a-f]{64}", "64 hex digits")


def whole(low: int = 0, high: int = 2**53) -> Check:
    """A whole number from `low` to `high`."""

    def check(value: Any, at: str) -> None:
        if type(value) is not int or not low <= value <= high:
            raise _misfit(at, f"a whole number from {low} to {high}", value)

    return check


def number(low: float = -1e30, high: float = 1e30) -> Check:
    """A number from `low` to `high`; NaN is none."""

    def check(value: Any, at: str) -> None:
        if type(value) not in (int, float) or not low <= value <= high:
            raise _misfit(at, f"a number from {low:g} to {high:g}", value)

    return check


def one_of(*known: Any) -> Check:
    """One of the `known` values."""

    def check(value: Any, at: str) -> None:
        if not any(type(value) is type(each) and value == each for each in known):
            raise _misfit(at, f"one of {', '.join(map(str, known))}", value)

    return check


def maybe(inner: Check) -> Check:
    """null, or what `inner` takes."""

    def check(value: Any, at: str) -> None:
        if value is not None:
            inner(value, at)

    return check


def either(first: Check, second: Check) -> Check:
    """What one of the two takes; the second's words if neither does."""

    def check(value: Any, at: str) -> None:
        try:
            first(value, at)
        except Misfit:
            second(value, at)

    return check


def items(inner: Check, least: int = 0, most: int = 10**6) -> Check:
    """A list of `least` to `most` values that `inner` takes."""

    def check(value: Any, at: str) -> None:
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise _misfit(at, f"a list of {least} to {most} values", value)
        for i, each in enumerate(value):
            inner(each, f"{at}[{i}]")

    return check


def table(inner: Check) -> Check:
    """An object whose values `inner` takes, under any keys."""

    def check(value: Any, at: str) -> None:
        if not isinstance(value, dict):
            raise _misfit(at, "an object", value)
        for key, each in value.items():
            inner(each, f"{at}.{key}" if at else key)

    return check


def fields(needed: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """An object with the `needed` keys; the `optional` ones may be absent, others are let be."""

    def check(value: Any, at: str) -> None:
        if not isinstance(value, dict):
            raise _misfit(at or "it", "an object", value)
        for key, inner in {**needed, **(optional or {})}.items():
            place = f"{at}.{key}" if at else key
            if key in value:
                inner(value[key], place)
            elif key in needed:
                raise Misfit(f"{place} is missing")

    return check
