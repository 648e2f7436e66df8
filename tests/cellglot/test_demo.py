"""The demo: its folder, what it says, drawings that fail, cells without counts."""

import json
import re

import numpy as np
import pytest
from matplotlib.figure import Figure

from cellglot.demo import langcell, report
from cellglot.demo.demo import Demo
from cellglot.demo.full import FullDemo
from cellglot.demo.report import Section, Table, draw, write_report
from cellglot.evaluation import plots
from cellglot.evaluation.benchmark.baselines import pca_neighbors
from cellglot.evaluation.cell_plot.plot import CellPlot


class Steps(Demo):
    """A demo of one step."""

    def steps(self, cells):
        (self.output / "report.html").write_text(cells.summary())
        return self.output / "report.html"

    def written(self):
        return [("report.html", "the [bold]page[/] of this run")]

    def next_commands(self):
        return ["cellglot annotate [MODEL] cells.h5ad"]


def test_the_last_lines_say_what_is_there_and_what_to_type(tmp_path, capsys):
    Steps(None, "bulk_labels", tmp_path / "out", quick=True).run()
    said = capsys.readouterr().out
    assert re.search(r"Done after \d+ seconds\. In \S*out:\n  report\.html +the \[bold\]page\[/\] of this run\n", said)
    assert said.endswith("Next:\n  cellglot annotate [MODEL] cells.h5ad\n")
    assert "700 cells x 765 genes" in (tmp_path / "out" / "report.html").read_text()
    owned = json.loads((tmp_path / "out" / ".cellglot-output.json").read_text())
    assert {"pbmc68k_reduced.h5ad", "report.html"} <= set(owned["outputs"]["demo"]["files"])


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        (Steps, {}, "cellglot demo"),
        (FullDemo, {"quick": True}, "cellglot demo --full --quick"),
        (FullDemo, {"cells": "a.h5ad"}, "cellglot demo --cells a.h5ad --labels kind --full"),
    ],
)
def test_commands_that_run_a_demo_again(kind, options, expected, tmp_path):
    cells = tmp_path / options["cells"] if "cells" in options else None
    demo = kind(cells, "kind", tmp_path, quick=options.get("quick", False))
    assert demo.command() == expected


def test_a_drawing_that_fails_is_said_and_left_out(tmp_path, caplog):
    def fail():
        raise RuntimeError("no fonts")

    again = ["cellglot", "demo", "--quick"]
    figures = [*draw("losses", fail, again), *draw("bars", lambda: plots.bars_plot({"a": 1}, "", ""), again)]
    assert [figure.name for figure in figures] == ["bars"]
    assert "losses was not drawn (no fonts)" in caplog.text and "cellglot demo --quick" in caplog.text
    plot = CellPlot(np.random.default_rng(0).normal(size=(5, 2)), title="<b>cells</b>")
    page = tmp_path / "report.html"
    section = Section("One", ["text"], table=Table(["a", "b"], [["x", "1"]]), figures=figures, maps=[plot])
    write_report(page, "cells", "lead", [("1", "card")], [section, Section("Two")], "footer", "A heading")
    text = page.read_text()
    assert text.count("<img ") == 1 and text.count('data-cell-plot="cells-') == 1 and "<h1>A heading</h1>" in text
    assert "<b>cells</b>" not in text and 'src="http' not in text
    assert report.Picture.__name__ == "Picture" and not isinstance(figures[0].address, Figure)


def test_cells_without_a_score_are_not_named():
    class Candidates:
        names = ["B cell", "T cell"]

    class Annotation:
        candidates = Candidates

    scores = np.array([[0.1, 0.9], [np.nan, np.nan], [0.6, 0.4]])
    assert langcell._best(Annotation, scores).tolist() == ["T cell", "no prediction", "B cell"]


def test_neighbours_in_pca(random_counts):
    counts = random_counts(60, 30).log1p().tolil()
    labels = np.where(np.arange(60) % 2, "odd", "even")
    counts[np.arange(60), np.arange(60) % 2] = 30
    train = np.arange(60) < 40
    found = pca_neighbors(counts.tocsr(), labels, train, ~train)
    assert found.predicted.tolist() == labels[~train].tolist() and "PCA" in found.name
