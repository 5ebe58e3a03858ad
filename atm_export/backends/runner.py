"""One protocol for everything that can run a model."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]


class Runner(Protocol):
    """A context manager that runs images; nothing touches a device before entry."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def run(self, image: Array) -> Mapping[str, Array]:
        """Outputs by name for one batch of images."""
        ...
