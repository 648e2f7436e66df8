"""Bad input of visitors: each gets a sentence, with the names of their own files, and the next visitor is served."""

import gzip
import os
import re
import threading

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp

from cellglot.model_cards.space.gradio.limits import Limits, TooLargeError
from cellglot.model_cards.space.gradio.reading import read_files


SCRIPT = "<img src=x onerror=alert(1)>"


@pytest.fixture
def page(page_of, blood_annotator):
    return page_of(blood_annotator)


@pytest.fixture(scope="session")
def few(blood):
    """Ten blood cells with all genes of the file."""
    return blood[:10].copy()


def write(cells, path):
    cells.write_h5ad(path)
    return path


def a_text(few, path):
    path.write_text("gene,cell\nCD3D,4\n")
    return "is a text file, not HDF5"


def truncated(few, path):
    whole = write(few, path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return "cut short|truncated|not an HDF5 file"


def normalised(few, path):
    few.X = sp.csr_matrix(few.X.multiply(np.random.default_rng(0).uniform(0.1, 0.9, (few.n_obs, 1))))
    write(few, path)
    return "not raw counts|whole numbers"


def missing_values(few, path):
    few.X.data[3] = np.nan
    write(few, path)
    return "NaN"


def of_mouse(few, path):
    few.var_names = ["Cd3d", "Gapdh", "Lyz2", "Ms4a1", "Cd79a", *(f"Rps{n}" for n in range(few.n_vars - 5))]
    write(few[:, :40].copy(), path)
    return "genes of mouse.*choose “mouse”"


def no_known_gene(few, path):
    few.var_names = [f"{SCRIPT}{n}" for n in range(few.n_vars)]
    write(few, path)
    return "no gene of these cells"


def dense_bomb(few, path):
    write(few, path)
    with h5py.File(path, "r+") as file:
        del file["X"]
        made = file.create_dataset("X", (10, few.n_vars), "f4", chunks=(1, 64), maxshape=(None, None), compression=9)
        made[0] = 1
        made.resize((1_900_000, few.n_vars))
        made.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        del file["obs"]["_index"]
        file["obs"].create_dataset("_index", (1_900_000,), h5py.string_dtype(), chunks=(1 << 16,), compression=9)
        for name in [n for n in file["obs"] if n != "_index"]:
            del file["obs"][name]
        file["obs"].attrs["column-order"] = np.array([], dtype="S1")
    return "1,900,000 cells.*at most 1,000,000,000|declares 5,814,000,000 bytes"


def sparse_bomb(few, path):
    write(few, path)
    with h5py.File(path, "r+") as file:
        file["X"].attrs["shape"] = np.array([10**12, few.n_vars])
    return "cells"


def external_link(few, path):
    write(few, path)
    secret = path.with_name("secret.h5")
    with h5py.File(secret, "w") as file:
        file["X"] = np.ones((10, few.n_vars), dtype="f4")
    with h5py.File(path, "r+") as file:
        del file["X"]
        file["X"] = h5py.ExternalLink(str(secret), "X")
    return "another file|external|link"


def over_the_limit(few, path):
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(2 << 20))
    return "has 2 MB; this page takes at most 1 MB"


KINDS = [
    a_text, truncated, normalised, missing_values, of_mouse, no_known_gene, dense_bomb, sparse_bomb, external_link,
    over_the_limit,
]  # fmt: skip


@pytest.mark.parametrize("damage", KINDS, ids=lambda f: f.__name__)
def test_a_visitor_gets_a_sentence(page, visit_of, few, tmp_path, damage):
    path = tmp_path / "mine.h5ad"
    expected = damage(few.copy(), path)
    visit, shown = visit_of(page, [path])
    said = shown["summary"]
    assert "were not annotated" in said
    assert pd.Series([said]).str.contains(expected, regex=True).all(), said
    assert str(tmp_path) not in said
    assert "mistake of ours" not in said
    assert "<img" not in said
    assert (shown["types"], shown["map"], shown["files"], visit.result) == ("", "", None, None)


def test_mouse_genes_are_read_when_the_visitor_says_so(page, visit_of, blood_annotator, tmp_path):
    symbols = ["Cd3d", "Cd3e", "Lyz2", "Ms4a1", "Cd79a", "Gapdh", "Nkg7", "Cd14", "Gnly", "Actb", "Rps3", "Cd8a"]
    counts = sp.csr_matrix(np.random.default_rng(0).poisson(3, (8, len(symbols))).astype("f4"))
    cells = ad.AnnData(counts, var=pd.DataFrame(index=symbols))
    visit, shown = visit_of(page, [write(cells, tmp_path / "mouse.h5ad")], species="mouse")
    assert "one-to-one orthologs" in shown["summary"]
    assert visit.result.genes.find("cd79a") == 4  # as the file calls it
    assert page.annotator.reasons(visit.result, 0).genes


def with_antibodies(few, path):
    kinds = ["Antibody Capture" if n % 10 == 0 else "Gene Expression" for n in range(few.n_vars)]
    with h5py.File(path, "w") as file:
        matrix, counts = file.create_group("matrix"), few.X.tocsr()
        for name in ("data", "indices", "indptr"):
            matrix[name] = getattr(counts, name).astype("i8")
        matrix["shape"], matrix["barcodes"] = counts.shape[::-1], [n.encode() for n in few.obs_names]
        features = matrix.create_group("features")
        for name, values in (("id", few.var_names), ("name", few.var_names), ("feature_type", kinds)):
            features[name] = [str(value).encode() for value in values]
    return f"{kinds.count('Antibody Capture')} of type Antibody Capture"


def many(few, path):
    n, ones = 300_000, np.ones(300_000, dtype=np.int8)
    counts = sp.csr_matrix((ones, np.arange(n, dtype=np.int32) % few.n_vars, np.arange(n + 1)), (n, few.n_vars))
    ad.AnnData(counts, var=few.var).write_h5ad(path, compression="gzip")
    return "The file has 300,000 cells. A random sample of "


def test_antibodies_are_left_out_and_named(page, visit_of, few, tmp_path):
    path = tmp_path / "protein.h5"
    expected = with_antibodies(few, path)
    visit, shown = visit_of(page, [path])
    assert expected in shown["summary"]
    assert visit.result.cells.adata.n_vars == few.n_vars - int(expected.split()[0])


def test_ten_cells_and_one(page, visit_of, few, tmp_path):
    visit, shown = visit_of(page, [write(few, tmp_path / "ten.h5ad")])
    assert len(visit.result.found) == 10
    assert '"plot"' in shown["map"]
    _, shown = visit_of(page, [write(few[:1].copy(), tmp_path / "one.h5ad")])
    assert "1 cell is too few for a map" in shown["map"]
    assert all(map(bool, shown["files"]))


def test_many_cells_are_sampled_with_a_sentence(few, tmp_path):
    n, path = 300_000, tmp_path / "many.h5ad"
    many(few, path)
    found = read_files([path], tmp_path / "visit", Limits(cells=50))
    assert (found.adata.n_obs, found.n_cells, found.source) == (50, n, None)
    assert "300,000 cells. A random sample of 50" in found.notes[0]
    rows = found.adata.obs_names.astype(int)
    assert (found.adata.X.indices == rows % few.n_vars).all()
    with pytest.raises(TooLargeError, match="300,000 cells .* at most 1,000 cells"):
        read_files([path], tmp_path / "visit", Limits(file_cells=1000))


def test_a_sample_is_annotated_and_taken_home(page, visit_of, blood, tmp_path):
    path = write(blood[:200].copy(), tmp_path / "some.h5ad")
    visit, shown = visit_of(page, [path])
    assert "The file has 200 cells. A random sample of 60" in shown["summary"]
    home = ad.read_h5ad(shown["files"][0])
    assert home.n_obs == 60
    assert list(home.obs_names) == list(visit.result.cells.adata.obs_names)
    assert (home.X != blood[home.obs_names].X).nnz == 0


def test_scripts_in_names_are_text(page, visit_of, few, tmp_path):
    few = few.copy()
    few.obs_names = [f"{SCRIPT}{n}" for n in range(10)]
    few.obs["cell_type"] = pd.Categorical([SCRIPT, "T cell"] * 5)
    few.var_names = [SCRIPT, "'\"><script>", *few.var_names[2:]]
    visit, shown = visit_of(page, [write(few, tmp_path / "mine.h5ad")])
    visit.result.found.genes.largest_losses.insert(0, (SCRIPT, 9.0))
    assert visit.result.columns["cell_type"] is not None
    shown["cell"] = page.explain(visit, 0)
    shown["summary"] = page._results(visit, visit.result).__next__()["summary"]
    for part in ("summary", "types", "cell"):
        assert "<img" not in shown[part]
        assert "<script" not in shown[part]
    assert "&lt;img" in shown["cell"]
    assert page.gene({"visit": visit.key, "gene": SCRIPT})["name"] == SCRIPT


def test_three_files_of_a_matrix(page, visit_of, few, tmp_path):
    names = [tmp_path / f"GSM1_{name}.gz" for name in ("matrix.mtx", "features.tsv", "barcodes.tsv")]
    texts = [
        "",
        "".join(f"{g}\t{g}\tGene Expression\n" for g in few.var_names),
        "".join(f"{c}\n" for c in few.obs_names),
    ]
    scipy.io.mmwrite(tmp_path / "m.mtx", few.X.T.astype(int))
    texts[0] = (tmp_path / "m.mtx").read_text()
    for path, text in zip(names, texts, strict=True):
        with gzip.open(path, "wt") as file:
            file.write(text)
    visit, shown = visit_of(page, names)
    assert visit.result.cells.adata.shape == few.shape
    assert ad.read_h5ad(shown["files"][0]).obs["cellglot_cell_type"].notna().all()
    for given, said in ((names[:1], "needs the names of its genes and cells"), (names[1:], "Drop one file of cells")):
        _, shown = visit_of(page, given)
        assert said in shown["summary"]


def test_nothing_or_too_much_is_given(page, visit_of, few, tmp_path):
    path = write(few, tmp_path / "mine.h5ad")
    for files, text, said in (
        (None, "", "Drop a file of cells"),
        ([path], "CD3D 4", "remove one of them"),
        (None, "x" * (6 << 20), "more than 5 MB"),
        (None, "CD3D", "has one field"),
        (None, "gene\tcell\nCD3D\tmany\nCD4\t1", "is not a number"),
        (None, "gene\tcell\nCD3D\t1\nCD4\t1\t2", "Line 3 has 3 fields, line 2 has 2"),
        (None, "CD3D\t-1\nCD4\t2", "negative"),
        (None, "CD3D\tNaN\nCD4\t2", "NaN"),
        (None, "CD3D\t0.5\nCD4\t2\nCD8A\t0.7\nGNLY\t3.1", "whole numbers"),
        (None, '{"CD3D": "4"}', "is not a number"),
        (None, '{"CD3D": 4', "begins as JSON"),
        (None, "[1, 2]", "is not a cell"),
    ):
        _, shown = visit_of(page, files, text)
        assert said in shown["summary"], (text[:20], shown["summary"])


def test_two_visitors_at_once(page, visit_of, blood, tmp_path):
    files = [write(blood[start : start + 40].copy(), tmp_path / f"{start}.h5ad") for start in (0, 300)]
    alone = [visit_of(page, [file], session=f"alone{i}")[0].result.found.predicted for i, file in enumerate(files)]
    together = {}

    def one(number):
        together[number], shown = visit_of(page, [files[number]], session=f"visitor{number}")
        assert together[number].result is not None, shown["summary"]

    threads = [threading.Thread(target=one, args=(number,)) for number in (0, 1)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert [together[number].result.found.predicted for number in (0, 1)] == alone
    assert page.gene({"visit": together[0].key, "gene": "LYZ"}) != page.gene({"visit": together[1].key, "gene": "LYZ"})


# -------------------------------------------------------------------- in a browser


class Visitor:
    """A visitor with a browser: drops files, and reads what the page says."""

    def __init__(self, chromium, address, give):
        self.page = chromium.new_page(viewport={"width": 1280, "height": 900})
        self.page.set_default_timeout(60_000)
        self.errors = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.address, self.give = address, give

    def drop(self, file, shown=None):
        self.page.goto(self.address)
        self.page.wait_for_selector("#cg-run")
        self.give(self.page, file, shown)

    def run(self, file):
        self.drop(file)
        self.page.click("#cg-run")

    def reads(self, expected, place="#cg-summary"):
        """Wait for a sentence; returns all of its place."""
        self.page.locator(place).filter(has_text=re.compile(expected)).wait_for()
        return self.page.inner_text(place)


@pytest.fixture(scope="module")
def visitor(chromium, served, give):
    visitor = Visitor(chromium, served.local_url, give)
    yield visitor
    assert not visitor.errors
    assert visitor.page.locator("#cg-summary img, #cg-summary script, #cg-types img").count() == 0
    visitor.page.close()


# The reasons are those of test_a_visitor_gets_a_sentence: of a file that cannot be read and of one that can.
SHOWN = (truncated, of_mouse)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(kind, marks=[] if kind in SHOWN else pytest.mark.long, id=kind.__name__)
        for kind in KINDS
        if kind is not over_the_limit
    ],
)
def test_the_page_says_why_cells_were_refused(visitor, few, tmp_path, damage):
    path = tmp_path / f"{damage.__name__}.h5ad"
    expected = damage(few.copy(), path)
    visitor.run(path)
    said = visitor.reads(expected, ".cg-refused")
    assert "were not annotated" in said
    assert os.environ["GRADIO_TEMP_DIR"] not in said
    assert not visitor.page.is_visible("#cg-types table")


@pytest.mark.long
def test_the_page_annotates_what_it_can(visitor, few, tmp_path):
    for make, name in ((with_antibodies, "protein.h5"), (many, "many.h5ad")):
        expected = make(few, tmp_path / name)
        visitor.run(tmp_path / name)
        visitor.reads(expected)
        visitor.page.wait_for_selector("#cg-types table")
    visitor.run(write(few, tmp_path / "ten.h5ad"))
    visitor.reads("ten.h5ad: 10 cells")


def test_the_page_takes_no_file_over_its_limit(visitor, few, tmp_path):
    path = tmp_path / "large.h5ad"
    path.write_bytes(bytes(10 << 20))
    visitor.drop(path, visitor.page.locator("#cg-too-large").filter(has_text="large.h5ad has"))
    said = visitor.reads("large.h5ad has", "#cg-too-large")
    assert "has 10 MB; this page takes at most 9 MB" in said
    assert not visitor.page.locator("#cg-files").get_by_text("Error").count()
    visitor.run(write(few, tmp_path / "after.h5ad"))
    visitor.reads("after.h5ad: 10 cells")


@pytest.mark.long
def test_the_page_serves_two_visitors_at_once(visitor, chromium, served, give, blood, tmp_path):
    other = Visitor(chromium, served.local_url, give)
    files = [write(blood[start : start + 40].copy(), tmp_path / f"from_{start}.h5ad") for start in (0, 300)]
    for one, file in zip((visitor, other), files, strict=True):
        one.run(file)
    for one, file in zip((visitor, other), files, strict=True):
        said = one.reads(f"{file.name}: 40 cells")
        assert not any(f.name in said for f in files if f != file)
        one.page.wait_for_selector("#cg-types table")
    assert visitor.page.inner_text("#cg-types") != other.page.inner_text("#cg-types")
    assert not other.errors
    other.page.close()
