"""ONNX to engine: one strongly typed network, the asked-for profiles, one serialized plan."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import onnx_ir as ir

from atm_export import loose_files, place
from atm_export.backends.tensorrt.api import Api, gpu_sm, load_api
from atm_export.backends.tensorrt.explain import explain_builder, explain_parser
from atm_export.backends.tensorrt.settings import EngineSettings
from atm_export.errors import EngineBuildError
from atm_export.graph.lint_tensorrt import check_for_tensorrt
from atm_export.graph.saving import graph_bytes, graph_from_file, is_beside, weight_bytes, written

DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
LOCK = ".atm-export.lock"
NEW_CACHE = "give --timing-cache a new file"
MEMORY = {
    "activation_bytes": r"Total Activation Memory: (\d+) bytes",
    "weights_bytes": r"Total Weights Memory: (\d+) bytes",
    "scratch_bytes": r"Max Scratch Memory: (\d+) bytes",
}


@dataclass(frozen=True)
class Engine:
    """A serialized engine, and the facts that a loader checks before it trusts it."""

    plan: bytes
    facts: dict[str, Any]


class BuildFailedError(EngineBuildError):
    """Carries the whole log, to be saved where the user finds it."""

    def __init__(self, message: str, log: list[tuple[str, str]]) -> None:
        super().__init__(message)
        self.log = log


def engine_from_onnx(
    model: ir.Model | onnx.ModelProto | Path | str,
    settings: EngineSettings | None = None,
    *,
    api: Api | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Engine:
    """Build one engine from a typed ONNX graph whose input `image` has a free batch axis.

    The graph says its own precision; of `settings.precisions` only the first is looked at, to
    choose targets that have it.

    Raises GraphLintError before the build for graphs that TensorRT is known to refuse,
    BuildFailedError (with the log) where parser or builder stop, MissingDependencyError.
    """
    settings = settings or EngineSettings()
    api = api or load_api(settings.flavor)
    if isinstance(model, Path | str):
        model = graph_from_file(Path(model))
    graph = ir.from_proto(model) if isinstance(model, onnx.ModelProto) else model
    check_for_tensorrt(graph)
    return build_engine(graph, settings, api, progress)


def build_engine(
    model: ir.Model,
    settings: EngineSettings,
    api: Api,
    progress: Callable[[str], None] = lambda text: None,
    *,
    free: int = 1,
) -> Engine:
    """`engine_from_onnx` without the checks before it, for any float inputs; their first axis may
    be the batch. free: length of other axes that have none.

    Raises BuildFailedError (with the log) where parser or builder stop.
    """
    sms = api.targets(settings, settings.precisions[0], gpu_sm())
    log: list[tuple[str, str]] = []
    progress("parsing the graph")
    parsed = parse(model, api, log)
    builder, network = parsed.builder, parsed.network
    if parsed.refused is not None:
        raise BuildFailedError(parsed.refused, log)
    config = builder.create_builder_config()
    api.configure(config, settings, sms)
    _add_profiles(builder, config, network, settings, free)
    progress("building")
    plan = _build(builder, network, config, settings, api, log)
    return Engine(plan, _facts(api, settings, sms, network, log))


@dataclass(frozen=True)
class Parsed:
    """A network as far as the parser came, and why it stopped (None: at the end). TensorRT reads
    weights from the parser and writes to the logger to the end, but holds on to neither."""

    builder: Any
    network: Any
    held: tuple[Any, ...]
    refused: str | None


def parse(model: ir.Model, api: Api, log: list[tuple[str, str]]) -> Parsed:
    """The network of a graph; `log` grows with what TensorRT says."""
    trt = api.module
    logger = api.logger(lambda severity, text: log.append((severity, text)))
    builder = trt.Builder(logger)
    network = api.network(builder)
    parser = trt.OnnxParser(network, logger)
    if _parse(parser, model):
        return Parsed(builder, network, (parser, logger), None)
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    return Parsed(builder, network, (parser, logger), explain_parser(errors))


def _parse(parser: Any, model: ir.Model) -> bool:
    """From memory, or from files where no ONNX file holds the weights: the parser keeps what it has
    read of them."""
    if not is_beside(weight_bytes(model), "auto"):
        return bool(parser.parse(graph_bytes(model)))
    with TemporaryDirectory(prefix="atm-export-") as folder:
        return bool(parser.parse_from_file(str(written(model, Path(folder, "model.onnx")))))


def _add_profiles(
    builder: Any, config: Any, network: Any, settings: EngineSettings, free: int
) -> None:
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    shapes = {
        tensor.name: tuple(int(length) for length in tuple(tensor.shape)) for tensor in inputs
    }
    for asked in settings.profiles:
        profile = builder.create_optimization_profile()
        for name, (first, *others) in ((n, s) for n, s in shapes.items() if -1 in s):
            rest = [free if length < 0 else length for length in others]
            sizes = (asked.min, asked.opt, asked.max) if first < 0 else (first,) * 3
            profile.set_shape(name, *((size, *rest) for size in sizes))
        config.add_optimization_profile(profile)


def _build(
    builder: Any,
    network: Any,
    config: Any,
    settings: EngineSettings,
    api: Api,
    log: list[tuple[str, str]],
) -> bytes:
    """The plan; timings of earlier builds are read from and added to the timing cache."""
    file = Path(settings.timing_cache) if settings.timing_cache and api.keeps_timings else None
    cache: Any = None
    if file is not None:
        check_timing_cache(file)
        cache = config.create_timing_cache(file.read_bytes() if file.is_file() else b"")
        config.set_timing_cache(cache, False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildFailedError(explain_builder(log), log)
    if file is not None:
        _keep_timings(file, cache, config)
    return bytes(memoryview(plan))


def check_timing_cache(file: Path) -> None:
    """OutputError if timings written there would replace what is no timing cache of ours."""
    place.refuse_loss(file.parent, [file.name], remedy=NEW_CACHE)


def _keep_timings(file: Path, cache: Any, config: Any) -> None:
    """Write the timings of this build, with what other processes have written meanwhile."""
    busy = f"another process holds {file.parent / LOCK}"
    with place.output_errors(file, NEW_CACHE):
        file.parent.mkdir(parents=True, exist_ok=True)
    held = place.lock(file.parent / LOCK, busy, timeout=-1)
    try:
        if file.is_file():
            cache.combine(config.create_timing_cache(file.read_bytes()), True)
        loose_files.put_files(
            file.parent, {file.name: bytes(memoryview(cache.serialize()))}, NEW_CACHE
        )
    finally:
        held.release()


def _facts(
    api: Api, settings: EngineSettings, sms: tuple[int, ...], network: Any, log: list[Any]
) -> dict[str, Any]:
    text = "\n".join(message for _, message in log)
    memory = {name: re.findall(pattern, text) for name, pattern in MEMORY.items()}
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    return {
        "flavor": api.flavor.value,
        "tensorrt": api.version,
        "cuda": api.cuda,
        "sms": list(sms),
        "profiles": [str(profile) for profile in settings.profiles],
        "tensors": {
            tensor.name: {
                "mode": "input" if i < network.num_inputs else "output",
                "dtype": DTYPES.get(tensor.dtype.name, tensor.dtype.name.lower()),
                "shape": [int(length) for length in tuple(tensor.shape)],
            }
            for i, tensor in enumerate(tensors)
        },
        "settings": settings.model_dump(mode="json", exclude={"timing_cache", "precisions"}),
        "build": {
            **{name: int(found[-1]) if found else None for name, found in memory.items()},
            "layers": int(network.num_layers),
            "warnings": len({text for severity, text in log if severity == "WARNING"}),
        },
    }
