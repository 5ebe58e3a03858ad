"""`tune`: the search keeps its limits, resumes, stops the hopeless, and writes a usable preset."""

from __future__ import annotations

import csv
import json
import math
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from atm_export.cli import main
from atm_export.config import Preset
from atm_export.inputs import Preprocessing
from atm_export.measure.tune.objective import Known, know, score, violation
from atm_export.measure.tune.search import (
    LocalWorkers,
    finished,
    open_study,
    pareto,
    search,
    winner,
)
from atm_export.measure.tune.space import Search
from atm_export.methods.atm import KNOBS, USUAL, AtmSettings, OperatingPoint
from atm_export.methods.base import MethodSettings
from atm_export.methods.given import settings_of
from atm_export.methods.sparse import worth_a_trial
from atm_export.model_configs import add_user_preset, load_model_config, user_config_folder
from atm_export.tasks.judge_classes import ClassLimits as Limits
from tests.runs import run_command
from tests.tiny import SIZE, class_token_vit, planned

HOW = Preprocessing((SIZE, SIZE), 1.0, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
EASY = Limits(100.0, 10.0, 2.0)
PLAN = Search(trials=6, minutes=5, method="atm", knobs=KNOBS)


def settings(alpha: float, beta: float, theta_min: float) -> MethodSettings:
    return AtmSettings(point=OperatingPoint(alpha=alpha, beta=beta, theta_min=theta_min))


@pytest.fixture(scope="module")
def known() -> Known:
    pixels = np.random.default_rng(0).integers(0, 255, (24, SIZE, SIZE, 3), dtype=np.uint8)
    return know(class_token_vit(), pixels, HOW, torch.zeros(24, dtype=torch.int64), 4)


@pytest.fixture
def own_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATM_EXPORT_CONFIGS", str(tmp_path / "configs"))
    return tmp_path / "configs"


def facts_of(known: Known) -> dict[str, Any]:
    return {"gflops": known.gmacs, "top1": None}


def test_a_point_that_merges_nothing_costs_and_loses_nothing(known: Known) -> None:
    point = settings(1.0, 0.0, 1.0)
    found = score(class_token_vit(), point, known, EASY)
    assert found.figures["agreement"].hits == found.images == 24 and not found.hopeless
    assert found.distance == pytest.approx(0, abs=1e-6)
    assert found.gflops <= known.gmacs  # the last block's MLP runs on the class token alone


def test_hopeless_points_stop_early(known: Known) -> None:
    everything = settings(-0.9, 0.0, -0.9)
    whole = score(class_token_vit(), everything, known, EASY)
    strict = score(class_token_vit(), everything, known, Limits(0, 100, 2))
    assert whole.figures["agreement"].hits < 24 and strict.hopeless and strict.images < 24
    nothing = settings(1.0, 0.0, 1.0)
    dear = score(class_token_vit(), nothing, known, EASY, best=0.5 * known.gmacs)
    assert dear.hopeless and dear.images == 8


def test_limits_count_in_points_of_percent() -> None:
    facts = {"agreement_low": 95.0, "top1": 80.0, "distance": 0.2}
    assert violation(facts, {"top1": 80.5}, Limits(0.5, 95.0, 0.2)) == 0
    assert violation(facts, {"top1": 82.0}, Limits(0.5, 96.0, 0.2)) == pytest.approx(2.5)
    assert violation({**facts, "top1": None}, {"top1": None}, Limits(0.0, 95.0, 0.1)) > 9


class DyingWorkers(LocalWorkers):
    """Dies in the middle of the third trial."""

    def submit(self, settings: MethodSettings, best: float) -> Any:
        self.count = getattr(self, "count", 0) + 1
        if self.count == 3:
            raise KeyboardInterrupt
        return super().submit(settings, best)


def test_a_killed_search_goes_on_where_it_was(known: Known, tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="needs atm-export[tune]")
    backbone, journal = class_token_vit(), tmp_path / "journal"
    first = [USUAL]
    with pytest.raises(KeyboardInterrupt):
        workers = DyingWorkers(backbone, known, EASY)
        search(open_study(journal, "key"), workers, facts_of(known), EASY, PLAN, first)
    study = open_study(journal, "key")
    before = finished(study)
    assert len(before) == 2 and before[0]["point"]["theta_min"] == 0.88
    workers = LocalWorkers(backbone, known, EASY)
    results = search(study, workers, facts_of(known), EASY, PLAN, first)
    assert results[:2] == before and len(results) == PLAN.trials
    for result in results:
        for knob in KNOBS:
            assert knob.low <= result["point"][knob.name] <= knob.high
    assert not finished(open_study(journal, "another key"))


def test_the_winner_and_the_front() -> None:
    def result(gflops: float, agreement: float, kept: bool, hopeless: bool = False) -> Any:
        return {
            "distance": 100 - agreement,
            "gflops": gflops,
            "agreement": agreement,
            "keeps_limits": kept,
            "hopeless": hopeless,
        }

    rows = [
        result(0.9, 99, True),
        result(0.8, 98, True),
        result(0.85, 97, True),
        result(0.7, 90, False),
        result(0.6, 50, False, hopeless=True),
    ]
    assert winner(rows) == rows[1]
    steadier = result(0.82, 98.5, True)
    assert winner([*rows, steadier]) == steadier
    assert winner(rows[3:]) is None
    assert pareto(rows) == [rows[3], rows[1], rows[0]]


def test_among_timed_points_the_fastest_wins() -> None:
    def result(speedup: float | None, gflops: float, distance: float) -> Any:
        timed = {} if speedup is None else {"speedup": speedup}
        return {"gflops": gflops, "distance": distance, "keeps_limits": True, **timed}

    rows = [result(1.2, 0.9, 0.02), result(1.3, 0.95, 0.02), result(None, 0.5, 0.01)]
    assert winner(rows) == rows[1]
    steadier = result(1.28, 1.0, 0.01)  # 2 % slower, which is noise
    assert winner([*rows, steadier]) == steadier


@pytest.mark.parametrize("depth", [1, 2, 4, 12, 24])
def test_sets_of_blocks_that_are_tried(depth: int) -> None:
    sets = worth_a_trial(depth)
    assert sets[0] == "all" and len(set(sets)) == len(sets)
    for text in sets:
        assert planned(settings_of("atm", {**USUAL, "merge_blocks": text}), depth).merges == (
            depth > 1
        )


def test_tune_for_latency_searches_blocks_and_measures(
    own_configs: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna", reason="needs atm-export[tune]")
    out = tmp_path / "tune"
    goal = ["--for", "latency", "--backend", "onnxruntime", "--batch", "1", "--trials", "2"]
    images = ["--images", digits, "--use", "16", "--workers", "0", "--min-agreement", "60"]
    run_command("tune", "demo", *images, *goal, "--out", out)
    assert "times as fast as the unmerged export" in capsys.readouterr().out
    facts = json.loads((out / "tune.json").read_text())
    assert facts["chosen"]["speedup"] > 0
    assert facts["chosen"]["point"]["merge_blocks"] is not None
    assert load_model_config("demo").presets["tuned"].method == "atm"


def test_tune_searches_across_methods(own_configs: Path, digits: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="needs atm-export[tune]")
    out = tmp_path / "tune"
    limits = ["--min-agreement", "60", "--max-drop", "100", "--trials", "2", "--workers", "0"]
    run_command("tune", "demo", "--images", digits, "--methods", "atm,evit", *limits, "--out", out)
    facts = json.loads((out / "tune.json").read_text())
    assert {row["method"] for row in facts["pareto"]} <= {"atm", "evit"}
    assert facts["trials"] == 4
    tuned = load_model_config("demo").presets["tuned"]
    assert tuned.method == facts["chosen"]["method"]


def test_tune_writes_a_preset_that_works_by_name(
    own_configs: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna", reason="needs atm-export[tune]")
    out = tmp_path / "tune"
    arguments = ["--images", str(digits), "--use", "24", "--trials", "3", "--workers", "0"]
    run_command("tune", "demo", *arguments, "--min-agreement", "80", "--out", str(out))
    printed = capsys.readouterr().out
    assert "--preset tuned" in printed and "confirmed 16 images" in " ".join(printed.split())
    facts = json.loads((out / "tune.json").read_text())
    preset = load_model_config("demo").presets["tuned"]
    assert {"merge_blocks": None, **preset.settings} == facts["chosen"]["point"]
    assert "lossless" in load_model_config("demo").presets
    with (out / "pareto.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(facts["pareto"])
    ET.parse(out / "pareto.svg")
    run_command("list", "demo")
    assert "tuned" in capsys.readouterr().out


def test_presets_of_timm_models(own_configs: Path) -> None:
    name = "timm:vit_tiny_patch16_224"
    add_user_preset(name, "mine", Preset(settings={"alpha": 0.99, "beta": 0.02, "theta_min": 0.9}))
    config = load_model_config(name)
    assert config.family == "timm" and {"default", "mine"} <= set(config.presets)
    assert list(own_configs.glob("*/*.yaml")) == [
        own_configs / "presets" / "timm_vit_tiny_patch16_224.yaml"
    ]


def test_the_folder_of_own_configs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ATM_EXPORT_CONFIGS", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert user_config_folder() == tmp_path / "atm-export"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--min-agreement", "101"], 2, "--min-agreement 101"),
        (["--max-drop", "-1"], 2, "--max-drop -1"),
        (["--trials", "0"], 2, "--trials 0"),
        (["--methods", "atm,magic"], 2, "magic"),
        (["--methods", "atm,none"], 2, "method none has nothing to tune"),
        (["--method", "evit", "--methods", "atm"], 2, "give one"),
        (["--for", "latency", "--backend", "tensorrt"], 2, "runs engines"),
        (["--for", "latency", "--backend", "magic"], 2, "magic"),
        (["--for", "latency", "--ray", "auto"], 2, "--ray runs trials on others"),
        (["--labels", "absent.txt"], 9, "absent.txt"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    code: int,
    says: str,
    digits: Path,
    own_configs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["tune", "demo", "--images", str(digits), "--out", str(tmp_path / "t")]
    assert main([*command, *arguments]) == code
    assert says in capsys.readouterr().err
    assert not own_configs.exists()


def alone_within(ray: Any, seconds: float) -> bool:
    """Whether one node is left; the cluster learns of a death only by missed heartbeats."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if sum(node["Alive"] for node in ray.nodes()) == 1:
            return True
        time.sleep(0.2)
    return False


@pytest.mark.slow
def test_two_ray_nodes_and_one_of_them_dies(known: Known, tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="needs atm-export[tune]")
    ray = pytest.importorskip("ray", reason="needs atm-export[ray]")
    from ray.cluster_utils import Cluster

    from atm_export.measure.tune.ray_workers import RayWorkers

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        second = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        workers = RayWorkers(cluster.address, class_token_vit(), known, EASY)
        assert workers.width == 2
        seen: list[int] = []

        def kill_in_the_middle(results: list[dict[str, Any]]) -> None:
            seen.append(len(results))
            if len(results) == 4:
                cluster.remove_node(second, allow_graceful=False)

        study = open_study(tmp_path / "journal", "key")
        plan = Search(trials=12, minutes=30, method="atm", knobs=KNOBS)
        results = search(study, workers, facts_of(known), EASY, plan, [], kill_in_the_middle)
        assert len(results) == 12 and len(seen) >= 8
        for result in results:  # the same numbers as here
            if not result["hopeless"]:
                point = plan.settings(result["point"])
                here = score(class_token_vit(), point, known, EASY, math.inf)
                assert result["gflops"] == pytest.approx(here.gflops, abs=1e-6)
        assert alone_within(ray, seconds=120)
    finally:
        ray.shutdown()
        cluster.shutdown()
