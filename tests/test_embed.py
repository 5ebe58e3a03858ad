"""--task embed: which models embed, what a vector is, and that the whole path speaks of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
import torch.nn.functional as F

from atm_export import demo
from atm_export.choice import Choice
from atm_export.errors import ConfigError
from atm_export.measure.data.images import load_images
from atm_export.model.backbone import Backbone
from atm_export.model.plan import plan_for
from atm_export.model.reference import run_reference
from atm_export.model.zoo import load_model
from atm_export.resolving import default_out, resolve
from atm_export.runtime import load
from tests.runs import run_command
from tests.shared_data import shared
from tests.tiny import no_merges, random_images

HEADLESS = "timm:vit_small_patch14_reg4_dinov2"
CLIP = "timm:vit_xsmall_patch16_clip_224"
CLASSIFIER = "timm:test_vit"
POOLED = "timm:test_vit4"
DISTILLED = "timm:deit_tiny_distilled_patch16_224"
SIGLIP = "timm:test_vit3"


def backbone(name: str, **options: Any) -> Backbone:
    size = {"image_size": 56} if name == HEADLESS else {}
    return load_model(
        resolve(Choice(model=name, weights="random", **size, **options)).model
    ).backbone


@pytest.mark.parametrize(
    ("name", "task", "dim"),
    [(HEADLESS, "embed", 384), (CLIP, "embed", 512), (CLASSIFIER, "classify", 1000)],
)
def test_what_a_model_does_by_itself(name: str, task: str, dim: int) -> None:
    found = backbone(name)
    assert (found.task, found.classes) == (task, dim)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("name", [HEADLESS, CLIP, CLASSIFIER, POOLED, DISTILLED])
@torch.inference_mode()
def test_it_is_timms_own_vector(name: str, normalize: bool) -> None:
    found = backbone(name, task="embed", normalize=normalize)
    images = random_images(2, size=found.image_size)
    model: Any = found.model
    expected = model.forward_head(model.forward_features(images), pre_logits=name != CLIP)
    expected = F.normalize(expected, dim=-1) if normalize else expected
    assert expected.shape == (2, found.classes)
    torch.testing.assert_close(found.plain(images), expected, atol=0, rtol=0)
    answer = run_reference(found, no_merges(found), images).outputs
    torch.testing.assert_close(answer["embedding"], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "pool", "option"),
    [
        *((name, "avg", ()) for name in (HEADLESS, CLIP, DISTILLED, SIGLIP)),
        (CLASSIFIER, "token", ("global_pool=avg",)),
    ],
)
@torch.inference_mode()
def test_pool_says_which_tokens_the_vector_is_of(
    name: str, pool: str, option: tuple[str, ...]
) -> None:
    found = backbone(name, task="embed", pool=pool, option=option)
    images = random_images(2, size=found.image_size)
    tokens = found.model.forward_features(images)
    picked = tokens[:, 0] if pool == "token" else tokens[:, found.prefix :].mean(dim=1)
    expected = found.model.fc_norm(picked)
    torch.testing.assert_close(found.plain(images), expected, atol=0, rtol=0)
    answer = run_reference(found, no_merges(found), images).outputs
    torch.testing.assert_close(answer["embedding"], expected, atol=1e-5, rtol=1e-4)


def test_a_merged_token_counts_as_often_as_it_holds_patches() -> None:
    found = backbone(CLASSIFIER, task="embed", pool="avg")
    tokens, sizes = torch.randn(1, 4, 64), torch.tensor([1.0, 1, 3, 2]).reshape(1, 4, 1)
    patches = tokens[:, [1, 2, 2, 2, 3, 3]]
    alone = found.head(torch.cat([tokens[:, :1], patches], dim=1), None)
    torch.testing.assert_close(found.head(tokens, sizes), alone, atol=1e-6, rtol=1e-5)


def test_the_models_own_pool_changes_nothing_and_the_report_names_it() -> None:
    def notes(name: str, **options: Any) -> tuple[str, ...]:
        return load_model(resolve(Choice(model=name, weights="random", **options)).model).notes

    assert notes(CLIP) == notes(CLIP, pool="token")
    assert notes(CLIP) == ("embedding: the head's projection of the class token",)
    assert "a classifier, the mean of all patches" in notes(CLIP, pool="avg")[0]


def test_the_head_is_counted_where_it_is_run() -> None:
    one = torch.ones(1)
    assert float(backbone(CLASSIFIER, task="embed").head_macs(one)) == 0
    assert float(backbone(CLASSIFIER).head_macs(one)) == 64 * 1000
    assert float(backbone(CLIP).head_macs(one)) == 256 * 512


def test_a_fine_tuned_clip_has_classes() -> None:
    assert (
        backbone("timm:vit_xsmall_patch16_clip_224", option=("num_classes=10",)).task == "classify"
    )
    assert (
        timm.get_pretrained_cfg("vit_base_patch16_clip_224.openai_ft_in1k").tag == "openai_ft_in1k"
    )


@pytest.mark.parametrize(
    ("model", "options", "told"),
    [
        ("demo", {"task": "embed"}, "--task embed: demo has the task 'classify'"),
        ("lvvit_t", {"task": "embed", "weights": "random"}, "has the task 'classify'"),
        (
            CLASSIFIER,
            {"normalize": True, "weights": "random"},
            "--normalize belongs to --task embed",
        ),
        (HEADLESS, {"task": "segment", "weights": "random"}, "task"),
        (CLASSIFIER, {"pool": "avg", "weights": "random"}, "--pool belongs to --task embed"),
        (CLASSIFIER, {"pool": "avg", "task": "dense"}, "--pool belongs to --task embed"),
        (CLASSIFIER, {"pool": "none", "task": "embed"}, "no one vector; give --task dense"),
        (
            CLASSIFIER,
            {"pool": "map", "task": "embed", "weights": "random"},
            "has no attention pooling; give --pool avg",
        ),
        (
            SIGLIP,
            {"pool": "token", "task": "embed", "weights": "random"},
            "has no class token; give --pool avg",
        ),
    ],
)
def test_what_a_model_cannot_do_is_one_line(model: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        load_model(resolve(Choice(model=model, **options)).model)
    assert "\n" not in str(caught.value)


def test_a_run_of_its_own_has_a_name_of_its_own() -> None:
    def name(**options: Any) -> str:
        return default_out(resolve(Choice(model="deit_t", **options))).name

    assert name() == "deit_t-a2-0.90"
    assert name(task="embed") == "deit_t-a2-0.90-embed"
    assert name(task="embed", normalize=True) == "deit_t-a2-0.90-embed-normalized"
    assert name(task="embed", pool="avg") == "deit_t-a2-0.90-embed-avg"
    assert name(task="dense", layers="2,5") == "deit_t-a2-0.90-dense-layers-2.5"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("embed") / "run"
    point = ("--alpha", "0.8", "--beta", "0.05", "--theta-min", "0.6")
    command = (CLASSIFIER, "--weights", "random", "--task", "embed", "--normalize", *point)
    run_command(*command, "--no-benchmark", "--out", out)
    return out


def test_the_run_speaks_of_embeddings(run: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["status"] == "proven" and manifest["labels"] is None
    assert manifest["task"]["name"] == "embed" and manifest["task"]["ranks"] is None
    assert manifest["interface"]["outputs"]["embedding"]["shape"] == ["batch", 64]
    assert [o.name for o in onnx.load(run / "model.onnx").graph.output] == ["embedding"]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "embedding within" in page and "logits" not in page
    run_command("verify", run)


def test_sessions_embed_pictures_and_classifiers_do_not(
    run: Path, finished_run: Path, tmp_path: Path
) -> None:
    pictures, _ = demo.heldout()
    session = load(run)
    found = session.embed(pictures[:3])
    assert found.shape == (3, 64)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(found, session.predict(pictures[:3]))
    with pytest.raises(ConfigError, match="ranks classes"):
        session.classify(pictures[0])
    with pytest.raises(ConfigError, match="embed needs a run of --task embed"):
        load(finished_run).embed(pictures[0])


def test_real_features_point_where_the_unmerged_ones_do() -> None:
    """And point much the same way when tokens merge."""
    weights = str(shared("data", "weights", "deit_tiny_patch16_224.safetensors"))
    config = resolve(Choice(model="deit_t", weights=weights, task="embed"))
    model = load_model(config.model)
    images = model.tensor(load_images(None, model.preprocessing).pixels[:4])
    with torch.inference_mode():
        plain = model.backbone.plain(images)
    merged = run_reference(model.backbone, plan_for(model.backbone, config.method), images)
    cosine = F.cosine_similarity(merged.outputs["embedding"], plain)
    assert bool((cosine > 0.9).all()) and bool((cosine < 1 - 1e-6).all())
