"""What runs a model, for one thread (Runner) or for any (Server)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]


class Runner(Protocol):
    """A context manager that runs images; nothing touches a device before entry."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def run(self, image: Array) -> Mapping[str, Array]:
        """Outputs by name for one batch of images."""
        ...


class Server(Protocol):
    """What a session asks; any thread may.

    about: one line on what runs, and why. facts: of the engine that answers, where it is one: such
    answers are held to the engine's tolerance.
    """

    about: str
    providers: tuple[str, ...]
    facts: Mapping[str, Any] | None

    def run(self, image: Array) -> dict[str, Array]: ...


@dataclass(frozen=True)
class Serving:
    """How a session wants to be served: ONNX Runtime providers in order (None: the backend's own
    choice), threads (0: all)."""

    providers: Sequence[str] | None = None
    threads: int = 0


Opener = Callable[[], Runner]
