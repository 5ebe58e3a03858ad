"""PiToMe against the official implementation, against loops, in the graph and at its edges."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from atm_export.choice import Choice
from atm_export.errors import ConfigError
from atm_export.methods.given import settings_of
from atm_export.methods.pitome import Pitome, PitomeSettings
from atm_export.methods.rule import NotFollowed
from atm_export.methods.scores import FINE, SPAN
from atm_export.model.flops import count_gmacs
from atm_export.model.plan import plan_for
from atm_export.model.reference import attention, run_reference
from atm_export.prove.follow import follow
from atm_export.resolving import resolve
from tests.exports import export, run_onnx
from tests.families import prove
from tests.method_goldens import deit_t, graph_equals, official, reference_equals
from tests.runs import run_command
from tests.tiny import decided_images, random_images, tiny_vit

SETTINGS = {"ratio0945": {"ratio": 0.945}, "ratio09125": {"ratio": 0.9125}}
MODELS: dict[str, dict[str, Any]] = {
    "class token": {},
    "pooled, an odd number of patches": {"global_pool": "avg", "img_size": (24, 40)},
    "no prefix": {"global_pool": "avg", "class_token": False, "depth": 2},
    "registers": {"reg_tokens": 4, "qk_norm": True, "depth": 3},
}


@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_reference_equals_the_official_code(setting: str) -> None:
    expected = official("pitome", setting, SETTINGS[setting])
    trace = reference_equals(expected)
    counted = count_gmacs(deit_t().backbone, trace.tokens_in, trace.tokens_out)
    np.testing.assert_allclose(counted, expected.arrays["gmacs"], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_graph_equals_the_official_code(setting: str) -> None:
    graph_equals(official("pitome", setting, SETTINGS[setting]))


@torch.inference_mode()
def by_hand(backbone: Any, ratio: float, protects: str, image: Tensor) -> tuple[Tensor, list[int]]:
    """One image with loops: logits, and the place of each embedded token in the end."""
    x, prefix, depth = backbone.embed(image), backbone.prefix, len(backbone.parts())
    groups = [[i] for i in range(x.shape[1])]
    for i, part in enumerate(backbone.parts()):
        heads = attention(part, part.norm1(x), None)
        x = x + heads.out / part.divisor
        count = len(groups) - prefix
        r = math.floor(count - count * ratio)
        if r:
            keys = torch.nn.functional.normalize(heads.keys.mean(dim=1)[0, prefix:], dim=1)
            cosine = (keys @ keys.T).tolist()
            m = 0.75 - 0.75 * i / depth
            energy = [
                round(sum(s - m if s > m else math.exp(s - m) - 1 for s in row) / count * FINE)
                for row in cosine
            ]
            order = sorted(range(count), key=lambda p, e=energy: (-e[p], p))
            protected = (protects == "first") == (i < (depth + 1) // 2)
            used = order[: 2 * r] if protected else order
            a, b = used[0::2], used[1::2]
            near = {p: max(b, key=lambda q, row=cosine[p]: round(row[q] * SPAN)) for p in a}
            ranked = sorted(a, key=lambda p, c=cosine, n=near: -round(c[p][n[p]] * SPAN))
            moved = ranked[:r] if not protected else a
            alone = [p for p in (order if protected else ranked) if p not in moved and p not in b]
            into = [[q, *(p for p in moved if near[p] == q)] for q in b]
            old, sizes = groups, [len(group) for group in groups]
            members = [[p] for p in range(prefix)]
            members += [[prefix + p for p in ps] for ps in [*([p] for p in alone), *into]]
            groups = [[q for p in ps for q in old[p]] for ps in members]
            rows = [
                sum(x[0, p] * sizes[p] for p in ps) / sum(sizes[p] for p in ps) for ps in members
            ]
            x = torch.stack(rows)[None]
        x = x + part.scale2(part.mlp(part.norm2(x))) / part.divisor
    where = {p: place for place, group in enumerate(groups) for p in group}
    sizes = torch.tensor([[[float(len(group))] for group in groups]])
    return backbone.head(x, sizes), [where[p] for p in range(len(where))]


@pytest.mark.parametrize("name", MODELS)
def test_reference_and_graph_do_what_loops_do(name: str) -> None:
    backbone = tiny_vit(**MODELS[name])
    protects = "first" if name == "registers" else "second"
    plan = plan_for(backbone, PitomeSettings(ratio=0.8, protects=protects))
    images = random_images(3, size=backbone.image_size)
    trace = run_reference(backbone, plan, images)
    for i in range(3):
        logits, places = by_hand(backbone, 0.8, protects, images[i : i + 1])
        assert trace.maps[-1, i].tolist() == places
        torch.testing.assert_close(trace.outputs["logits"][i : i + 1], logits, atol=1e-5, rtol=0)
    made = export(backbone, plan)
    out, shipped = (run_onnx(graph, images.numpy()) for graph in (made.traced, made.shipped))
    assert np.array_equal(out["token_maps"], trace.maps.numpy())
    assert np.array_equal(out["tokens_per_block"], trace.tokens_out[:, 0].numpy())
    for logits in (out["logits"], shipped["logits"]):
        np.testing.assert_allclose(logits, trace.outputs["logits"].numpy(), atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [{}, {"positions": False}, {"global_pool": "avg", "depth": 2}],
    ids=["class token", "equal patches stay equal", "pooled"],
)
def test_the_ladder_is_climbed(options: dict[str, Any]) -> None:
    backbone = tiny_vit(**options)
    prove(backbone, plan_for(backbone, PitomeSettings(ratio=0.9)))


def test_a_ratio_of_one_merges_nothing() -> None:
    backbone = tiny_vit()
    plan = plan_for(backbone, PitomeSettings(ratio=1))
    assert not plan.merges
    images = random_images(2)
    trace = run_reference(backbone, plan, images)
    torch.testing.assert_close(trace.outputs["logits"], backbone.plain(images), atol=1e-5, rtol=0)


def test_half_of_the_patches_at_most_merge() -> None:
    backbone = tiny_vit()
    plan = plan_for(backbone, PitomeSettings(ratio=0.5))
    trace = run_reference(backbone, plan, random_images(3))
    assert trace.tokens_out[:, 0].tolist() == [19, 10, 6, 4]
    images = decided_images(backbone, plan, 1)
    out = run_onnx(export(backbone, plan).traced, images.numpy())
    expected = run_reference(backbone, plan, images).outputs["logits"]
    np.testing.assert_allclose(out["logits"], expected.numpy(), atol=1e-4)


def test_more_tokens_than_one_sort_key_holds() -> None:
    backbone = tiny_vit(img_size=(160, 168), depth=2)
    plan = plan_for(backbone, PitomeSettings(ratio=0.9))
    images = random_images(2, size=(160, 168))
    trace = run_reference(backbone, plan, images)
    out = run_onnx(export(backbone, plan).traced, images.numpy())
    judged, short = follow(backbone, plan, images, torch.from_numpy(out["token_maps"]))
    assert short <= 2e-6 and trace.tokens_out[:, 0].tolist() == [379, 342]
    np.testing.assert_allclose(out["logits"], judged.outputs["logits"].numpy(), atol=1e-4)


def test_another_choice_is_followed_at_its_price() -> None:
    backbone = tiny_vit()
    plan = plan_for(backbone, PitomeSettings(ratio=0.8))
    images = random_images(2)
    own = run_reference(backbone, plan, images)
    trace, short = follow(backbone, plan, images, own.maps)
    assert short == 0 and torch.equal(trace.outputs["logits"], own.outputs["logits"])
    maps = own.maps.clone()
    first, last = (int((maps[0, 0] == k).nonzero()[0]) for k in (1, 12))
    maps[:, 0, [first, last]] = maps[:, 0, [last, first]]
    trace, short = follow(backbone, plan, images, maps)
    assert short > 1e-4
    maps[:, 0, :2] = maps[:, 0, [1, 0]]
    with pytest.raises(NotFollowed):
        follow(backbone, plan, images, maps)
    maps = own.maps.clone()
    maps[:, 0, 1:] = 1
    with pytest.raises(NotFollowed):
        follow(backbone, plan, images, maps)


@pytest.mark.parametrize("ratio", [0.4, 1.1, float("nan"), "much"])
def test_bad_settings_are_named(ratio: Any) -> None:
    with pytest.raises(ConfigError, match="ratio"):
        settings_of("pitome", {"ratio": ratio})
    with pytest.raises(ConfigError, match="protects"):
        settings_of("pitome", {"protects": "third"})


def test_the_command_line_takes_it(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ("demo", "--method", "pitome", "--set", "ratio=0.9", "--trace", "--out", out)
    run_command(*command, "--no-benchmark")
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["status"] == "proven" and manifest["method"]["ratio"] == 0.9
    assert manifest["method"]["r_per_block"][:2] == [19, 17]
    run_command("verify", out)
    html = (out / "report.html").read_text()
    assert Pitome.about.split(":")[0] in html


def test_it_is_tuned_and_its_preset_chooses_it(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna", reason="needs atm-export[tune]")
    monkeypatch.setenv("ATM_EXPORT_CONFIGS", str(tmp_path / "configs"))
    limits = ("--min-agreement", "1", "--max-drop", "100", "--workers", "0", "--trials", "2")
    command = ("tune", "demo", "--method", "pitome", "--images", digits)
    run_command(*command, *limits, "--out", tmp_path / "tune")
    found = resolve(Choice(model="demo", preset="tuned")).method
    assert isinstance(found, PitomeSettings) and 0.85 <= found.ratio <= 0.99
    assert "ratio 0." in run_command("list", "demo")
