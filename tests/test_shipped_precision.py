"""Lower precisions of two real checkpoints, on the photographs that ship: no --images needed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from atm_export.backends.tensorrt.settings import Precision
from atm_export.choice import Choice
from atm_export.cli import main
from atm_export.engines import Export
from atm_export.errors import ParityError
from atm_export.graph.optimize import emulated, with_precision
from atm_export.measure.data.images import load_images
from atm_export.model.zoo import load_model
from atm_export.prove.matching import require_matching
from atm_export.prove.precision import compare_precision
from atm_export.prove.typed import typed_graph
from atm_export.resolving import resolve
from atm_export.runs.reading import open_run
from atm_export.subject import subject_of
from tests.graphs import changed
from tests.lowered import lowering
from tests.shared_data import shared

WEIGHTS = {
    "deit_t": "deit_tiny_patch16_224.safetensors",
    "timm:vit_tiny_patch16_224": "vit_tiny_patch16_224.safetensors",
}
LOW = [precision for precision in Precision if precision is not Precision.FP32]
POLICIES = ("adaptive", "frozen", "per-image")


@cache
def source(model: str, merge: str) -> Export:
    """What `atm-export MODEL --weights FILE --merge POLICY --trt` makes engines of."""
    weights = shared("data", "weights", WEIGHTS[model])
    config = resolve(Choice(model=model, weights=str(weights), merge=merge))
    loaded = load_model(config.model)
    images = load_images(config.images, loaded.preprocessing, loaded.own_images)
    subject = subject_of(config, loaded, images.pixels)
    return Export(subject, subject.graph(subject.plan), images.pixels)


@pytest.fixture(scope="module", autouse=True)
def let_go() -> Iterator[None]:
    yield
    source.cache_clear()


@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize("model", WEIGHTS)
def test_every_precision_is_within_its_tolerance(model: str) -> None:
    made = source(model, "adaptive")
    reference = made.traced
    for precision in LOW:
        _, proof = typed_graph(reference, made.feeds, precision, made.outputs, lambda text: None)
        proof.require()
        assert proof.images == 32 and proof.top1 and proof.top1.of, precision
        assert proof.least < 1  # it is another graph


@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize("merge", POLICIES)
def test_a_matching_that_was_lowered_is_refused(merge: str) -> None:
    """By its types whatever the policy; by half of the tokens where counts are decided at run time
    (6221 of them: no small sample)."""
    made = source("deit_t", merge)
    reference = made.traced
    with lowering():
        lowered = with_precision(reference, "fp16")
        with pytest.raises(ParityError, match="fp16 lowers the matching"):
            typed_graph(reference, made.feeds, Precision.FP16, made.outputs, lambda text: None)
    with pytest.raises(ParityError, match="stays in FP32 in every precision"):
        require_matching(lowered, "fp16")
    if merge == "adaptive":  # per image, indices built on overflown keys leave the graph
        proof = compare_precision(
            reference, emulated(lowered, "fp16"), made.feeds, "fp16", made.outputs
        )
        assert proof.tokens.hits > 0.2 * proof.tokens.of and "tokens that differ" in proof.failed
        with pytest.raises(ParityError, match="nothing was built"):
            proof.require()


def test_weights_that_half_precision_cannot_hold_are_an_error_in_one_line() -> None:
    made = source("deit_t", "frozen")
    reference = made.traced
    name = next(n for n in reference.graph.initializers if n.endswith("fc1.weight.T"))
    big = changed(reference, name, lambda a: np.full_like(a, 8.5e37))
    with pytest.raises(ParityError, match=r"fp16 cannot hold .* take --precision bf16 or fp32"):
        typed_graph(big, made.feeds, Precision.FP16, made.outputs, lambda text: None)


@pytest.mark.engines
@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize("model", WEIGHTS)
@pytest.mark.parametrize("merge", POLICIES)
def test_engines_build_by_default(model: str, merge: str, tmp_path: Path) -> None:
    """The headline command, without --images: all five precisions; fp16 of the other policies."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    names = [precision.value for precision in Precision] if merge == "adaptive" else ["fp16"]
    weights = str(shared("data", "weights", WEIGHTS[model]))
    arguments = [model, "--weights", weights, "--merge", merge, "--no-benchmark", "--trt"]
    options = ["--trt-flavor", "rtx", "--precision", ",".join(names), "--out", str(tmp_path / "r")]
    assert main([*arguments, *options]) == 0
    entries = open_run(tmp_path / "r").manifest.engines
    assert sorted(entry.precision for entry in entries.values()) == sorted(names)
    for entry in entries.values():
        checked = entry.document["validation"]
        assert checked["within"] and checked["images"] == 32
        assert checked["top1_agreement"]["of"] and checked["tokens_differing"]["of"] > 1000
