"""Bounds of the numbers that a user gives: the same on the command line, in Python and in services.

A number beyond them is no wish but a slip (a thousand threads cost gigabytes and cannot be
stopped). Nothing here imports more than the standard library.
"""

from __future__ import annotations

import operator
from typing import Any

from atm_export.errors import ConfigError

MAX_THREADS = 256
MAX_WORKERS = 256
MAX_BATCH = 4096
MAX_ROUNDS = 10_000
MAX_TOP_K = 1_000_000
MAX_COUNT = 10**9  # of images


def whole(value: Any, name: str, least: int, most: int, also: str = "") -> int:
    """`value` as an int from `least` to `most`; ConfigError names it. Truth values, texts and
    fractions are no whole numbers. also: what the least value means."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not least <= number <= most:
        shown = value if isinstance(value, int | float) else repr(value)
        said = str(shown) if len(str(shown)) < 40 else f"{str(shown)[:37]}..."
        raise ConfigError(f"{name} {said}: give a whole number from {least}{also} to {most}")
    return number


def checked_threads(threads: Any, name: str = "threads") -> int:
    """A number of threads, 0 (all cores) to MAX_THREADS; ConfigError."""
    return whole(threads, name, 0, MAX_THREADS, " (all cores)")


def numbers_of(text: str, option: str, least: int, most: int) -> tuple[int, ...]:
    """Whole numbers by commas, each once, from `least` to `most`; ConfigError names the option."""
    try:
        numbers = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise ConfigError(f"{option} {text[:80]}: give whole numbers, by commas") from None
    return tuple(whole(number, option, least, most) for number in numbers)
