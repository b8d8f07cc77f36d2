"""Draw a plot as SVG text. Colours are CSS classes of the page (`c0` ... `c7`), so that they follow its theme.

Every mark carries what it shows: class `mark`, `data-series`, `data-x`, `data-y`, and a <title> that browsers show as a
tooltip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from dflash_tools.bench.plots import Plot, Point

WIDTH = 600
COLOURS = 8
_HEIGHT = 290
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 14, 44
_BAR = 26
_CHARACTERS, _LETTER = 40, 6.4  # most that a label shows, and the width of one, roughly
# A line is wider than the next one drawn over it, so that curves that coincide are all seen.
_STROKE, _RADIUS, _WIDER, _WIDEST = 2.0, 3.5, 1.8, 7.0


def draw(plot: Plot) -> str:
    """The plot as one <svg> element."""
    return {"stack": _stack, "bars": _bars, "lines": _curves, "scatter": _curves}[plot.kind](plot)


def ticks(high: float, low: float = 0.0, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) from at most `low` to at least `high`."""
    span = max(high - low, 1e-12)
    step = 10 ** math.floor(math.log10(span / about))
    step *= next((m for m in (1, 2, 5, 10) if span / (m * step) <= about), 10)
    first, last = math.floor(low / step), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def _mark(element: str, plot: Plot, point: Point, shape: str) -> str:
    """`shape` is the element's geometry; the class gives its colour."""
    where = point.x if isinstance(point.x, str) else _number(point.x)
    note = f" ({point.note})" if point.note else ""
    told = f"{point.series}, {where}: {_number(point.y)}{note}"
    return (
        f'<{element} class="mark c{plot.colour(point.series) % COLOURS}" data-series="{escape(point.series)}" '
        f'data-x="{escape(str(point.x))}" data-y="{point.y!r}" {shape}><title>{escape(told)}</title></{element}>'
    )


def _stack(plot: Plot) -> str:
    rows = list(dict.fromkeys(str(point.x) for point in plot.points))
    sums = {row: sum(max(0.0, p.y) for p in plot.points if p.x == row) for row in rows}
    marks = ticks(max(sums.values()) or 1.0)
    height = _TOP + len(rows) * (_BAR + 10) + _BOTTOM
    left = 16 + _LETTER * max(len(_cut(row)) for row in rows)
    scale = (WIDTH - left - _RIGHT - 60) / marks[-1]
    parts = _grid_x(marks, lambda x: left + x * scale, height - _BOTTOM, plot.x_title)
    for i, row in enumerate(rows):
        y, x = _TOP + i * (_BAR + 10), float(left)
        parts.append(_text(left - 8, y + _BAR / 2 + 4, _cut(row), "end", title=row))
        for point in plot.points:
            if point.x == row:
                width = max(0.0, point.y) * scale
                parts.append(_mark("rect", plot, point, f'x="{x:.2f}" y="{y}" width="{width:.2f}" height="{_BAR}"'))
                x += width
        parts.append(_text(x + 6, y + _BAR / 2 + 4, _number(sums[row]), "start"))
    return _svg(plot, height, parts)


def _bars(plot: Plot) -> str:
    groups, series = list(dict.fromkeys(str(point.x) for point in plot.points)), plot.series()
    marks = ticks(max(point.y for point in plot.points) or 1.0)
    bottom = _HEIGHT - _BOTTOM
    scale = (bottom - _TOP) / marks[-1]
    slot = (WIDTH - _LEFT - _RIGHT) / len(groups)
    width = slot * 0.8 / len(series)
    parts = _grid_y(marks, lambda y: bottom - y * scale, plot.y_title)
    for i, group in enumerate(groups):
        x = _LEFT + slot * (i + 0.1)
        parts.append(_text(x + slot * 0.4, bottom + 18, _cut(group, int(slot / 7)), "middle", title=group))
        for point in plot.points:
            if point.x == group:
                at, top = x + width * series.index(point.series), bottom - point.y * scale
                shape = f'x="{at:.2f}" y="{top:.2f}" width="{width * 0.94:.2f}" height="{bottom - top:.2f}"'
                parts.append(_mark("rect", plot, point, shape))
    return _svg(plot, _HEIGHT, parts)


def _curves(plot: Plot) -> str:
    xs, ys = [float(p.x) for p in plot.points], [p.y for p in plot.points]
    highest = max([*ys, plot.reference or 0.0])
    # an interval is cut only where it would leave its own point no room
    ends = [min(p.high, 2 * highest) for p in plot.points if p.high is not None]
    across, up = ticks(max(xs), about=8), ticks(max([highest, *ends]) or 1.0)
    bottom = _HEIGHT - _BOTTOM
    right, scale = (WIDTH - _LEFT - _RIGHT) / across[-1], (bottom - _TOP) / up[-1]

    def place_x(x: float) -> float:
        return _LEFT + x * right

    def place_y(y: float) -> float:
        return bottom - y * scale

    parts = [*_grid_x(across, place_x, bottom, plot.x_title), *_grid_y(up, place_y, plot.y_title)]
    if plot.reference is not None:
        y = place_y(plot.reference)
        parts.append(f'<line class="reference" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.2f}" y2="{y:.2f}"/>')
    names = plot.series()
    for above, series in zip(reversed(range(len(names))), names, strict=True):
        points = [p for p in plot.points if p.series == series]
        wider = above * min(_WIDER, _WIDEST / len(names)) if plot.kind == "lines" else 0.0
        if plot.kind == "lines":
            points.sort(key=lambda p: float(p.x))
            line = " ".join(f"{place_x(float(p.x)):.2f},{place_y(p.y):.2f}" for p in points)
            name, colour = escape(series), plot.colour(series) % COLOURS
            style = f'style="stroke-width: {_STROKE + wider:.2f}"'
            parts.append(f'<polyline class="line c{colour}" data-series="{name}" {style} points="{line}"/>')
        for point in points:
            if point.low is not None and point.high is not None:
                x, top, foot = place_x(float(point.x)), place_y(min(point.high, up[-1])), place_y(max(point.low, 0.0))
                where = f'x1="{x:.2f}" x2="{x:.2f}" y1="{top:.2f}" y2="{foot:.2f}"'
                name, colour = escape(series), plot.colour(series) % COLOURS
                parts.append(f'<line class="whisker c{colour}" data-series="{name}" {where}/>')
            shape = f'cx="{place_x(float(point.x)):.2f}" cy="{place_y(point.y):.2f}" r="{_RADIUS + wider:.2f}"'
            parts.append(_mark("circle", plot, point, shape))
    return _svg(plot, _HEIGHT, parts)


def _grid_x(marks: Sequence[float], place: Callable[[float], float], bottom: float, title: str) -> list[str]:
    parts = []
    for value in marks:
        x = place(value)
        parts.append(f'<line class="grid" x1="{x:.2f}" x2="{x:.2f}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(_text(x, bottom + 16, _number(value), "middle"))
    middle = (place(marks[0]) + place(marks[-1])) / 2
    return [*parts, _text(middle, bottom + 34, title, "middle")]


def _grid_y(marks: Sequence[float], place: Callable[[float], float], title: str) -> list[str]:
    parts = []
    for value in marks:
        y = place(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.2f}" y2="{y:.2f}"/>')
        parts.append(_text(_LEFT - 8, y + 4, _number(value), "end"))
    middle = (place(marks[0]) + place(marks[-1])) / 2
    turned = f'transform="rotate(-90 14 {middle:.2f})"'
    return [*parts, _text(14, middle, title, "middle", more=turned)]


def _text(x: float, y: float, text: str, anchor: str, *, more: str = "", title: str = "") -> str:
    tooltip = f"<title>{escape(title)}</title>" if title and title != text else ""
    return f'<text x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}" {more}>{escape(text)}{tooltip}</text>'


def _svg(plot: Plot, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(plot.title)}">\n'
        + "\n".join(parts)
        + "\n</svg>"
    )


def _cut(text: str, characters: int = _CHARACTERS) -> str:
    return text if len(text) <= characters else text[: max(1, characters - 1)] + "…"


def _number(value: float) -> str:
    """At most four significant digits; `0.1 + 0.2` is 0.3."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
