"""How many CPU threads the models of this process run on, where their caller says nothing."""

from __future__ import annotations

import os

from atm_export.bounds import checked_threads

_threads = 0


def use_threads(threads: int = 0) -> int:
    """Models that open from now on have this many threads (0: one a core) unless they say
    otherwise; returns the number. ConfigError for what is none."""
    global _threads
    _threads = checked_threads(threads) or os.cpu_count() or 1
    return _threads


def threads_or_usual(threads: int = 0) -> int:
    """`threads`, or those of `use_threads`; 0 where neither says any, which is left to the library.
    ConfigError for what is none."""
    return checked_threads(threads) or _threads
