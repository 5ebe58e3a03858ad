"""Runners for many threads: one for each request under way at once, kept for the next."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from atm_export.backends.runner import Array, Opener, Runner


class RunnerPool:
    """Serves any thread with runners that serve one each; see `base.Server`."""

    def __init__(self, opener: Opener, about: str, facts: Mapping[str, Any] | None = None) -> None:
        self.about = about
        self.providers: tuple[str, ...] = (about.partition(",")[0],)
        self.facts = facts
        self._open = opener
        self._free: list[Runner] = []
        self._lock = threading.Lock()

    def run(self, image: Array) -> dict[str, Array]:
        """Outputs by name."""
        runner = self._take()
        outputs = dict(runner.run(image))  # a runner that failed is not used again
        with self._lock:
            self._free.append(runner)
        return outputs

    def _take(self) -> Runner:
        with self._lock:
            if self._free:
                return self._free.pop()
        return self._open().__enter__()
