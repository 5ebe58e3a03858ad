"""The smallest part of a graph that a builder still refuses: a builder's log often names no node,
or one that was fused from hundreds.

A builder that is fed parts of graphs may crash, so `failing_part` searches in a process of its own:

    python -m atm_export.backends.tensorrt.cut MODEL OUT FLAVOR SETTINGS MESSAGE SECONDS
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Timer
from typing import Any

import onnx
import onnx_ir as ir

from atm_export.backends.tensorrt.api import Api, load_api
from atm_export.backends.tensorrt.build import BuildFailedError, build_engine, parse
from atm_export.backends.tensorrt.explain import kind_of
from atm_export.backends.tensorrt.settings import EngineSettings, Flavor
from atm_export.graph.saving import written

BUILDS = 60
SECONDS = 300.0
GRACE = 60.0  # beyond that, for the build that is under way
SAYS = "cut: "  # before lines that are meant for the parent; TensorRT prints too
TYPES = {
    "FLOAT": "FLOAT",
    "HALF": "FLOAT16",
    "BF16": "BFLOAT16",
    "BOOL": "BOOL",
    "INT32": "INT32",
    "INT64": "INT64",
}
FLOATS = ("FLOAT", "HALF", "BF16")
Shapes = Mapping[str, tuple[str, tuple[int, ...]]]  # tensor: TensorRT's type, lengths or -1
Progress = Callable[[str], None]


@dataclass(frozen=True)
class FailingPart:
    """A part of a graph that fails as the whole does."""

    model: onnx.ModelProto

    def __str__(self) -> str:
        names = [f"{node.name or '?'} ({node.op_type})" for node in self.model.graph.node]
        return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def failing_part(
    model: ir.Model,
    settings: EngineSettings,
    api: Api,
    error: BuildFailedError,
    progress: Progress = lambda text: None,
    seconds: float = SECONDS,
) -> FailingPart | None:
    """The smallest part found in BUILDS builds or `seconds` that fails as `error` says; None where
    nothing smaller than the whole does, or nothing can be searched. A crash ends the search."""
    try:
        with TemporaryDirectory(prefix="atm-export-") as folder:
            whole, part = Path(folder, "whole.onnx"), Path(folder, "part.onnx")
            written(model, whole)
            request = [whole, part, api.flavor.value, settings.model_dump_json(), error]
            _search([*map(str, request), str(seconds)], progress, seconds + GRACE)
            return FailingPart(onnx.load(part)) if part.is_file() else None
    except OSError:  # no room or no process: the builder's own error matters more
        return None


def _search(request: Sequence[str], progress: Progress, seconds: float) -> None:
    """Run `main` in a process of its own, for at most so many seconds."""
    command = [sys.executable, "-P", "-m", "atm_export.backends.tensorrt.cut", *request]
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(command, stdout=pipe, stderr=nothing, text=True) as process:
        assert process.stdout is not None
        timer = Timer(seconds, process.kill)
        timer.start()
        try:
            for line in process.stdout:
                if line.startswith(SAYS):
                    progress(line.removeprefix(SAYS).strip())
        finally:
            timer.cancel()
            process.kill()


def smallest_failing(
    model: onnx.ModelProto,
    settings: EngineSettings,
    api: Api,
    message: str,
    found: Callable[[onnx.ModelProto], None],
    progress: Progress = lambda text: None,
    seconds: float = SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Give `found` ever smaller parts of `model` that fail as `message` (a BuildFailedError's)
    says, in at most BUILDS builds and `seconds`."""
    import onnx_graphsurgeon as gs
    from onnx_graphsurgeon.logger import G_LOGGER

    G_LOGGER.severity = G_LOGGER.CRITICAL
    graph = gs.import_onnx(model)
    shapes = _shapes(model, api)
    longest = max([1, *(n for _, shape in shapes.values() for n in shape[1:-1])])
    kind, until, tried = kind_of(message), clock() + seconds, 0

    def fails(nodes: Sequence[Any]) -> bool:
        nonlocal tried
        if tried >= BUILDS or clock() > until:
            return False
        part = _part(gs, graph, nodes, shapes)
        if part is None:
            return False
        tried += 1
        progress(f"looking for the part that fails: {len(part.graph.node)} nodes, build {tried}")
        if _failure(part, settings, api, longest) != kind:
            return False
        found(part)
        return True

    named = [node for node in graph.nodes if node.name and node.name in message]
    smallest(named if named and fails(named) else graph.nodes, fails)


def smallest(nodes: Sequence[Any], fails: Callable[[Sequence[Any]], bool]) -> list[Any]:
    """The fewest of `nodes`, in their order, that still fail: the shortest failing beginning, its
    shortest failing end, then what can go from between (by halves, quarters, and so on).

    The whole is taken to fail. What is returned failed when it was tried, or is the whole.
    """
    kept = list(nodes)
    kept = kept[: _least(len(kept), lambda n: fails(kept[:n]))]
    kept = kept[-_least(len(kept), lambda n: fails(kept[-n:])) :]
    size = len(kept) // 2
    while size:
        start = 0
        while start < len(kept):
            fewer = kept[:start] + kept[start + size :]
            if fewer and fails(fewer):
                kept = fewer
            else:
                start += size
        size //= 2
    return kept


def _least(whole: int, fails: Callable[[int], bool]) -> int:
    """The least n at which `fails`, if it fails from some n on; it does at `whole`."""
    low, high = 0, whole
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fails(middle) else (middle, high)
    return high


def _failure(
    model: onnx.ModelProto, settings: EngineSettings, api: Api, longest: int
) -> str | None:
    """In which way the builder fails, or None. longest: tokens, where their number is open."""
    try:
        build_engine(ir.from_proto(model), settings, api, free=longest)
    except BuildFailedError as error:
        return kind_of(str(error))
    return None


def _shapes(model: onnx.ModelProto, api: Api) -> Shapes:
    """What TensorRT's parser makes of each tensor (all that come before a node it stops at)."""
    parsed = parse(ir.from_proto(model), api, [])
    network = parsed.network
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    tensors = [layer.get_output(i) for layer in layers for i in range(layer.num_outputs)]
    tensors += [network.get_input(i) for i in range(network.num_inputs)]
    return {tensor.name: (tensor.dtype.name, tuple(tensor.shape)) for tensor in tensors}


def _part(gs: Any, graph: Any, nodes: Iterable[Any], shapes: Shapes) -> onnx.ModelProto | None:
    """`nodes` as a graph of their own; what they read becomes an input, but for integers, flags and
    counts in float, which are computed as before: sizes are no sizes when they come as data."""
    chosen = {id(node): node for node in nodes}
    inputs: dict[str, Any] = {}
    open_ends = [tensor for node in chosen.values() for tensor in node.inputs]
    while open_ends:
        tensor = open_ends.pop()
        if isinstance(tensor, gs.Constant) or tensor.is_empty():
            continue
        maker = tensor.inputs[0] if tensor.inputs else None
        if maker is not None and id(maker) in chosen:
            continue
        kind, shape = shapes.get(tensor.name, ("", ()))
        counted = kind not in FLOATS or len(shape) < 2
        if maker is not None and (counted or not maker.inputs):
            chosen[id(maker)] = maker
            open_ends += maker.inputs
        elif kind in FLOATS:
            inputs[tensor.name] = _declared(gs, tensor.name, kind, shape)
        else:
            return None
    kept = [node for node in graph.nodes if id(node) in chosen]
    for tensor in (tensor for node in kept for tensor in node.outputs):
        if tensor.dtype is None and tensor.name in shapes:  # outputs of a graph state their type
            told = _declared(gs, tensor.name, *shapes[tensor.name])
            tensor.dtype, tensor.shape = told.dtype, told.shape
    return _exported(gs, graph, kept, inputs)


def _exported(
    gs: Any, graph: Any, nodes: Sequence[Any], inputs: Mapping[str, Any]
) -> onnx.ModelProto:
    """`nodes` between `inputs` and all that they make for others, or for nobody."""
    inside = {id(node) for node in nodes}
    made = [tensor for node in nodes for tensor in node.outputs if not tensor.is_empty()]
    ends = [t for t in made if not t.outputs or any(id(node) not in inside for node in t.outputs)]
    part = gs.Graph(
        nodes=list(nodes),
        inputs=list(inputs.values()),
        outputs=ends,
        name=graph.name,
        opset=graph.opset,
        import_domains=graph.import_domains,
        functions=graph.functions,
        ir_version=graph.ir_version,
    )
    model: onnx.ModelProto = gs.export_onnx(part, do_type_check=False)
    return model


def _declared(gs: Any, name: str, kind: str, shape: Sequence[int]) -> Any:
    """What TensorRT says of a tensor; free axes have names of their own, but for the batch."""
    free = ["batch" if axis == 0 else f"{name}.{axis}" for axis in range(len(shape))]
    lengths = [free[axis] if length < 0 else length for axis, length in enumerate(shape)]
    return gs.Variable(name, _dtype(kind), lengths)


def _dtype(kind: str) -> Any:
    """TensorRT's type as graphsurgeon wants it: NumPy's, or ONNX's where NumPy has none."""
    number = onnx.TensorProto.DataType.Value(TYPES[kind])
    return number if kind == "BF16" else onnx.helper.tensor_dtype_to_np_dtype(number)


def main(arguments: Sequence[str]) -> None:
    """Search, and keep the smallest part so far in OUT, whole at any time."""
    model, out, flavor, settings, message, seconds = arguments
    part = Path(f"{out}.part")

    def keep(found: onnx.ModelProto) -> None:
        onnx.save(found, part)
        part.replace(out)

    smallest_failing(
        onnx.load(model),
        EngineSettings.model_validate_json(settings),
        load_api(Flavor(flavor)),
        message,
        keep,
        lambda text: print(f"{SAYS}{text}", flush=True),
        float(seconds),
    )


if __name__ == "__main__":
    main(sys.argv[1:])
