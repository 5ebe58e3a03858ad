"""Items of an iterator, made in a thread ahead of who takes them."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def ahead(source: Generator[Item], depth: int = 2) -> Generator[Item]:
    """The same items in the same order, up to `depth` of them made beforehand; what `source` raises
    is raised at its place. `source` is closed at the end, however it comes."""
    end = object()
    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(next, source, end) for _ in range(depth))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(thread.submit(next, source, end))
                yield item  # type: ignore[misc]
        finally:
            thread.shutdown(wait=True, cancel_futures=True)
            source.close()
