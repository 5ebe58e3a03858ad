"""The Pareto front of a search as CSV and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from atm_export.report.charts import Series, lines
from atm_export.tasks.judge import Judge

COLUMNS = ("keeps_limits", "trial", "method", "median_ms", "speedup")
STYLE = """<style>svg{background:#fff}text{font:11.5px sans-serif;fill:#1b1b1b}
.small{font-size:9.5px}
.grid{stroke:#d9d9d9;fill:none}.axis{stroke:#5a5a5a;fill:none}
.c0{stroke:#0072b2;fill:none;stroke-width:2}.c1{stroke:#d55e00;fill:none;stroke-width:2}
.c2{stroke:#007a5a;fill:none;stroke-width:2}.c3{stroke:#a0507f;fill:none;stroke-width:2}
.f0{fill:#0072b2}.f1{fill:#d55e00}.f2{fill:#007a5a}.f3{fill:#a0507f}</style>"""


def front_csv(front: Sequence[Mapping[str, Any]], names: Sequence[str], judge: Judge) -> str:
    """One line a point, fewest GFLOPs first; names: the settings that make a point."""
    columns = ("gflops", *judge.columns, *COLUMNS)
    rows = [",".join([*names, *columns])]
    for r in front:
        point = [r["point"].get(name) for name in names]
        values = [*point, *(r.get(name) for name in columns)]
        rows.append(",".join("" if value is None else str(value) for value in values))
    return "\n".join(rows) + "\n"


def front_svg(
    results: Sequence[Mapping[str, Any]],
    front: Sequence[Mapping[str, Any]],
    known: Mapping[str, Any],
    winner: Mapping[str, Any] | None,
    judge: Judge,
) -> str:
    """What the judge plots against GFLOPs: the front, every whole trial, the unmerged model, the
    winner."""

    def points(rows: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
        return [(r["gflops"], r[judge.merit.key]) for r in rows]

    whole = [r for r in results if not r["hopeless"]]
    series = [
        Series("Pareto front", points(front)),
        Series("every trial", points(whole), line=False),
        Series("unmerged", points([known]), line=False),
    ]
    if winner is not None:
        series.append(Series("chosen", points([winner]), line=False))
    title = f"{judge.merit.title} against GFLOPs"
    keys = "".join(
        f'<text x="330" y="{170 + 13 * i}" class="f{i}">{s.name}</text>'
        for i, s in enumerate(series)
    )
    return standing_alone(lines(title, "GFLOPs an image", judge.merit.about, series), keys)


def standing_alone(chart: str, keys: str = "") -> str:
    """A chart as a file of its own, without the page that has its styles and its legend."""
    svg = chart.partition("</svg>")[0]
    opening = svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    head, _, rest = opening.partition(">")
    return f"{head}>{STYLE}{rest}{keys}</svg>\n"
