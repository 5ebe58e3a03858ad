"""A model repository for Triton Inference Server, from a checked run folder.

    DIR/<model>/config.pbtxt  labels.txt  1/model.onnx (or model.plan)  warmup/image

Source of the format: Triton's model_config.proto and model_configuration.md. The folder is written
to `DIR/.<model>.work` first and moved in whole; it carries a list of its files (`place`), and only
a folder that holds just those is ever replaced.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from atm_export import place
from atm_export.backends import OPENVINO, TENSORRT
from atm_export.inputs import IMAGE, InputSpec
from atm_export.runs.engine_facts import TensorFacts
from atm_export.runs.golden import read_golden
from atm_export.runs.graphs import Buffer, read_graph
from atm_export.runs.reading import Run, open_run, read_checked
from atm_export.runs.writing import working
from atm_export.triton_graphs import NO_PRECISION, Graph, served

QUEUE_MICROSECONDS = 2000
REMEDY = "choose another --triton-repo or --name"
ADAPTIVE = (
    "the policy is adaptive: the images that Triton batches share their number of merges, so an "
    "answer depends on its neighbours; export with --merge per-image or frozen where it must not"
)


@dataclass(frozen=True)
class Repository:
    """What was written: the model's folder, and warnings to be shown."""

    folder: Path
    warnings: tuple[str, ...]


def write_repository(
    run: Run | Path,
    repository: Path,
    *,
    backend: str | None = None,
    engine: str | None = None,
    precision: str | None = None,
    name: str | None = None,
) -> Repository:
    """Write `run` into `repository` as one model; an older one of that name is replaced, if it is
    as it was written.

    backend: onnxruntime (default), openvino, or tensorrt, which runs an engine of the run. engine:
    which one; without a backend TensorRT is meant. precision: fp32 (default), or int8 where the run
    has that graph of ONNX Runtime's, for CPUs. name: of the model; by default the run folder's.
    Raises ConfigError, OutputError, RunFolderError.
    """
    run = run if isinstance(run, Run) else open_run(run)
    graph = served(run, backend, engine, precision)
    folder = model_folder(repository, default_name(run.folder) if name is None else name)
    with working(folder, "", REMEDY) as work, place.output_errors(folder, REMEDY):
        part = work.path / "model"
        shutil.rmtree(part, ignore_errors=True)
        (part / "1").mkdir(parents=True)
        (part / "warmup").mkdir()
        for file, data in _files(run, graph).items():
            (part / "1" / file).write_bytes(data)
        (part / "warmup" / IMAGE).write_bytes(_warm_up_image(run))
        labels = _labels(run)
        if labels:
            (part / "labels.txt").write_text("\n".join(labels) + "\n", encoding="utf-8")
        text = config_text(run, graph, folder.name)
        (part / "config.pbtxt").write_text(text, encoding="utf-8")
        place.put_folder(part, folder, REMEDY)
    return Repository(folder, _warnings(run, graph))


def _warnings(run: Run, graph: Graph) -> tuple[str, ...]:
    batched = graph.max_batch > 0 and run.manifest.method.merge == "adaptive"
    unsaid = graph.backend == OPENVINO
    return (*([ADAPTIVE] if batched else []), *([NO_PRECISION] if unsaid else []))


def _files(run: Run, graph: Graph) -> Mapping[str, Buffer]:
    """What Triton loads: an engine, or the graph and the weights beside it, as the run has them."""
    if graph.backend == TENSORRT:
        return {graph.name: read_checked(run, graph.file)}
    saved = read_graph(run, graph.file)
    return {graph.name: saved.graph, **saved.beside}


def default_name(run: Path) -> str:
    """The model's name for Triton, from the run folder's."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", place.target(run).name)


def model_folder(repository: Path, name: str) -> Path:
    """Where the model called `name` goes; ConfigError if that is no name, OutputError if what is
    there would be lost."""
    place.plain_name(name, "Triton model name")
    place.target(repository, "choose another --triton-repo")
    folder = place.plain(repository) / name
    place.refuse_folder_loss(folder, REMEDY)
    return folder


def config_text(run: Run, graph: Graph, name: str) -> str:
    """config.pbtxt of one model, in protobuf's text format."""
    method, outputs = run.manifest.method, run.manifest.outputs
    ranks = run.manifest.answers.ranks
    batched = {key: facts for key, facts in outputs.items() if facts.shape[0] == "batch"}
    lines = [
        f"# {_one_line(method.summary)}",
        *(f"# Note: {warning}" for warning in _warnings(run, graph)),
        *(
            f"# Not served: {_one_line(key)}, which has no batch axis"
            for key in outputs
            if key not in batched
        ),
        f"name: {_quoted(name)}",
        f'backend: "{graph.backend}"',
        f"max_batch_size: {graph.max_batch}",
        f'default_model_filename: "{graph.name}"',
        _input(run.input, graph),
        *(_output(key, facts, graph, key == ranks) for key, facts in batched.items()),
        *([_batching(graph)] if graph.max_batch > 1 else []),
        _instances(graph),
        _warm_up(run.input, graph),
        _parameter("atm_export_policy", method.merge),
        *(_parameter(key, value) for key, value in graph.settings.items()),
    ]
    return "\n".join(lines) + "\n"


def _input(spec: InputSpec, graph: Graph) -> str:
    kind = f"data_type: {graph.kind(spec.name, spec.dtype)}"
    return _text("input", f"name: {_quoted(spec.name)}", kind, graph.dims(spec.shape))


def _output(name: str, facts: TensorFacts, graph: Graph, labelled: bool) -> str:
    label = ['label_filename: "labels.txt"'] if labelled and graph.max_batch else []
    kind = f"data_type: {graph.kind(name, facts.dtype)}"
    return _text("output", f"name: {_quoted(name)}", kind, graph.dims(facts.shape), *label)


def _batching(graph: Graph) -> str:
    sizes = ", ".join(str(size) for size in graph.preferred)
    return _text(
        "dynamic_batching",
        f"preferred_batch_size: [ {sizes} ]",
        f"max_queue_delay_microseconds: {QUEUE_MICROSECONDS}",
    )


def _instances(graph: Graph) -> str:
    """One instance: on a GPU for engines; ONNX Runtime takes one where there is one, in FP32."""
    kind = {TENSORRT: "KIND_GPU", OPENVINO: "KIND_CPU"}.get(graph.backend, "KIND_AUTO")
    kind = "KIND_CPU" if graph.on_cpu else kind
    return _text("instance_group", "count: 1", f"kind: {kind}")


def _warm_up(spec: InputSpec, graph: Graph) -> str:
    kind = graph.kind(spec.name, spec.dtype)
    value = f"data_type: {kind} {graph.dims(spec.shape, 1)} input_data_file: {_quoted(IMAGE)}"
    return _text(
        "model_warmup",
        'name: "a real image"',
        "batch_size: 1",
        f"inputs {{ key: {_quoted(spec.name)} value {{ {value} }} }}",
    )


def _parameter(key: str, value: str) -> str:
    return _text(
        "parameters", f"key: {_quoted(key)}", f"value {{ string_value: {_quoted(value)} }}"
    )


def _quoted(text: str) -> str:
    """A string of protobuf's text format: quotes, backslashes and line ends escaped."""
    return json.dumps(str(text))


def _one_line(text: str) -> str:
    return " ".join(str(text).split())


def _text(name: str, *fields: str) -> str:
    return "\n".join([f"{name} {{", *(f"  {field}" for field in fields), "}"])


def _warm_up_image(run: Run) -> bytes:
    """The first golden image, as the input's raw bytes."""
    return run.input.feed(read_golden(run).images[:1]).tobytes()


def _labels(run: Run) -> list[str]:
    """One line a class; none where the task ranks no classes."""
    classes = run.manifest.answers.classes
    labels: Sequence[str] = run.manifest.labels or [str(index) for index in range(classes)]
    return [_one_line(label) for label in labels]
