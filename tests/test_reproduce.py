"""The paper's tables and figures: which rows there are, that they run, and what is missing."""

from __future__ import annotations

import csv
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atm_export.config import ModelSpec
from atm_export.errors import ConfigError, WeightsError
from atm_export.measure.accuracy.divergence import run_unmerged
from atm_export.measure.accuracy.journal import journal
from atm_export.measure.data.whole import DataPlace
from atm_export.methods.given import settings_of
from atm_export.model.backbone import LoadedModel
from atm_export.model.zoo import load_model
from atm_export.model_configs import load_model_config
from atm_export.report.reproduced import kind_of, reproduced_page
from atm_export.reproduce import run
from atm_export.reproduce.rows import FIGURES, MODELS, TABLES, Row, rows_of
from tests.runs import run_command
from tests.shared_data import shared


@pytest.mark.parametrize("name", TABLES)
def test_every_row_can_be_set(name: str) -> None:
    rows = rows_of((name,), ())
    assert rows and all(row.part == f"table {name}" and row.model in MODELS for row in rows)
    for row in rows:
        if row.method:
            settings_of(row.method, row.settings)


def test_rows_are_those_of_the_papers_tables() -> None:
    with (shared("paper", "atm_operating_points.csv")).open(encoding="utf-8") as file:
        printed = list(csv.DictReader(file))
    for table in ("A2", "A3", "A4", "A5"):
        ours = {(r.model, r.gflops, r.top1) for r in rows_of((table,), ()) if r.method != "none"}
        theirs = {
            (r["model"], float(r["gflops"]), float(r["top1_percent"]))
            for r in printed
            if r["table"] == table and r["alpha"]
        }
        assert ours == theirs


def test_table_2_has_atm_at_the_cost_of_the_others() -> None:
    found = {r.model: r.label for r in rows_of(("2",), ()) if r.method == "atm"}
    assert found["deit_t"] == "a2-0.90"
    assert found["deit_s"] in ("a2-2.96", "a2-3.04")
    assert "deit_b" not in found


def test_table_3_and_a1_sweep_what_they_say() -> None:
    splits = [r.settings["split"] for r in rows_of(("3",), ()) if r.model == "deit_s"]
    assert splits == list(range(13))
    known = [r.label for r in rows_of(("3",), ()) if r.top1 is not None]
    assert known == ["l_s = 9"]
    batches = [r.batch for r in rows_of(("A1",), ()) if r.model == "deit_s"]
    assert batches == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
    assert {r.batch for r in rows_of(("A5",), ()) if r.model.startswith("t2t")} == {100}


def test_figure_5_compares_thresholds_and_counts_of_both_shapes() -> None:
    rows = [r for r in rows_of((), ("5",)) if r.model == "deit_s"]
    kinds = {kind_of({"label": r.label, "method": r.method}) for r in rows}
    assert kinds == {
        *("falling thresholds", "constant thresholds"),
        *("constant r", "growing r", "shrinking r"),
    }
    for row in rows:
        if row.label.startswith("constant"):
            assert row.settings["alpha"] == row.settings["theta_min"]
        if row.method == "tome" and len(row.settings["r"]) > 1:
            r = row.settings["r"]
            assert len(r) == 12 and {b - a for a, b in pairwise(r)} in ({1}, {-1})


@pytest.mark.parametrize("given", [(("B7",), ()), ((), ("3",))])
def test_unknown_parts(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"table|figure"):
        rows_of(*given)


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    out = tmp_path_factory.mktemp("reproduce") / "out"
    _run(digits, out)
    return out


def _run(digits: Path, out: Path) -> str:
    parts = ["--table", "1", "--table", "A3,4", "--figure", "2,7"]
    place = ["--images", digits / "0", "--workers", "0", "--batch", "2", "--out", out]
    return run_command("reproduce", *place, "--weights", "deit_t=random", *parts)


def test_it_measures_what_it_can_and_lists_the_rest(reproduced: Path) -> None:
    facts = json.loads((reproduced / "reproduce.json").read_text())
    assert {row["part"] for row in facts["rows"]} == {"table 1", "table A3"}
    assert {row["label"] for row in facts["rows"]} == {
        *("unmerged", "a2-0.90", "table1-evit", "table1-mctf", "table1-tome")
    }
    for row in facts["rows"]:
        assert row["model"] == "deit_t"
        assert row["here"]["gflops"] <= 1.2537 + 1e-4
    missing = {(row["part"], row["weights"] or row["model"]) for row in facts["missing"]}
    assert ("table A3", "deit_t-fine-tuned") in missing
    assert ("table 1", "deit_s") in missing
    assert ("table 4", "BAT's own trained weights") in missing
    study = facts["studies"]["deit_t"]
    assert len(study["merged_per_block"]) == 12 and study["pictures"]


def test_its_page_stands_alone(reproduced: Path) -> None:
    html = (reproduced / "report.html").read_text(encoding="utf-8")
    assert "Table A3" in html and "BAT" in html and "figure 6" in html
    assert "http" not in html.replace("http-equiv", "")
    facts = json.loads((reproduced / "reproduce.json").read_text())
    assert reproduced_page(facts) == html


def test_what_was_measured_is_kept(reproduced: Path, digits: Path) -> None:
    again = _run(digits, reproduced)
    assert "table 1: deit_t" not in again
    assert "loading the model" in again


def test_the_usual_split_is_measured_once_said_or_not(tmp_path: Path) -> None:
    config = load_model_config("demo")
    model = load_model(ModelSpec(name="demo", config=config))
    known = run_unmerged(model, np.zeros((1, 56, 56, 3), np.uint8), None)
    settings = config.presets["lossless"].settings
    rows = [Row("a", "demo", "b", "atm", {**settings, **more}) for more in ({}, {"split": 9})]
    wish = run.Wish((), (), {}, DataPlace("nowhere"), None, 0)
    with journal(tmp_path / "demo.jsonl", "key") as book:
        first, second = (
            run._measured(row, wish, model, known, book, lambda text: None) for row in rows
        )
        assert len(book.entries) == 1 and first["here"] == second["here"]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--weights", "deit_t"], 2, "give MODEL=FILE"),
        (["--weights", "deit_t=random", "--weights", "deit_t=random"], 2, "given twice"),
        (["--weights", "deit_q=random"], 2, "deit_q"),
        (["--weights", "deit_t=random", "--table", "9"], 2, "table '9'"),
        (["--weights", "deit_t=random", "--figure", "3"], 2, "figure '3'"),
        (["--weights", "deit_t=absent.pth"], 3, "absent.pth"),
        (["--weights", "deit_t=random", "--batch", "0"], 2, "--batch 0"),
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
    out = tmp_path / "out"
    place = ["--images", digits / "0", "--workers", "0", "--out", out]
    run_command("reproduce", *place, *options, code=code)
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert not out.exists()


def test_without_weights_the_published_ones_are_tried(
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    here: set[str] = set()

    def load(spec: ModelSpec) -> LoadedModel:
        assert spec.weights == "pretrained"
        if spec.name not in here:
            raise WeightsError("cannot be fetched")
        return load_model(spec.model_copy(update={"weights": "random"}))

    monkeypatch.setattr(run, "load_model", load)
    command = ["reproduce", "--images", digits / "0", "--workers", "0", "--table", "1"]
    run_command(*command, "--out", tmp_path / "none", code=2)
    said = capsys.readouterr()
    assert "give --weights MODEL=FILE" in said.err and said.err.count("\n") == 1
    assert "deit_s: cannot be fetched" in said.out and not (tmp_path / "none").exists()
    here.add("deit_t")
    run_command(*command, "--out", tmp_path / "one")
    facts = json.loads((tmp_path / "one" / "reproduce.json").read_text())
    assert list(facts["weights"]) == ["deit_t"] and facts["weights"]["deit_t"]["sha256"]
    assert {row["model"] for row in facts["rows"]} == {"deit_t"}
    assert {row["model"] for row in facts["missing"]} == {"deit_s", "deit_b"}


def test_every_part_has_rows_or_a_study() -> None:
    assert {row.part for row in rows_of(TABLES, FIGURES)} == {
        *(f"table {name}" for name in TABLES),
        *("figure 4", "figure 5"),
    }
