"""One ONNX Runtime session over checked bytes."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from atm_export.backends.onnxruntime import door
from atm_export.backends.onnxruntime import providers as chooser
from atm_export.errors import AtmExportError, ConfigError, RuntimeVersionError
from atm_export.runs.graphs import SavedGraph

Array = NDArray[Any]
# First ONNX Runtime with the whole opset: onnxruntime.ai/docs/reference/compatibility.html
NEEDED = {20: (1, 17), 21: (1, 18), 22: (1, 20), 23: (1, 22)}


class OnnxServer:
    """Thread-safe: ONNX Runtime's run is, and every thread binds inputs and outputs of its own."""

    facts: Mapping[str, Any] | None = None

    def __init__(
        self, graph: SavedGraph, opset: int, providers: Sequence[str] | None, threads: int
    ) -> None:
        library = door.onnxruntime()
        check_version(library.__version__, opset)
        choice = chooser.choose(providers, library.get_available_providers())
        if chooser.NAMES["cuda"] in choice.taken and hasattr(library, "preload_dlls"):
            library.preload_dlls()
        self._session = door.open_session(
            graph, providers=choice.taken, threads=threads, waiting="spin"
        )
        self.providers = tuple(self._session.get_providers())
        self._require(choice, providers)
        self.about = chooser.describe(library.__version__, self.providers, choice)
        self.outputs = tuple(output.name for output in self._session.get_outputs())
        self._input = self._session.get_inputs()[0].name
        self._library = library
        self._device = "cuda" if self.providers[0] == chooser.NAMES["cuda"] else None
        self._local = threading.local()

    def _require(self, choice: chooser.Choice, wanted: Sequence[str] | None) -> None:
        """ONNX Runtime falls back to the CPU in silence; who did not ask for it must know."""
        if wanted is not None and self.providers[0] not in choice.taken:
            raise ConfigError(
                f"{', '.join(choice.taken)} could not be started (drivers or libraries missing); "
                "add 'cpu' to the order to fall back"
            )

    def run(self, image: Array) -> dict[str, Array]:
        """Outputs by name."""
        try:
            if self._device is not None:
                return self.run_bound(image, self._device)
            return dict(
                zip(self.outputs, self._session.run(None, {self._input: image}), strict=True)
            )
        except Exception as error:  # ONNX Runtime's errors share no public base class
            line = str(error).splitlines()[0]
            raise AtmExportError(f"ONNX Runtime failed: {line}") from error

    def run_bound(self, image: Array, device: str) -> dict[str, Array]:
        """The same through IO binding: one copy in, one copy out, none between."""
        if not hasattr(self._local, "binding"):
            self._local.binding = self._session.io_binding()
        binding = self._local.binding
        value = self._library.OrtValue.ortvalue_from_numpy(image, device, 0)
        binding.bind_ortvalue_input(self._input, value)
        for name in self.outputs:
            binding.bind_output(name, device)
        self._session.run_with_iobinding(binding)
        return dict(zip(self.outputs, binding.copy_outputs_to_cpu(), strict=True))


def check_version(version: str, opset: int) -> None:
    """RuntimeVersionError unless this ONNX Runtime knows the graph's opset."""
    needed = NEEDED.get(opset)
    found = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
    if needed is not None and found < needed:
        raise RuntimeVersionError(
            f"the graph has opset {opset}, which needs onnxruntime {needed[0]}.{needed[1]} or "
            f"newer; {version} is installed: update it, or export with a lower --opset"
        )
