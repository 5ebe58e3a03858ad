"""Methods side by side: settled, exported, judged, timed, and what is printed and drawn of them."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from atm_export.choice import Choice
from atm_export.commands.compare import _entries
from atm_export.config import ModelConfig
from atm_export.errors import ConfigError
from atm_export.measure.accuracy.divergence import divergence, run_unmerged
from atm_export.measure.data.images import load_images
from atm_export.methods.given import settings_of
from atm_export.methods.plan import MergePlan
from atm_export.model.plan import plan_for
from atm_export.model.zoo import load_model
from atm_export.model_configs import load_model_config, model_names
from atm_export.report.compared import compared_page
from atm_export.resolving import resolve
from tests.runs import run_command


def demo() -> Any:
    return load_model(resolve(Choice(model="demo")).model)


def test_divergence_by_hand() -> None:
    model = demo()
    images = load_images(None, model.preprocessing, model.own_images)
    right = torch.as_tensor(images.labels)
    known = run_unmerged(model, images.pixels, right)
    unmerged = MergePlan.unmerged(len(model.backbone.parts()))
    same = divergence(model, unmerged, known)
    assert same.agrees.all() and float(np.abs(same.apart).max()) < 1e-6
    plan = plan_for(model.backbone, settings_of("tome", {"r": (12,)}))
    found = divergence(model, plan, known)
    with torch.inference_mode():
        p = model.backbone.plain(model.tensor(images.pixels)).double().softmax(dim=1).numpy()
    assert found.apart.shape == (len(images.pixels),)
    assert (found.apart > -1e-6).all() and found.apart.mean() > same.apart.mean()
    assert found.gflops < found.counted_whole < same.gflops == same.counted_whole
    facts = found.facts(same)
    assert facts["kl"]["low"] <= facts["kl"]["mean"] <= facts["kl"]["high"]
    assert facts["kl_difference"]["mean"] == pytest.approx(facts["kl"]["mean"], abs=2e-6)
    assert known.top1()["percent"] == pytest.approx(
        100 * float((torch.from_numpy(p.argmax(axis=1)) == right).double().mean()), abs=1e-3
    )


@pytest.mark.parametrize(
    ("given", "entries"),
    [
        (("all",), ("all",)),
        (("atm,evit",), ("atm", "evit")),
        (("atm", "evit:keep=0.7"), ("atm", "evit:keep=0.7")),
        (
            ("zerotprune:blocks=2,5,8:keep=0.85,0.75,0.7,atm",),
            ("zerotprune:blocks=2,5,8:keep=0.85,0.75,0.7", "atm"),
        ),
    ],
)
def test_entries(given: tuple[str, ...], entries: tuple[str, ...]) -> None:
    assert _entries(given) == entries


@pytest.mark.parametrize("given", [("",), ("atm,",), (",",), ()])
def test_empty_entries_are_refused(given: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="--methods"):
        _entries(given)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    out = tmp_path_factory.mktemp("compare") / "out"
    options = ["--images", digits, "--workers", "0", "--rounds", "2", "--out", out]
    run_command("compare", "demo", "--methods", "atm,tome:r=6,diffrate,lossless", *options)
    return out


def test_the_comparison(compared: Path) -> None:
    facts = json.loads((compared / "compare.json").read_text())
    assert [row["name"] for row in facts["rows"]] == ["atm", "tome:r=6", "lossless"]
    assert facts["left_out"][0]["name"] == "diffrate"
    assert "\n" not in facts["left_out"][0]["reason"]
    assert facts["images"] == 40
    first, tome, _ = facts["rows"]
    assert "kl_difference" not in first and "kl_difference" in tome
    assert tome["settings"]["r"] == [6]
    timed = {row["candidate"] for row in facts["latency"]["rows"]}
    assert timed == {"unmerged", "atm", "tome:r=6", "lossless"}
    for row in facts["rows"]:
        manifest = json.loads((compared / row["run"] / "manifest.json").read_text())
        assert manifest["status"] == "proven"
        assert manifest["method"]["name"] == row["method"]


def test_its_page_and_picture(compared: Path) -> None:
    ET.parse(compared / "compare.svg")
    html = (compared / "report.html").read_text(encoding="utf-8")
    for name in ("tome:r=6", "lossless", "left out".capitalize(), "Realised speed-up"):
        assert name in html
    assert "http://" not in html.replace("http://www.w3.org/2000/svg", "") and "src=" not in html
    facts = json.loads((compared / "compare.json").read_text())
    assert "Realised speed-up" not in compared_page({**facts, "latency": None})
    for row in facts["rows"]:
        row["top1"] = None
    facts["unmerged"]["top1"] = None
    assert "<th>top-1 %</th>" in html and "<th>top-1 %</th>" not in compared_page(facts)


def test_finished_runs_are_used_again(compared: Path, digits: Path) -> None:
    run = next(compared.glob("demo-tome*"))
    before = (run / "model.onnx").stat().st_mtime_ns
    options = ["--images", digits, "--workers", "0", "--rounds", "0", "--out", compared]
    run_command("compare", "demo", "--methods", "tome:r=6", *options)
    assert (run / "model.onnx").stat().st_mtime_ns == before
    assert json.loads((compared / "compare.json").read_text())["latency"] is None


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--methods", "magic"], 2, "magic"),
        (["--methods", "evit:kep=0.7"], 2, "kep"),
        (["--methods", "atm,"], 2, "a name is empty"),
        (["--methods", "diffrate"], 2, "diffrate"),
        (["--gflops", "-1"], 2, "give a number above 0"),
        (["--rounds", "-1"], 2, "--rounds -1"),
        (["--batches", "x"], 2, "--batches x"),
        (["--images", "absent"], 9, "absent"),
    ],
)
def test_mistakes_are_one_line(
    options: list[str],
    code: int,
    words: str,
    digits: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = [] if "--images" in options else ["--images", digits]
    out = tmp_path / "out"
    run_command("compare", "demo", *place, *options, "--workers", "0", "--out", out, code=code)
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not out.exists()


def test_the_papers_rows_are_presets_with_their_method() -> None:
    """Tables 1 and 2: settings that are said to be fitted to the GFLOPs stated there."""
    rows = {
        (name, preset): found
        for name in model_names()
        for preset, found in load_model_config(name).presets.items()
        if preset.startswith("table")
    }
    assert {("deit_s", "table2-evit"), ("deit_t", "table1-mctf"), ("mae_vit_b", "table2-tome")} <= (
        rows.keys()
    )
    for (name, _), preset in rows.items():
        assert preset.fitted and preset.gflops is not None
        assert preset.method != "atm"
        assert (preset.top1 is None) == (preset.method == "zerotprune")
        resolve(Choice(model=name, preset=_))


def test_a_preset_file_says_what_is_measured() -> None:
    config: ModelConfig = load_model_config("deit_t")
    for name, preset in config.presets.items():
        if name.startswith("sparse"):
            assert preset.measured is not None and preset.settings["merge_blocks"]
            assert preset.gflops is None and preset.table is None


def test_one_command_exports_a_row_of_the_paper(tmp_path: Path) -> None:
    text = run_command("list", "deit_s")
    assert "table2-evit" in text and "these come nearest to that cost, all tokens" in " ".join(
        text.split()
    )
