"""A method is one file: a toy one, registered by import, is exported and proven the whole way."""

from __future__ import annotations

import csv
import io
import json
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from atm_export.choice import Choice
from atm_export.cli import main
from atm_export.config import ModelConfig, ModelSpec, RunConfig, exported_config
from atm_export.errors import ConfigError, UnsupportedModelError
from atm_export.inputs import Preprocessing
from atm_export.methods.plan import MergePlan
from atm_export.methods.rule import NotFollowed
from atm_export.model.flops import trace_gmacs, unmerged_gmacs
from atm_export.model.plan import plan_for, shape_of
from atm_export.model.reference import attention, run_reference
from atm_export.model.zoo import load_model
from atm_export.model_configs import load_model_config
from atm_export.pipeline import export
from atm_export.prove.follow import follow
from atm_export.prove.ladder import climb
from atm_export.prove.results import LadderResult
from atm_export.resolving import resolve
from atm_export.runtime import load
from atm_export.subject import Subject
from tests.exports import export as exported
from tests.exports import run_onnx
from tests.extensions.halve import Halve, HalveSettings
from tests.families import pixels
from tests.graphs import changed as swapped
from tests.runs import run_command
from tests.tiny import MEAN, SIZE, STD, loaded, random_images, tiny_vit

AT = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo, halved at its third block."""
    model = ModelSpec(name="demo", config=load_model_config("demo"))
    config = RunConfig(model=model, method=HalveSettings(at=AT), trace=True)
    out = tmp_path_factory.mktemp("halve") / "run"
    assert export(config, out, benchmark=False).report["parity"]["proven"]
    return out


def test_the_run_folder_states_it(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["status"] == "proven"
    told = manifest["method"]
    assert (told["name"], told["at"], told["merge"]) == ("halve", AT, "frozen")
    assert told["summary"] == "halved at block 3"
    assert exported_config(manifest["config"], "here").method == HalveSettings(at=AT)
    html = (folder / "report.html").read_text()
    assert "halved at block 3" in html and Halve.about.split(" ")[0] in html


def test_verify_and_the_runtime_take_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder)]) == 0
    model = load_model(ModelSpec(name="demo", config=load_model_config("demo")))
    plan = plan_for(model.backbone, HalveSettings(at=AT))
    rng = torch.Generator().manual_seed(3)
    image = torch.randn(2, 3, *model.backbone.image_size, generator=rng)
    trace = run_reference(model.backbone, plan, image)
    out = load(folder).outputs(image.numpy())
    np.testing.assert_allclose(out["logits"], trace.outputs["logits"].numpy(), atol=1e-4)
    after = [model.backbone.tokens] * (AT - 1)
    left = model.backbone.prefix + (model.backbone.patches + 1) // 2
    assert out["tokens_per_block"].tolist() == after + [left] * (12 - AT + 1)
    assert np.array_equal(out["patch_to_token"], trace.maps[-1][:, 1:].numpy())
    assert ((out["patch_to_token"] == -1).sum(axis=1) == model.backbone.patches // 2).all()
    assert float(trace_gmacs(model.backbone, trace)[0]) < 0.8 * unmerged_gmacs(model.backbone)


def test_the_command_line_takes_its_settings(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ["demo", "--method", "halve", "--set", f"at={AT}", "--out", str(out)]
    assert main([*command, "--no-benchmark"]) == 0
    assert json.loads((out / "manifest.json").read_text())["method"]["at"] == AT


@torch.inference_mode()
def by_hand(backbone: Any, at: int, image: Tensor) -> tuple[Tensor, list[int]]:
    """One image with loops: logits, and which patches stay."""
    x, stay = backbone.embed(image), list(range(backbone.patches))
    for i, part in enumerate(backbone.parts()):
        heads = attention(part, part.norm1(x), None)
        x = x + heads.out
        if i + 1 == at:
            score = heads.weights[0, :, 0, backbone.prefix :].sum(dim=0).tolist()
            stay = [max(stay[k : k + 2], key=score.__getitem__) for k in range(0, len(stay), 2)]
            front = list(range(backbone.prefix))
            x = x[:, front + [backbone.prefix + k for k in stay]]
        x = x + part.scale2(part.mlp(part.norm2(x)))
    return backbone.head(x, None), stay


MODELS: dict[str, dict[str, Any]] = {
    "class token": {},
    "pooled, an odd number of patches": {"global_pool": "avg", "img_size": (24, 24)},
    "registers": {"reg_tokens": 4, "qk_norm": True},
    "distilled": {"distilled": True},
}


@pytest.mark.parametrize("at", [1, 2, 4])
@pytest.mark.parametrize("name", MODELS)
def test_reference_and_graph_keep_what_loops_keep(name: str, at: int) -> None:
    backbone = tiny_vit(**MODELS[name])
    plan = plan_for(backbone, HalveSettings(at=at))
    images = random_images(3, size=backbone.image_size)
    trace = run_reference(backbone, plan, images)
    made = exported(backbone, plan)
    out = run_onnx(made.traced, images.numpy())
    shipped = run_onnx(made.shipped, images.numpy())
    for i in range(3):
        logits, stay = by_hand(backbone, at, images[i : i + 1])
        torch.testing.assert_close(trace.outputs["logits"][i : i + 1], logits, atol=1e-5, rtol=0)
        places = trace.maps[-1, i, backbone.prefix :].tolist()
        assert [k for k, place in enumerate(places) if place >= 0] == stay
    assert np.array_equal(out["token_maps"], trace.maps.numpy())
    assert np.array_equal(out["tokens_per_block"], trace.tokens_out[:, 0].numpy())
    for logits in (out["logits"], shipped["logits"]):
        np.testing.assert_allclose(logits, trace.outputs["logits"].numpy(), atol=1e-4)


def proof(*, changed: bool) -> LadderResult:
    """The ladder of a tiny model; changed: its traced graph has other queries in the block."""
    backbone = tiny_vit()
    method = HalveSettings(at=2)
    plan = plan_for(backbone, method)
    made = exported(backbone, plan)
    traced = made.traced
    if changed:
        name = next(n for n in traced.graph.initializers if n.startswith("blocks.1.q.weight"))
        traced = swapped(traced, name, np.negative)
    model = loaded(backbone, Preprocessing((SIZE, SIZE), 1.0, "bicubic", MEAN, STD))
    spec = ModelSpec(name="tiny", config=ModelConfig(family="timm", architecture="tiny"))
    subject = Subject(RunConfig(model=spec, method=method), model, plan)
    return climb(subject, traced, made.shipped, pixels(SIZE))


def test_the_ladder_finds_a_graph_that_keeps_others() -> None:
    assert proof(changed=False).proven
    found = proof(changed=True)
    assert not found.proven and found.differences[0].rung == "onnx"
    assert "block 2 merges other tokens" in found.differences[0].what


def test_another_choice_is_followed_at_its_price() -> None:
    backbone = tiny_vit()
    plan = plan_for(backbone, HalveSettings(at=2))
    images = random_images(2)
    own = run_reference(backbone, plan, images)
    trace, short = follow(backbone, plan, images, own.maps)
    assert short == 0 and torch.equal(trace.outputs["logits"], own.outputs["logits"])
    maps = own.maps.clone()
    first, second = backbone.prefix, backbone.prefix + 1
    maps[1:, 0, [first, second]] = maps[1:, 0, [second, first]]
    trace, short = follow(backbone, plan, images, maps)
    assert short > 1e-4 and not torch.equal(trace.outputs["logits"][0], own.outputs["logits"][0])
    maps[1:, 0, [first, second]] = -1
    with pytest.raises(NotFollowed):
        follow(backbone, plan, images, maps)


def test_what_does_not_fit_is_refused() -> None:
    shape = shape_of(tiny_vit())
    with pytest.raises(ConfigError, match="beyond the model's 4 blocks"):
        Halve().plan(HalveSettings(at=5), shape)
    with pytest.raises(UnsupportedModelError, match="class token"):
        Halve().plan(HalveSettings(), replace(shape, prefix=0))


def test_dropped_patches_stay_dropped_through_later_blocks() -> None:
    """Halved twice: places of the first drop are -1 to the end, in both."""
    backbone = tiny_vit()
    rule = plan_for(backbone, HalveSettings(at=1)).blocks[0]
    plan = MergePlan((rule, None, rule, None), proportional=False)
    images = random_images(3)
    trace = run_reference(backbone, plan, images)
    assert [(m < 0).sum().item() for m in trace.maps[:, 0]] == [18, 18, 27, 27]
    out = run_onnx(exported(backbone, plan).traced, images.numpy())
    assert np.array_equal(out["token_maps"], trace.maps.numpy())
    assert out["tokens_per_block"].tolist() == [19, 19, 10, 10]
    np.testing.assert_allclose(out["logits"], trace.outputs["logits"].numpy(), atol=1e-4)


def test_it_is_tuned_and_its_preset_chooses_it(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna", reason="needs atm-export[tune]")
    monkeypatch.setenv("ATM_EXPORT_CONFIGS", str(tmp_path / "configs"))
    out = tmp_path / "tune"
    command = ["tune", "demo", "--method", "halve", "--images", str(digits), "--trials", "3"]
    limits = ["--min-agreement", "1", "--max-drop", "100", "--workers", "0"]
    printed = run_command(*command, *limits, "--out", str(out))
    facts = json.loads((out / "tune.json").read_text())
    at = facts["chosen"]["point"]["at"]
    assert f"demo  halve: at {at}" in printed and 1 <= at <= 11
    with (out / "pareto.csv").open() as file:
        header, *rows = csv.reader(file)
    assert header[:2] == ["at", "gflops"] and len(rows) == len(facts["pareto"])
    found = resolve(Choice(model="demo", preset="tuned"))
    assert found.method == HalveSettings(at=at, preset="tuned")
    assert found.model.config.presets["tuned"].gflops is None
    listed = run_command("list", "demo")
    assert f"at {at}" in listed and "0.88" in listed
    assert "unknown optional setting" in refused("tune", "demo", *command[2:], "--split")


def refused(*arguments: str) -> str:
    """What the command says that refuses its options."""
    err = io.StringIO()
    with redirect_stderr(err):
        assert main(list(arguments)) == 2
    return err.getvalue()
