"""The paper's tables and figures beside what was measured here, as a page that stands alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from atm_export.report.charts import Series, bars, lines
from atm_export.report.page import environment

Facts = Mapping[str, Any]


def reproduced_page(facts: Facts) -> str:
    """The page: a table and a chart for each part, what is missing, and the studies."""
    parts = by_part(facts["rows"])
    return (
        environment()
        .get_template("reproduce.html.j2")
        .render(
            facts=facts,
            parts=parts,
            charts={part: [Markup(svg) for svg in _charts(rows)] for part, rows in parts.items()},
            missing=by_part(facts["missing"]),
            studies={
                name: (study, [Markup(svg) for svg in _studied(name, study)])
                for name, study in facts["studies"].items()
            },
        )
    )


def by_part(rows: Sequence[Facts]) -> dict[str, list[Facts]]:
    """Rows by table or figure, in order."""
    found: dict[str, list[Facts]] = {}
    for row in rows:
        found.setdefault(row["part"], []).append(row)
    return found


def _charts(rows: Sequence[Facts]) -> list[str]:
    """Paper and measurement against GFLOPs, a chart a model; of methods that are a curve."""
    found = []
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        paper = sorted((r["gflops"], r["top1"]) for r in own if r["gflops"] and r["top1"])
        series = [Series("paper", paper)] if paper else []
        kinds: dict[str, list[tuple[float, float]]] = {}
        for row in own:
            value = row["here"]["top1"] or row["here"]["agreement"]
            kinds.setdefault(kind_of(row), []).append((row["here"]["gflops"], value["percent"]))
        kinds = {kind: points for kind, points in kinds.items() if len(points) > 2}
        if not kinds:
            continue
        series += [Series(f"here, {kind}", sorted(points)) for kind, points in kinds.items()]
        what = "top-1 %" if own[0]["here"]["top1"] else "agreement %"
        found.append(lines(model, "GFLOPs an image", what, series, y_most=100.0))
    return found


def kind_of(row: Facts) -> str:
    """The curve that a row is a point of."""
    label = str(row["label"])
    for word in ("falling", "constant"):
        if label.startswith(word):
            return f"{word} thresholds"
    if label.startswith("top-r"):
        ends = label.removeprefix("top-r, ").split(" to ")
        if len(ends) == 2:
            return "growing r" if int(ends[0]) < int(ends[1]) else "shrinking r"
        return "constant r"
    return str(row["method"])


def _studied(model: str, study: Facts) -> list[str]:
    """Figures 2 and 6."""
    found = []
    if loss := study["information_loss"]:
        series = [
            Series(f"threshold {theta:g}", list(zip(map(float, loss["blocks"]), row, strict=True)))
            for theta, row in zip(loss["thetas"], loss["cosine_distance"], strict=True)
        ]
        title = f"{model}, figure 2: information lost where one block alone merges"
        found.append(lines(title, "block that merges", "cosine distance", series))
    merged = study["merged_per_block"]
    names = [str(i) for i in range(1, len(merged) + 1)]
    title = f"{model}, figure 6: tokens merged in each block"
    return [*found, bars(title, "block", "tokens merged", names, {"": merged})]
