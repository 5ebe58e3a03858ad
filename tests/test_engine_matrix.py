"""Every model config x adaptive, frozen, unmerged x FP32, FP16, and every method in FP16: real
engines for SM 86, 89, 120.

Minutes, so behind a marker: `pytest -m engines`, and `-m "engines and not slow"` for one model of
each structure, which is what `.ci/run` does. The default run builds the demo and tiny models.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from functools import cache
from typing import Any

import onnx_ir as ir
import pytest

from atm_export.backends.tensorrt.build import Engine, engine_from_onnx
from atm_export.backends.tensorrt.settings import EngineSettings, Flavor
from atm_export.choice import Choice
from atm_export.config import ModelSpec
from atm_export.graph.assemble import onnx_from_model
from atm_export.graph.lint_tensorrt import check_for_tensorrt
from atm_export.graph.optimize import optimize, with_outputs, with_precision
from atm_export.methods import methods
from atm_export.methods.given import settings_of
from atm_export.methods.plan import MergePlan
from atm_export.model.backbone import LoadedModel
from atm_export.model.calibrate import paper_r
from atm_export.model.plan import plan_for
from atm_export.model.zoo import load_model
from atm_export.model_configs import load_model_config, model_names
from atm_export.prove.matching import require_matching
from atm_export.resolving import resolve

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
SETTINGS = EngineSettings(flavor=Flavor.RTX, sms=(86, 89, 120))
MERGED_MEMORY = 2.0  # activation memory over the unmerged engine's at most (seen: 1.0 to 1.6)
POLICIES = ("unmerged", "adaptive", "frozen")
# Wider and deeper than another of their family, and nothing else.
LARGER = ("deit_s", "deit_b", "lvvit_s", "lvvit_m", "t2t_vit_t_19")
DEPTH = 3  # of DeiT-T, to build engines of every method: both halves, a first and a last block
METHODS: dict[str, dict[str, Any]] = {
    "atm": {"alpha": 1.0, "beta": 0.035, "theta_min": 0.88},
    "tome": {"r": [9]},
    "evit": {"keep": 0.77, "blocks": [0, 2]},
    "diffrate": {"prune": [190, 150, 40], "merge": [180, 140, 3]},
    "mctf": {"r": 10},
    "pitome": {"ratio": 0.945},
    "ats": {"blocks": [1, 2]},
    "zerotprune": {"blocks": [0, 2], "keep": [0.85, 0.7]},
}


@pytest.fixture(scope="module", autouse=True)
def let_go() -> Iterator[None]:
    yield
    loaded.cache_clear()
    shallow.cache_clear()
    gc.collect()


@cache
def loaded(name: str) -> LoadedModel:
    weights = "pretrained" if name == "demo" else "random"
    return load_model(ModelSpec(name=name, config=load_model_config(name), weights=weights))


def graph(name: str, policy: str) -> ir.Model:
    """The graph of a model at its default operating point."""
    model = loaded(name)
    backbone = model.backbone
    method = resolve(
        Choice(model=name, weights="random" if name != "demo" else "pretrained")
    ).method
    blocks = len(backbone.parts())
    plan = MergePlan.unmerged(blocks) if policy == "unmerged" else plan_for(backbone, method)
    if policy == "frozen":
        preset = load_model_config(name).presets[method.preset or ""]
        r = (9,) * blocks if preset.gflops is None else paper_r(backbone, plan, preset.gflops)
        plan = plan.frozen(r)
    traced = optimize(onnx_from_model(backbone, plan, model.input()))
    return with_outputs(traced, ["logits"])


@cache
def shallow() -> LoadedModel:
    """The first blocks of DeiT-T."""
    config = load_model_config("deit_t")
    config = config.model_copy(update={"options": {**config.options, "depth": DEPTH}})
    return load_model(ModelSpec(name="deit_t", config=config, weights="random"))


def test_every_method_of_the_package_has_settings() -> None:
    own = {name for name in methods if type(methods[name]).__module__.startswith("atm_export.")}
    assert own - {"none"} == set(METHODS)


@pytest.mark.engines
@pytest.mark.parametrize("name", METHODS)
def test_engines_of_every_method(name: str) -> None:
    model = shallow()
    plan = plan_for(model.backbone, settings_of(name, METHODS[name]))
    traced = optimize(onnx_from_model(model.backbone, plan, model.input()))
    require_matching(with_precision(traced, "fp16"), "fp16")
    typed = with_precision(with_outputs(traced, ["logits"]), "fp16")
    check_for_tensorrt(typed)
    engine = engine_from_onnx(typed, SETTINGS)
    assert engine.facts["tensors"]["logits"]["shape"] == [-1, 1000]
    assert engine.facts["sms"] == [86, 89, 120]
    # Half the weights of FP32 and a little more.
    weights = model.backbone.weight_bytes
    assert 0.45 * weights < engine.facts["build"]["weights_bytes"] < 0.6 * weights


@pytest.mark.engines
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in LARGER else ())
        for name in model_names()
    ],
)
def test_engines_of_every_config(name: str) -> None:
    loaded.cache_clear()
    built: dict[tuple[str, str], Engine] = {}
    for policy in POLICIES:
        made = graph(name, policy)
        size, width = (int(side) for side in made.graph.inputs[0].shape[2:])
        classes = made.graph.outputs[0].shape[1]
        for precision in ("fp32", "fp16"):
            typed = made if precision == "fp32" else with_precision(made, precision)
            engine = engine_from_onnx(typed, SETTINGS)
            tensors = engine.facts["tensors"]
            assert tensors["image"]["shape"] == [-1, 3, size, width]
            assert tensors["logits"]["shape"] == [-1, classes]
            assert {t["dtype"] for t in tensors.values()} == {"float32"}
            assert engine.facts["profiles"] == ["1:8:64"]
            assert engine.facts["sms"] == [86, 89, 120]
            built[policy, precision] = Engine(bytes(len(engine.plan)), engine.facts)
            del engine, typed
    for precision in ("fp32", "fp16"):
        plain = built["unmerged", precision]
        for policy in ("adaptive", "frozen"):
            merged = built[policy, precision]
            # Weights are the same, and each data-dependent length adds a segment of kernels.
            assert len(plain.plan) < len(merged.plan) < len(plain.plan) + 120 * 2**20
            memory = merged.facts["build"]["activation_bytes"]
            assert memory < MERGED_MEMORY * plain.facts["build"]["activation_bytes"], policy
        half, full = built["adaptive", "fp16"].facts, built["adaptive", "fp32"].facts
        assert half["build"]["weights_bytes"] < 0.6 * full["build"]["weights_bytes"]
