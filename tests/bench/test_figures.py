"""Figures that stand alone show what the page's plots show."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from dflash_tools.bench import record as records
from dflash_tools.bench.cli import main
from dflash_tools.bench.plots import plots

RECORDS = sorted((Path(__file__).resolve().parents[2] / "docs" / "performance").glob("*/record.json"))
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.parent.name)
def test_every_plot_is_a_file_with_its_marks_and_names(path, tmp_path, capsys):
    assert main(["show", str(path), "--figures", str(tmp_path / "made")]) == 0
    capsys.readouterr()
    found = plots(records.read(path))
    assert {f.stem for f in (tmp_path / "made").iterdir()} == {plot.id for plot in found}
    for plot in found:
        tree = ElementTree.parse(tmp_path / "made" / f"{plot.id}.svg").getroot()
        marks = [e for e in tree.iter() if "mark" in e.get("class", "").split()]
        assert sorted(float(e.get("data-y", "nan")) for e in marks) == sorted(point.y for point in plot.points)
        texts = {"".join(e.itertext()) for e in tree.iter(f"{SVG}text")}
        assert {plot.title, *plot.series()} <= texts


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.parent.name)
def test_the_figures_of_the_documents_are_those_of_their_records(path, tmp_path, capsys):
    assert main(["show", str(path), "--figures", str(tmp_path)]) == 0
    capsys.readouterr()
    for made in tmp_path.iterdir():
        assert (path.parent / made.name).read_text("utf-8") == made.read_text("utf-8"), made.name


def test_there_are_records_to_test():
    assert RECORDS
