"""The seam to TensorRT 10, 11 and RTX, held against the API of the real bindings."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from atm_export.backends.tensorrt import api as seam
from atm_export.backends.tensorrt.api import Api, load_api
from atm_export.backends.tensorrt.build import BuildFailedError, engine_from_onnx
from atm_export.backends.tensorrt.by_hand import command_lines
from atm_export.backends.tensorrt.fit import Here, check_fit
from atm_export.backends.tensorrt.runner import TensorRTRunner
from atm_export.backends.tensorrt.settings import (
    EngineSettings,
    Flavor,
    Precision,
    Profile,
    parse_precisions,
    parse_profiles,
    parse_sms,
)
from atm_export.errors import ConfigError, EngineMismatchError, MissingDependencyError
from atm_export.graph import saving
from atm_export.runs.engine_facts import BuiltFacts
from tests.trt_fake import SURFACES, fake

EVERYTHING = {
    "workspace": 512,
    "refit": True,
    "version_compatible": True,
    "hardware_compatible": True,
    "opt_level": 5,
}


def flavor_of(surface: Path) -> Flavor:
    return Flavor.RTX if surface.stem.startswith("tensorrt_rtx") else Flavor.TENSORRT


def tiny_graph() -> onnx.ModelProto:
    info = onnx.helper.make_tensor_value_info
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["image"], ["logits"], name="relu")],
        "tiny",
        [info("image", kind, ["batch", 3, 56, 56])],
        [info("logits", kind, ["batch", 3, 56, 56])],
    )
    opset = [onnx.helper.make_opsetid("", 20)]
    return onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)


def build_with(
    surface: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **settings: Any
) -> tuple[Any, list[tuple[Any, ...]]]:
    module, told = fake(surface)
    flavor = flavor_of(surface)
    gpu = None if flavor is Flavor.RTX else 90
    monkeypatch.setattr("atm_export.backends.tensorrt.build.gpu_sm", lambda: gpu)
    chosen = EngineSettings(timing_cache=str(tmp_path / "cache" / "t.cache"), **settings)
    return engine_from_onnx(tiny_graph(), chosen, api=Api(flavor, module)), told


def test_surfaces_of_every_kind_are_there() -> None:
    versions = {json.loads(s.read_text())["version"].split(".")[0] for s in SURFACES}
    assert versions >= {"10", "11", "1"}


@pytest.mark.parametrize("surface", SURFACES, ids=lambda s: s.stem)
@pytest.mark.parametrize("settings", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_every_version_has_what_a_build_uses(
    surface: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    profiles = (Profile(), Profile(min=1, opt=1, max=1))
    engine, told = build_with(surface, monkeypatch, tmp_path, profiles=profiles, **settings)
    calls = [call[0] for call in told]
    assert engine.plan == b"a plan"
    assert calls.count("IBuilderConfig.add_optimization_profile") == 2
    assert (
        "IOptimizationProfile.set_shape",
        "image",
        *[(b, 3, 56, 56) for b in (1, 8, 64)],
    ) in told
    assert "IBuilderConfig.clear_flag" in calls, "TF32 must be off"
    assert ("IBuilderConfig.builder_optimization_level =", 5) in told or not settings
    file = tmp_path / "cache" / "t.cache"
    if flavor_of(surface) is Flavor.RTX:
        assert not file.exists(), "RTX times nothing at build"
        assert ("IBuilderConfig.num_compute_capabilities =", 3) in told
        assert engine.facts["sms"] == [86, 89, 120]
    else:
        assert engine.facts["sms"] == [90]
        assert file.read_bytes() == b"timings"
        again, told = build_with(surface, monkeypatch, tmp_path, profiles=profiles, **settings)
        assert ("IBuilderConfig.create_timing_cache", b"timings") in told
        assert again.facts == engine.facts
    assert engine.facts["tensors"]["image"]["dtype"] == "float32"


@pytest.mark.parametrize("surface", SURFACES, ids=lambda s: s.stem)
def test_every_version_reads_weights_that_no_onnx_file_holds_from_files(
    surface: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(saving, "LIMIT", -1)
    engine, told = build_with(surface, monkeypatch, tmp_path)
    (file,) = [call[1] for call in told if call[0] == "OnnxParser.parse_from_file"]
    assert engine.plan == b"a plan"
    assert file.endswith("model.onnx") and not Path(file).exists()
    assert not [call for call in told if call[0] == "OnnxParser.parse"]


@pytest.mark.parametrize("surface", SURFACES, ids=lambda s: s.stem)
def test_networks_are_strongly_typed(
    surface: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, told = build_with(surface, monkeypatch, tmp_path)
    (flags,) = [call[1] for call in told if call[0] == "Builder.create_network"]
    module, _ = fake(surface)
    typed = 1 << module.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    old = json.loads(surface.read_text())["version"].startswith("10.")
    assert flags == (typed if old else 0)


class Gpu:
    """An engine of two tensors on a GPU that is not there: answers twice the image's mean."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.allocators: dict[str, Any] = {}
        self.image: torch.Tensor | None = None
        self.runner: TensorRTRunner | None = None
        self.shapes: list[tuple[int, ...]] = []
        self.replays: list[int] = []
        self._no_cuda(monkeypatch)

    def _no_cuda(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Device and pinned memory are the host's; a captured graph runs what it captured."""
        empty, empty_like = torch.empty, torch.empty_like

        def on_host(*given: Any, dtype: Any = None, **_: Any) -> torch.Tensor:
            return empty(*given, dtype=dtype)

        def input_on_host(like: torch.Tensor, device: str) -> torch.Tensor:
            assert device == "cuda"
            self.image = empty_like(like)
            return self.image

        monkeypatch.setattr(torch, "empty", on_host)
        monkeypatch.setattr(torch, "empty_like", input_on_host)
        graph = SimpleNamespace(replay=lambda: self.replays.append(self.execute(0)))
        stream = SimpleNamespace(cuda_stream=7, synchronize=lambda: None)
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
        monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
        monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: nullcontext())

    def execute(self, stream: int) -> bool:
        assert self.image is not None and self.runner is not None
        answer = 2 * self.image.mean(dim=(1, 2, 3)).reshape(-1, 1)
        for name, allocator in self.allocators.items():
            size = answer.numel() * 4
            allocator.reallocate_output_async(name, 0, size, 256, stream)
            allocator.notify_shape(name, answer.shape)
            self.runner.outputs[name].memory[:size].copy_(
                answer.contiguous().view(torch.uint8).reshape(-1)
            )
        return True

    def values(self) -> dict[tuple[str, str], Any]:
        engine, context = "ICudaEngine", "IExecutionContext"

        def keep(name: str, allocator: Any) -> bool:
            self.allocators[name] = allocator
            return True

        def shaped(name: str, shape: tuple[int, ...]) -> bool:
            self.shapes.append(shape)
            return True

        return {
            (engine, "num_io_tensors"): 2,
            (engine, "get_tensor_name"): ("image", "logits").__getitem__,
            (engine, "get_tensor_mode"): lambda name: int(name == "logits"),
            (engine, "get_tensor_dtype"): lambda name: SimpleNamespace(name="FLOAT"),
            (context, "set_output_allocator"): keep,
            (context, "set_input_shape"): shaped,
            (context, "set_tensor_address"): True,
            (context, "set_optimization_profile_async"): True,
            (context, "execute_async_v3"): self.execute,
        }


@pytest.mark.parametrize("surface", SURFACES, ids=lambda s: s.stem)
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_the_runner_runs_on_what_every_version_has(
    surface: Path, static: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpu = Gpu(monkeypatch)
    module, told = fake(surface, gpu.values())
    module.TensorIOMode = SimpleNamespace(INPUT=0, OUTPUT=1)  # type: ignore[attr-defined]
    api, profiles = Api(flavor_of(surface), module), ["1:1:1", "2:2:4"]
    monkeypatch.setattr("atm_export.backends.tensorrt.runner.load_api", lambda flavor: api)
    monkeypatch.setattr("atm_export.backends.tensorrt.runner.gpu_sm", lambda: 86)
    (tmp_path / "e.plan").write_bytes(b"a plan")
    facts = entry(flavor=api.flavor.value, tensorrt=api.version, profiles=profiles)
    batches = [np.full((n, 3, 4, 4), n + k, np.float32) for n in (3, 1) for k in (0, 1)]
    with TensorRTRunner(tmp_path / "e.plan", facts, static=static) as runner:
        gpu.runner = runner
        for image in batches:
            logits = runner.run(image)["logits"]
            assert logits.tolist() == [[2 * image.mean()]] * len(image)
    assert ("Runtime.deserialize_cuda_engine", b"a plan") in told
    assert gpu.shapes == [(3, 3, 4, 4), (1, 3, 4, 4)], "set once for each batch size"
    profile = [c[1] for c in told if c[0].endswith("set_optimization_profile_async")]
    assert profile == [1], "0 is in force at first"
    assert len(gpu.replays) == (2 if static else 0)


def test_a_flag_that_does_not_exist_would_fail() -> None:
    module, _ = fake(next(s for s in SURFACES if "11." in s.stem))
    config = module.Builder(None).create_builder_config()
    with pytest.raises(AttributeError):
        _ = module.BuilderFlag.FP16  # gone in TensorRT 11
    with pytest.raises(AttributeError):
        config.int8_calibrator = None
    with pytest.raises(AttributeError):
        config.num_compute_capabilities = 1  # RTX alone
    with pytest.raises(AssertionError):
        config.set_memory_pool_limit(1, 2, 3)


def test_the_installed_rtx_has_the_api_that_was_written_down() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    surface = next(s for s in SURFACES if s.stem.startswith("tensorrt_rtx"))
    for kind, members in json.loads(surface.read_text())["classes"].items():
        for member in members:
            assert hasattr(getattr(trt, kind), member), f"{kind}.{member}"


def test_targets() -> None:
    module, _ = fake(next(s for s in SURFACES if s.stem.startswith("tensorrt_rtx")))
    rtx = Api(Flavor.RTX, module)
    fp16, fp8 = Precision.FP16, Precision.FP8
    assert rtx.targets(EngineSettings(), fp16, None) == (86, 89, 120)
    assert rtx.targets(EngineSettings(), fp16, 89) == (89,)
    assert rtx.targets(EngineSettings(), fp16, 90) == (86, 89, 120)
    assert rtx.targets(EngineSettings(), fp8, None) == (89, 120)
    assert rtx.targets(EngineSettings(sms=(120, 80)), fp16, None) == (80, 120)
    for sm, reason in ((90, "builds for"), (75, "no FP32")):
        with pytest.raises(ConfigError, match=reason):
            rtx.targets(EngineSettings(sms=(sm,)), fp16, None)
    module, _ = fake(next(s for s in SURFACES if "11." in s.stem))
    enterprise = Api(Flavor.TENSORRT, module)
    assert enterprise.targets(EngineSettings(), fp16, 90) == (90,)
    with pytest.raises(ConfigError, match="none is here"):
        enterprise.targets(EngineSettings(), fp16, None)
    with pytest.raises(ConfigError, match="belongs to TensorRT-RTX"):
        enterprise.targets(EngineSettings(sms=(86,)), fp16, 90)


def test_what_is_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingDependencyError, match=r"atm-export\[trt\].*atm-export\[rtx\]"):
        load_api()
    with pytest.raises(MissingDependencyError, match=r"tensorrt_rtx is not installed"):
        load_api(Flavor.RTX)


def test_settings_are_read_strictly() -> None:
    assert parse_profiles("1:8:64, 4") == (Profile(), Profile(min=4, opt=4, max=4))
    assert parse_sms("86,sm89,12.0") == (86, 89, 120)
    assert parse_precisions("fp16,FP32") == (Precision.FP16, Precision.FP32)
    for wrong in ("8:4:2", "0:1:2", "1:2", "a", "1:8:5000", ""):
        with pytest.raises(ConfigError):
            parse_profiles(wrong)
    with pytest.raises(ConfigError, match="compute capabilities"):
        parse_sms("ampere")
    with pytest.raises(ConfigError, match="not one of fp32"):
        parse_precisions("fp4")


def entry(**changes: Any) -> dict[str, Any]:
    facts = {
        "flavor": "rtx",
        "tensorrt": "1.7.1.116",
        "sms": [86, 89],
        "profiles": ["1:8:64"],
        "settings": {"version_compatible": False, "hardware_compatible": False},
    }
    return facts | changes


def test_engines_that_do_not_fit_are_refused_with_all_that_differs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module, _ = fake(next(s for s in SURFACES if s.stem.startswith("tensorrt_rtx")))
    rtx = Api(Flavor.RTX, module)

    def check(facts: dict[str, Any], sm: int | None) -> None:
        check_fit("e.plan", BuiltFacts.of(facts), Here("rtx", rtx.version, sm))

    check(entry(), 86)
    for facts, sm, text in (
        (entry(flavor="tensorrt"), 86, "flavor tensorrt, this is rtx"),
        (entry(tensorrt="1.6.0.1"), 86, r"built by TensorRT 1\.6\.0\.1, 1\.7"),
        (entry(), 90, "built for SM86, SM89, this GPU is SM90"),
        (entry(), None, "no GPU is here"),
        (entry(tensorrt="2.0.0"), 75, "SM75.*TensorRT 2"),
    ):
        with pytest.raises(EngineMismatchError, match=text):
            check(facts, sm)
    loose = {"version_compatible": True, "hardware_compatible": True}
    check(entry(tensorrt="1.2.0", settings=loose), 90)
    monkeypatch.setattr(seam, "load_api", lambda flavor: rtx)
    monkeypatch.setattr("atm_export.backends.tensorrt.runner.load_api", lambda flavor: rtx)
    monkeypatch.setattr("atm_export.backends.tensorrt.runner.gpu_sm", lambda: None)
    # The plan does not even exist: nothing is read before the facts fit.
    with (
        pytest.raises(EngineMismatchError, match="no GPU"),
        TensorRTRunner(tmp_path / "x", entry()),
    ):
        pytest.fail("entered")


def test_command_lines_name_what_they_need() -> None:
    lines = command_lines(Flavor.RTX, "m.onnx", "m.plan", [3, 224, 224], [Profile()])
    assert lines["rebuild"].startswith("tensorrt_rtx --onnx=m.onnx --saveEngine=m.plan")
    assert "--maxShapes=image:64x3x224x224" in lines["rebuild"]
    assert lines["polygraphy"].startswith("POLYGRAPHY_USE_TENSORRT_RTX=1 polygraphy convert")
    typed = command_lines(Flavor.TENSORRT, "m.onnx", "m.plan", [3, 224, 224], [Profile()])
    assert "--stronglyTyped" in typed["rebuild"] and "--strongly-typed" in typed["polygraphy"]


def test_parser_and_builder_errors_are_translated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from atm_export.backends.tensorrt.explain import explain_builder, explain_parser

    broken = SimpleNamespace(
        desc=lambda: "Unsupported reduction\n type",
        node_name=lambda: "blocks.3/x",
        node_operator=lambda: "ScatterND",
    )
    assert explain_parser([broken]) == (
        "the ONNX parser stops at node blocks.3/x (ScatterND): Unsupported reduction type "
        "(Scatter with a reduction is not supported; use a one-hot matrix product)"
    )
    log = [
        ("INFO", "fine"),
        ("ERROR", "tensor_allocator: dimensions have overflown at {ForeignNode[a...b]}"),
    ]
    text = explain_builder(log)
    assert "at a...b" in text and "Max(length, 0)" in text
    assert "no reason" in explain_builder([("INFO", "x")])
    monkeypatch.setitem(
        sys.modules["tests.trt_fake"].VALUES, ("Builder", "build_serialized_network"), None
    )
    with pytest.raises(BuildFailedError):
        build_with(SURFACES[-1], monkeypatch, tmp_path)
