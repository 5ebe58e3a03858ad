"""Merging in chosen blocks, and settings found for a number of GFLOPs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from atm_export.choice import Choice
from atm_export.config import stamped
from atm_export.errors import ConfigError
from atm_export.measure.budget import mean_gmacs, within_budget
from atm_export.measure.data.images import ImageSet, load_images
from atm_export.methods import methods
from atm_export.methods.atm import AtmSettings
from atm_export.methods.base import ModelShape
from atm_export.methods.flat import flattened
from atm_export.methods.given import settings_of
from atm_export.methods.plan import MergePlan
from atm_export.methods.tome import TomeSettings
from atm_export.model.flops import unmerged_gmacs
from atm_export.model.plan import shape_of
from atm_export.model.reference import run_reference
from atm_export.model.zoo import load_model
from atm_export.resolving import Budget, budget_of, default_out, resolve
from tests.families import agrees_with_twin, prove
from tests.runs import run_command
from tests.tiny import adaptive_plan, planned, random_images, tiny_vit, tome_plan

POINT = {"alpha": 1.0, "beta": 0.035, "theta_min": 0.88}


def atm(**more: Any) -> AtmSettings:
    found = settings_of("atm", {**POINT, **more})
    assert isinstance(found, AtmSettings)
    return found


@pytest.mark.parametrize(
    ("given", "at"),
    [
        (None, range(1, 12)),
        ("all", range(1, 12)),
        ("4,6,8,10", (4, 6, 8, 10)),
        ([4, 6, 8, 10], (4, 6, 8, 10)),
        ("10, 4", (4, 10)),
        ("4-6,10", (4, 5, 6, 10)),
        (7, (7,)),
        ("every:2", (2, 4, 6, 8, 10)),
        ("every:3", (3, 6, 9)),
        ("auto", (4, 6, 8, 10)),
    ],
)
def test_blocks_are_counted_from_1(given: Any, at: Any) -> None:
    plan = planned(atm(merge_blocks=given))
    assert plan.at == tuple(at)
    whole = planned(atm())
    for ell in at:  # each keeps the threshold and the groups that it has where all blocks merge
        assert plan.blocks[ell - 1] == whole.blocks[ell - 1]


def test_a_head_that_pools_merges_in_the_last_block_too() -> None:
    assert planned(atm(merge_blocks="every:4"), pooled=True).at == (4, 8, 12)
    assert planned(atm(merge_blocks="every:4")).at == (4, 8)
    assert planned(atm(merge_blocks="auto"), 24).at == (8, 10, 12, 14, 16, 18, 20, 22)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("12", "head reads the class token alone"),
        ("4,13", "the model has 12 blocks"),
        ("every:12", "names none of the 11"),
        ("0", "give numbers from 1"),
        ("4,,6", "give numbers from 1"),
        ("every:0", "give numbers from 1"),
        ("6-4", "runs backwards"),
        ("4,4", "named twice"),
        ("4-6,5", "named twice"),
        ("some", "give numbers from 1"),
        ([], "give numbers from 1"),
        (True, "give numbers from 1"),
        (2.5, "give numbers from 1"),
    ],
)
def test_blocks_that_cannot_be_meant(given: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        planned(atm(merge_blocks=given))
    assert "\n" not in str(caught.value)


def test_tome_merges_its_r_in_these_blocks_alone() -> None:
    def r(**values: Any) -> list[int | None]:
        plan = planned(TomeSettings(**values))
        return [block and block.r for block in plan.blocks]  # type: ignore[attr-defined]

    none = None
    assert r(r=(20,), merge_blocks="5,8,12") == [none] * 4 + [20, none, none, 20] + [none] * 3 + [
        20
    ]
    listed = r(r=(9, 7), merge_blocks="1,3")
    assert listed[:4] == [9, none, 7, none]
    falling = r(r=(8,), merge_blocks="2,4,6", schedule="decreasing")
    assert falling[1:6:2] == [16, 8, 0]
    with pytest.raises(ConfigError, match="lists 3 counts, but 2 blocks merge"):
        r(r=(9, 7, 5), merge_blocks="1,3")


def sparse(plan: MergePlan, at: tuple[int, ...]) -> MergePlan:
    """The same plan in these blocks alone."""
    blocks = (block if i in at else None for i, block in enumerate(plan.blocks, 1))
    return replace(plan, blocks=tuple(blocks))


@pytest.mark.parametrize("policy", ["adaptive", "per image", "frozen", "tome"])
@pytest.mark.parametrize("at", [(2,), (1, 3), (3,)])
def test_other_blocks_keep_every_token_in_its_place(policy: str, at: tuple[int, ...]) -> None:
    backbone = tiny_vit(depth=5)
    whole = adaptive_plan(backbone)
    plan = sparse(tome_plan(backbone, 6) if policy == "tome" else whole, at)
    if policy == "frozen":
        plan = plan.frozen((4,) * 5)
    plan = replace(plan, per_image=policy == "per image")
    trace = agrees_with_twin(backbone, plan)
    before = torch.arange(backbone.tokens).expand_as(trace.maps[0])
    for ell, places in enumerate(trace.maps, 1):
        if ell not in at:
            assert torch.equal(places, before)
        before = places


def test_sparse_graphs_climb_the_ladder() -> None:
    backbone = tiny_vit(depth=5)
    prove(backbone, sparse(adaptive_plan(backbone, share=0.5), (2, 4)))


@pytest.mark.parametrize("extreme", [2.0, -2.0])
def test_extremes(extreme: float) -> None:
    """r = 0 and r = max in two of five blocks."""
    backbone = tiny_vit(depth=5)
    plan = sparse(adaptive_plan(backbone), (2, 4))
    blocks = tuple(rule and rule.with_theta(extreme) for rule in plan.blocks)  # type: ignore[attr-defined]
    trace = run_reference(backbone, replace(plan, blocks=blocks), random_images(2))
    left = [37, 37, 37, 37, 37] if extreme > 0 else [37, 19, 19, 10, 10]
    assert trace.tokens_out[:, 0].tolist() == left


def test_the_whole_path(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ("demo", "--image-size", "28", "--merge-blocks", "2,4", "--no-benchmark")
    run_command(*command, "--out", out)
    again = run_command(*command, "--out", out)
    assert "reused" in again
    assert "in blocks 2 4" in again
    run_command("verify", out)
    for merge in ("frozen", "per-image"):
        run_command(*command, "--merge", merge, "--out", tmp_path / merge)
        run_command("verify", tmp_path / merge)


def test_a_graph_of_all_blocks_states_what_it_did_before() -> None:
    """A setting that says nothing does not change the bytes of a graph."""
    usual, named = (resolve(Choice(model="demo", merge_blocks=b)) for b in (None, "2,4"))
    assert "merge_blocks" not in stamped(usual)["method"]
    assert stamped(named)["method"]["merge_blocks"] == [2, 4]
    assert usual.digest() != named.digest()
    assert default_out(named).name.endswith("-blocks-2-4")


def test_presets_that_the_paper_lacks_change_no_other_graph() -> None:
    config = resolve(Choice(model="deit_t"))
    kept = stamped(config)["model"]["config"]["presets"]
    own = {name: p for name, p in config.model.config.presets.items() if p.table is None}
    assert not own.keys() & kept.keys()
    for name in own:
        chosen = resolve(Choice(model="deit_t", preset=name))
        assert name in stamped(chosen)["model"]["config"]["presets"]


def photographs(model: str = "demo") -> tuple[Any, ImageSet]:
    loaded = load_model(resolve(Choice(model=model)).model)
    images = load_images(None, loaded.preprocessing, loaded.own_images)
    return loaded, replace(images, pixels=images.pixels[:8], labels=None)


@pytest.mark.parametrize("method", ["atm", "tome", "evit", "mctf", "pitome", "ats", "zerotprune"])
def test_settings_that_meet_a_cost(method: str) -> None:
    """The dearest step of the dial at or below it: the next one lies above."""
    model, images = photographs()
    own = {"blocks": (1, 2)} if method in ("mctf", "zerotprune") else {}
    start = settings_of(method, {**methods[method].usual, **own, **SHARES.get(method, {})})
    steps = methods[method].dial(start, shape_of(model.backbone))
    settings = [settings_of(method, {**flattened(start), **step}) for step in steps]
    low, high = (mean_gmacs(model, settings[i], images) for i in (0, -1))
    assert low < high <= unmerged_gmacs(model.backbone)
    wanted = (low + high) / 2
    found, cost = within_budget(model, start, images, Budget(wanted, frozenset()))
    assert cost == mean_gmacs(model, found, images) <= wanted
    assert mean_gmacs(model, settings[settings.index(found) + 1], images) > wanted
    assert within_budget(model, start, images, Budget(2 * high, frozenset()))[1] == high
    with pytest.raises(ConfigError, match=f"the least that method {method} reaches here"):
        within_budget(model, start, images, Budget(low * 0.99, frozenset()))


SHARES: dict[str, dict[str, Any]] = {"zerotprune": {"keep": (0.8, 0.7)}}


def test_schedules_at_hand_are_a_dial_too() -> None:
    shape = ModelShape(12, 197, 1, False, True, 192)
    start = settings_of("diffrate", methods["diffrate"].usual)
    assert methods["diffrate"].dial(start, shape) == [
        {"target": target} for target in (0.6, 0.7, 0.8, 0.9, 1.0)
    ]
    assert methods["diffrate"].dial(start, replace(shape, width=200)) == []


@pytest.mark.parametrize(
    "options",
    [
        ("--merge-blocks", "2,4"),
        ("--method", "evit"),
        pytest.param(("--method", "tome"), marks=pytest.mark.slow),
    ],
)
def test_gflops_on_the_command_line(options: tuple[str, ...], tmp_path: Path) -> None:
    small = ("--image-size", "28")
    model = load_model(resolve(Choice(model="demo", image_size=28)).model)
    most = unmerged_gmacs(model.backbone)
    out, goal = tmp_path / "run", 0.85 * most
    asked = (*small, *options, "--gflops", goal, "--no-benchmark")
    text = run_command("demo", *asked, "--out", out)
    assert "found" in text
    report = json.loads((out / "report.json").read_text())
    assert report["gflops"]["mean"] <= goal
    run_command("verify", out)


def test_auto_takes_the_cost_of_the_preset() -> None:
    found = budget_of(Choice(model="deit_t", merge_blocks="auto"))
    assert found is not None
    assert found.gflops == 0.90
    assert budget_of(Choice(model="deit_t", merge_blocks="auto", theta_min=0.8)) is None
    assert budget_of(Choice(model="deit_t", merge_blocks="4,8")) is None
    assert budget_of(Choice(model="deit_t", gflops=0.9)) is None  # a preset of the paper
    assert budget_of(Choice(model="deit_t", gflops=0.9, method="evit")) is not None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "evit", "--set", "keep=0.7", "--gflops", "0.9"], "looks for keep"),
        (["--method", "tome", "-r", "4", "--gflops", "0.9"], "looks for r, which is given"),
        (["--method", "none", "--gflops", "0.9"], "--gflops belongs to a method with settings"),
        (["--method", "evit", "--merge-blocks", "2"], "belongs to --method atm or tome"),
        (["--method", "evit", "--gflops", "0.000001"], "the least that method evit reaches"),
        (["--method", "evit", "--gflops", "-1"], "give a number above 0"),
        (["--merge-blocks", "2,99"], "99: the model has"),
        (["--merge-blocks", ""], "--merge-blocks is empty"),
    ],
)
def test_mistakes_are_one_line(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_command("demo", *options, "--out", tmp_path / "run", code=2)
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_auto_without_a_cost_says_what_is_missing() -> None:
    with pytest.raises(ConfigError, match="--gflops"):
        budget_of(Choice(model="timm:vit_tiny_patch16_224", merge_blocks="auto"))
