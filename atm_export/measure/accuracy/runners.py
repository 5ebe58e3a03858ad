"""What can run a run folder's model, by name: the eager reference, and every backend.

Each opens as a context manager that yields `Forward`: uint8 pixels to the answers that are
judged and token counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atm_export.backends import ONNXRUNTIME, backends
from atm_export.backends.base import AUTO, FP32, GRAPH, Backend, choose_artifact, graph_in
from atm_export.backends.runner import Runner
from atm_export.errors import ConfigError, unknown_name
from atm_export.graph.optimize import with_outputs
from atm_export.graph.saving import fingerprint, graph_from_memory, in_memory
from atm_export.methods.plan import MergePlan
from atm_export.model.flops import count_gmacs
from atm_export.model.reference import run_reference
from atm_export.runs.graphs import SavedGraph, read_graph
from atm_export.runs.reading import Run
from atm_export.subject import Pixels, Subject, fixed_tokens
from atm_export.tasks.base import names


@dataclass(frozen=True)
class BatchOutput:
    """rows [B, ...], the answers that are judged; tokens after each block's merge [blocks, B]."""

    rows: NDArray[np.float32]
    tokens_out: Tensor


@dataclass(frozen=True)
class Engine:
    """Something that runs: its forward pass, where it runs, and where token counts come from."""

    forward: Callable[[Pixels], BatchOutput]
    device: str
    tokens_from: str


EAGER = "eager"
ITSELF, COUNTED = "the eager reference itself", "eager reference"  # where token counts come from


def runner_names() -> list[str]:
    """What can run a run: the eager reference, every backend, and backends in low precisions
    (openvino-bf16)."""
    return [EAGER, *backends, *_low()]


def _low() -> dict[str, tuple[str, str]]:
    """Backend and precision of the runners in a precision below FP32."""
    return {
        f"{name}-{precision}": (name, precision)
        for name in backends
        for precision in backends[name].precisions
        if precision != FP32
    }


def file_of(name: str, run: Run) -> str:
    """The graph of `run` that a runner runs, or from which its engine was built; ConfigError where
    it has none in that precision."""
    if name == EAGER or (name in backends and backends[name].engines):
        return GRAPH
    backend, precision = _low().get(name, (name, FP32))
    return graph_in(backends[backend], run, precision)


def open_runner(name: str, run: Run, subject: Subject) -> AbstractContextManager[Engine]:
    """The runner of that name, to be entered; ConfigError offers the nearest."""
    if name not in runner_names():
        raise unknown_name("runner", name, runner_names())
    if name == EAGER:
        return _eager(subject)
    if name in _low():
        return _engine(backends[_low()[name][0]], run, subject, file_of(name, run))
    backend = backends[name]
    return _engine(backend, run, subject) if backend.engines else _graph(backend, run, subject)


@contextmanager
def _eager(subject: Subject) -> Iterator[Engine]:
    """The eager reference in PyTorch."""
    judged = subject.model.backbone.judged

    def forward(pixels: Pixels) -> BatchOutput:
        trace = run_reference(subject.model.backbone, subject.plan, subject.tensor(pixels))
        return BatchOutput(trace.outputs[judged].numpy(), trace.tokens_out)

    yield Engine(forward, "PyTorch, CPU", ITSELF)


def _graph(backend: Backend, run: Run, subject: Subject) -> AbstractContextManager[Engine]:
    """The exported graph, with its token counts where it can tell them."""
    backend.require()
    graph, source = traced_graph(run, subject, backend)
    return _entered(backend, backend.open_measured(graph), subject, source)


def _engine(
    backend: Backend, run: Run, subject: Subject, name: str = AUTO
) -> AbstractContextManager[Engine]:
    """A file of the run that the backend runs: an engine, the one that fits here, or a graph in low
    precision."""
    if not backend.artifacts(run):
        raise ConfigError(
            f"{run.folder} holds no {backend.title} engine; export it with --backend "
            f"{backend.name}, or take --runner {ONNXRUNTIME}"
        )
    backend.require()
    file = choose_artifact(backend, run, name)
    source = told_by(subject) or COUNTED
    return _entered(backend, backend.open_artifact(run, file), subject, source, file)


@contextmanager
def _entered(
    backend: Backend, opened: Runner, subject: Subject, source: str, file: str = ""
) -> Iterator[Engine]:
    """A runner while it is entered. source: where token counts come from; file: that it runs, where
    that says more than the backend's name."""
    with opened as runner:
        device = f"{backend.device(runner)}{file and ', '}{file}"
        yield Engine(from_runner(subject, runner, source), device, source)


@dataclass(frozen=True)
class Carried:
    """What a runner runs, by value, for a machine that has no run folder: a graph, or nothing (the
    eager reference); source and file as `_entered` takes them."""

    name: str
    source: str
    graph: SavedGraph | None = None
    file: str = ""


def carried_runner(name: str, run: Run, subject: Subject) -> Carried:
    """The runner of that name as a value; raises what `open_runner` raises for a name and a run,
    and ConfigError where it runs engines."""
    if name == EAGER:
        return Carried(EAGER, ITSELF)
    low = name in _low()
    backend = backends[_low()[name][0] if low else name]
    backend.check_elsewhere()
    if low:
        file = choose_artifact(backend, run, file_of(name, run))
        return Carried(name, told_by(subject) or COUNTED, read_graph(run, file), file)
    graph, source = traced_graph(run, subject, backend)
    beside = {place: bytes(data) for place, data in graph.beside.items()}
    return Carried(name, source, SavedGraph(graph.graph, beside))


def open_carried(carried: Carried, subject: Subject) -> AbstractContextManager[Engine]:
    """What `open_runner` gives where it came from, to be entered."""
    if carried.graph is None:
        return _eager(subject)
    low = _low().get(carried.name)
    backend = backends[low[0] if low else carried.name]
    backend.require()
    opened = (
        backend.open_graph(carried.graph, low[1]) if low else backend.open_measured(carried.graph)
    )
    return _entered(backend, opened, subject, carried.source, carried.file)


def from_runner(subject: Subject, runner: Runner, source: str) -> Callable[[Pixels], BatchOutput]:
    """Forward by any Runner; token counts from its outputs, the fixed schedule, or the eager
    reference."""
    fixed, judged = fixed_tokens(subject), subject.model.backbone.judged

    def forward(pixels: Pixels) -> BatchOutput:
        outputs: Mapping[str, Any] = runner.run(subject.feed(pixels))
        counts = outputs.get("tokens_per_block")
        if counts is not None:
            rows = torch.as_tensor(np.asarray(counts, dtype=np.int64))
            rows = rows.T if rows.ndim == 2 else rows.unsqueeze(1).expand(-1, len(pixels))
        elif fixed is not None:
            rows = fixed.unsqueeze(1).expand(-1, len(pixels))
        else:
            image = subject.tensor(pixels)
            rows = run_reference(subject.model.backbone, subject.plan, image).tokens_out
        return BatchOutput(np.asarray(outputs[judged], dtype=np.float32), rows)

    return forward


def told_by(subject: Subject) -> str | None:
    """Where token counts come from without more work, if anywhere."""
    if subject.config.trace:
        return "trace outputs of the exported graph"
    return None if subject.plan.adaptive else "fixed schedule"


def traced_graph(
    run: Run, subject: Subject, backend: Backend = backends[ONNXRUNTIME]
) -> tuple[SavedGraph, str]:
    """A graph for `backend` that tells its tokens, and how one knows.

    An adaptive graph that ships without trace outputs is translated again with them. Where its
    nodes and weights are then those of the shipped graph, byte by byte, it takes its place;
    otherwise the shipped graph runs and the eager reference counts.
    """
    file = backend.artifacts(run)[0]
    shipped, source = read_graph(run, file), told_by(subject)
    if source is not None:
        return shipped, source
    if subject.same_weights:
        graph = subject.graph(subject.plan, "plain" if file == GRAPH else backend.form)
        answers = names(subject.model.backbone.outputs)
        made = fingerprint(with_outputs(graph, answers))
        if made == fingerprint(graph_from_memory(shipped)):
            return (
                in_memory(with_outputs(graph, [*answers, "tokens_per_block"])),
                "trace outputs added to the exported graph (all else the same, byte by byte)",
            )
    return shipped, COUNTED


def gmacs_from_tokens(subject: Subject, plan: MergePlan, tokens_out: Tensor) -> Tensor:
    """GFLOPs [B] from tokens after each block's merge [blocks, B], as `--trace` gives them."""
    backbone = subject.model.backbone
    first = torch.full_like(tokens_out[:1], backbone.tokens)
    tokens_in = torch.cat([first, tokens_out[:-1]])
    mlp = tokens_out.clone()
    if plan.merges and backbone.head_rows is not None:
        mlp[-1] = backbone.head_rows
    early = [rule is not None and rule.before_attention for rule in plan.blocks]
    attended = torch.where(torch.tensor(early).unsqueeze(1), tokens_out, tokens_in)
    return count_gmacs(backbone, tokens_in, mlp, attended)
