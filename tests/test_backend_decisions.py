"""The same graph takes the same decisions on every backend: OpenVINO, and ONNX Runtime at every
optimisation level and thread count."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from atm_export import demo
from atm_export.backends import OPENVINO, backends
from atm_export.backends.onnxruntime import door
from atm_export.backends.onnxruntime.runner import OnnxRuntimeRunner
from atm_export.backends.runner import Array
from atm_export.choice import Choice
from atm_export.graph.saving import in_memory
from atm_export.measure.data.images import ImageSet
from atm_export.model.zoo import load_model
from atm_export.preprocess import crop, read_images
from atm_export.resolving import resolve
from atm_export.subject import Subject, subject_of
from tests.installed import needs_openvino
from tests.shared_data import sample_images, shared

IMAGES, BATCH = 64, 8
LOGITS = 1e-3
POLICIES = ("adaptive", "frozen", "per-image", "unmerged")
DEIT_T = "deit_tiny_patch16_224.safetensors"


@dataclass(frozen=True)
class Answers:
    """logits [images, classes], and token counts of all blocks and batches, as one row."""

    logits: Array
    tokens: Array


def subject(name: str, policy: str) -> Subject:
    """The demo on its digits, or DeiT-T with real weights on photographs."""
    choice: dict[str, Any] = {"model": name}
    choice |= {"method": "none"} if policy == "unmerged" else {"merge": policy}
    if name == "deit_t":
        choice["weights"] = str(shared("data", "weights", DEIT_T))
    config = resolve(Choice(**choice))
    model = load_model(config.model)
    return subject_of(config, model, images(name).pixels)


@cache
def images(name: str) -> ImageSet:
    how = load_model(resolve(Choice(model="demo")).model).preprocessing
    if name == "demo":
        pixels = np.stack([crop(digit, how) for digit in demo.heldout()[0][:IMAGES]])
        return ImageSet(pixels, "digits")
    config = resolve(Choice(model=name, weights="random"))
    how = load_model(config.model).preprocessing
    return ImageSet(read_images(sample_images(500 // IMAGES)[:IMAGES], how), "photographs")


@cache
def traced(name: str, policy: str) -> tuple[ir.Model, tuple[Array, ...]]:
    """The graph with its trace outputs, and its inputs in batches."""
    made = subject(name, policy)
    pixels = images(name).pixels
    feeds = tuple(made.feed(pixels[i : i + BATCH]) for i in range(0, len(pixels), BATCH))
    return made.graph(made.plan), feeds


def answers(run: Any, feeds: tuple[Array, ...]) -> Answers:
    outputs = [run(feed) for feed in feeds]
    return Answers(
        np.concatenate([out["logits"] for out in outputs]),
        np.concatenate([out["tokens_per_block"].reshape(-1) for out in outputs]),
    )


@cache
def by_onnxruntime(
    name: str, policy: str, optimizations: door.Optimizations = "all", threads: int = 1
) -> Answers:
    graph, feeds = traced(name, policy)
    with OnnxRuntimeRunner(
        in_memory(graph), threads=threads, optimizations=optimizations
    ) as runner:
        return answers(runner.run, feeds)


def same(found: Answers, wanted: Answers) -> None:
    assert found.tokens.tolist() == wanted.tokens.tolist()
    assert found.logits.argmax(axis=1).tolist() == wanted.logits.argmax(axis=1).tolist()
    assert float(np.abs(found.logits - wanted.logits).max()) <= LOGITS


@needs_openvino
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ["demo", "deit_t"])
def test_openvino_decides_as_onnx_runtime(name: str, policy: str) -> None:
    graph, feeds = traced(name, policy)
    wanted = by_onnxruntime(name, policy)
    assert len(wanted.logits) == IMAGES
    assert (wanted.tokens.min() < wanted.tokens.max()) == (policy != "unmerged")
    with backends[OPENVINO].open_graph(in_memory(graph)) as runner:
        same(answers(runner.run, feeds), wanted)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ["demo", "deit_t"])
def test_onnx_runtime_decides_the_same_however_it_optimizes(name: str, policy: str) -> None:
    wanted = by_onnxruntime(name, policy)
    for optimizations in ("none", "basic"):
        same(by_onnxruntime(name, policy, optimizations), wanted)
    same(by_onnxruntime(name, policy, threads=2), wanted)
