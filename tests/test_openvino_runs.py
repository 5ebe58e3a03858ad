"""Runs proven on OpenVINO: the commands, sessions for any thread, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from atm_export import errors
from atm_export.backends import ONNXRUNTIME, OPENVINO
from atm_export.cli import main
from atm_export.measure.accuracy.runners import runner_names
from atm_export.runs.reading import load_document
from atm_export.runtime import load
from atm_export.runtime.__main__ import main as slim
from tests.installed import needs_openvino
from tests.runs import ended, run_command
from tests.test_verify import reseal

pytestmark = needs_openvino
SMALL = ("demo", "--image-size", "16", "--no-benchmark")
ON_IT = ("--backend", OPENVINO)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo at 16 x 16, proven on both; tests must not change it."""
    out = tmp_path_factory.mktemp("openvino") / "run"
    run_command(*SMALL, *ON_IT, "--out", str(out))
    return out


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_the_run_says_what_it_was_proven_on(run: Path) -> None:
    proven = load_document(run)["proven_on"]
    assert list(proven) == [ONNXRUNTIME, OPENVINO]
    assert proven[OPENVINO].startswith("OpenVINO 20") and proven[OPENVINO].endswith(", CPU, f32")
    rungs = json.loads((run / "report.json").read_text())["parity"]["rungs"]
    ours = [rung for rung in rungs if "openvino" in rung["name"]]
    assert {rung["name"] for rung in ours} == {"openvino onnx", "shipped openvino onnx"}
    assert max(rung["logits_max_abs"] for rung in ours) <= 1e-3
    assert any(rung["merged_tokens"] for rung in ours)


@pytest.mark.parametrize("how", [("--merge", "frozen"), ("--external-data", "always")])
def test_other_runs_are_proven(how: tuple[str, ...], tmp_path: Path) -> None:
    run_command(*SMALL, *ON_IT, *how, "--out", str(tmp_path / "run"))
    run_command("verify", str(tmp_path / "run"), *ON_IT)
    with pytest.raises(errors.ChangedFileError):
        file = sorted((tmp_path / "run").glob("model.onnx*"))[-1]
        file.write_bytes(file.read_bytes()[:-1] + b"\xff")
        load(tmp_path / "run", backend=OPENVINO)


def test_it_verifies_and_classifies(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_command("verify", str(run), *ON_IT, "--threads", "1")
    assert "runs on OpenVINO 20" in capsys.readouterr().out
    assert slim(["verify", str(run), *ON_IT]) == 0


def test_a_session_serves_any_thread(run: Path) -> None:
    session, plain = load(run, backend=OPENVINO, threads=1), load(run, providers=["cpu"])
    images = [session.prepare(list(pictures(6 * i)[-1 - i % 6 :])) for i in range(1, 13)]
    wanted = [plain.run(image)["logits"] for image in images]  # of 1 to 6 images
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda image: session.run(image)["logits"], images * 4))
    for ours, theirs in zip(found, wanted * 4, strict=True):
        assert np.abs(ours - theirs).max() <= 1e-3


def test_it_needs_neither_pytorch_nor_onnx_runtime(run: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnx_ir', 'onnxruntime', 'pydantic'):\n"
        "    sys.modules[name] = None\n"
        "from atm_export.runtime import load\n"
        f"print(load({str(run)!r}, backend='openvino').about)\n"
    )
    ended(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120))


def test_evaluate_and_bench(
    run: Path, tmp_path: Path, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert OPENVINO in runner_names()
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    some = ["--imagenet", str(digits), "--limit", "20", "--batch", "10", "--workers", "0"]
    for runner in (OPENVINO, "eager"):
        run_command("evaluate", str(copy), *some, "--runner", runner)
    ours, theirs = (
        json.loads((copy / f"evaluation-{runner}.json").read_text())
        for runner in (OPENVINO, "eager")
    )
    assert all(ours[name] == theirs[name] for name in ("top1", "agreement", "gflops"))
    assert ours["device"].startswith("OpenVINO, CPU, f32, ")
    capsys.readouterr()
    arguments = ["--backends", OPENVINO, "--batches", "3", "--rounds", "1", "--no-policies"]
    run_command("bench", str(copy), *arguments)
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {row["backend"] for row in facts["rows"]} == {OPENVINO} and not facts["missing"]
    assert {row["candidate"] for row in facts["rows"]} == {"unmerged", "adaptive"}


def test_a_run_that_it_computes_otherwise_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Logits times a 1 that passes 2**33 on its way: true in 64 bits alone."""
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    file = copy / load_document(copy)["graphs"][OPENVINO]
    model = onnx.load(file)
    _through_33_bits(model.graph)
    onnx.save(model, file)
    reseal(copy)
    run_command("verify", str(copy))
    with pytest.raises(errors.GoldenMismatchError, match="does not compute what was exported"):
        load(copy, backend=OPENVINO)
    capsys.readouterr()
    assert main(["verify", str(copy), *ON_IT]) == errors.ParityError.exit_code


def _through_33_bits(graph: onnx.GraphProto) -> None:
    (last,) = [node for node in graph.node if "logits" in node.output]
    last.output[list(last.output).index("logits")] = "33/logits"
    for name, value in (("33/grid", 2**20), ("33/stride", 2**13)):
        graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [], [value]))
    graph.initializer.append(helper.make_tensor("33/limit", TensorProto.FLOAT, [], [1e9]))
    graph.node.extend(
        helper.make_node(kind, inputs, [output], **attributes)
        for kind, inputs, output, attributes in (
            ("Less", ["33/logits", "33/limit"], "33/less", {}),
            ("Cast", ["33/less"], "33/one", {"to": TensorProto.INT64}),
            ("Mul", ["33/one", "33/grid"], "33/fine", {}),
            ("Mul", ["33/fine", "33/stride"], "33/key", {}),
            ("Div", ["33/key", "33/stride"], "33/back", {}),
            ("Div", ["33/back", "33/grid"], "33/whole", {}),
            ("Cast", ["33/whole"], "33/factor", {"to": TensorProto.FLOAT}),
            ("Mul", ["33/logits", "33/factor"], "logits", {}),
        )
    )


def test_what_it_does_not_take_is_named(run: Path) -> None:
    with pytest.raises(errors.ConfigError, match="OpenVINO takes threads alone"):
        load(run, backend=OPENVINO, providers=["cpu"])
    with pytest.raises(errors.ConfigError, match="threads"):
        load(run, backend=OPENVINO, threads=257)
    with pytest.raises(errors.MissingFileError, match=r"has no 'model\.plan' for OpenVINO"):
        load(run, backend=OPENVINO, engine="model.plan")
    for name in ("", "openvin", "OpenVINO"):
        with pytest.raises(errors.ConfigError, match=rf"unknown backend '{name}'; .*openvino"):
            load(run, backend=name)


def test_mistakes_of_the_command_line_are_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", str(tmp_path / "run"))
    for given, says in (
        ("", "--backend is empty"),
        (",", "--backend names none of onnxruntime, openvino, tensorrt"),
        ("openvine", "unknown backend 'openvine'; nearest: openvino"),
    ):
        assert main([*SMALL, "--backend", given, *out]) == errors.ConfigError.exit_code
        assert says in last_line(capsys)
    assert main(["verify", str(run), "--backend", ""]) == errors.ConfigError.exit_code
    assert "--backend is empty" in last_line(capsys)
    assert not (tmp_path / "run").exists()


def test_without_the_package_every_command_names_it(
    run: Path,
    tmp_path: Path,
    digits: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    some = ["--imagenet", str(digits), "--limit", "2", "--workers", "0"]
    for command in (
        [*SMALL, *ON_IT, "--out", str(tmp_path / "new")],
        ["verify", str(copy), *ON_IT],
        ["evaluate", str(copy), *some, "--runner", OPENVINO],
    ):
        assert main(command) == errors.MissingDependencyError.exit_code
        assert 'pip install "atm-export[openvino]"' in last_line(capsys)
    assert not (tmp_path / "new").exists()
    run_command("bench", str(copy), "--backends", OPENVINO, "--batches", "1", "--rounds", "1")
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not facts["rows"] and "atm-export[openvino]" in facts["missing"][0]["reason"]
