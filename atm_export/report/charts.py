"""Charts as SVG text: no library, so that a page is small, follows dark mode, and is the same bytes
for the same numbers.

Colours are CSS classes c0 to c3 (Okabe-Ito, told apart by colour-blind readers); series differ in
marker and dash too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 12, 40  # LEFT grows with the widest number beside the axis
CHARACTER = 7.0  # no digit is wider
DASHES = ("", "6 3", "2 3", "8 3 2 3")


@dataclass(frozen=True)
class Series:
    """Points (x, y), in order; low and high: interval of each y, where there is one; labels: what
    stands beside each point."""

    name: str
    points: Sequence[tuple[float, float]]
    line: bool = True
    intervals: Sequence[tuple[float, float]] = field(default=())
    labels: Sequence[str] = field(default=())


@dataclass(frozen=True)
class Axes:
    """Data ranges and how they map to the drawing."""

    x: tuple[float, float]
    y: tuple[float, float]

    @property
    def left(self) -> float:
        """Where the plot begins: room for the y axis' label and its numbers."""
        widest = max((len(text) for _, text in _ticks(self.y)), default=0)
        return max(LEFT, 26 + CHARACTER * widest)

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1)
        up = (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1)
        return (
            self.left + across * (WIDTH - self.left - RIGHT),
            HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM),
        )


def lines(
    title: str,
    x_label: str,
    y_label: str,
    series: Sequence[Series],
    y_most: float = math.inf,
) -> str:
    """A line or scatter chart. y_most: what y cannot exceed, nor the axis."""
    xs = [x for s in series for x, _ in s.points]
    ys = [y for s in series for _, y in s.points]
    ys += [bound for s in series for pair in s.intervals for bound in pair]
    low, high = _padded(ys)
    axes = Axes(_padded(xs), (low, min(high, y_most)))
    x_ticks = _ticks(axes.x)
    if all(x == round(x) for x in xs):  # blocks are counted, not measured
        whole = range(round(min(xs)), round(max(xs)) + 1)
        x_ticks = [(float(x), str(x)) for x in whole[:: 1 + len(whole) // 15]]
    parts = [_frame(axes, x_ticks, _ticks(axes.y), x_label, y_label)]
    parts += [_draw(axes, s, i) for i, s in enumerate(series)]
    return _svg(title, parts) + _legend([s.name for s in series])


def bars(
    title: str,
    x_label: str,
    y_label: str,
    names: Sequence[str],
    groups: Mapping[str, Sequence[float]],
) -> str:
    """Bars side by side, one group a name; values stand above them where there is room."""
    top = max([value for values in groups.values() for value in values] or [0.0]) or 1.0
    axes = Axes((0.0, float(len(names))), (0.0, top * 1.08))
    ticks = [(i + 0.5, name) for i, name in enumerate(names)]
    parts = [_frame(axes, ticks, _ticks(axes.y), x_label, y_label)]
    width = 0.8 / len(groups)
    for g, values in enumerate(groups.values()):
        for i, value in enumerate(values):
            left, up = axes.at(i + 0.1 + g * width, value)
            right, down = axes.at(i + 0.1 + (g + 1) * width, 0.0)
            parts.append(
                f'<rect class="f{g % 5}" x="{left:.1f}" y="{up:.1f}" width="{right - left:.1f}" '
                f'height="{max(0.0, down - up):.1f}"/>'
            )
            if len(names) * len(groups) <= 16:
                parts.append(
                    f'<text x="{(left + right) / 2:.1f}" y="{up - 3:.1f}" '
                    f'text-anchor="middle" class="small">{number(value)}</text>'
                )
    return _svg(title, parts) + (_legend(list(groups), "f") if len(groups) > 1 else "")


def number(value: float) -> str:
    """Three significant digits, whole numbers as they are."""
    if value == round(value) and abs(value) < 1e6:
        return str(round(value))
    return f"{value:.3g}"


def _draw(axes: Axes, series: Series, i: int) -> str:
    places = [axes.at(x, y) for x, y in series.points]
    parts = []
    if series.line and len(places) > 1:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        dash = f' stroke-dasharray="{DASHES[i % 4]}"' if DASHES[i % 4] else ""
        parts.append(f'<polyline class="c{i % 4}" points="{path}"{dash}/>')
    for (x, _), (low, high) in zip(series.points, series.intervals, strict=False):
        (at, down), (_, up) = axes.at(x, low), axes.at(x, high)
        parts.append(f'<path class="c{i % 4}" d="M{at:.1f} {down:.1f}V{up:.1f}"/>')
    parts += [_marker(x, y, i) for x, y in places]
    parts += [_label(x, y, text) for (x, y), text in zip(places, series.labels, strict=False)]
    return "".join(parts)


def _label(x: float, y: float, text: str) -> str:
    """Beside a point, on the side where there is room."""
    left = x > WIDTH * 0.6
    anchor = ' text-anchor="end"' if left else ""
    return (
        f'<text x="{x - 7 if left else x + 7:.1f}" y="{y - 4:.1f}" class="small"{anchor}>'
        f"{escape(text)}</text>"
    )


def _marker(x: float, y: float, i: int) -> str:
    kind = f'class="f{i % 4}"'
    if i % 4 == 0:
        return f'<circle {kind} cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>'
    if i % 4 == 1:
        return f'<rect {kind} x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6"/>'
    if i % 4 == 2:
        return f'<path {kind} d="M{x:.1f} {y - 4:.1f}l4 7h-8z"/>'
    return f'<path {kind} d="M{x:.1f} {y - 4.5:.1f}l4.5 4.5l-4.5 4.5l-4.5 -4.5z"/>'


def _frame(
    axes: Axes,
    x_ticks: Sequence[tuple[float, str]],
    y_ticks: Sequence[tuple[float, str]],
    x_label: str,
    y_label: str,
) -> str:
    bottom, left = HEIGHT - BOTTOM, axes.left
    parts = []
    for value, text in y_ticks:
        _, y = axes.at(axes.x[0], value)
        parts.append(f'<path class="grid" d="M{left:g} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(
            f'<text x="{left - 5:g}" y="{y + 4:.1f}" text-anchor="end">{escape(text)}</text>'
        )
    for value, text in x_ticks:
        x, _ = axes.at(value, axes.y[0])
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{escape(text)}</text>'
        )
    middle = (left + WIDTH - RIGHT) / 2
    parts.append(f'<path class="axis" d="M{left:g} {bottom}H{WIDTH - RIGHT}"/>')
    parts.append(
        f'<text x="{middle:g}" y="{HEIGHT - 7}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text transform="translate(11 {(TOP + bottom) / 2}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_label)}</text>'
    )
    return "".join(parts)


def _svg(title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def _legend(names: Sequence[str], kind: str = "c") -> str:
    keys = []
    for i, name in enumerate(names):
        mark = (
            f'<rect class="f{i % 5}" x="1" y="1" width="14" height="10"/>'
            if kind == "f"
            else f'<path class="c{i % 4}" stroke-dasharray="{DASHES[i % 4]}" d="M0 6H22"/>'
            + _marker(11, 6, i)
        )
        keys.append(
            f'<span class="key"><svg viewBox="0 0 22 12" aria-hidden="true">{mark}</svg>'
            f"{escape(name)}</span>"
        )
    return f'<p class="legend">{"".join(keys)}</p>'


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or max(abs(high) * 0.05, 0.5)
    return low - pad, high + pad


def _ticks(bounds: tuple[float, float], most: int = 6) -> list[tuple[float, str]]:
    """Round numbers inside the bounds."""
    span = bounds[1] - bounds[0]
    step = 10 ** math.floor(math.log10(span / most))
    step = next(step * k for k in (1, 2, 5, 10) if span / (step * k) <= most)
    first = math.ceil(bounds[0] / step)
    values = [k * step for k in range(first, math.floor(bounds[1] / step) + 1)]
    digits = max(0, -math.floor(math.log10(step)))
    return [(value, f"{value:.{digits}f}") for value in values]
