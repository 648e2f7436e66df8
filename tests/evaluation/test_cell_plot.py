"""The interactive plot of cells: its data, its genes, its page in a browser."""

import base64
import json
import re
import zlib

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from cellglot.evaluation import plots
from cellglot.evaluation.annotation.cell_map import annotation_plot
from cellglot.evaluation.cell_plot import plot as cell_plot
from cellglot.evaluation.cell_plot.page import script, write_page
from cellglot.evaluation.cell_plot.plot import CellPlot
from cellglot.evaluation.drawing import check_picture
from cellglot.evaluation.embed_file import draw_embedding
from cellglot.tokenization import read_cells


HOSTILE = '<img src=x onerror="document.title=1"></script><script>document.title=2</script>'
TYPES = ("T cell", HOSTILE, "B cell")


def unpack(text: str, kind: str = "u1") -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=kind)


def values_of(colouring) -> np.ndarray:
    codes = unpack(colouring["values"]).astype(float)
    codes[codes == 255] = np.nan
    return colouring["low"] + codes / 254 * (colouring["high"] - colouring["low"])


@pytest.fixture(scope="module")
def cells():
    """60 cells of three types, each with a gene of its own; retired columns, a batch, and Ensembl ids in the index."""
    random = np.random.default_rng(0)
    group = np.arange(60) % 3
    counts = random.poisson(1.0, (60, 12))
    counts[:, 7] = 4
    counts[np.arange(60), group] += 40
    genes = ["ENSG00000156738", "ENSG00000105374.9", "ENSG00000167286", *(f"G{i}" for i in range(9))]
    adata = ad.AnnData(sp.csr_matrix(counts.astype(np.float32)))
    adata.var_names, adata.obs_names = genes, [f"cell {i} <b>" for i in range(60)]
    adata.obs["cell_type"] = np.array(TYPES)[group]
    adata.obs["batch"] = np.where(np.arange(60) < 20, "first", "second")
    adata.obs["depth"] = counts.sum(axis=1).astype(float)
    adata.obs["same"], adata.obs["cellglot_cell_type"] = "x", "of an earlier run"
    return adata


@pytest.fixture(scope="module")
def plot(cells):
    """The cells as `annotate` draws them, one unassigned, one without a confidence."""
    types = cells.obs["cell_type"].to_numpy(dtype=object).copy()
    types[0] = "unassigned"
    columns = {
        "cellglot_cell_type": types, "cellglot_assigned": types != "unassigned", "cellglot_margin": np.zeros(60),
        "cellglot_confidence": np.r_[np.nan, np.linspace(0.2, 1, 59)], "cellglot_novelty": np.linspace(0, 1, 60),
        "cellglot_score_uncalibrated": np.ones(60), "cellglot_reason": ["too new", *[""] * 59],
    }  # fmt: skip
    where = np.random.default_rng(1).normal(size=(60, 2)) + 8 * (np.arange(60) % 3)[:, None]
    with read_cells(cells) as opened:
        return annotation_plot(columns, opened, where, f"blood {HOSTILE}")


def test_colourings_of_annotated_cells(plot, cells):
    data = plot.data()
    by_name = {colouring["name"]: colouring for colouring in data["colourings"]}
    plain = [c["name"] for c in data["colourings"] if not c.get("gene")]
    assert plain == [
        "cell type", "confidence", "novelty", "margin", "why unassigned", "cell_type", "batch", "depth",
    ]  # fmt: skip
    types = by_name["cell type"]
    named = [*types["labels"], types["missing"]]
    assert [named[code] for code in unpack(types["codes"])] == ["unassigned", *cells.obs["cell_type"][1:]]
    assert np.allclose(values_of(by_name["novelty"]), np.linspace(0, 1, 60), atol=0.003)
    assert np.isnan(values_of(by_name["confidence"])).nonzero()[0].tolist() == [0]
    assert json.loads(zlib.decompress(base64.b64decode(data["names"]))) == cells.obs_names.tolist()


def test_genes_that_tell_types_apart_come_first_and_have_symbols(plot, cells):
    genes = [colouring for colouring in plot.data()["colourings"] if colouring.get("gene")]
    assert {gene["name"] for gene in genes[:3]} == {"MS4A1", "NKG7", "CD3D"}
    counts = cells.X.toarray()
    expected = np.log1p(counts[:, 0] / counts.sum(axis=1) * 1e4)
    shown = values_of(next(gene for gene in genes if gene["name"] == "MS4A1"))
    assert np.allclose(shown, expected, atol=expected.max() / 254)


def test_coordinates_keep_their_proportions():
    where = np.random.default_rng(0).normal(size=(500, 2)) * [9, 1]
    data = CellPlot(where).data()
    x, y = unpack(data["x"], "<u2").astype(float), unpack(data["y"], "<u2").astype(float)
    assert np.corrcoef(x, where[:, 0])[0, 1] > 0.999999 and np.corrcoef(y, where[:, 1])[0, 1] < -0.99999
    assert np.isclose(np.ptp(x) / np.ptp(y), np.ptp(where[:, 0]) / np.ptp(where[:, 1]), rtol=1e-3)


def test_many_cells_are_sampled_and_the_plot_says_so(monkeypatch):
    monkeypatch.setattr(cell_plot, "MOST_CELLS", 100)
    where = np.arange(600.0).reshape(300, 2)
    where[7] = np.nan
    plot = CellPlot(where, [f"c{i}" for i in range(300)])
    plot.add_numbers("number", np.arange(300))
    plot.add_classes("kind", [f"kind {i % 290}" for i in range(300)])
    data = plot.data()
    assert "100 of 299 cells are shown, drawn at random" in data["note"] and "1 cell without" in data["note"]
    names = json.loads(zlib.decompress(base64.b64decode(data["names"])))
    assert len(names) == 100 and "c7" not in names
    shown = [int(name[1:]) for name in names]
    assert np.allclose(values_of(data["colourings"][0]), shown, atol=1.2)
    kinds = data["colourings"][1]
    assert [kinds["labels"][code] for code in unpack(kinds["codes"])] == [f"kind {i % 290}" for i in shown]
    assert len(json.dumps(data)) < 6_000


def test_more_labels_than_a_byte_counts():
    plot = CellPlot(np.random.default_rng(0).normal(size=(600, 2)))
    labels = [f"label {i % 300:03d}" for i in range(600)]
    plot.add_classes("label", labels)
    plot.add_classes("label", [None] * 600)
    first, second = plot.data()["colourings"]
    assert [first["labels"][code] for code in unpack(first["codes"], "<u2")] == labels
    assert second["name"] == "label (2)" and second["labels"] == [] and not unpack(second["codes"]).any()


def test_what_cannot_be_drawn(tmp_path):
    with pytest.raises(ValueError, match="no cell has coordinates"):
        CellPlot(np.full((4, 2), np.nan))
    with pytest.raises(ValueError, match=r"\.png, \.svg, \.pdf, or \.html"):
        check_picture(tmp_path / "map.txt")
    with pytest.raises(ValueError, match="too few"):
        check_picture(tmp_path / "map.html", 3)


def test_colours_are_those_of_pictures():
    listed = re.search(r"PALETTE = \[(.*?)\]", script(), re.DOTALL)[1]
    assert re.findall(r'"(#\w+)"', listed) == plots.COLOURS


def test_embedded_cells_by_a_column(cells, tmp_path):
    path = tmp_path / "map.HTML"
    with read_cells(cells) as opened:
        draw_embedding(opened, np.random.default_rng(0).normal(size=(60, 2)), "batch", path, "cells")
    data = json.loads(re.search(r'id="cells-1">(.*?)</script>', path.read_text())[1])
    names = [colouring["name"] for colouring in data["colourings"]]
    assert names[0] == "batch" and names.count("batch") == 1 and {"cell_type", "MS4A1"} <= set(names)
    assert data["title"] == "cells" and len(unpack(data["x"], "<u2")) == 60


def test_the_page_in_a_browser(plot, chromium, point_at_a_cell, tmp_path):
    """Narrow and wide, light and dark: colours, hover, zoom, genes; labels stay text, nothing is loaded."""
    path = tmp_path / "map.html"
    write_page([plot], path, f"cells {HOSTILE}")
    backgrounds, said = set(), []
    for width, scheme in ((1280, "light"), (390, "dark")):
        page = chromium.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", lambda message: said.append(message.text))
        page.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
        page.goto(path.as_uri())
        page.wait_for_selector(".cell-plot-row")
        rows = page.locator(".cell-plot-row").all_inner_texts()
        assert [re.split(r"\s*\n\s*", row)[-1] for row in rows] == ["20", "20", "19", "1"]
        assert any(HOSTILE in row for row in rows) and page.title() == f"cells {HOSTILE}"
        assert page.locator("img, .cell-plot-figure script").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") == width
        backgrounds.add(_pixel(page, 2, 2))
        _use(page, point_at_a_cell)
        page.close()
    assert said == [] and len(backgrounds) == 2


def _pixel(page, x, y):
    code = """([x, y]) => {
        const copy = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
        copy.drawImage(document.querySelector('canvas'), -x, -y);
        return copy.getImageData(0, 0, 1, 1).data.join();
    }"""
    return page.evaluate(code, [x, y])


def _drawn(page, test="true", *than):
    """Return the picture once it is as it should be."""
    code = f"than => {{ const now = document.querySelector('canvas').toDataURL(); return {test} && now; }}"
    return page.wait_for_function(code, arg=list(than)).json_value()


def _use(page, point_at_a_cell):
    before = _drawn(page)
    page.fill(".cell-plot-gene", "MS4A1")
    page.wait_for_selector(".cell-plot-ramp")
    coloured = _drawn(page, "!than.includes(now)", before)
    page.get_by_role("button", name="Zoom in").click()
    _drawn(page, "!than.includes(now)", before, coloured)
    page.get_by_role("button", name="Show all cells").click()
    _drawn(page, "than.includes(now)", coloured)
    page.locator(".cell-plot-choice").select_option("cell type")
    page.locator(".cell-plot-row").first.click()
    assert page.locator(".cell-plot-row[aria-pressed=true]").count() == 1
    _drawn(page, "!than.includes(now)", before, coloured)
    point_at_a_cell(page)
    told = page.locator(".cell-plot-tip").inner_text()
    assert re.match(r"cell \d+ <b>", told) and "novelty" in told
