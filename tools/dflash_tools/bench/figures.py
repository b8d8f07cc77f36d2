"""The plots of a record as SVG files that stand alone, for documents that cannot hold a page."""

from __future__ import annotations

from html import escape
from pathlib import Path

from dflash_tools.bench.page import LIGHT, colour_rules
from dflash_tools.bench.plots import Plot, plots
from dflash_tools.bench.record import Record, replace_text
from dflash_tools.bench.svg import COLOURS, WIDTH, draw

_LINE = 18


def write_figures(record: Record, folder: Path) -> list[Path]:
    """Write `<id of the plot>.svg` for every plot into `folder`, made if missing; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for plot in plots(record):
        written.append(folder / f"{plot.id}.svg")
        replace_text(written[-1], standalone(plot))
    return written


def standalone(plot: Plot) -> str:
    """The plot with its title, names and colours, as the text of an SVG file."""
    inner = draw(plot)
    height = int(inner.split('viewBox="0 0 ', 1)[1].split('"')[0].split()[1])
    x, y, names = 10.0, 28, []
    for name in plot.series():
        width = 32 + 6.4 * len(name)  # of the usual sans-serif letters, roughly
        if x > 10 and x + width > WIDTH:
            x, y = 10.0, y + _LINE
        names.append(f'<rect class="c{plot.colour(name) % COLOURS}" x="{x:.0f}" y="{y}" width="10" height="10"/>')
        names.append(f'<text x="{x + 14:.0f}" y="{y + 9}">{escape(name)}</text>')
        x += width
    head = y + _LINE
    colours = colour_rules([LIGHT[f"c{i}"] for i in range(COLOURS)])
    style = (
        f"text {{ font: 12px sans-serif; fill: {LIGHT['ink']}; }} .title {{ font-size: 14px; font-weight: bold; }}\n"
        f".grid {{ stroke: {LIGHT['line']}; }} .line {{ stroke-width: 2; }} .whisker {{ opacity: .5; }}\n"
        f".reference {{ stroke: {LIGHT['soft']}; stroke-dasharray: 5 4; }}\n{colours}"
    )
    body = inner.replace("<svg ", f'<svg y="{head}" width="{WIDTH}" height="{height}" ', 1)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height + head}" width="{WIDTH}" '
        f'height="{height + head}">\n<style>{style}</style>\n'
        f'<rect width="100%" height="100%" fill="{LIGHT["page"]}"/>\n'
        f'<text class="title" x="10" y="18">{escape(plot.title)}</text>\n' + "".join(names) + f"\n{body}\n</svg>\n"
    )
