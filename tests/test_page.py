"""report.html and token pictures: the same numbers, self-contained, readable."""

from __future__ import annotations

import io
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from markupsafe import escape
from PIL import Image

from atm_export.cli import main
from atm_export.marks import LIST
from atm_export.measure.insight import Fates, information_loss
from atm_export.report.chart_tables import bars_table, lines_table
from atm_export.report.charts import Series, bars, lines, number
from atm_export.report.page import kept_pictures, page
from atm_export.report.pictures import png, regions, side_by_side
from atm_export.report.results import add_results, pictures_of
from atm_export.report.verdict import accuracy_of, verdict
from atm_export.runs.reading import open_run
from tests.manifests import having
from tests.runs import run_command
from tests.tiny import adaptive_plan, class_token_vit, no_merges, random_images


def html_of(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def test_the_page_has_the_numbers_of_the_json(finished_run: Path) -> None:
    html, report = html_of(finished_run), report_of(finished_run)
    for words in (
        f"{report['gflops']['mean']:.3f}",
        f"unmerged {report['gflops']['unmerged']:.3f}",
        f"{report['parity']['comparisons']} comparisons",
        f"{report['parity']['logits_max_abs']:.1e}",
        report["method"]["summary"],
        *(f"{n:.1f}</td>" for n in report["tokens"]["mean_after_block"]),
    ):
        assert words in html
    manifest = open_run(finished_run).manifest
    assert "report.html" in manifest.files
    for name, facts in manifest.files.items():
        assert name == "report.html" or facts.sha256 in html
    for section in ("Operating point", "Tokens and merges", "Information loss", "What merged"):
        assert section in html


def test_the_first_screen_says_whether_it_is_right_what_it_saved_and_whether_to_ship(
    finished_run: Path,
) -> None:
    manifest, report = open_run(finished_run).manifest, report_of(finished_run)
    for question in ("Is it right?", "What did it save?", "May I ship it?"):
        assert html_of(finished_run).count(question) == 1
    labelled = {"top1": 98.0, "unmerged_top1": 98.5, "agreement": 99.0, "images": 40}
    for more, kind, words in (
        ({"accuracy": labelled}, "open", "0.50 points of top-1 on 40 images"),
        ({"accuracy": {**labelled, "top1": 98.5}}, "good", "no lower than unmerged"),
        ({"accuracy": {**labelled, "top1": float("nan")}}, "open", "nan points"),
        ({"weights": {**report["weights"], "meaningless_accuracy": True}}, "bad", "random"),
        ({"parity": {**report["parity"], "proven": False}}, "bad", "unproven"),
    ):
        told = {**report, **more}
        found = verdict(manifest, told, accuracy_of(told, ()))
        assert found.kind == kind and words in found.answer
        if "nan" not in words:  # no count gives it, so no chart draws it
            assert escape(found.answer) in page(manifest, told)
    unlabelled = {key: value for key, value in report.items() if key != "accuracy"}
    assert verdict(manifest, unlabelled, None).kind == "open"
    assert "batch" in verdict(manifest, report, None).conditions[0]


def test_the_accuracy_chart_names_its_points_and_how_many_images(finished_run: Path) -> None:
    manifest, report = open_run(finished_run).manifest, report_of(finished_run)
    told = {"top1": 98.0, "unmerged_top1": 98.5, "agreement": 99.0, "images": 40}
    html = page(manifest, {**report, "accuracy": told})
    chart = html.partition('aria-label="Accuracy against GFLOPs"')[2].partition("</svg>")[0]
    assert ">this run</text>" in chart and ">unmerged</text>" in chart
    assert "this run, 40 images" in html


def test_every_chart_has_its_numbers_in_a_table(finished_run: Path) -> None:
    html = html_of(finished_run)
    sections = re.split(r"<h2>", html.partition("Operating point")[2])
    drawn = [each for each in sections if 'role="img"' in each]
    assert len(drawn) >= 2
    for section in drawn:
        assert "<table>" in section, section[:60]
    loss = report_of(finished_run)["information_loss"]
    (section,) = [each for each in drawn if each.startswith("Information loss")]
    for row in loss["cosine_distance"]:
        assert all(f'<td class="n">{number(each)}</td>' in section for each in row)


def test_a_table_of_points_says_what_the_chart_shows() -> None:
    series = [
        Series("a", [(1.0, 2.0), (2.0, 3.5)], intervals=[(1.5, 2.5), (3.0, 4.0)]),
        Series("<b>", [(1.5, 9.0)]),
    ]
    table = lines_table("x", "y", series)
    assert table.count("<tr>") == 4 and "2 (1.5 to 2.5)" in table and "&lt;b&gt;" in table
    table = bars_table("ms", ["batch 1", "batch 8"], {"merged": [1.0, 2.0], "plain": [3.0, 4.0]})
    assert table.count("<tr>") == 3 and '<th scope="row">batch 8</th>' in table


def test_the_page_needs_nothing_from_outside(finished_run: Path) -> None:
    html = html_of(finished_run)
    links = re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?([^"\'> )]+)', html)
    assert links and all(link.startswith("data:image/jpeg;base64,") for link in links)
    assert "<script" not in html and "@import" not in html
    assert len(html) < 2_000_000
    assert "prefers-color-scheme: dark" in html and 'name="viewport"' in html


def test_a_page_is_the_same_for_the_same_numbers(finished_run: Path) -> None:
    manifest, report = open_run(finished_run).manifest, report_of(finished_run)
    html = html_of(finished_run)
    assert page(manifest, report, pictures=kept_pictures(html)) == html


def test_results_are_added_to_the_page(run_copy: Path, digits: Path) -> None:
    before = html_of(run_copy)
    assert "Not measured yet" in before
    arguments = ["--imagenet", str(digits), "--batch", "20", "--workers", "0"]
    run_command("evaluate", str(run_copy), *arguments)
    eager = ["--runner", "eager", "--no-unmerged", "--limit", "20"]
    run_command("evaluate", str(run_copy), *arguments, *eager)
    html = html_of(run_copy)
    facts = json.loads((run_copy / "evaluation-onnxruntime.json").read_text())
    assert f"{facts['top1']['percent']:.2f} % ({facts['top1']['low']:.1f} to" in html
    assert kept_pictures(html) == kept_pictures(before) and kept_pictures(html).count("<img") == 24
    manifest = open_run(run_copy).manifest
    assert add_results(run_copy, {}) == manifest
    assert html_of(run_copy) == html


def test_a_run_that_merges_nothing_has_a_page(finished_run: Path) -> None:
    manifest, report = open_run(finished_run).manifest, report_of(finished_run)
    nothing = {"theta_per_block": [None] * 12, "groups_per_block": [None] * 12}
    method = {**report["method"], "name": "none", "operating_point": None, "preset": None} | nothing
    report.pop("information_loss")
    report |= {"method": method, "tokens": {"mean_after_block": [197.0] * 12}}
    blank = torch.full((2,), 197)
    fate = Fates(blank, torch.zeros(2, 196, dtype=torch.int64), blank / 1000)
    pixels = np.zeros((2, 56, 56, 3), np.uint8)
    pictures = pictures_of(pixels, [], fate, (14, 14), 1, decided_per_image=False)
    html = page(having(manifest, method=method), report, pictures=pictures)
    assert "The unmerged model." in html and "Nothing merges" in html
    assert "Information loss" not in html and "Merges in each block" not in html


def test_charts_are_well_formed_and_told_apart_without_colour() -> None:
    series = [Series(f"s<{i}>", [(1.0, 2.0 + i), (2.0, 3.0)]) for i in range(4)]
    text = lines("a & b", "x", "y", series)
    ET.fromstring(f"<div>{text}</div>")
    for mark in ("<circle", "<rect", "l4 7h-8z", "l4.5 4.5"):
        assert mark in text
    assert "s&lt;0&gt;" in text and "a &amp; b" in text
    ET.fromstring(f"<div>{bars('t', 'x', 'y', ['a', 'b'], {'one': [1, 2], 'two': [3, 0]})}</div>")
    assert [number(value) for value in (3.0, 1.2345, 0.00123)] == ["3", "1.23", "0.00123"]


def test_merged_patches_become_flat_regions() -> None:
    pixels = np.random.default_rng(0).integers(0, 200, (224, 224, 3), dtype=np.uint8)
    tokens = np.arange(4)
    tokens[1] = 0  # the upper two of 2 x 2 patches share a token
    drawn = regions(pixels, tokens, (2, 2))
    mean = pixels[:112].reshape(-1, 3).mean(axis=0).round()
    assert np.abs(drawn[5:100, 5:219] - mean).max() <= 1
    assert (drawn[114:, :111] == pixels[114:, :111]).all()  # tokens of their own keep their pixels
    assert (drawn[112, 5:100] == 255).all()  # an outline below the region
    assert np.array_equal(regions(pixels, np.arange(4), (2, 2)), pixels)
    assert side_by_side(pixels, tokens, (2, 2)).shape == (224, 456, 3)
    assert Image.open(io.BytesIO(png(drawn))).size == (224, 224)


def test_dropped_patches_are_dark_and_share_nothing() -> None:
    pixels = np.random.default_rng(0).integers(50, 200, (224, 224, 3), dtype=np.uint8)
    drawn = regions(pixels, np.array([-1, 0, -1, 1]), (2, 2))
    assert (drawn[:, :112] == pixels[:, :112] // 5).all()
    assert (drawn[:, 112:] == pixels[:, 112:]).all()


def test_visualize_writes_a_picture_for_each_image(
    finished_run: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(digits.rglob("*.png"))[:2]
    arguments = ["visualize", str(finished_run), *map(str, files), "--out", str(tmp_path / "t")]
    run_command(*arguments)
    written = sorted(path.name for path in (tmp_path / "t").iterdir())
    assert written == [LIST, *sorted(f"{file.stem}-tokens.png" for file in files)]
    assert capsys.readouterr().out.count(" tokens of 197, ") == 2
    assert main(["visualize", str(finished_run)]) == 2
    assert main(["visualize", str(finished_run), "absent.png"]) == 9


def test_information_loss_grows_as_the_threshold_falls() -> None:
    backbone = class_token_vit()
    loss = information_loss(backbone, adaptive_plan(backbone), random_images(3))
    assert loss is not None and loss["images"] == 3 and loss["blocks"] == [1, 2, 3]
    rows = np.array(loss["cosine_distance"])
    assert rows.shape == (3, 3) and (rows >= 0).all()
    assert (np.diff(rows, axis=0) >= -1e-6).all()
    assert information_loss(backbone, no_merges(backbone), random_images(3)) is None
