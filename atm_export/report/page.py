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
from atm_export.methods import methods
from atm_export.report.charts import Series, bars, lines
from atm_export.report.evaluation import counted_text, evaluation_lines, parity_text, share_text
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
    charts = _charts(report, config, evaluations)
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


def _charts(
    report: Mapping[str, Any],
    config: ModelConfig,
    evaluations: Sequence[Mapping[str, Any]],
) -> list[tuple[str, str]]:
    charts = [("tokens", _tokens(report)), ("merges", _merges(report))]
    theta = [t for t in report["method"].get("theta_per_block", ()) if t is not None]
    if theta:
        charts.append(("thresholds", _thresholds(report)))
    charts.append(("accuracy", _accuracy(report, config, evaluations)))
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


def _accuracy(
    report: Mapping[str, Any],
    config: ModelConfig,
    evaluations: Sequence[Mapping[str, Any]],
) -> str:
    """Figure 4: the paper's curves, and what was measured here."""
    rows = [
        (p.gflops, p.top1, p.fine_tuned) for p in config.presets.values() if p.gflops and p.top1
    ]
    series = []
    for tuned, name in ((False, "paper, no training"), (True, "paper, fine-tuned")):
        points = sorted((gflops, top1) for gflops, top1, fine in rows if fine is tuned)
        if points and config.paper and not tuned:
            points.append((config.paper.gflops, config.paper.top1))
        if points:
            series.append(Series(name, points))
    here = _measured(report, evaluations)
    for name, (x, share) in here.items():
        interval = [(share["low"], share["high"])] if "low" in share else []
        series.append(Series(name, [(x, share["percent"])], line=False, intervals=interval))
    if not here and not series:
        return ""
    return lines("Accuracy against GFLOPs", "GFLOPs an image", "top-1 %", series, y_most=100.0)


def _measured(
    report: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]]
) -> dict[str, tuple[float, Mapping[str, Any]]]:
    """Points of this run: of the first evaluation with labels, else of the export's own images."""
    for facts in evaluations:
        if "top1" in facts and facts["top1"]["percent"] is not None:
            found = {"this run": (facts["gflops"]["mean"], facts["top1"])}
            if facts.get("unmerged"):
                found["unmerged"] = (facts["gflops"]["unmerged"], facts["unmerged"]["top1"])
            return found
    own = report.get("accuracy")
    if own is None:
        return {}
    flops = report["gflops"]
    return {
        "this run": (flops["mean"], {"percent": own["top1"]}),
        "unmerged": (flops["unmerged"], {"percent": own["unmerged_top1"]}),
    }


def _loss(loss: Mapping[str, Any]) -> str:
    series = [
        Series(f"threshold {theta:g}", list(zip(map(float, loss["blocks"]), row, strict=True)))
        for theta, row in zip(loss["thetas"], loss["cosine_distance"], strict=True)
    ]
    title = "Information lost where one block alone merges"
    return lines(title, "block that merges", "cosine distance", series)


def _latency(latency: Mapping[str, Any]) -> str:
    rows = latency["rows"]
    groups = {
        name: [row["median_ms"][name] / row["batch"] for row in rows]
        for name in ("unmerged", "merged")
    }
    names = [f"batch {row['batch']}" for row in rows]
    return bars("Median latency an image", "", "ms an image", names, groups)


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
