"""A record as one HTML page: no file, font or script from elsewhere; light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from dflash_tools.bench.plots import Plot, plots
from dflash_tools.bench.record import Record
from dflash_tools.bench.report import Section, brief, disturbances, sections, title
from dflash_tools.bench.svg import COLOURS, draw

# The colours of the light theme; figures.py uses them too.
LIGHT = {
    "page": "#ffffff", "ink": "#1c2024", "soft": "#667", "line": "#d9dde2", "warn": "#fff3cd",
    "c0": "#3b6fb6", "c1": "#d1495b", "c2": "#2b8a5a", "c3": "#b98a00", "c4": "#2f9fb5", "c5": "#8b4fa8",
    "c6": "#7a7f87", "c7": "#b5651d",
}  # fmt: skip
_STYLE = (
    ":root { color-scheme: light dark; "
    + " ".join(f"--{name}: {value};" for name, value in LIGHT.items())
    + """ }
@media (prefers-color-scheme: dark) { :root:not([data-theme=light]) { --page: #15181c; --ink: #e4e7eb; --soft: #9aa3ad;
  --line: #333a42; --warn: #4a3d12; --c0: #7aa7e8; --c1: #f0808e; --c2: #5fc492; --c3: #e0b83f; --c4: #6fcfe2;
  --c5: #c58fdf; --c6: #aab1ba; --c7: #e0995c; } }
:root[data-theme=dark] { color-scheme: dark; --page: #15181c; --ink: #e4e7eb; --soft: #9aa3ad;
  --line: #333a42; --warn: #4a3d12; --c0: #7aa7e8; --c1: #f0808e; --c2: #5fc492; --c3: #e0b83f; --c4: #6fcfe2;
  --c5: #c58fdf; --c6: #aab1ba; --c7: #e0995c; }
:root[data-theme=light] { color-scheme: light; }
body { background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; margin: 0 auto;
  max-width: 1100px; padding: 1.5rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p, li, figcaption { color: var(--soft); } p.warn { background: var(--warn); color: var(--ink); padding: .5rem .8rem; }
.table { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .87rem; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .7rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
#conditions td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 1.5rem; }
figure { margin: 0; } figure h2 { margin-top: 0; }
svg { width: 100%; max-width: 640px; height: auto; overflow: visible; }
svg text { fill: var(--ink); font-size: 12px; } .grid { stroke: var(--line); } .line { fill: none; stroke-width: 2; }
.whisker { opacity: .5; }
.reference { stroke: var(--soft); stroke-dasharray: 5 4; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem .9rem; font-size: .85rem; }
button { background: none; border: 0; color: inherit; cursor: pointer; font: inherit; padding: 0; }
button[aria-pressed=false] { opacity: .4; } .hidden { display: none; }
.swatch { display: inline-block; width: .8em; height: .8em; margin-right: .35em; }
#theme { float: right; border: 1px solid var(--line); border-radius: .3rem; padding: .1rem .6rem; }
"""
)
# A click on a name of a legend hides its marks; the button in the corner changes the theme.
_SCRIPT = """
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
for (const button of document.querySelectorAll(".legend button")) {
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") === "true";
    button.setAttribute("aria-pressed", String(!shown));
    for (const mark of button.closest("figure").querySelectorAll("svg [data-series]")) {
      if (mark.dataset.series === button.dataset.series) mark.classList.toggle("hidden", shown);
    }
  });
}
document.documentElement.dataset.ready = "yes";
"""


def page(record: Record) -> str:
    """The whole page as text."""
    name = escape(title(record))
    body = [
        '<button id="theme" type="button">light / dark</button>',
        f"<h1>{name}</h1>",
        *(f'<p class="warn">Disturbed: {escape(what)}.</p>' for what in disturbances(record)),
        "<p>" + "<br>\n".join(map(escape, brief(record))) + "</p>",
        '<div class="plots">',
        *map(_figure, plots(record)),
        "</div>",
        *map(_section, sections(record)),
    ]
    colours = colour_rules([f"var(--c{i})" for i in range(COLOURS)])
    # The policy makes sure that the page asks for nothing from elsewhere.
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
    head = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{name}</title>\n<style>{_STYLE}{colours}</style>\n</head>\n'
    )
    return head + "<body>\n" + "\n".join(body) + f"\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"


def colour_rules(colours: Sequence[str]) -> str:
    """CSS that gives the classes `c0`, `c1`, ... of svg.py these colours, one each."""
    rule = ".c{0} {{ fill: {1}; }} .line.c{0}, .whisker.c{0} {{ fill: none; stroke: {1}; }}\n"
    return "".join(rule.format(i, colour) for i, colour in enumerate(colours))


def _figure(plot: Plot) -> str:
    legend = "".join(
        f'<button type="button" aria-pressed="true" data-series="{escape(name)}">'
        f'<span class="swatch" style="background: var(--c{plot.colour(name) % COLOURS})"></span>{escape(name)}</button>'
        for name in plot.series()
    )
    caption = f"<figcaption>{escape(plot.caption)}</figcaption>" if plot.caption else ""
    return (
        f'<figure id="{escape(plot.id)}"><h2>{escape(plot.title)}</h2>\n<div class="legend">{legend}</div>\n'
        f"{draw(plot)}\n{caption}</figure>"
    )


def _section(section: Section) -> str:
    heading = escape(section.title)
    parts = []
    if section.rows:
        head = "".join(f"<th>{escape(cell)}</th>" for cell in section.header)
        rows = "\n".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in section.rows)
        parts.append(f'<div class="table"><table><tr>{head}</tr>\n{rows}\n</table></div>')
    if len(lines := section.text.splitlines()) > 1:
        parts.append("<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>")
    elif lines:
        parts.append(f"<p>{escape(lines[0])}</p>")
    body = "\n".join(parts)
    place = heading.split(":", 1)[0].lower().replace(" ", "-")
    if section.detail:
        return f'<details id="{place}"><summary>{heading}</summary>\n{body}</details>'
    return f"<h2>{heading}</h2>\n{body}"
