"""Weights beside the file: the same answers, every file checked, and no file but the run's own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, parser

from atm_export import errors, pipeline, subject
from atm_export.backends.onnxruntime.runner import OnnxRuntimeRunner
from atm_export.choice import Choice
from atm_export.cli import main
from atm_export.config import stamped
from atm_export.graph import saving
from atm_export.graph.saving import (
    ALIGNED,
    fingerprint,
    graph_from_file,
    graph_from_memory,
    in_memory,
    save_graph,
    written,
)
from atm_export.measure.accuracy.runners import traced_graph
from atm_export.resolving import resolve
from atm_export.runs.golden import read_golden
from atm_export.runs.graphs import locations, read_graph
from atm_export.runs.reading import open_run
from atm_export.runtime import load
from atm_export.runtime.__main__ import main as slim
from atm_export.subject import exported_subject
from atm_export.triton import write_repository
from tests.exports import exported
from tests.run_folders import real_run
from tests.runs import run_command
from tests.test_verify import reseal

DATA = "model.onnx.data"


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo with its weights beside the graph, without its ladder; not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "beside"
    return real_run(out, model="demo", external_data="always")


@pytest.fixture
def run(beside: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(beside, tmp_path / "run"))


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an error."""
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return text.strip().splitlines()[-1]


def test_large_weights_lie_beside_and_small_ones_inside(beside: Path, demo_folder: Path) -> None:
    assert locations((beside / "model.onnx").read_bytes()) == {DATA}
    assert locations((demo_folder / "model.onnx").read_bytes()) == set()
    assert {DATA, "model.onnx"} <= set(open_run(beside).manifest.files)
    assert not (demo_folder / DATA).exists()
    ends, size = [0], (beside / DATA).stat().st_size
    for tensor in onnx.load(beside / "model.onnx", load_external_data=False).graph.initializer:
        facts = {entry.key: entry.value for entry in tensor.external_data}
        if not facts:
            assert len(tensor.raw_data) < saving.SMALL, tensor.name
            continue
        begin, length = int(facts["offset"]), int(facts["length"])
        assert begin % ALIGNED == 0 and begin >= ends[-1] and length >= saving.SMALL
        ends.append(begin + length)
    assert len(ends) > 50 and ends[-1] == size
    onnx.checker.check_model(beside / "model.onnx", full_check=True)


def test_answers_are_the_same_bit_by_bit(beside: Path, demo_folder: Path) -> None:
    graphs = [read_graph(open_run(folder), "model.onnx") for folder in (beside, demo_folder)]
    assert len({fingerprint(graph_from_memory(graph)) for graph in graphs}) == 1
    images = read_golden(open_run(beside)).images
    ours, theirs = (load(folder).predict(list(images)) for folder in (beside, demo_folder))
    assert np.array_equal(ours, theirs)


def test_the_command_proves_what_lies_beside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = ["demo", "--no-benchmark", "--external-data", "always", "--out", out]
    run_command(*command)
    assert sorted(p.name for p in out.iterdir() if "onnx" in p.name) == ["model.onnx", DATA]
    assert "verified 1 run folder" in run_command("verify", out)
    run_command("demo", "--no-benchmark", "--out", out, code=2)
    assert "differs in: external_data" in last_line(capsys)
    run_command("demo", "--no-benchmark", "--out", out, "--force")
    assert not (out / DATA).exists()
    run_command("verify", out)


def test_auto_decides_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "LIMIT", 1_000_000)
    out = real_run(tmp_path / "run", model="demo")
    assert locations((out / "model.onnx").read_bytes()) == {DATA}
    assert slim(["verify", str(out), "--providers", "cpu"]) == 0


def test_never_is_refused_before_the_work_where_no_file_holds_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(saving, "LIMIT", 1_000_000)
    monkeypatch.setattr(pipeline, "subject_of", lambda *_: pytest.fail("the work has begun"))
    arguments = ["demo", "--no-benchmark", "--external-data", "never", "--out", tmp_path / "run"]
    assert main([str(each) for each in arguments]) == errors.ConfigError.exit_code
    assert "--external-data never: the weights have" in last_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_anothers_in_its_place_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipeline, "subject_of", lambda *_: pytest.fail("the work has begun"))
    (tmp_path / DATA).write_bytes(b"mine")
    arguments = ["demo", "--external-data", "always", "--out", str(tmp_path)]
    assert main(arguments) == errors.OutputError.exit_code
    assert f"{DATA} would be overwritten" in last_line(capsys)
    assert (tmp_path / DATA).read_bytes() == b"mine"


def test_what_is_usual_is_not_stamped() -> None:
    plain, always = (resolve(Choice(model="demo", external_data=how)) for how in ("auto", "always"))
    assert "external_data" not in stamped(plain)
    assert plain.digest() != always.digest()


def _flipped(run: Path) -> None:
    data = bytearray((run / DATA).read_bytes())
    data[len(data) // 2] ^= 1
    (run / DATA).write_bytes(data)


def _swapped(run: Path) -> None:
    """Two weights of one size take each other's place."""
    data = bytearray((run / DATA).read_bytes())
    data[:ALIGNED], data[ALIGNED : 2 * ALIGNED] = data[ALIGNED : 2 * ALIGNED], data[:ALIGNED]
    (run / DATA).write_bytes(data)


def _linked_elsewhere(run: Path) -> None:
    (run.parent / "other").write_bytes(bytes((run / DATA).stat().st_size))
    (run / DATA).unlink()
    (run / DATA).symlink_to(run.parent / "other")


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "a flipped bit": _flipped,
    "missing": lambda run: (run / DATA).unlink(),
    "renamed": lambda run: (run / DATA).rename(run / "weights.data"),
    "cut": lambda run: os.truncate(run / DATA, (run / DATA).stat().st_size - 1),
    "longer": lambda run: os.truncate(run / DATA, (run / DATA).stat().st_size + 1),
    "swapped": _swapped,
    "a folder": lambda run: ((run / DATA).unlink(), (run / DATA).mkdir()),
    "a link to another": _linked_elsewhere,
    "a link to nothing": lambda run: (
        (run / DATA).unlink(),
        (run / DATA).symlink_to(run.parent / "gone"),
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_file_of_weights_is_refused(
    what: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = open_run(run)
    DAMAGE[what](run)
    for use in (load, open_run, lambda _: read_graph(opened, "model.onnx")):
        with pytest.raises(errors.RunFolderError):
            use(run)
    assert main(["verify", str(run)]) == slim(["verify", str(run)]) == 10
    assert DATA in capsys.readouterr().err
    assert main(["triton", str(run), "--triton-repo", str(run.parent / "models")]) == 10


def pointing(run: Path, location: str) -> Path:
    """The run sealed anew, with a graph whose weights lie elsewhere."""
    graph = onnx.load(run / "model.onnx", load_external_data=False)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    (run / "model.onnx").write_bytes(graph.SerializeToString())
    reseal(run)
    return run


ELSEWHERE = ("../secret", "/etc/hostname", "other.data", "", ".", "*/_ORT_MEM_ADDR_/*", f"./{DATA}")


@pytest.mark.parametrize("location", ELSEWHERE)
def test_a_graph_that_points_elsewhere_is_refused(
    location: str, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run)
    for folder in (run, run.parent):
        for name in ("secret", "other.data"):
            shutil.copy(run / DATA, folder / name)
    pointing(run, location)
    with pytest.raises(errors.MissingFileError, match="its manifest lists no"):
        load(run)
    assert main(["verify", str(run)]) == slim(["verify", str(run)]) == 10
    assert "manifest lists no" in last_line(capsys)


NO_GRAPH = (b"\x3a\xff\xff\xff\x7f", b"\x0b", b"\x80" * 11, b"\x3d\x01")


def test_bytes_that_are_no_graph_are_one_line(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for data in NO_GRAPH:
        (run / "model.onnx").write_bytes(data)
        reseal(run)
        assert main(["verify", str(run)]) == 10
        assert "is no ONNX file" in last_line(capsys)


def test_an_interrupted_run_goes_on_with_the_weights_beside_its_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    translated: list[int] = []

    def counted(*arguments: Any) -> ir.Model:
        translated.append(1)
        return traced(*arguments)

    traced = subject.traced_graph
    monkeypatch.setattr(subject, "traced_graph", counted)
    out, work = tmp_path / "run", tmp_path / ".run.work"
    command = ["demo", "--no-benchmark", "--external-data", "always", "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "climb", interrupt)
        assert main(command) == 130
        assert (work / "traced.onnx.data").is_file()
        assert main(command) == 130
        assert translated == [1]
        os.truncate(work / "traced.onnx.data", 4096)
        assert main(command) == 130
        assert translated == [1, 1]
    run_command(*command)
    assert translated == [1, 1]
    run_command("verify", out)
    assert not work.exists()


def test_triton_is_given_both_files(run: Path, tmp_path: Path) -> None:
    folder = write_repository(run, tmp_path / "models").folder / "1"
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", DATA]
    for name in ("model.onnx", DATA):
        assert (folder / name).read_bytes() == (run / name).read_bytes()


def test_trace_outputs_are_added_to_what_lies_beside(beside: Path) -> None:
    opened = open_run(beside)
    graph, source = traced_graph(opened, exported_subject(opened.manifest, "manifest.json"))
    assert "byte by byte" in source
    names = [output.name for output in graph_from_memory(graph).graph.outputs]
    assert names == ["logits", "tokens_per_block"]


def test_files_are_the_same_for_the_same_graph_and_weights_are_not_copied_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = exported("class token").traced
    first, second = (save_graph(graph, "g.onnx", "always") for _ in range(2))
    assert first["g.onnx"] == second["g.onnx"]
    assert b"".join(first["g.onnx.data"]) == b"".join(second["g.onnx.data"])
    assert list(save_graph(graph, "g.onnx", "never")) == ["g.onnx"]
    read = graph_from_file(written(graph, tmp_path / "g.onnx", "always"))
    assert fingerprint(read) == fingerprint(graph)
    monkeypatch.setattr(saving, "LIMIT", 0)
    held = in_memory(read)
    tensors = (value.const_value for value in read.graph.initializers.values())
    array = next(t.numpy() for t in tensors if t is not None and t.nbytes > 4096)
    files = [np.frombuffer(each, np.uint8) for each in held.beside.values()]
    assert any(np.shares_memory(each, array) for each in files)
    image = np.zeros((2, 3, 48, 48), np.float32)
    with OnnxRuntimeRunner(held) as runner:
        ours = dict(runner.run(image))
    monkeypatch.setattr(saving, "LIMIT", 10**9)
    with OnnxRuntimeRunner(in_memory(read)) as runner:
        for name, value in runner.run(image).items():
            assert np.array_equal(ours[name], value)


def tensor_at(location: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="offset", value="0")
    return tensor


def test_every_place_of_a_tensor_is_looked_at() -> None:
    """Initializers, attributes, branches within branches, functions, sparse tensors."""
    model = parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g (float[N] x) => (float[N] y)'
        " { y = Identity (x) }"
    )
    model.graph.initializer.append(tensor_at("initializer"))
    branch = helper.make_graph([helper.make_node("Constant", [], ["c"])], "b", [], [])
    branch.node[0].attribute.append(helper.make_attribute("value", tensor_at("branch")))
    inner = helper.make_node("If", ["x"], ["z"], then_branch=branch)
    outer = helper.make_node(
        "Loop", ["x"], ["z"], body=helper.make_graph([inner], "o", [], [], [tensor_at("loop")])
    )
    model.graph.node.append(outer)
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(tensor_at("values"))
    sparse.indices.CopyFrom(tensor_at("indices"))
    function = model.functions.add(name="f", domain="d")
    function.node.append(branch.node[0])
    function.node[0].attribute[0].t.external_data[0].value = "function"
    given = function.attribute_proto.add(name="a", type=onnx.AttributeProto.TENSORS)
    given.tensors.append(tensor_at("attribute"))
    model.training_info.add().algorithm.initializer.append(tensor_at("training"))
    assert locations(model.SerializeToString()) == {
        *("initializer", "branch", "loop", "values", "indices"),
        *("function", "attribute", "training"),
    }
    assert locations(ir.to_proto(exported("class token").traced).SerializeToString()) == set()


def test_a_graph_nested_without_end_is_refused() -> None:
    graph = b""
    for _ in range(60):
        attribute = b"\x32" + _length(graph) + graph
        node = b"\x2a" + _length(attribute) + attribute
        graph = b"\x0a" + _length(node) + node
    with pytest.raises(ValueError, match="nested"):
        locations(b"\x3a" + _length(graph) + graph)


def _length(data: bytes) -> bytes:
    size, found = len(data), bytearray()
    while True:
        size, low = size >> 7, size & 127
        found.append(low | (128 if size else 0))
        if not size:
            return bytes(found)
