"""A graph in OpenVINO as a Runner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

from atm_export.backends.openvino.door import one_line
from atm_export.backends.openvino.models import Models
from atm_export.backends.runner import Array
from atm_export.errors import AtmExportError


class OpenVINORunner:
    """Runs one request at a time of models that it may share with others.

    opened: gives the models, on entry.
    """

    def __init__(self, opened: Callable[[], Models]) -> None:
        self._opened = opened
        self._requests: dict[int, Any] = {}
        self.models: Models | None = None

    def __enter__(self) -> Self:
        self.models = self._opened()
        self.names = [output.any_name for output in self.models.any_batch.outputs]
        return self

    def __exit__(self, *error: object) -> None:
        self.models = None
        self._requests.clear()

    def run(self, image: Array) -> Mapping[str, Array]:
        """Outputs by name; image as the graph's input wants it."""
        assert self.models is not None
        model = self.models.of(len(image))
        request = self._requests.get(id(model))
        if request is None:
            request = self._requests[id(model)] = model.create_infer_request()
        try:
            found = request.infer({0: image})
        except RuntimeError as error:
            raise AtmExportError(f"OpenVINO failed: {one_line(error)}") from error
        return dict(zip(self.names, found.to_tuple(), strict=True))
