"""OpenVINO runs the graphs as PyTorch decides; its precision, threads and bytes are ours to say."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser

import atm_export
from atm_export.backends import ONNXRUNTIME, OPENVINO, backends, threads
from atm_export.backends.openvino import door
from atm_export.backends.openvino.models import Models
from atm_export.backends.openvino.runner import OpenVINORunner
from atm_export.backends.openvino.weights import Weight, array_of, weights_as_inputs
from atm_export.backends.runner import Array
from atm_export.errors import AtmExportError, ConfigError, GraphLintError, MissingDependencyError
from atm_export.graph.lint_openvino import check_for_openvino
from atm_export.graph.saving import graph_from_memory, in_memory
from atm_export.runs.graphs import SavedGraph, locations, read_graph
from atm_export.runs.reading import open_run
from tests import test_lvvit, test_t2t
from tests.exports import VARIANTS, decided, exported
from tests.families import all_plans, prove
from tests.installed import needs_openvino
from tests.run_folders import real_run
from tests.runs import ended
from tests.tiny import SIZE, random_images

pytestmark = needs_openvino
LOGITS = 1e-3
HEAD = '<ir_version: 10, opset_import: ["": 20]>'
DOUBLE = HEAD + "g (float[n, 3] image) => (float[n, 3] logits) { logits = Add(image, image) }"


def saved(text: str) -> SavedGraph:
    return SavedGraph(parser.parse_model(text).SerializeToString())


def run(graph: SavedGraph, image: Array) -> dict[str, Array]:
    with backends[OPENVINO].open_graph(graph) as runner:
        return dict(runner.run(image))


@pytest.mark.parametrize("name", [name for name in VARIANTS if not VARIANTS[name].uint8])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_logits_and_tokens_are_those_of_pytorch(name: str, batch: int) -> None:
    made, wanted = exported(name), decided(name, batch)
    image, trace = wanted.images.numpy(), wanted.trace
    found = run(in_memory(made.traced), image)
    logits, tokens = trace.outputs["logits"].numpy(), trace.tokens_out.numpy()
    assert np.abs(found["logits"] - logits).max() <= LOGITS
    assert np.array_equal(found["token_maps"], trace.maps.numpy())
    told = found["tokens_per_block"]
    assert np.array_equal(told.T if told.ndim == 2 else np.stack([told] * batch, axis=1), tokens)
    shipped = run(in_memory(made.shipped), image)
    assert list(shipped) == ["logits"] and np.abs(shipped["logits"] - logits).max() <= LOGITS


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_uint8_pixels_give_what_onnx_runtime_gives(batch: int) -> None:
    graph = in_memory(exported("uint8").traced)
    pixels = np.random.default_rng(batch).integers(0, 256, (batch, SIZE, SIZE, 3), dtype=np.uint8)
    with backends[ONNXRUNTIME].open_graph(graph) as runner:
        wanted = runner.run(pixels)
    found = run(graph, pixels)
    assert list(found) == list(wanted)
    assert np.abs(found["logits"] - wanted["logits"]).max() <= LOGITS
    for name in ("tokens_per_block", "token_maps"):
        assert np.array_equal(found[name], wanted[name])


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("lvvit", "adaptive"),
        ("t2t", "per image"),
        pytest.param("lvvit", "per image", marks=pytest.mark.slow),
        pytest.param("t2t", "adaptive", marks=pytest.mark.slow),
    ],
)
def test_other_families_climb_the_ladder(family: str, kind: str) -> None:
    backbone = {"lvvit": test_lvvit.narrow, "t2t": test_t2t.narrow}[family]()
    result = prove(backbone, all_plans(backbone)[kind], [OPENVINO])
    assert {rung.name for rung in result.rungs} == {
        "twin", "openvino onnx", "shipped openvino onnx"
    }  # fmt: skip


def test_precision_and_threads_are_said_whatever_the_cpu_would_take() -> None:
    compiled = door.Graph(saved(DOUBLE), threads=1).compiled()
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
    assert compiled.get_property("EXECUTION_MODE_HINT").name == "ACCURACY"
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert "INFERENCE_NUM_THREADS" not in door.settings_of()
    threads.use_threads(3)
    assert door.settings_of()["INFERENCE_NUM_THREADS"] == 3
    assert door.settings_of(2)["INFERENCE_NUM_THREADS"] == 2
    with pytest.raises(ConfigError, match="threads"):
        door.settings_of(-1)
    with backends[OPENVINO].open_graph(saved(DOUBLE)) as runner:
        assert backends[OPENVINO].device(runner).startswith("OpenVINO, CPU, f32, ")


def test_a_model_in_f32_computes_in_f32() -> None:
    """Products that bfloat16 would round: the default of CPUs with units for it is off."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((64, 256)).astype(np.float32)
    graph = HEAD + (
        "g (float[n, 256] image) => (float[n, n] logits)"
        " { turned = Transpose(image)\n logits = MatMul(image, turned) }"
    )
    exact = image.astype(np.float64) @ image.astype(np.float64).T
    assert np.abs(run(saved(graph), image)["logits"] - exact).max() <= 1e-3


class _Counted(door.Graph):
    """What was compiled, None for any batch."""

    def __init__(self, graph: SavedGraph) -> None:
        super().__init__(graph)
        self.sizes: list[int | None] = []

    def compiled(self, batch: int | None = None) -> Any:
        self.sizes.append(batch)
        return super().compiled(batch)


def test_the_first_batch_sizes_have_models_of_their_own() -> None:
    graph = _Counted(saved(DOUBLE))
    models = Models(graph, fixed=2)
    with OpenVINORunner(lambda: models) as runner:
        for batch in (3, 1, 3, 8, 5, 1):
            image = np.full((batch, 3), batch, np.float32)
            assert np.array_equal(runner.run(image)["logits"], 2 * image)
    assert graph.sizes == [None, 3, 1]
    assert models.of(8) is models.any_batch is not models.of(1)
    fixed = Models(_Counted(saved(DOUBLE.replace("float[n, 3]", "float[2, 3]"))))
    assert fixed.of(2) is fixed.any_batch


@pytest.mark.parametrize("name", ["class token", "frozen", "per image", "unmerged"])
def test_models_of_one_batch_size_answer_as_that_for_any(name: str) -> None:
    graph, image = in_memory(exported(name).traced), decided(name, 3).images.numpy()
    answers = []
    for fixed in (0, 1):
        models = Models(door.Graph(graph), fixed)
        with OpenVINORunner(lambda models=models: models) as runner:  # type: ignore[misc]
            answers.append(runner.run(image))
    assert np.abs(answers[0]["logits"] - answers[1]["logits"]).max() <= LOGITS
    for each in ("tokens_per_block", "token_maps"):
        assert np.array_equal(answers[0][each], answers[1][each])


def test_one_door() -> None:
    package = Path(atm_export.__file__).parent
    found = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if "import openvino\n" in path.read_text() or "from openvino" in path.read_text()
    ]
    assert found == ["backends/openvino/door.py"]


def test_nothing_is_reported_and_nothing_written_into_the_home_folder(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from atm_export.backends.openvino import door\n"
        "assert 'openvino' not in sys.modules\n"
        "door.openvino().Core()\n"
        "assert not [m for m in sys.modules if m.startswith('openvino_telemetry')]\n"
        "import openvino_telemetry\n"  # it may be imported by who wants it
    )
    home = {**os.environ, "HOME": str(tmp_path), "USERPROFILE": str(tmp_path)}
    command = [sys.executable, "-c", code]
    ended(subprocess.run(command, env=home, capture_output=True, text=True, timeout=120))
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "atm-export\[openvino\]"'):
        backends[OPENVINO].require()


def test_mistakes_are_one_line() -> None:
    for data in (b"", b"no graph", saved(DOUBLE).graph[:-9]):
        with pytest.raises(AtmExportError, match=r"^OpenVINO does not load the model: .+$"):
            run(SavedGraph(data), np.ones((1, 3), np.float32))
    with pytest.raises(AtmExportError, match=r"^OpenVINO failed: .+$"):
        run(saved(DOUBLE), np.ones((1, 4), np.float32))


# --- weights beside the graph ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SavedGraph]:
    """The demo's graph, its weights in another file."""
    out = tmp_path_factory.mktemp("runs") / "beside"
    yield read_graph(open_run(real_run(out, model="demo", external_data="always")), "model.onnx")


def test_weights_beside_the_graph_give_the_same_answers(
    beside: SavedGraph, demo_folder: Path
) -> None:
    inside = read_graph(open_run(demo_folder), "model.onnx")
    assert beside.beside and not inside.beside
    image = random_images(3, size=(56, 56)).numpy()
    wanted = run(inside, image)["logits"]
    assert np.abs(run(beside, image)["logits"] - wanted).max() <= 1e-5


def test_the_model_outlives_the_bytes(beside: SavedGraph) -> None:
    copy = SavedGraph(beside.graph, {name: bytes(data) for name, data in beside.beside.items()})
    image = np.ones((1, 3, 56, 56), np.float32)
    wanted = run(beside, image)["logits"]
    compiled = door.Graph(copy).compiled()
    del copy
    gc.collect()
    assert np.array_equal(compiled({0: image})[0], wanted)


def test_weights_become_inputs_and_nothing_else_changes(beside: SavedGraph) -> None:
    text, weights = weights_as_inputs(beside.graph)
    before, after = (onnx.load_from_string(data) for data in (beside.graph, text))
    outside = {t.name: t for t in before.graph.initializer if t.external_data}
    assert not locations(text) and {weight.name for weight in weights} == set(outside)
    given = {value.name: value.type.tensor_type for value in after.graph.input}
    for weight in weights:
        assert weight.shape == tuple(outside[weight.name].dims)
        assert weight.shape == tuple(dim.dim_value for dim in given[weight.name].shape.dim)
        assert given[weight.name].elem_type == outside[weight.name].data_type
    values = graph_from_memory(beside).graph.initializers
    for weight in weights:
        value = values[weight.name].const_value
        assert value is not None
        assert np.array_equal(array_of(weight, beside.beside), value.numpy())
    assert list(after.graph.node) == list(before.graph.node)
    assert len(after.graph.initializer) == len(before.graph.initializer) - len(weights)


@pytest.mark.parametrize(
    "wrong", [{"offset": -4}, {"offset": 8}, {"length": 8}, {"type": 16}, {"location": "other"}]
)
def test_a_weight_that_is_not_in_its_file_is_refused(wrong: dict[str, Any]) -> None:
    facts: dict[str, Any] = {
        "name": "w",
        "shape": (3,),
        "type": 1,
        "location": "data",
        "offset": 4,
        "length": 12,
    }
    data = {"data": np.arange(4, dtype=np.float32).tobytes()}
    assert array_of(Weight(**facts), data).tolist() == [1, 2, 3]
    with pytest.raises(AtmExportError, match="w does not lie in"):
        array_of(Weight(**{**facts, **wrong}), data)


GIVEN = "g () => (float[1] y) { y = Constant<value = float[1] {1}>() }"


def test_a_graph_cannot_name_memory_to_be_read() -> None:
    """A location that OpenVINO takes for an address of this process."""
    model = parser.parse_model(DOUBLE)
    tensor = model.graph.initializer.add(name="w", data_type=1, dims=[1])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    facts = {"location": "*/_ORT_MEM_ADDR_/*", "offset": "8", "length": "4"}
    for key, value in facts.items():
        tensor.external_data.add(key=key, value=value)
    with pytest.raises(AtmExportError, match="w does not lie in"):
        door.Graph(SavedGraph(model.SerializeToString()))


def test_a_tensor_beside_the_graph_that_is_no_initializer_is_refused() -> None:
    model = parser.parse_model(
        HEAD + "g () => (float[1] y) { y = Constant<value = float[1] {1}>() }"
    )
    tensor = model.graph.node[0].attribute[0].t
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="data")
    graph = SavedGraph(model.SerializeToString(), {"data": b"1234"})
    with pytest.raises(AtmExportError, match="as initializers alone"):
        door.Graph(graph)


# --- what it computes otherwise -------------------------------------------------------------------

BEYOND = HEAD + (
    "g (float[n, 3] image) => (float[n, 3] logits)"
    "<int64[1] grid = {1048576}, int64[1] stride = {8192}, float[1] limit = {1e9}>"
    "{ less = Less(image, limit)\n one = Cast<to = 7>(less)\n fine = Mul(one, grid)"
    "  key = Mul(fine, stride)\n back = Div(key, stride)\n whole = Div(back, grid)"
    "  factor = Cast<to = 1>(whole)\n logits = Mul(image, factor) }"
)


def test_int64_is_still_computed_as_int32() -> None:
    image = np.ones((1, 3), np.float32)
    with backends[ONNXRUNTIME].open_graph(saved(BEYOND)) as runner:
        assert np.array_equal(runner.run(image)["logits"], image)
    assert not np.array_equal(run(saved(BEYOND), image)["logits"], image), (
        "OpenVINO computes integers beyond 32 bits as they are (openvino #35824 is mended): once "
        "no older one is supported, graph/lint_openvino.py can go, and sort keys need not fit 32 "
        "bits for its sake"
    )


def test_a_graph_with_integers_beyond_32_bits_is_refused() -> None:
    with pytest.raises(GraphLintError, match="beyond 32 bits"):
        check_for_openvino(graph_from_memory(saved(BEYOND)))
    with pytest.raises(GraphLintError, match="beyond 32 bits"):
        backends[OPENVINO].check_graph(graph_from_memory(saved(BEYOND)))
    backends[OPENVINO].check_graph(exported("class token").shipped)
