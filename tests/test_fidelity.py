"""The paper's operating points on real weights and images: GFLOPs, accuracy, frozen schedules."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from atm_export.config import ModelSpec
from atm_export.inputs import normalize
from atm_export.measure.data.imagenet import imagenet_labels
from atm_export.model.backbone import LoadedModel
from atm_export.model.flops import trace_gmacs, unmerged_gmacs
from atm_export.model.reference import Trace, run_reference
from atm_export.model.zoo import load_model
from atm_export.model_configs import load_model_config
from atm_export.preprocess import read_images
from tests.shared_data import sample_images, shared
from tests.tiny import planned

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("all_cores")]
EVERY = 5  # of the sorted sample images: 100 of 500


@cache
def deit_t() -> LoadedModel:
    path = shared("data", "weights", "deit_tiny_patch16_224.safetensors")
    return load_model(
        ModelSpec(name="deit_t", config=load_model_config("deit_t"), weights=str(path))
    )


@cache
def images() -> tuple[torch.Tensor, torch.Tensor]:
    """100 normalised images and their classes."""
    files = sample_images(EVERY)
    how = deit_t().preprocessing
    pixels = normalize(read_images(files, how), how)
    return torch.from_numpy(pixels), torch.tensor(imagenet_labels(files))


@cache
def run(preset: str) -> Trace:
    """One batch of 100, as the paper evaluates."""
    backbone = deit_t().backbone
    point = load_model_config("deit_t").presets[preset].chosen
    plan = planned(point, len(backbone.parts()), pooled=False, proportional=True)
    return run_reference(backbone, plan, images()[0])


@pytest.mark.parametrize("preset", ["a2-0.98", "a2-0.90", "a2-0.81"])
def test_gflops_are_the_papers(preset: str) -> None:
    gmacs = float(trace_gmacs(deit_t().backbone, run(preset)).mean())
    paper = load_model_config("deit_t").presets[preset].gflops
    assert gmacs == pytest.approx(paper, rel=0.02)
    assert gmacs < unmerged_gmacs(deit_t().backbone)


def test_accuracy_does_not_drop() -> None:
    pixels, labels = images()
    assert len(labels) == len(labels.unique()) == 100
    with torch.inference_mode():
        plain = torch.cat([deit_t().backbone.plain(part).argmax(1) for part in pixels.split(25)])
    unmerged = 100 * float((plain == labels).double().mean())
    merged = 100 * float((run("a2-0.96").outputs["logits"].argmax(1) == labels).double().mean())
    assert unmerged > 70
    assert merged >= unmerged - 1


def test_every_image_of_the_batch_merges_as_many_tokens() -> None:
    trace = run("a2-0.90")
    merged = (trace.tokens_in - trace.tokens_out)[:, 0].numpy()
    assert (np.asarray(trace.tokens_out) == np.asarray(trace.tokens_out)[:, :1]).all()
    assert merged[-1] == 0 and merged[:-1].sum() > 100
