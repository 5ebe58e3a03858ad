"""A graph compiled for any batch, and for the first few sizes that come alone.

A fixed batch leaves fewer lengths open: on one thread of a Xeon DeiT-T runs 1.03 to 1.24 times as
fast for it, most where the token counts are fixed too (`--merge frozen`). It costs a compilation,
about a second, at the first request of a size, and the weights once more in memory.
"""

from __future__ import annotations

import threading
from typing import Any

from atm_export.backends.openvino.door import Graph

FIXED = 4


class Models:
    """For any thread. any_batch: the model that takes every size.

    fixed: how many batch sizes get a model of their own, in the order in which they come.
    """

    def __init__(self, graph: Graph, fixed: int = FIXED) -> None:
        self._graph = graph
        self._fixed = fixed if graph.takes_any_batch else 0
        self._lock = threading.Lock()
        self._models: dict[int, Any] = {}
        self.any_batch: Any = graph.compiled()

    def of(self, batch: int) -> Any:
        """The model for this size; who asks first waits until it is compiled, others meanwhile take
        the one for any."""
        with self._lock:
            known = batch in self._models
            if known or batch < 1 or len(self._models) >= self._fixed:
                return self._models.get(batch, self.any_batch)
            self._models[batch] = self.any_batch
        self._models[batch] = self._graph.compiled(batch)
        return self._models[batch]
