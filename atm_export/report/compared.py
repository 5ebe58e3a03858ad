"""A comparison of methods as a picture and as a page that stands alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from atm_export.report.charts import Series, lines
from atm_export.report.page import environment
from atm_export.tasks import judge_of
from atm_export.tasks.classify import Classify
from atm_export.tasks.judge import Judge

Facts = Mapping[str, Any]


def compared_page(facts: Facts) -> str:
    """The page: what each method costs, loses and gains."""
    charts = {
        "divergence": divergence_chart(facts),
        "top1": top1_chart(facts),
        "speed": speed_chart(facts),
    }
    return (
        environment()
        .get_template("compare.html.j2")
        .render(
            facts=facts,
            judge=judged_by(facts),
            rows=facts["rows"],
            speed=speeds(facts),
            charts={name: Markup(svg) for name, svg in charts.items() if svg},
        )
    )


def speeds(facts: Facts) -> dict[str, list[Facts]]:
    """Rows of the timing by method, a batch each."""
    found: dict[str, list[Facts]] = {}
    for row in (facts["latency"] or {"rows": []})["rows"]:
        found.setdefault(row["candidate"], []).append(row)
    return found


def judged_by(facts: Facts) -> Judge:
    """How the compared answers were judged; a classifier's where nothing is said."""
    return judge_of(facts.get("task", Classify.name), "compare")


def divergence_chart(facts: Facts) -> str:
    """Distance from the unmerged model's answers against GFLOPs: KL, or 1 - cosine."""
    apart = judged_by(facts).apart
    return lines(
        "Divergence from the unmerged model against GFLOPs",
        "GFLOPs an image",
        apart.title,
        [_points(f"{apart.title}, 95 % interval", facts["rows"], apart.key, "mean")],
    )


def top1_chart(facts: Facts) -> str:
    """Figure 4 of arXiv 2505.15160: accuracy against GFLOPs; nothing without labels."""
    plain = facts["unmerged"]
    if plain["top1"] is None:
        return ""
    top1 = plain["top1"]
    series = [
        _points("method, 95 % interval", facts["rows"], "top1", "percent"),
        Series(
            "unmerged",
            [(plain["gflops"], top1["percent"])],
            line=False,
            intervals=[(top1["low"], top1["high"])],
        ),
    ]
    return lines("Accuracy against GFLOPs", "GFLOPs an image", "top-1 %", series, y_most=100.0)


def speed_chart(facts: Facts) -> str:
    """Realised speed-up against the FLOPs ratio, a series a batch; nothing where none was timed."""
    rows = [row for row in (facts["latency"] or {"rows": []})["rows"] if "speedup" in row]
    if not rows:
        return ""
    batches = sorted({row["batch"] for row in rows})
    series = []
    for batch in batches:
        own = [row for row in rows if row["batch"] == batch]
        series.append(
            Series(
                f"batch {batch}",
                [(row["flops_ratio"], row["speedup"]["median"]) for row in own],
                line=False,
                intervals=[(row["speedup"]["low"], row["speedup"]["high"]) for row in own],
                labels=[row["candidate"] for row in own] if batch == batches[0] else (),
            )
        )
    most = max(row["flops_ratio"] for row in rows)
    series.append(Series("all of the saving arrives", [(1.0, 1.0), (most, most)]))
    return lines("Realised speed-up", "unmerged GFLOPs / GFLOPs", "times as fast", series)


def _points(name: str, rows: Sequence[Facts], what: str, value: str) -> Series:
    return Series(
        name,
        [(row["gflops"], row[what][value]) for row in rows],
        line=False,
        intervals=[(row[what]["low"], row[what]["high"]) for row in rows],
        labels=[row["name"] for row in rows],
    )
