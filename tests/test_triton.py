"""Model repositories, read back by Triton's own protobuf and held against rules."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format

from atm_export import errors
from atm_export.cli import main
from atm_export.commands.triton import write_all
from atm_export.runs.reading import MANIFEST
from atm_export.runs.seal import sealed
from atm_export.runs.tensors import unpacked
from atm_export.runtime import load
from atm_export.triton import write_repository
from tests.manifests import engine_facts
from tests.runs import run_command
from tests.test_verify import reseal


def protobuf() -> Any:
    """tritonclient's model_config_pb2, without the gRPC that its package imports."""
    found = importlib.util.find_spec("tritonclient")
    assert found is not None and found.submodule_search_locations
    path = Path(found.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PB = protobuf()


def parsed(folder: Path) -> Any:
    text = (folder / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, PB.ModelConfig())


def check_rules(folder: Path, config: Any, kind: int = 0) -> None:
    """What Triton asks of a model's folder. kind: of the instances, where it is no engine."""
    assert config.name == folder.name
    assert config.backend in ("onnxruntime", "tensorrt") and not config.platform
    assert (folder / "1" / config.default_model_filename).is_file()
    suffix = {"onnxruntime": ".onnx", "tensorrt": ".plan"}[config.backend]
    assert config.default_model_filename == f"model{suffix}"
    assert config.max_batch_size > 0
    for tensor in (*config.input, *config.output):
        assert tensor.data_type != PB.TYPE_INVALID and tensor.dims
        assert all(dim > 0 for dim in tensor.dims), "the batch axis is left out, others are fixed"
    assert len(config.input) == 1 and config.output[0].name == "logits"
    labels = (folder / config.output[0].label_filename).read_text("utf-8").splitlines()
    assert len(labels) == config.output[0].dims[0]
    preferred = list(config.dynamic_batching.preferred_batch_size)
    assert preferred == sorted(preferred) and preferred[-1] <= config.max_batch_size
    assert config.dynamic_batching.max_queue_delay_microseconds > 0
    kind = PB.ModelInstanceGroup.KIND_GPU if config.backend == "tensorrt" else kind
    assert [(group.count, group.kind) for group in config.instance_group] == [(1, kind)]
    check_warm_up(folder, config)
    assert {path.name for path in folder.iterdir()} == {
        "1", "config.pbtxt", "labels.txt", "warmup", ".atm-export.json"
    }  # fmt: skip


def check_warm_up(folder: Path, config: Any) -> None:
    (warm_up,) = config.model_warmup
    ((name, sample),) = warm_up.inputs.items()
    tensor = config.input[0]
    assert name == tensor.name and sample.data_type == tensor.data_type
    assert list(sample.dims) == list(tensor.dims) and warm_up.batch_size == 1
    width = 1 if tensor.data_type == PB.TYPE_UINT8 else 4
    size = (folder / "warmup" / sample.input_data_file).stat().st_size
    assert size == width * int(np.prod(list(tensor.dims)))


def test_the_onnx_backend(demo_folder: Path, tmp_path: Path) -> None:
    written = write_repository(demo_folder, tmp_path, name="demo")
    config = parsed(written.folder)
    check_rules(written.folder, config)
    assert config.backend == "onnxruntime"
    assert config.parameters["atm_export_policy"].string_value == "adaptive"
    assert "neighbours" in written.warnings[0]
    session = onnxruntime.InferenceSession(written.folder / "1" / "model.onnx")
    dims = tuple(config.input[0].dims)
    image = np.frombuffer((written.folder / "warmup" / "image").read_bytes(), np.float32)
    (logits,) = session.run(["logits"], {"image": image.reshape(1, *dims)})
    golden = unpacked((demo_folder / "golden.safetensors").read_bytes(), "golden")["logits"][:1]
    assert np.abs(logits - golden).max() < 1e-4
    assert session.get_inputs()[0].name == config.input[0].name
    assert session.get_inputs()[0].shape[1:] == list(dims)


@pytest.mark.parametrize("policy", ["frozen", "per-image"])
def test_policies_without_neighbours_do_not_warn(
    uint8_folder: Path, tmp_path: Path, policy: str
) -> None:
    run = Path(shutil.copytree(uint8_folder, tmp_path / "run"))
    method = json.loads((run / MANIFEST).read_text())["method"]
    reseal(run, method={**method, "merge": policy})
    written = write_repository(run, tmp_path / "models")
    assert not written.warnings
    config = parsed(written.folder)
    check_rules(written.folder, config)
    assert config.input[0].data_type == PB.TYPE_UINT8 and list(config.input[0].dims) == [48, 48, 3]


def with_engine(run: Path, flavor: str) -> str:
    """An engine of another machine, as an export lists it."""
    name = f"model.fp16.{flavor}.sm90.plan"
    (run / name).write_bytes(b"plan")
    manifest = json.loads((run / MANIFEST).read_text())
    manifest["files"][name] = {"bytes": 4, "sha256": hashlib.sha256(b"plan").hexdigest()}
    tensors = {
        "image": {"dtype": "uint8", "shape": [-1, 48, 48, 3]},
        "logits": {"dtype": "float16", "shape": [-1, 7]},
    }
    entry = engine_facts(flavor=flavor, profiles=["1:1:1", "2:8:24"], tensors=tensors)
    manifest["engines"] = {name: entry}
    (run / MANIFEST).write_bytes(sealed(manifest))
    return name


def test_the_tensorrt_backend(uint8_folder: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(uint8_folder, tmp_path / "run"))
    name = with_engine(run, "tensorrt")
    written = write_repository(run, tmp_path / "models", engine="auto", name="deit-trt")
    config = parsed(written.folder)
    check_rules(written.folder, config)
    assert config.max_batch_size == 24
    assert list(config.dynamic_batching.preferred_batch_size) == [8, 24]
    assert config.output[0].data_type == PB.TYPE_FP16
    assert (written.folder / "1" / "model.plan").read_bytes() == b"plan"
    with pytest.raises(errors.ConfigError, match=f"it has: {name}"):
        write_repository(run, tmp_path / "models", engine="other")


def test_rtx_engines_are_not_for_triton(uint8_folder: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(uint8_folder, tmp_path / "run"))
    with_engine(run, "rtx")
    with pytest.raises(errors.ConfigError, match="enterprise engines only"):
        write_repository(run, tmp_path / "models", engine="auto")


def test_the_command_replaces_what_was_there(
    uint8_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "models"
    for _ in range(2):
        run_command("triton", str(uint8_folder), "--triton-repo", str(models))
    assert [path.name for path in models.iterdir()] == [uint8_folder.name]
    assert "neighbours" in capsys.readouterr().err
    assert main(["triton", str(tmp_path), "--triton-repo", str(models)]) == 10


@pytest.fixture
def proven_on_openvino(demo_folder: Path, tmp_path: Path) -> Path:
    """The demo's run, as if OpenVINO had proven it; no server is asked."""
    run = Path(shutil.copytree(demo_folder, tmp_path / "run"))
    reseal(run, proven_on={"onnxruntime": "ONNX Runtime 1", "openvino": "OpenVINO 2026"})
    return run


def test_the_openvino_backend(proven_on_openvino: Path, tmp_path: Path) -> None:
    """It runs a largest batch alone, so that the batch is the request's own axis."""
    written = write_repository(proven_on_openvino, tmp_path / "models", backend="openvino")
    config = parsed(written.folder)
    assert config.backend == "openvino" and config.default_model_filename == "model.onnx"
    assert config.max_batch_size == 0 and not config.HasField("dynamic_batching")
    assert list(config.input[0].dims) == [-1, 3, 56, 56]
    assert list(config.output[0].dims) == [-1, 10] and not config.output[0].label_filename
    (warm_up,) = config.model_warmup
    assert list(warm_up.inputs["image"].dims) == [1, 3, 56, 56]
    assert [group.kind for group in config.instance_group] == [PB.ModelInstanceGroup.KIND_CPU]
    said = {key: value.string_value for key, value in config.parameters.items()}
    assert said["INFERENCE_PRECISION_HINT"] == "f32" and said["PERFORMANCE_HINT"] == "LATENCY"
    (warning,) = written.warnings  # requests have no neighbours
    assert "bfloat16" in warning and warning in (written.folder / "config.pbtxt").read_text()
    graph = (proven_on_openvino / "model.onnx").read_bytes()
    assert (written.folder / "1" / "model.onnx").read_bytes() == graph


def test_what_triton_runs_is_named_and_proven(
    proven_on_openvino: Path,
    demo_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    models = ["--triton-repo", str(tmp_path / "models")]
    for run, backend, says in (
        (demo_folder, "openvino", "was not proven on openvino; export it with --backend openvino"),
        (demo_folder, "openvin", "unknown backend for Triton 'openvin'; nearest: openvino"),
        (demo_folder, "", "--backend is empty"),
        (demo_folder, "tensorrt", "has no engine"),
    ):
        command = ["triton", str(run), *models, "--backend", backend]
        assert main(command) == errors.ConfigError.exit_code
        assert says in capsys.readouterr().err
    command = ["triton", str(proven_on_openvino), *models, "--backend", "openvino"]
    assert main([*command, "--engine", "auto"]) == errors.ConfigError.exit_code
    assert "engines are TensorRT's" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()
    run_command(*command)
    assert "bfloat16" in capsys.readouterr().err
    write_all(proven_on_openvino, tmp_path / "all")
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["run", "run-openvino"]


def test_int8_is_served_on_the_cpu(
    int8_folder: Path, demo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The graph that the run holds, by the same rules; its answers are held against the run's."""
    file = "model.int8.onnxruntime.onnx"
    models = ["--triton-repo", str(tmp_path / "models")]
    run_command("triton", str(int8_folder), *models, "--precision", "int8", "--name", "low")
    folder = tmp_path / "models" / "low"
    config = parsed(folder)
    check_rules(folder, config, kind=PB.ModelInstanceGroup.KIND_CPU)
    assert (folder / "1" / "model.onnx").read_bytes() == (int8_folder / file).read_bytes()
    session = onnxruntime.InferenceSession(folder / "1" / "model.onnx")
    dims = tuple(config.input[0].dims)
    image = np.frombuffer((folder / "warmup" / "image").read_bytes(), np.float32).reshape(1, *dims)
    (logits,) = session.run(["logits"], {"image": image})
    assert np.array_equal(logits, load(int8_folder, engine=file, threads=1).run(image)["logits"])
    for run, options, says in (
        (int8_folder, ["--precision", "fp16"], "no graph in fp16 for ONNX Runtime"),
        (demo_folder, ["--precision", "int8"], "int8 is made by --backend"),
        (int8_folder, ["--precision", "int8", "--backend", "openvino"], "reads no precision"),
        (int8_folder, ["--precision", "int8", "--engine", "auto"], "leave out --precision"),
        (int8_folder, ["--precision", "int8", "--backend", "tensorrt"], "takes --engine NAME"),
        (int8_folder, ["--precision", ""], "--precision is empty"),
    ):
        assert main(["triton", str(run), *models, *options]) == errors.ConfigError.exit_code
        assert says in capsys.readouterr().err
    run_command("triton", str(int8_folder), *models, "--precision", "fp32", "--name", "full")
    write_all(int8_folder, tmp_path / "all")
    written = sorted(path.name for path in (tmp_path / "all").iterdir())
    assert written == [int8_folder.name, f"{int8_folder.name}-int8"]


def test_outputs_without_a_batch_axis_are_not_served(uint8_folder: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(uint8_folder, tmp_path / "run"))
    interface = json.loads((run / MANIFEST).read_text())["interface"]
    interface["outputs"]["tokens_per_block"] = {"shape": [2], "dtype": "int64"}
    interface["outputs"]["patch_to_token"] = {"shape": ["batch", 36], "dtype": "int64"}
    reseal(run, interface=interface)
    written = write_repository(run, tmp_path / "models")
    config = parsed(written.folder)
    assert [output.name for output in config.output] == ["logits", "patch_to_token"]
    assert "# Not served: tokens_per_block" in (written.folder / "config.pbtxt").read_text()


def test_the_main_command_writes_graph_and_engines(
    uint8_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = Path(shutil.copytree(uint8_folder, tmp_path / "run"))
    monkeypatch.setattr("atm_export.cli._run", lambda *_: 0)
    models = str(tmp_path / "models")
    command = ["demo", "--out", str(run), "--triton-repo", models]
    with_engine(run, "rtx")
    run_command(*command)
    assert [path.name for path in Path(models).iterdir()] == ["run"]
    assert "does not load model.fp16.rtx" in capsys.readouterr().err
    with_engine(run, "tensorrt")
    run_command(*command)
    assert sorted(path.name for path in Path(models).iterdir()) == ["run", "run-trt-fp16"]
    for folder in Path(models).iterdir():
        check_rules(folder, parsed(folder))
