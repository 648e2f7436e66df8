"""The page that annotates cells in the visitor's browser, in Chromium: its results, its rules, bad files."""

import gzip
import json
import queue
import re
import shutil
import threading
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import anndata as ad
import h5py
import hdf5plugin
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import cellglot
from cellglot.evaluation.annotation.by_classifier import classify_cells, load_classifier
from cellglot.model_cards.space.browser import running
from cellglot.model_cards.space.browser.build import GRAPH, stage_page
from cellglot.model_cards.space.browser.genes import gene_names
from cellglot.model_cards.space.browser.serve import address_of, served
from cellglot.modeling.annotation_calibration import AnnotationCalibration
from cellglot.modeling.onnx_network import FOLDER, ONNX_FILES
from cellglot.tokenization import GeneVocabulary, RankValueTokenizer
from cellglot.tokenization.genes.tables import human_genes
from cellglot.verbs.app import app


SCRIPT = "<img src=x onerror=\"document.title='taken'\">"
MOST_CELLS, MOST_BYTES = 2000, 32 << 20
SHOWN = "html[data-shown=result], html[data-shown*=problem]"


class Visit:
    """A visitor's page: what it shows of a file, and every address that it asked for."""

    def __init__(self, page, address: str):
        self.page, self.address = page, address
        self.asked: list[str] = []
        self.errors: list[str] = []
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(address)
        self.wait("html[data-ready=yes]")

    def wait(self, selector: str) -> None:
        self.page.wait_for_selector(selector, timeout=120_000, state="attached")

    def bring(self, path: Path, wait: bool = True) -> None:
        self.page.evaluate("document.documentElement.dataset.shown = ''")
        self.page.set_input_files("#file", path)
        if wait:
            self.wait(SHOWN)

    def problem(self, path: Path) -> str:
        self.bring(path)
        assert self.page.is_visible("#problem"), self.page.inner_text("#headline")
        return self.page.inner_text("#problem-text")

    def table(self, path: Path | None = None) -> pd.DataFrame:
        """Return the CSV that the page gives for a file."""
        if path is not None:
            self.bring(path)
        assert self.page.is_visible("#result"), self.page.inner_text("#problem-text")
        with self.page.expect_download() as download:
            self.page.click("#download")
        assert download.value.suggested_filename.endswith("-cell-types.csv")
        return pd.read_csv(download.value.path(), index_col="cell_id", keep_default_na=False)

    def run(self, code: str, *arguments):
        return self.page.evaluate(code, *arguments)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    stage_page(
        cellglot.model_path("blood-exceiver"), folder, name="blood-exceiver", title="Cells of blood",
        most_cells=MOST_CELLS, most_bytes=MOST_BYTES,
    )  # fmt: skip
    with served(folder) as address:
        yield folder, address


@pytest.fixture(scope="module")
def visit(chromium, site):
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    visit = Visit(page, site[1])
    yield visit
    assert not visit.errors
    page.close()


@pytest.fixture(scope="module")
def other(chromium, site):
    """Another visitor, with a browser of their own."""
    context = chromium.new_context()
    visit = Visit(context.new_page(), site[1])
    yield visit
    assert not visit.errors
    context.close()


@pytest.fixture(scope="module")
def few(blood):
    """Forty cells."""
    cells = blood[:40].copy()
    cells.X = sp.csr_matrix(cells.X)
    cells.raw = None
    return cells


@pytest.fixture(scope="module")
def expected(few):
    """What Python says of the forty cells."""
    return classified(few)


@pytest.fixture
def written(few, tmp_path):
    """Write the forty cells, changed by a function, or the HDF5 file by another one."""

    def write(change=None, in_file=None, **options) -> Path:
        cells, path = few.copy(), tmp_path / "cells.h5ad"
        if change is not None and (changed := change(cells)) is not None:
            cells = changed
        cells.write_h5ad(path, **options)
        if in_file is not None:
            with h5py.File(path, "a") as file:
                in_file(file)
        return path

    return write


# -------------------------------------------------------------------- results


def assert_same(table: pd.DataFrame, found) -> None:
    said = found.said
    for column, name in (
        ("cell_type", "cell_type"), ("cell_type_ontology_term_id", "cell_type_ontology_term_id"),
        ("prediction_set", "prediction_set"), ("broader_type", "broader_type"), ("reason", "reason"),
    ):  # fmt: skip
        assert list(table[f"cellglot_{column}"]) == [value or "" for value in said[name]], column
    for column in ("confidence", "novelty"):
        np.testing.assert_allclose(pd.to_numeric(table[f"cellglot_{column}"]), said[column], atol=1e-3)


def classified(cells):
    """Return what Python says of cells."""
    path = cellglot.model_path("blood-exceiver")
    network, tokenizer = load_classifier(path)
    return classify_cells(network, tokenizer, cells, calibration=AnnotationCalibration.load(path), progress=False)


def test_results_are_those_of_python(visit, blood, tmp_path):
    cells = blood[::6].copy()  # two batches
    cells.write_h5ad(tmp_path / "blood.h5ad")
    found, table = classified(cells), visit.table(tmp_path / "blood.h5ad")
    assert list(table.index) == list(cells.obs_names)
    assert set(cells.obs.columns) <= set(table.columns)
    assert list(table["cell_type"]) == list(cells.obs["cell_type"])
    assert_same(table, found)
    assert f"{found.genes.matched} genes are known" in visit.page.inner_text("#audit")
    visit.wait("html[data-mapped=yes]")
    assert visit.page.locator(".cell-plot-row").count() == len(set(found.predicted))


@pytest.mark.long
@pytest.mark.reference
def test_two_thousand_cells_are_those_of_python(visit, reference_data):
    cells = reference_data / "cells" / "pbmc_3tech.h5ad"
    table = visit.table(cells)
    assert len(table) == MOST_CELLS
    assert_same(table, classified(cellglot.read_cells(cells)))


def _as_old_10x(path: Path, cells: ad.AnnData) -> Path:
    """Write a file of Cell Ranger 2, with a group for the genome."""
    counts = cells.X.tocsr().astype(np.int32)
    names = np.array([*map(str.encode, cells.var_names)])
    with h5py.File(path, "w") as file:
        group = file.create_group("GRCh38")
        group["data"], group["indices"], group["indptr"] = counts.data, counts.indices, counts.indptr
        group["shape"], group["genes"], group["gene_names"] = np.array(counts.shape[::-1]), names, names
        group["barcodes"] = np.array([name.encode() for name in cells.obs_names])
    return path


def _as_10x(path: Path, cells: ad.AnnData) -> Path:
    """Write a 10x file with three antibodies."""
    counts = sp.hstack([cells.X, np.full((cells.n_obs, 3), 500)]).tocsr().astype(np.int32)
    names = np.array([*map(str.encode, cells.var_names), b"CD3", b"CD4", b"CD19"])
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["data"], group["indices"], group["indptr"] = counts.data, counts.indices, counts.indptr
        group["shape"] = np.array(counts.shape[::-1], dtype=np.int32)
        group["barcodes"] = np.array([name.encode() for name in cells.obs_names])
        features = group.create_group("features")
        features["id"] = features["name"] = names
        features["feature_type"] = np.array([b"Gene Expression"] * cells.n_vars + [b"Antibody Capture"] * 3)
    return path


def _as_market(folder: Path, cells: ad.AnnData, by_genes: bool = False, **changes) -> list[Path]:
    """Write the three files of a 10x matrix; `changes` are other texts of them."""
    counts = cells.X.T.tocsr().tocoo() if by_genes else cells.X.T.tocsc().tocoo()
    head = f"%%MatrixMarket matrix coordinate integer general\n%made\n{cells.n_vars} {cells.n_obs} {counts.nnz}\n"
    lines = [f"{g + 1} {c + 1} {int(n)}\n" for g, c, n in zip(counts.row, counts.col, counts.data, strict=True)]
    texts = {
        "GSM1_matrix.mtx.gz": head + "".join(lines),
        "GSM1_features.tsv.gz": "".join(f"{gene}\t{gene}\tGene Expression\n" for gene in cells.var_names),
        "GSM1_barcodes.tsv.gz": "".join(f"{name}\n" for name in cells.obs_names),
    } | changes
    for name, text in texts.items():
        content = text if isinstance(text, bytes) else gzip.compress(text.encode())
        (folder / name).write_bytes(content if name.endswith(".gz") else gzip.decompress(content))
    return [folder / name for name in texts]


def test_three_files_of_a_matrix_have_the_same_results(visit, few, expected, tmp_path):
    for by_genes in (False, True):
        table = visit.table(_as_market(tmp_path, few, by_genes))
        assert_same(table, expected)
        assert list(table.index) == list(few.obs_names)
    assert "10x matrix file with 40 cells" in visit.page.inner_text("#audit")
    whole = _as_market(tmp_path, few)
    matrix = gzip.decompress(whole[0].read_bytes()).decode()
    plain = [path.with_suffix("") for path in whole]
    for path, packed in zip(plain, whole, strict=True):
        path.write_bytes(gzip.decompress(packed.read_bytes()))
    assert_same(visit.table(plain), expected)
    for words, text in (
        ("cut off: it cannot be unpacked", whole[0].read_bytes()[:900]),
        ("entries, but its head declares", matrix[: len(matrix) // 2].rpartition("\n")[0]),
        ("a line that is not an entry", matrix.replace(" 2 ", " 2 x ", 1) + "\n"),
        ("an entry outside its", re.sub(r" 40 (\d+)\n$", r" 41 \1\n", matrix)),
        ("too many for its size", re.sub(r" \d+\n", " 999999999999\n", matrix, count=1)),
        ("is not a general coordinate Matrix Market", "gene,cell\n"),
        ("raw counts", re.sub(r"^(\d+ \d+ [1-9]\d?)$", r"\1.37", matrix.replace("integer", "real"), flags=re.M)),
    ):
        changed = _as_market(tmp_path, few, **{"GSM1_matrix.mtx.gz": text})
        assert words in visit.problem(changed)
    changed = _as_market(tmp_path, few, **{"GSM1_barcodes.tsv.gz": "one\n"})
    assert "do the three files belong together" in visit.problem(changed)
    assert "needs the names of its genes and cells" in visit.problem(changed[:1])
    assert "Bring one file of cells, or the three files" in visit.problem(changed[1:])


def test_forms_of_files_have_the_same_results(visit, written, few, expected, tmp_path):
    def log_normalised(cells):
        totals = np.asarray(cells.X.sum(axis=1))
        cells.X = sp.csr_matrix(np.log1p(cells.X.toarray() / totals * 1e4).astype(np.float32))

    def with_layer(cells):
        cells.layers["counts"] = cells.X.copy()
        cells.X = cells.X.toarray() / 3.7 - 1

    def with_raw(cells):
        cells.raw = cells.copy()
        cells.X = cells.X.toarray() - 0.5

    def compressed(file):
        for name in ("data", "indices"):
            values = file["X"][name][()]
            del file["X"][name]
            file["X"].create_dataset(name, data=values, chunks=True, **hdf5plugin.Zstd())

    forms = {
        "columns": (lambda cells: setattr(cells, "X", cells.X.tocsc()), None, "X"),
        "dense": (lambda cells: setattr(cells, "X", cells.X.toarray().astype(np.int64)), None, "X"),
        "logarithms": (log_normalised, None, "computed back from log1p values"),
        "layer": (with_layer, None, "layers['counts']"),
        "raw": (with_raw, None, "raw.X"),
        "zstd": (None, compressed, "X"),
    }
    for name, (change, in_file, place) in forms.items():
        assert_same(visit.table(written(change, in_file, compression="gzip")), expected)
        assert place in visit.page.inner_text("#audit"), name
    assert_same(visit.table(_as_10x(tmp_path / "cells.h5", few)), expected)
    assert "3 Antibody Capture" in visit.page.inner_text("#audit")
    assert_same(visit.table(_as_old_10x(tmp_path / "old.h5", few)), expected)


def test_a_visitor_looks_closer(visit, written, expected):
    visit.bring(written())
    page = visit.page
    visit.wait("html[data-mapped=yes]")
    for name in ("confidence", "novelty", "genes expressed"):
        page.select_option(".cell-plot-choice", name)
        page.wait_for_selector(".cell-plot-ramp")
    page.fill("#gene", "cd7")
    assert page.locator("#gene-names option").first.get_attribute("value") == "CD7"
    page.fill("#gene", "CD79A")
    page.press("#gene", "Enter")
    page.wait_for_selector(".cell-plot-legend :text('CD79A')")
    page.fill("#gene", "no such gene")
    page.press("#gene", "Enter")
    page.wait_for_selector("#gene-says:has-text('not one of the model')")
    name = next(name for name in expected.predicted if name != "unassigned")
    page.locator("#types tbody button", has_text=name).first.click()
    shown = page.locator("#cells tbody tr td:nth-child(2)").all_inner_texts()
    assert set(shown) == {name} and len(shown) == min(expected.predicted.count(name), 25)
    page.select_option("#only", "")
    assert page.inner_text("#page") == "1 to 25 of 40"
    page.click("#after")
    assert page.inner_text("#page") == "26 to 40 of 40"


def test_a_visitor_cancels(visit, site, tmp_path, few):
    large = tmp_path / "large.h5ad"
    ad.AnnData(sp.vstack([few.X] * 25, format="csr"), var=few.var[[]]).write_h5ad(large)
    visit.bring(large, wait=False)
    visit.page.wait_for_selector("#working:not([hidden])")
    visit.page.click("#cancel")
    assert visit.page.is_visible("#drop") and not visit.page.is_visible("#working")
    few[:10].copy().write_h5ad(large)
    assert len(visit.table(large)) == 10


def test_of_a_large_file_cells_at_equal_steps_are_annotated(visit, tmp_path):
    rng = np.random.default_rng(0)
    genes = ["CD3E", "MS4A1", "LYZ", "NKG7", "CD79A", "S100A8"]
    n = 300_000
    counts = sp.csr_matrix(
        (np.ones(2 * n, np.float32), rng.integers(0, 3, 2 * n) * 2 + np.tile([0, 1], n), np.arange(0, 2 * n + 1, 2)),
        shape=(n, len(genes)),
    )
    path = tmp_path / "large.h5ad"
    ad.AnnData(counts, var=pd.DataFrame(index=genes)).write_h5ad(path)
    table = visit.table(path)
    assert list(table.index[:3]) == [0, 150, 300] and len(table) == MOST_CELLS
    notice = visit.page.inner_text("#notice")
    assert "300,000 cells" in notice and "2,000 of them, taken at equal steps" in notice


def test_two_visitors_at_once(visit, other, written, expected):
    path = written()
    visit.bring(path, wait=False)
    other.bring(path, wait=False)
    for one in (visit, other):
        one.wait(SHOWN)
        assert_same(one.table(), expected)


# -------------------------------------------------------------------- rules


def test_nothing_leaves_the_page(visit, site, written):
    visit.bring(written())
    visit.wait("html[data-mapped=yes]")
    assert all(url.startswith((site[1], "blob:", "data:")) for url in visit.asked)
    with served(site[0]) as elsewhere:
        tried = "fetch(address, {mode: 'no-cors'}).then(() => 'sent', () => 'refused')"
        assert visit.run(f"(address) => {tried}", elsewhere) == "refused"
        in_worker = f"""(address) => new Promise((resolve) => {{
            const code = `const address = "${{address}}"; {tried}.then((said) => postMessage(said))`;
            const worker = new Worker(URL.createObjectURL(new Blob([code])));
            worker.onmessage = (event) => resolve(event.data);
        }})"""
        assert visit.run(in_worker, elsewhere) == "refused"


def test_without_a_network_once_it_is_loaded(other, written, expected):
    other.run("navigator.serviceWorker.ready.then(() => true)")
    other.page.context.set_offline(True)
    other.page.reload()
    other.wait("html[data-ready=yes]")
    assert_same(other.table(written()), expected)
    other.page.context.set_offline(False)


def test_names_with_scripts_are_text(visit, written):
    def hostile(cells):
        cells.obs_names = [f"{SCRIPT}{i}" for i in range(cells.n_obs)]
        cells.var_names = [SCRIPT, *cells.var_names[1:]]
        cells.obs[SCRIPT] = SCRIPT

    path = written(hostile)
    table = visit.table(path)
    assert table.index[0] == f"{SCRIPT}0" and table[SCRIPT].iloc[0] == SCRIPT
    visit.wait("html[data-mapped=yes]")
    assert SCRIPT in visit.page.inner_text("#cells")
    box = visit.page.locator(".cell-plot-canvas").bounding_box()
    for step in range(0, int(box["width"]), 8):
        visit.page.mouse.move(box["x"] + step, box["y"] + box["height"] / 2)
    assert visit.page.title() == "Cells of blood" and visit.page.locator("img[onerror]").count() == 0


# -------------------------------------------------------------------- bad files


def _link(file):
    del file["X"]
    file["X"] = h5py.ExternalLink("/etc/hostname", "/X")


def _stored_elsewhere(file):
    shape = file["X/data"].shape
    del file["X/data"]
    file["X"].create_dataset("data", shape=shape, dtype="f4", external=[("/etc/hostname", 0, 4 * shape[0])])


def _view(file):
    shape = file["X/data"].shape
    del file["X/data"]
    layout = h5py.VirtualLayout(shape=shape, dtype="f4")
    layout[:] = h5py.VirtualSource("other.h5", "data", shape=shape)
    file["X"].create_virtual_dataset("data", layout)


def _bomb(file):
    del file["X"]
    file.create_dataset("X", shape=(40, 10**9), dtype="f4", chunks=(1, 1000))


def _index(file):
    file["X/indices"][5] = 99_999


def _shape(file):
    file["X"].attrs["shape"] = [10**15, 2]


def _nan(cells):
    cells.X = cells.X.toarray()
    cells.X[3, 5] = np.nan


def _normalised(cells):
    cells.X = sp.csr_matrix(
        cells.X.toarray() / np.asarray(cells.X.sum(axis=1)) * 1e4 + 0.0131 * (cells.X > 0).toarray()
    )


def _rename(cells, change):
    cells.var_names = [change(name) for name in cells.var_names]


BAD = {
    "normalised": (_normalised, None, "as normalised data has"),
    "missing values": (_nan, None, "1 missing (NaN)"),
    "negative": (lambda cells: setattr(cells, "X", cells.X.toarray() - 1), None, "negative values"),
    "mouse": (lambda cells: _rename(cells, str.capitalize), None, "mouse cells"),
    "unknown": (lambda cells: _rename(cells, lambda name: f"x{name}x"), None, "no gene of these cells"),
    "no cells": (lambda cells: cells[:0].copy(), None, "empty: 0 cells"),
    "link": (None, _link, "'/etc/hostname'"),
    "elsewhere": (None, _stored_elsewhere, "/X/data cannot be read"),
    "view": (None, _view, "'other.h5'"),
    "bomb": (None, _bomb, "declares"),
    "index": (None, _index, "index 99999"),
    "shape": (None, _shape, "damaged sparse matrix"),
}  # fmt: skip


def test_bad_files_are_refused_with_a_sentence(visit, written, tmp_path, expected):
    for name, (change, in_file, part) in BAD.items():
        said = visit.problem(written(change, in_file))
        assert part in said and len(said) < 700, (name, said)
    whole = written(compression="gzip").read_bytes()
    for name, content, part in (
        ("text.h5ad", b"these are not cells\n" * 50, "is not an HDF5 file"),
        ("empty.h5ad", b"", "is empty"),
        ("cut.h5ad", whole[: len(whole) // 2], "damaged or cut off"),
        ("large.h5ad", None, "reads files up to 32 MB"),
    ):
        path = tmp_path / name
        path.write_bytes(content or b"")
        if content is None:
            with path.open("wb") as file:
                file.truncate(MOST_BYTES + 1)
        said = visit.problem(path)
        assert part in said and name in said, said
    assert_same(visit.table(written()), expected)  # the page is as before


# -------------------------------------------------------------------- rules of tokens


NAMES = [
    "ENSG00000177455", "ENSG00000177455.12", "MS4A1", "CD20", "ms4a1", "CD3E_ENSG00000198851", "GRCh38___LYZ", "HLA.A",
    "TBCE", "TBCE-1", "C1ORF43", "NKG7|4818", "mm10___Lyz2", "ENSMUSG00000030724", "", "nan", "7157", "MARCH1", "TRAC",
    "SNORD115-1", "ENST00000335137", "GPR56", "ENSG00000198851_ENSG00000177455", "X", "CD4", "CD4-1", "  FCN1 ",
]  # fmt: skip


def test_genes_are_found_as_in_python(visit):
    vocabulary = GeneVocabulary.load(cellglot.model_path("blood-exceiver"))
    rng = np.random.default_rng(1)
    human = human_genes()
    some = [str(name) for name in rng.choice(human.names(), 3000)] + list(human.retired_ids())[:300]
    index = [*NAMES, *some]
    symbols = [vocabulary.symbols.get(gene, "") for gene in rng.choice(vocabulary.genes, len(index))]
    for columns in ({}, {"gene_symbols": symbols}, {"gene_ids": symbols[::-1]}):
        found = visit.run(
            """async ([index, columns]) => {
                const { Vocabulary } = await import("./genes.js");
                const packed = (await fetch("model/genes.json.gz")).body.pipeThrough(new DecompressionStream("gzip"));
                const vocabulary = new Vocabulary(await new Response(packed).json());
                const match = vocabulary.resolve(index, new Map(columns));
                return [Array.from(match.tokens), match.ambiguous];
            }""",
            [index, list(columns.items())],
        )
        match = vocabulary.resolve(index, columns)
        differing = [(n, a, b) for n, a, b in zip(index, found[0], match.token_ids.tolist(), strict=True) if a != b]
        assert not differing[:5] and found[1] == int(match.ambiguous.sum())


def test_tokens_are_those_of_python(visit, vocabulary, few):
    counts = sp.csr_matrix(few.X)
    for tokenizer in (
        RankValueTokenizer.from_vocabulary(vocabulary, model_max_length=150),
        RankValueTokenizer.from_vocabulary(vocabulary, add_cls_token=False),
    ):
        known = tokenizer.vocabulary
        weights = np.zeros(known.vocab_size)
        weights[known.gene_token_ids] = 1 / known.medians
        match = known.resolve(few.var_names)
        settings = {
            "kind": "rank", "vocab_size": len(tokenizer), "target_sum": 1e4, "max_length": tokenizer.model_max_length,
            "cls_token_id": tokenizer.cls_token_id if tokenizer.add_cls_token else None,
        }  # fmt: skip
        found = visit.run(
            """async ([settings, weights, tokens, data, indices, indptr]) => {
                const { Encoder } = await import("./tokens.js");
                const encoder = new Encoder(settings, { weights }, Int32Array.from(tokens));
                const rows = { data: Float64Array.from(data), indices, indptr };
                const { tokens: encoded, indptr: ends } = encoder.encode(rows);
                return [...ends].slice(1).map((end, i) => [...encoded.slice(ends[i], end)]);
            }""",
            [settings, weights.tolist(), match.token_ids.tolist(), *(part.tolist() for part in (
                counts.data, counts.indices, counts.indptr
            ))],
        )  # fmt: skip
        assert found == tokenizer(few)["input_ids"]


def test_other_names_of_a_vocabulary_without_human_genes():
    content = gene_names(GeneVocabulary.from_statistics(["ENSMUSG00000030724"]), human_genes())
    assert content["other_names"] == content["other_ids"] == []


def test_the_page_is_small_and_says_its_licences(site):
    folder, _ = site
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 25_000_000
    licences = (folder / "vendor" / "LICENSES.txt").read_text()
    assert all(name in licences for name in ("h5wasm", "onnxruntime-web", "umap-js", "MIT"))
    for path in folder.glob("*.*"):
        text = path.read_text()
        assert "https://" not in text and "http://" not in text.replace("http://www.w3.org/2000/svg", ""), path
    settings = json.loads((folder / "model" / "settings.json").read_text())
    assert settings["weights"] == "float32" and settings["calibrated"]


@contextmanager
def _no_network(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:9")
    yield


def test_packages_are_checked(monkeypatch, tmp_path):
    from cellglot.model_cards.space.browser import npm

    name, package = next(iter(npm.packages().items()))
    with _no_network(monkeypatch, tmp_path):
        with pytest.raises(npm.PackageError, match=f"{name}, which the page needs, cannot be downloaded"):
            npm.tarball(name, package)
        kept = npm.cache_folder() / f"{name}-{package['version']}.tgz"
        kept.write_bytes(b"another package")
        with pytest.raises(npm.PackageError):  # what is kept is checked, too
            npm.tarball(name, package)
        monkeypatch.setattr(npm, "_download", lambda url, name: b"another package")
        with pytest.raises(npm.PackageError, match="is not the pinned package"):
            npm.tarball(name, package)


def test_app_serves_the_page_on_this_machine(site, monkeypatch, capsys, tmp_path):
    model, graph = tmp_path / "blood", (site[0] / GRAPH).read_bytes()
    shutil.copytree(cellglot.model_path("blood-exceiver"), model)
    path = model / FOLDER / ONNX_FILES["float32"]
    path.parent.mkdir()
    path.write_bytes(gzip.decompress(graph))
    servers = queue.Queue()
    start = running.server_of
    monkeypatch.setattr(running, "server_of", lambda *given: servers.put(made := start(*given)) or made)
    options = {"browser": True, "most_cells": 50}
    thread = threading.Thread(target=app, args=(str(model),), kwargs=options)
    thread.start()
    server = servers.get(timeout=120)
    address = address_of(server)
    with urllib.request.urlopen(f"{address}model/settings.json") as reply:
        assert reply.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert json.load(reply)["most_cells"] == 50
    with urllib.request.urlopen(address) as reply:
        assert b'id="drop"' in reply.read()
    with urllib.request.urlopen(f"{address}{GRAPH}") as reply:
        assert reply.read() == graph  # the model's own, not another export
    server.shutdown()
    thread.join()
    assert f"{address} annotates cells in the browser" in capsys.readouterr().out


def test_other_models_are_refused(tmp_path):
    config = json.loads(Path(cellglot.model_path("blood-exceiver"), "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["ExceiverModel"]}))
    with pytest.raises(ValueError, match="cannot annotate cells in a browser: it is for"):
        stage_page(tmp_path, tmp_path / "page", name="x")
