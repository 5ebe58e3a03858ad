"""TensorRT engines as a Runner: nothing touches the GPU before entry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from atm_export.backends.runner import Array
from atm_export.backends.tensorrt.api import gpu_sm, load_api
from atm_export.backends.tensorrt.fit import Here, check_fit
from atm_export.backends.tensorrt.settings import Flavor
from atm_export.errors import AtmExportError, EngineMismatchError
from atm_export.runs.engine_facts import BuiltFacts
from atm_export.runs.reading import read_manifest


@dataclass
class _Loaded:
    """What lives on the GPU between entry and exit."""

    engine: Any
    context: Any
    stream: Any
    inputs: dict[str, Any]
    graphs: dict[int, Any]


class TensorRTRunner:
    """Runs a plan of a run folder (or any plan, with `facts`) on the first GPU.

    Output sizes that depend on data are allocated by an output allocator; host buffers are pinned;
    everything runs on one stream. static=True replays a CUDA graph per batch size, for engines
    whose token axis is fixed. read: gives the plan's bytes on entry (default: the file's). A runner
    serves one thread.
    """

    def __init__(
        self,
        plan: Path | str,
        facts: BuiltFacts | Mapping[str, Any] | None = None,
        *,
        static: bool = False,
        read: Callable[[], bytes] | None = None,
    ) -> None:
        self.plan, self.static = Path(plan), static
        self.read = read or self.plan.read_bytes
        self.facts = _facts(self.plan, facts)
        self.loaded: _Loaded | None = None

    def __enter__(self) -> Self:
        import torch

        api = load_api(Flavor(self.facts.flavor))
        check_fit(self.plan.name, self.facts, Here(api.flavor.value, api.version, gpu_sm()))
        trt = api.module
        self.logger = api.logger(lambda severity, text: None)
        runtime = trt.Runtime(self.logger)
        engine = runtime.deserialize_cuda_engine(self.read())
        if engine is None:
            raise AtmExportError(f"{self.plan}: TensorRT does not deserialise this engine")
        context = engine.create_execution_context()
        if context is None:
            raise AtmExportError(f"{self.plan}: no GPU memory for an execution context")
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        is_input = {n: engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT for n in names}
        (self.input,) = (n for n in names if is_input[n])
        self.outputs = {n: _Output(trt) for n in names if not is_input[n]}
        self.types = {n: _torch_type(engine.get_tensor_dtype(n).name) for n in names}
        for name, output in self.outputs.items():
            context.set_output_allocator(name, output.allocator)
        self.loaded = _Loaded(engine, context, torch.cuda.Stream(), {}, {})
        return self

    def __exit__(self, *error: object) -> None:
        self.loaded = None
        self.outputs = {}

    def run(self, image: Array) -> Mapping[str, Array]:
        """Outputs by name for one batch that fits a profile."""
        import torch

        assert self.loaded is not None, "enter the runner first"
        loaded, context = self.loaded, self.loaded.context
        pinned = torch.from_numpy(np.ascontiguousarray(image)).pin_memory()
        with torch.cuda.stream(loaded.stream):
            device = loaded.inputs.get(self.input)
            if device is None or device.shape != pinned.shape:
                device = torch.empty_like(pinned, device="cuda")
                loaded.inputs[self.input] = device
                self._choose_profile(len(image))
                if not context.set_input_shape(self.input, tuple(pinned.shape)):
                    raise AtmExportError(
                        f"batch {len(image)} of shape {tuple(pinned.shape)} fits no profile of "
                        f"the engine ({', '.join(self.facts.profiles)})"
                    )
                context.set_tensor_address(self.input, device.data_ptr())
            device.copy_(pinned, non_blocking=True)
            self._execute(len(image))
            host = {name: self._fetch(name) for name in self.outputs}
        loaded.stream.synchronize()
        return {name: tensor.numpy() for name, tensor in host.items()}

    def _choose_profile(self, batch: int) -> None:
        assert self.loaded is not None
        for i, (low, _, high) in enumerate(self.facts.batches):
            if low <= batch <= high:
                if self.loaded.context.active_optimization_profile != i:
                    stream = self.loaded.stream.cuda_stream
                    self.loaded.context.set_optimization_profile_async(i, stream)
                return

    def _execute(self, batch: int) -> None:
        import torch

        assert self.loaded is not None
        loaded, context = self.loaded, self.loaded.context
        stream = loaded.stream
        captured = loaded.graphs.get(batch)
        if captured is not None:
            captured.replay()
            return
        if not context.execute_async_v3(stream.cuda_stream):
            raise AtmExportError(f"{self.plan}: the engine failed to run batch {batch}")
        if self.static:
            # One run has settled every allocation; addresses now stay what they are.
            stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                context.execute_async_v3(stream.cuda_stream)
            loaded.graphs = {batch: graph}

    def _fetch(self, name: str) -> Any:
        import torch

        output, kind = self.outputs[name], self.types[name]
        count = int(np.prod(output.shape))
        view = output.memory[: count * kind.itemsize].view(kind).reshape(output.shape)
        host = torch.empty(output.shape, dtype=kind, pin_memory=True)
        return host.copy_(view, non_blocking=True)


class _Output:
    """Grows one output's memory to what TensorRT asks for, and notes the shape it was given."""

    def __init__(self, trt: Any) -> None:
        outer = self
        self.memory: Any = None
        self.shape: tuple[int, ...] = ()

        class Allocator(trt.IOutputAllocator):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.IOutputAllocator.__init__(self)

            def reallocate_output(self, name: str, memory: int, size: int, alignment: int) -> int:
                return outer.grow(size)

            def reallocate_output_async(
                self, name: str, memory: int, size: int, alignment: int, stream: int
            ) -> int:
                return outer.grow(size)

            def notify_shape(self, name: str, shape: Any) -> None:
                outer.shape = tuple(int(length) for length in shape)

        self.allocator = Allocator()

    def grow(self, size: int) -> int:
        import torch

        if self.memory is None or self.memory.numel() < size:
            self.memory = torch.empty(max(size, 1), dtype=torch.uint8, device="cuda")
        return int(self.memory.data_ptr())


def _facts(plan: Path, facts: BuiltFacts | Mapping[str, Any] | None) -> BuiltFacts:
    """What is known of a plan: by default what its run folder's manifest says."""
    if facts is not None:
        return facts if isinstance(facts, BuiltFacts) else BuiltFacts.of(facts)
    engines = read_manifest(plan.parent).engines
    if plan.name not in engines:
        raise EngineMismatchError(f"{plan} is no engine of its run folder; build it with --trt")
    return engines[plan.name]


def _torch_type(name: str) -> Any:
    """The torch type of a TensorRT type."""
    import torch

    names = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
    return getattr(torch, names.get(name, name.lower()))
