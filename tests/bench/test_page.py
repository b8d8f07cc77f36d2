"""The page as a browser shows it: the right marks with the right values, no error, nothing asked from elsewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from html import unescape

import pytest
from bench_records import GREEDY, add_prompt, toy_cost, toy_run
from dflash_tools.bench.page import page
from dflash_tools.bench.plots import Plot, Point, plots
from dflash_tools.bench.record import PHASES, Record
from dflash_tools.bench.svg import draw, ticks

_MARK = re.compile(r'class="mark c(\d)" data-series="([^"]*)" data-x="([^"]*)" data-y="([^"]*)" ([^>]*)>')
# Off are a sandbox that a container cannot have, and everything that would ask a network.
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--enable-logging=stderr", "--v=0"),
)


@pytest.fixture(scope="module")
def browse(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """`browse(html)`: the document as it is after its script ran. Fails for any message on the console."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no Chromium here, so the page was not opened in a browser (Debian: apt install chromium)")
    folder = tmp_path_factory.mktemp("browser")

    def dump(html: str) -> str:
        path = folder / "page.html"
        path.write_text(html, "utf-8")
        command = [browser, *_FLAGS, f"--user-data-dir={folder / 'profile'}", "--dump-dom", path.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        assert not console, "\n".join(console)
        return done.stdout

    return dump


def figure(dom: str, name: str) -> list[tuple[str, str, float]]:
    """Series, x and y of each mark of one plot."""
    found = re.search(rf'<figure id="{name}">(.*?)</figure>', dom, re.DOTALL)
    assert found, f"the page has no plot {name}"
    return [(unescape(s), unescape(x), float(y)) for _, s, x, y, _ in _MARK.findall(found[1])]


def hostile_run() -> Record:
    """A run whose names want to be markup."""
    markup = '"><img src=x onerror="console.error(\'in\')">'
    record = toy_run()
    record.conditions |= {"target": {"file": f"{markup}<script>console.error('in')</script>"}, "disturbances": [markup]}
    record.conditions["baselines"][markup] = "plain"
    add_prompt(record, "plain", markup, [101], [1000.0], suite=markup, steps=[100])
    add_prompt(record, markup, markup, [101], [900.0], suite=markup, steps=[50], accepted_at=[30])
    record.notes += [markup, f"and {markup}"]
    return record


def test_the_plots_of_a_run_show_its_values(browse):
    dom = browse(page(toy_run()))
    assert 'data-ready="yes"' in dom, "the script did not run to its end"
    assert sorted(figure(dom, "rate-by-suite-0")) == [
        ("drafted", "all", pytest.approx(170 / 1.15)),
        ("drafted", "chat", 50.0),
        ("drafted", "code", pytest.approx(200.0)),
        ("plain", "all", pytest.approx(100.0)),
        ("plain", "chat", 100.0),
        ("plain", "code", pytest.approx(100.0)),
    ]
    assert sorted(figure(dom, "speedup-by-al-0")) == [
        ("drafted", "1.0", 0.5),
        ("drafted", "2.0", pytest.approx(2.0)),
        ("drafted", "4.0", pytest.approx(2.0)),
    ]
    assert figure(dom, "accepted-by-position-0") == [
        ("drafted", "1.0", pytest.approx(75 / 140)),
        ("drafted", "2.0", pytest.approx(25 / 140)),
    ]
    stack = {series: y for series, _, y in figure(dom, "round-by-phase-0")}
    assert len(stack) == 6
    assert stack["verify"] == pytest.approx((100 + 40 * 9) / 140)


def test_the_plots_of_costs_show_a_slow_phase_where_it_is(browse):
    dom = browse(page(toy_cost()))
    assert figure(dom, "step-by-rows") == [
        ("fork", "1.0", 11.0), ("fork", "4.0", 14.0), ("fork", "16.0", 26.0),
        ("upstream", "1.0", 22.0), ("upstream", "4.0", 28.0), ("upstream", "16.0", 52.0),
    ]  # fmt: skip
    stack = figure(dom, "round-by-phase")
    assert len(stack) == 12
    assert [(s, x) for s, x, y in stack if y != 2.0] == [("commit", "upstream, acceptance 7")]
    speed = {(s, x): y for s, x, y in figure(dom, "speedup-by-al")}
    assert speed["fork", "7.0"] == pytest.approx(4.2)
    assert speed["upstream", "1.0"] == pytest.approx(0.3)


def test_a_build_without_phases_stands_beside_the_others_as_a_whole_round():
    record = toy_cost()
    record.series = [s for s in record.series if (s.name, s.build) != ("phase_ms", "upstream")]
    for build, ms in (("fork", 12.0), ("upstream", 30.0), ("memory floor", 5.0)):
        record.add("round_ms", build, "ms", [3.0], drafter="none")
        record.add("round_ms", build, "ms", [ms], drafter="dflash", acceptance="7")
    stack = {p.id: p for p in plots(record)}["round-by-phase"].points
    assert [(p.series, p.x, p.y) for p in stack if p.series not in PHASES] == [
        ("not split", "upstream, acceptance 7", 30.0)
    ]
    assert len(stack) == 7


def test_a_speed_up_on_the_page_says_whether_texts_are_equal():
    record = toy_run()
    (caption,) = [p.caption for p in plots(record) if p.id == "speedup-by-al-0"]
    assert "drafted: texts not compared" in caption
    record.add("equal", "drafted", "0 / 1", [1, 1, 0], suite="code", prompt="a", **GREEDY)
    (caption,) = [p.caption for p in plots(record) if p.id == "speedup-by-al-0"]
    assert "drafted: 2 of 3 texts equal" in caption


def test_curves_that_coincide_are_all_seen():
    points = [Point(side, x, 5.0) for side in ("fork", "upstream", "floor") for x in (1.0, 2.0)]
    html = draw(Plot("p", "P", "lines", "", "", tuple(points)))
    for pattern in (r"stroke-width: ([\d.]+)", r' r="([\d.]+)"'):
        sizes = [float(size) for size in dict.fromkeys(re.findall(pattern, html))]
        assert sizes == sorted(sizes, reverse=True) and len(sizes) == 3, "what is drawn later leaves a rim of the rest"


def test_a_side_of_a_run_without_phases_is_one_bar():
    record = toy_run()
    record.conditions["baselines"]["upstream"] = "plain"
    add_prompt(record, "upstream", "a", [101], [500.0], steps=[25], accepted_at=[50, 25])
    (plot,) = [p for p in plots(record) if p.id == "round-by-phase-0"]
    assert [(p.series, p.y) for p in plot.points if p.x == "upstream"] == [("not split", 20.0)]
    assert {p.series for p in plot.points if p.x == "drafted"} == set(PHASES)
    assert not [p for p in plot.points if p.x == "plain"], "steps of plain decoding are no rounds"


def test_an_interval_that_holds_the_reference_reaches_over_it():
    points = (Point("a", 1.0, 0.3, low=0.1, high=2.5),)
    html = draw(Plot("p", "P", "scatter", "", "", points, reference=1.0))
    whisker = float(re.search(r'class="whisker[^>]* y1="([\d.]+)"', html)[1])
    reference = float(re.search(r'class="reference"[^>]* y1="([\d.]+)"', html)[1])
    assert whisker < reference, "up is less"


@pytest.mark.parametrize("length", ["1e999", "nan", "many"])
def test_an_acceptance_that_is_no_length_is_not_drawn(length):
    record = toy_cost()
    record.add("decode_rate", "fork", "tok/s", [90.0], drafter="dflash", acceptance=length)
    assert f"acceptance {length}" in page(record), "the tables have it"
    (plot,) = [p for p in plots(record) if p.id == "speedup-by-al"]
    assert {p.x for p in plot.points} == {1.0, 4.0, 7.0}


def test_lengths_on_the_page_are_in_proportion_to_values():
    html = page(toy_run())
    widths = {}
    for _, series, _x, y, shape in _MARK.findall(html[html.index("round-by-phase-0") :]):
        if found := re.search(r' width="([\d.]+)"', " " + shape):
            widths[series] = float(found[1]) / float(y)
    assert len(widths) == 6
    assert max(widths.values()) == pytest.approx(min(widths.values()), rel=0.01)


def test_a_side_has_one_colour_on_the_whole_page():
    colours: dict[str, set[str]] = {}
    for plot in plots(toy_run()):
        if plot.kind != "stack":
            for series in plot.series():
                colours.setdefault(series, set()).add(str(plot.colour(series)))
    assert colours == {"plain": {"0"}, "drafted": {"1"}}


def test_names_are_shown_and_not_run(browse):
    dom = browse(page(hostile_run()))
    assert dom.count("<script") == 1
    assert "<img" not in dom
    assert "onerror" in dom, "the note is shown as text"


def test_the_page_is_one_file_that_asks_for_nothing():
    html = page(hostile_run())
    assert not re.search(r'(src|href)="(?!data:)', html)
    assert "url(" not in html
    assert "@import" not in html
    assert "default-src 'none'" in html


def test_what_was_not_measured_has_no_plot():
    record = toy_run()
    record.series = [s for s in record.series if s.name not in ("phase_ms", "rounds", "accepted_at")]
    assert [plot.id for plot in plots(record)] == ["rate-by-suite-0", "speedup-by-al-0"]
    assert page(Record("run"))
    assert page(Record("cost"))


@pytest.mark.parametrize(
    ("high", "expected"),
    [
        (7.0, [0, 2, 4, 6, 8]),
        (0.83, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (1234.0, [0, 500, 1000, 1500]),
        (1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
    ],
)
def test_ticks_are_round_and_reach_the_highest_value(high, expected):
    assert ticks(high) == pytest.approx(expected)
