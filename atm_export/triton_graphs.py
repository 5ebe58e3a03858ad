"""What Triton Inference Server runs of a run: a graph or an engine, its backend, its batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from atm_export.backends import ONNXRUNTIME, OPENVINO, TENSORRT, backends
from atm_export.backends.base import AUTO, graph_in
from atm_export.errors import ConfigError, unknown_name
from atm_export.runs.engine_facts import FP32
from atm_export.runs.reading import Run

MAX_BATCH = 32
SERVED_FLAVOR = "tensorrt"
TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "uint8": "TYPE_UINT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
}
NO_PRECISION = (
    "Triton's OpenVINO backend reads no precision (of its parameters only HINT_BF16 is one), and "
    "OpenVINO's default on CPUs with bfloat16 units is bfloat16: answers there are not those that "
    "were proven; serve with ONNX Runtime or atm_export.runtime on such a CPU"
)


@dataclass(frozen=True)
class Graph:
    """What Triton runs: a file of the run, its backend, and the batch sizes it takes.

    max_batch: 0: what a request holds is run as it is, its first axis the batch. dtypes: of inputs
    and outputs, where they differ from the manifest's interface. settings: of the backend.
    on_cpu: it is made for CPUs, even where there is a GPU.
    """

    file: str
    backend: str
    max_batch: int
    preferred: tuple[int, ...]
    dtypes: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    on_cpu: bool = False

    def kind(self, name: str, dtype: str) -> str:
        """Triton's type of one tensor, which the manifest's interface says to be `dtype`."""
        return TYPES[self.dtypes.get(name, dtype)]

    @property
    def name(self) -> str:
        return "model.plan" if self.backend == TENSORRT else "model.onnx"

    def dims(self, shape: Sequence[str | int], batch: int = -1) -> str:
        """Of a tensor whose first axis is the batch, which Triton adds where it batches."""
        sizes = [*shape[1:]] if self.max_batch else [batch, *shape[1:]]
        return f"dims: [ {', '.join(map(str, sizes))} ]"


# Where it has a largest batch, Triton's OpenVINO backend runs that batch alone, filled up with what
# was in memory: images that share their number of merges with it would merge otherwise.
GRAPHS = {
    ONNXRUNTIME: Graph("model.onnx", ONNXRUNTIME, MAX_BATCH, (8, 16, 32)),
    OPENVINO: Graph(
        "model.onnx",
        OPENVINO,
        0,
        (),
        settings={"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"},
    ),
}


def served(run: Run, backend: str | None, engine: str | None, precision: str | None) -> Graph:
    """What Triton runs of the run; ConfigError for what cannot be meant."""
    known = (*GRAPHS, TENSORRT)
    chosen = backend if backend is not None else ONNXRUNTIME if engine is None else TENSORRT
    if chosen not in known:
        raise unknown_name("backend for Triton", chosen, known)
    if engine in run.manifest.low_precision:
        facts = run.manifest.low_precision[engine or ""]
        raise ConfigError(
            f"{engine} is no engine: give --backend {facts.backend} --precision {facts.precision}"
        )
    if precision not in (None, FP32):
        return _in_low_precision(run, chosen, engine, str(precision))
    if chosen == TENSORRT:
        return _engine(run, AUTO if engine is None else engine)
    if engine is not None:
        raise ConfigError(f"--engine {engine}: engines are TensorRT's, not --backend {chosen}'s")
    if chosen not in {ONNXRUNTIME, *run.manifest.proven_on}:
        raise ConfigError(
            f"{run.folder} was not proven on {chosen}; export it with --backend {chosen}"
        )
    return replace(GRAPHS[chosen], file=graph_in(backends[chosen], run, FP32))


def _in_low_precision(run: Run, backend: str, engine: str | None, precision: str) -> Graph:
    """ONNX Runtime's own graph in this precision, which is made for CPUs."""
    if engine is not None:
        raise ConfigError(f"--engine {engine} has a precision of its own; leave out --precision")
    if backend == OPENVINO:
        raise ConfigError(f"--precision {precision} --backend {OPENVINO}: {NO_PRECISION}")
    if backend != ONNXRUNTIME:
        raise ConfigError(f"--backend {backend} takes --engine NAME, which has its precision")
    file = graph_in(backends[backend], run, precision)
    return replace(GRAPHS[backend], file=file, on_cpu=True)


def _engine(run: Run, name: str) -> Graph:
    engines = run.manifest.engines
    if name == AUTO:  # where Triton runs is not known here: the first by the rule of every backend
        known = backends[TENSORRT].artifacts(run)
        served = [each for each in known if engines[each].flavor == SERVED_FLAVOR]
        name = next(iter([*served, *known]), "")
    if name not in engines:
        listed = ", ".join(engines) or "none (add --trt)"
        raise ConfigError(f"{run.folder} has no engine '{name}'; it has: {listed}")
    facts = engines[name]
    if facts.flavor != SERVED_FLAVOR:
        raise ConfigError(
            f"{name} is a TensorRT-RTX engine, and Triton's TensorRT backend loads enterprise "
            "engines only; build one with --trt-flavor tensorrt, or serve model.onnx"
        )
    largest = max(high for _, _, high in facts.batches)
    preferred = sorted({best for _, best, _ in facts.batches if best > 1} | {largest})
    dtypes = {key: tensor.dtype for key, tensor in facts.tensors.items()}
    return Graph(name, TENSORRT, largest, tuple(preferred), dtypes)
