"""report.html: one self-contained page, drawn from the manifest, report.json and evaluations.

No number is computed here that those files do not hold; nothing is loaded from anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from atm_export.config import ModelConfig, exported_config
from atm_export.methods import USUAL_METHOD, methods
from atm_export.report.chart_tables import bars_table, lines_table
from atm_export.report.charts import Series, bars, lines
from atm_export.report.evaluation import counted_text, evaluation_lines, parity_text, share_text
from atm_export.report.verdict import Accuracy, accuracy_of, verdict
from atm_export.runs.manifest import Manifest

FILE = "report.html"
PICTURES = ("<!-- pictures -->", "<!-- end of pictures -->")


@cache
def environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("atm_export.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["share"] = share_text
    environment.filters["counted"] = counted_text
    return environment


def page(
    manifest: Manifest,
    report: Mapping[str, Any],
    evaluations: Sequence[Mapping[str, Any]] = (),
    pictures: str = "",
    bench: Mapping[str, Any] | None = None,
) -> str:
    """The page. pictures: the HTML of `picture_section`, kept when a page is drawn anew."""
    config = exported_config(manifest.config, "manifest.json").model.config
    preset = config.presets.get(manifest.method.preset or "")
    accuracy = accuracy_of(report, evaluations)
    charts = _charts(report, config, accuracy, manifest.answers.ranks is not None)
    if bench is not None and bench["rows"]:
        charts.append(("bench", _bench(bench)))
    files = {name: facts for name, facts in manifest.files.items() if name != FILE}
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            manifest=manifest,
            report=report,
            method=manifest.method,
            about=methods[manifest.method.name].about,
            preset=preset,
            paper=config.paper,
            evaluations=[({"unmerged": {}, **f}, evaluation_lines(f)) for f in evaluations],
            charts={name: Markup(svg) for name, svg in charts},
            pictures=Markup(PICTURES[0] + pictures + PICTURES[1]),
            bench=bench,
            files=files,
            main=manifest.answers.main.name,
            parity=parity_text(report),
            accuracy=accuracy,
            verdict=verdict(manifest, report, accuracy, evaluations),
            ranks=manifest.answers.ranks is not None,
        )
    )


def kept_pictures(html: str) -> str:
    """The pictures of a page that was drawn before."""
    _, found, rest = html.partition(PICTURES[0])
    return rest.partition(PICTURES[1])[0] if found else ""


def picture_section(pictures: Sequence[Mapping[str, Any]], sorted_by_tokens: bool) -> str:
    """Figures for `page`; each picture: name, tokens, whole, gflops, plain and drawn (URLs)."""
    template = environment().get_template("pictures.html.j2")
    return template.render(pictures=pictures, sorted_by_tokens=sorted_by_tokens)


def feature_figures(pictures: Sequence[Mapping[str, Any]]) -> str:
    """Figures of patch features behind those; each picture: name, output, cosine, small, drawn."""
    return environment().get_template("features.html.j2").render(pictures=pictures)


def _charts(
    report: Mapping[str, Any],
    config: ModelConfig,
    accuracy: Accuracy | None,
    ranks: bool,
) -> list[tuple[str, str]]:
    charts = [("tokens", _tokens(report)), ("merges", _merges(report))]
    theta = [t for t in report["method"].get("theta_per_block", ()) if t is not None]
    if theta:
        charts.append(("thresholds", _thresholds(report)))
    if ranks:
        charts.append(("accuracy", _accuracy(config, accuracy)))
    if "information_loss" in report:
        charts.append(("loss", _loss(report["information_loss"])))
    if "latency" in report:
        charts.append(("latency", _latency(report["latency"])))
    return [(name, svg) for name, svg in charts if svg]


def _blocks(report: Mapping[str, Any]) -> list[str]:
    return [str(i + 1) for i in range(len(report["tokens"]["mean_after_block"]))]


def _tokens(report: Mapping[str, Any]) -> str:
    after = report["tokens"]["mean_after_block"]
    points = [(float(i + 1), n) for i, n in enumerate(after)]
    return lines(
        "Tokens after each block", "block", "tokens", [Series("tokens, mean over images", points)]
    )


def _merges(report: Mapping[str, Any]) -> str:
    merged = report["tokens"].get("mean_merged_in_block")
    if not merged or not any(merged):
        return ""
    return bars("Merges in each block", "block", "tokens merged", _blocks(report), {"": merged})


def _thresholds(report: Mapping[str, Any]) -> str:
    theta = report["method"]["theta_per_block"]
    points = [(float(i + 1), t) for i, t in enumerate(theta) if t is not None]
    return lines("Threshold of each block", "block", "cosine", [Series("threshold", points)])


def _accuracy(config: ModelConfig, accuracy: Accuracy | None) -> str:
    """Figure 4: the paper's curves, and what was measured here."""
    rows = [
        (p.gflops, p.top1, p.fine_tuned)
        for p in config.presets.values()
        if p.gflops and p.top1 and p.chosen.name == USUAL_METHOD
    ]
    series = []
    for tuned, name in ((False, "paper's ATM, no training"), (True, "paper's ATM, fine-tuned")):
        points = sorted((gflops, top1) for gflops, top1, fine in rows if fine is tuned)
        if points and config.paper and not tuned:
            points.append((config.paper.gflops, config.paper.top1))
        if points:
            series.append(Series(name, points))
    series += [] if accuracy is None else _measured(accuracy)
    if not series:
        return ""
    x_label, y_label = "GFLOPs an image", "top-1 %"
    drawn = lines("Accuracy against GFLOPs", x_label, y_label, series, y_most=100.0)
    return drawn + lines_table(x_label, y_label, series)


def _measured(accuracy: Accuracy) -> list[Series]:
    """Points of this run, named, with the number of images that they stand on."""
    shares = (("this run", accuracy.top1), ("unmerged", accuracy.unmerged))
    return [
        Series(
            f"{name}, {accuracy.images} images",
            [(x, share["percent"])],
            line=False,
            intervals=[(share["low"], share["high"])] if "low" in share else [],
            labels=[name],
        )
        for x, (name, share) in zip(accuracy.gflops, shares, strict=True)
        if share is not None
    ]


def _loss(loss: Mapping[str, Any]) -> str:
    series = [
        Series(f"threshold {theta:g}", list(zip(map(float, loss["blocks"]), row, strict=True)))
        for theta, row in zip(loss["thetas"], loss["cosine_distance"], strict=True)
    ]
    title = "Information lost where one block alone merges"
    x_label, y_label = "block that merges", "cosine distance"
    return lines(title, x_label, y_label, series) + lines_table(x_label, y_label, series)


def _latency(latency: Mapping[str, Any]) -> str:
    rows = latency["rows"]
    groups = {
        name: [row["median_ms"][name] / row["batch"] for row in rows]
        for name in ("unmerged", "merged")
    }
    names = [f"batch {row['batch']}" for row in rows]
    drawn = bars("Median latency an image", "", "ms an image", names, groups)
    return drawn + bars_table("ms an image", names, groups)


def _bench(bench: Mapping[str, Any]) -> str:
    """Bars of the first backend that was measured, a candidate each."""
    backend = bench["rows"][0]["backend"]
    rows = [row for row in bench["rows"] if row["backend"] == backend]
    batches = sorted({row["batch"] for row in rows})
    groups: dict[str, list[float]] = {}
    for row in rows:
        groups.setdefault(row["candidate"], []).append(row["median_ms"] / row["batch"])
    names = [f"batch {batch}" for batch in batches]
    return bars(f"Median latency an image, {backend}", "", "ms an image", names, groups)
