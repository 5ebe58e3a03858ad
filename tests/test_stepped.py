"""The form whose token counts go in steps: the same decisions and numbers, in padded tensors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from atm_export.graph import lint
from atm_export.graph.assemble import onnx_from_model
from atm_export.graph.optimize import optimize
from atm_export.inputs import InputSpec, Preprocessing
from atm_export.methods.bipartite.rule import with_theta
from atm_export.methods.plan import MergePlan
from atm_export.model.reference import run_reference
from atm_export.rewrite import stepped_block
from atm_export.rewrite.stepped import STEP
from atm_export.rewrite.twin import Twin
from tests.exports import ADAPTIVE, exported
from tests.test_twin_and_graph import assert_onnx_same, assert_same
from tests.tiny import MEAN, STD, decided_images, random_images

BATCHES = (1, 3)


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models have few tokens: in steps of 32 nothing would ever be left out."""
    monkeypatch.setattr(stepped_block.stepped, "STEP", 4)


def plans(name: str) -> list[MergePlan]:
    """That of the variant, each image for itself too, and both ends."""
    plan = exported(name).plan
    both = [replace(plan, per_image=each) for each in (False, True)]
    return [*both, *(with_theta(each, theta) for each in both for theta in (2.0, -2.0))]


@pytest.mark.parametrize("name", ADAPTIVE)
def test_the_twin_equals_the_reference(name: str) -> None:
    backbone = exported(name).backbone
    for plan in plans(name):
        assert plan.has_form("stepped", backbone.tokens)
        for batch in BATCHES:
            images = decided_images(backbone, plan, batch)
            with torch.inference_mode():
                logits, counts, maps = Twin(backbone, plan, "stepped").eval()(images)
            assert_same(run_reference(backbone, plan, images), logits, counts, maps)


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("name", ADAPTIVE)
def test_the_graph_equals_the_reference(name: str, each: bool) -> None:
    made = exported(name)
    backbone, plan = made.backbone, replace(made.plan, per_image=each)
    how = Preprocessing(backbone.image_size, 1.0, "bicubic", MEAN, STD)
    model = optimize(onnx_from_model(backbone, plan, InputSpec(how, "float32"), form="stepped"))
    assert lint.lint(model) == []
    for batch in BATCHES:
        images = decided_images(backbone, plan, batch)
        trace = run_reference(backbone, plan, images)
        assert_onnx_same(trace, model, images, backbone.prefix)


def test_flat_images_are_ties_that_all_decide_alike() -> None:
    """Of equal pairs the first merge, as everywhere."""
    made = exported("class token")
    flat = torch.zeros_like(random_images(3))
    trace = run_reference(made.backbone, made.plan, flat)
    with torch.inference_mode():
        logits, counts, maps = Twin(made.backbone, made.plan, "stepped").eval()(flat)
    assert_same(trace, logits, counts, maps)


def test_lengths_go_in_steps() -> None:
    """Every block's tokens, and the padding of size 0 behind them."""
    made = exported("class token")
    images = decided_images(made.backbone, made.plan, 3)
    seen = []
    twin = Twin(made.backbone, made.plan, "stepped").eval()
    for block in twin.twin_blocks:
        block.register_forward_hook(lambda _, given, out: seen.append(given[:2]))
    with torch.inference_mode():
        twin(images)
    padded = [(tokens.shape[1], sizes) for tokens, sizes in seen if sizes is not None]
    assert padded
    for length, sizes in padded:
        count = (sizes[0, :, 0] > 0).sum()
        assert length % 4 == 0 or length == made.backbone.tokens
        assert 0 <= length - count < 4 or length == made.backbone.tokens
        assert np.all((sizes[:, :count] > 0).numpy()) and not sizes[:, count:].any()


def test_what_it_is_for() -> None:
    """Plans whose counts are fixed have no such form, and neither has one without merges."""
    made = exported("class token")
    tokens = made.backbone.tokens
    for plan in (exported("frozen").plan, MergePlan.unmerged(3)):
        assert plan.has_form("plain", tokens) and not plan.has_form("stepped", tokens)
    assert not made.plan.has_form("stepped", 4096)  # two sort keys
    assert STEP == 32
