"""The demo that ships: whole, as its card says, and as accurate merged as unmerged."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from atm_export import demo
from atm_export.config import ModelSpec
from atm_export.errors import ConfigError
from atm_export.inputs import normalize
from atm_export.model.backbone import LoadedModel
from atm_export.model.flops import trace_gmacs, unmerged_gmacs
from atm_export.model.reference import run_reference
from atm_export.model.zoo import load_model
from atm_export.model_configs import load_model_config
from atm_export.preprocess import crop
from tests.tiny import planned


def load(size: int | None = None, weights: str = "pretrained") -> LoadedModel:
    config = load_model_config("demo")
    return load_model(ModelSpec(name="demo", config=config, weights=weights, image_size=size))


@pytest.fixture(scope="module")
def images() -> tuple[torch.Tensor, torch.Tensor]:
    """Every third held-out digit, normalised, and its class."""
    digits, labels = demo.heldout()
    how = load().preprocessing
    pixels = np.stack([crop(digit, how) for digit in digits[::3]])
    return torch.from_numpy(normalize(pixels, how)), torch.from_numpy(labels[::3]).long()


def test_the_held_out_digits_are_those_of_the_card() -> None:
    digits, labels = demo.heldout()
    assert len(digits) == len(labels) == demo.card()["training"]["heldout_size"]
    assert {digit.size for digit in digits} == {(8, 8)} and {d.mode for d in digits} == {"RGB"}
    assert sorted(set(labels.tolist())) == list(range(10))
    distinct = {hashlib.sha256(digit.tobytes()).hexdigest() for digit in digits}
    assert len(distinct) == len(digits)


def test_the_model_is_that_of_the_card() -> None:
    card, backbone = demo.card(), load().backbone
    shape = card["architecture"]
    assert len(backbone.parts()) == shape["depth"]
    assert backbone.image_size == (shape["img_size"],) * 2
    assert backbone.classes == shape["num_classes"] == 10
    assert backbone.grid == (14, 14) and backbone.prefix == 1 and backbone.head_rows == 1
    assert load().labels == tuple("0123456789")
    assert "CC BY 4.0" in str(load().licence) and "CC BY 4.0" in card["dataset"]["licence"]


def test_merged_it_is_as_accurate_and_much_cheaper(
    images: tuple[torch.Tensor, torch.Tensor],
) -> None:
    backbone = load().backbone
    pixels, labels = images
    point = load_model_config("demo").presets["lossless"].chosen
    plan = planned(point, 12, pooled=False, proportional=True)
    with torch.inference_mode():
        plain = torch.cat([backbone.plain(part).argmax(1) for part in pixels.split(20)])
    traces = [run_reference(backbone, plan, part) for part in pixels.split(20)]
    merged = torch.cat([trace.outputs["logits"].argmax(1) for trace in traces])
    unmerged = float((plain == labels).double().mean())
    assert abs(100 * unmerged - demo.card()["heldout_top1_percent"]) < 2
    assert float((merged == labels).double().mean()) >= unmerged - 0.01
    gmacs = float(torch.cat([trace_gmacs(backbone, trace) for trace in traces]).mean())
    assert gmacs < 0.5 * unmerged_gmacs(backbone)


def test_the_digest_follows_the_weights() -> None:
    assert load().weights["sha256"] == load().weights["sha256"]
    random = load(weights="random")
    assert random.weights["sha256"] != load().weights["sha256"]
    assert random.weights["meaningless_accuracy"] is True
    assert load().weights["meaningless_accuracy"] is False


def test_another_image_size() -> None:
    backbone = load(28).backbone
    assert backbone.grid == (7, 7) and backbone.image_size == (28, 28)
    with torch.inference_mode():
        assert backbone.plain(torch.zeros(2, 3, 28, 28)).shape == (2, 10)
    with pytest.raises(ConfigError, match="--image-size 30 is not a multiple"):
        load(30)
