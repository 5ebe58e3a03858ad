"""A compiled OpenVINO model as a Runner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

from atm_export.backends.openvino.door import one_line
from atm_export.backends.runner import Array
from atm_export.errors import AtmExportError


class OpenVINORunner:
    """Runs one request at a time of a compiled model, which may have others.

    compiled: gives the model, on entry.
    """

    def __init__(self, compiled: Callable[[], Any]) -> None:
        self._compiled = compiled
        self.model: Any = None
        self._request: Any = None

    def __enter__(self) -> Self:
        self.model = self._compiled()
        self._request = self.model.create_infer_request()
        self.input = self.model.inputs[0].any_name
        self.names = [output.any_name for output in self.model.outputs]
        return self

    def __exit__(self, *error: object) -> None:
        self.model = self._request = None

    def run(self, image: Array) -> Mapping[str, Array]:
        """Outputs by name; image as the graph's input wants it."""
        try:
            found = self._request.infer({self.input: image})
        except RuntimeError as error:
            raise AtmExportError(f"OpenVINO failed: {one_line(error)}") from error
        return dict(zip(self.names, found.to_tuple(), strict=True))
