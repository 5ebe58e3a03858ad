"""The numbers of a chart as a table, for who cannot see the chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from atm_export.report.charts import Series, number


def lines_table(x_label: str, y_label: str, series: Sequence[Series]) -> str:
    """Of lines or points: a column a series where all have the same x, else a row a point."""
    places = [[x for x, _ in each.points] for each in series]
    if len(series) > 1 and all(xs == places[0] for xs in places):
        head = [x_label, *(each.name for each in series)]
        rows = [
            [number(x), *(number(each.points[i][1]) for each in series)]
            for i, x in enumerate(places[0])
        ]
        return _table(y_label, head, rows)
    rows = []
    for each in series:
        for i, (x, y) in enumerate(each.points):
            interval = ""
            if i < len(each.intervals):
                interval = " ({} to {})".format(*map(number, each.intervals[i]))
            rows.append([each.name, number(x), f"{number(y)}{interval}"])
    return _table(y_label, ["", x_label, y_label], rows)


def bars_table(y_label: str, names: Sequence[str], groups: Mapping[str, Sequence[float]]) -> str:
    """Of bars: a row a name, a column a group."""
    rows = [
        [name, *(number(values[i]) for values in groups.values())] for i, name in enumerate(names)
    ]
    return _table(y_label, ["", *groups], rows)


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f'<th scope="col">{escape(each)}</th>' for each in head)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f'<td class="n">{escape(each)}</td>' for each in rest)
        + "</tr>"
        for first, *rest in rows
    )
    return (
        f'<details><summary>Numbers</summary><div class="wide"><table><caption>{escape(caption)}'
        f"</caption><tr>{cells}</tr>{body}</table></div></details>"
    )
