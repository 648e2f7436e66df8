"""The commands that need texts: annotate and query."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from matplotlib.image import imread

from cellglot import CellOntology
from cellglot.evaluation.annotation.by_texts import annotate_cells
from cellglot.evaluation.text_model import embed_texts
from cellglot.modeling.any_model import load_cell_text_model


CPU = ("--device", "cpu")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny tensors are computed by one thread: waiting for others takes longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def cells(blood, tmp_path_factory):
    path = tmp_path_factory.mktemp("few") / "few.h5ad"
    few = blood[:24].copy()
    few.layers["twice"] = few.X * 2
    few.write_h5ad(path)
    return path


def test_annotate(cellglot_command, cell_text_folder, cells, tmp_path):
    output, table, plot = tmp_path / "out.h5ad", tmp_path / "t.csv", tmp_path / "umap.png"
    given = "B cell,CD4-positive, alpha-beta T cell,CD14+ Monocyte,my odd cell,CL:0000236"
    done = cellglot_command(
        "annotate",
        cell_text_folder,
        cells,
        "-o",
        output,
        "--candidates",
        given,
        "--table",
        table,
        "--plot",
        plot,
        *CPU,
    )
    assert done.status == 0, done.err
    assert "4 candidates (5 given)" in done.out and "1 duplicates are used once" in done.out
    assert "are their own text: my odd cell" in done.out and "765 of 765 genes" in done.out
    assert all(str(path) in done.out for path in (output, table, plot))
    model, processor = load_cell_text_model(cell_text_folder)
    names = ["B cell", "CL:0000624", "CL:0001054", "my odd cell"]
    before = ad.read_h5ad(cells)
    expected = annotate_cells(
        model, processor, before, names, ontology=CellOntology.shipped(), device="cpu", progress=False
    )
    after = ad.read_h5ad(output)
    assert after.obs["cellglot_cell_type"].tolist() == expected.predicted
    np.testing.assert_allclose(after.obsm["cellglot_scores"], expected.scores, atol=1e-5)
    assert after.obsm["X_cellglot_umap"].shape == (24, 2) and imread(plot).std() > 0.01
    assert "cellglot_score_uncalibrated" in after.obs
    assert list(after.obs["cell_type"]) == list(before.obs["cell_type"])
    assert (after.X != before.X).nnz == 0 and (after.layers["twice"] != before.layers["twice"]).nnz == 0
    assert pd.read_csv(table)["cell_type"].tolist() == expected.predicted
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.h5ad", "t.csv", "umap.png"]


def test_annotate_by_a_branch_with_every_option(cellglot_command, cell_text_folder, cells, tmp_path):
    output = tmp_path / "out.h5ad"
    arguments = "--ontology blood --ontology-branch monocyte --leaves-only --template {name} --template {definition}"
    arguments += " --alpha 0.5 --shortlist 1 --smooth 3 --back-off-below 0.9 --labels cell_type"
    arguments += " --batch-size 8 --dtype bfloat16"
    done = cellglot_command("annotate", cell_text_folder, cells, "-o", output, *arguments.split(), *CPU)
    assert done.status == 0, done.err
    ontology, after = CellOntology.blood(), ad.read_h5ad(output)
    types = set(after.uns["cellglot"]["cell_types"])
    assert types == {t for t in ontology.descendants("CL:0000576") if not ontology.descendants(t)}
    assert "calibrated on" in done.out and "cellglot_score_calibrated" in after.obs
    assert {"cellglot_backed_off", "cellglot_mass", "cellglot_best_candidate"} <= set(after.obs)
    assert set(after.obs["cellglot_cell_type"]) <= {ontology.name(t) for t in types} | {"monocyte"}


def test_annotate_a_branch_of_a_corpus(cellglot_command, cell_text_folder, cells, corpus, tmp_path):
    from cellglot.training.data.cell_types import cell_types_of

    ontology = CellOntology.shipped()
    chosen = ["--ontology-branch", "lymphocyte", "--in-corpus", corpus.folder]
    done = cellglot_command("annotate", cell_text_folder, cells, "-o", tmp_path / "out.h5ad", *chosen, *CPU)
    assert done.status == 0, done.err
    seen = set(cell_types_of(corpus, ontology).tables.cell_types) & ontology.descendants("CL:0000542")
    assert set(ad.read_h5ad(tmp_path / "out.h5ad").uns["cellglot"]["cell_types"]) == seen


def test_annotate_other_formats_by_prompts(cellglot_command, cell_text_folder, cells, tmp_path, monkeypatch):
    from cellglot.tokenization.reading.cells import Cells

    before = ad.read_h5ad(cells)
    before.write_zarr(tmp_path / "few.zarr")
    (tmp_path / "prompts.json").write_text(json.dumps({"one": ["makes antibody", "has CD19"], "two": "eats bacteria"}))
    chunks = Cells.chunks
    monkeypatch.setattr(Cells, "chunks", lambda self: chunks(self, max_cells=9))
    given = ["--candidates-file", tmp_path / "prompts.json", "--table", tmp_path / "t.parquet"]
    done = cellglot_command(
        "annotate", cell_text_folder, tmp_path / "few.zarr", "-o", tmp_path / "out.h5ad", *given, *CPU
    )
    assert done.status == 0, done.err
    after = ad.read_h5ad(tmp_path / "out.h5ad")
    assert set(after.obs["cellglot_cell_type"]) <= {"one", "two"} and after.shape == before.shape
    assert sp.issparse(after.X) and (after.X != before.X).nnz == 0
    assert after.obs_names.tolist() == before.obs_names.tolist() and list(after.var_names) == list(before.var_names)
    assert pd.read_parquet(tmp_path / "t.parquet").shape[0] == 24


def shown(done):
    """Names of the cells that a query printed, with their cosines."""
    lines = done.out.split("cosine")[1].splitlines()[1:11]
    return {line.split()[1]: float(line.split()[2]) for line in lines if line.strip()[:1].isdigit()}


def test_query(cellglot_command, cell_text_folder, cells, tmp_path):
    text, files = "cell type: B cell. ", {"few": cells}
    for ending in ("h5ad", "parquet", "npy"):
        files[ending] = tmp_path / f"embedding.{ending}"
        done = cellglot_command("embed", cell_text_folder, cells, "-o", files[ending], *CPU)
        assert done.status == 0, done.err
    files["annotated"] = tmp_path / "annotated.h5ad"
    annotated = cellglot_command(
        "annotate", cell_text_folder, cells, "-o", files["annotated"], "--candidates", "B cell,T cell", *CPU
    )
    assert annotated.status == 0, annotated.err
    embedding = np.load(files["npy"])
    asked = embed_texts(*load_cell_text_model(cell_text_folder), text, device="cpu")[0]
    order = np.argsort(-(embedding @ asked))[:5]
    names = ad.read_h5ad(cells).obs_names
    origin = {"few": "few: 24 cells", "annotated": "24 embeddings in obsm/X_cellglot", "h5ad": "24 embeddings in X"}
    for kind, path in files.items():
        done = cellglot_command("query", cell_text_folder, path, text, "--top", 5, *CPU)
        assert done.status == 0, done.err
        expected = [str(i) for i in order] if kind == "npy" else names[order].tolist()
        assert list(shown(done)) == expected
        np.testing.assert_allclose(list(shown(done).values()), (embedding @ asked)[order], atol=1e-3)
        assert origin.get(kind, f"24 embeddings of embedding.{kind}") in done.out


def test_query_does_not_use_embeddings_of_another_model(cellglot_command, cell_text_folder, cells, tmp_path):
    model, processor = load_cell_text_model(cell_text_folder)
    annotated = tmp_path / "annotated.h5ad"
    done = cellglot_command("annotate", cell_text_folder, cells, "-o", annotated, "--candidates", "B cell", *CPU)
    assert done.status == 0, done.err
    with torch.no_grad():
        model.cell_model.projection.weight.mul_(-1)
    model.save_pretrained(tmp_path / "other")
    processor.save_pretrained(tmp_path / "other")
    done = cellglot_command("query", tmp_path / "other", annotated, "B cell", *CPU)
    assert done.status == 0, done.err
    assert "the embeddings in annotated.h5ad are of another model: its cells are embedded again" in done.out
    assert list(shown(done)) == list(shown(cellglot_command("query", tmp_path / "other", cells, "B cell", *CPU)))


def test_query_writes_scores(cellglot_command, cell_text_folder, cells, tmp_path):
    output, table = tmp_path / "out.h5ad", tmp_path / "best.csv"
    done = cellglot_command(
        "query", cell_text_folder, cells, "B cell", "--top", 3, "-o", output, "--table", table, *CPU
    )
    assert done.status == 0, done.err
    after, best = ad.read_h5ad(output), pd.read_csv(table)
    assert sorted(after.obs["cellglot_query_rank"]) == list(range(1, 25)) and after.uns["cellglot_query"] == "B cell"
    first = after.obs.sort_values("cellglot_query_rank").iloc[:3]
    assert best["cell_id"].tolist() == first.index.tolist()
    np.testing.assert_allclose(best["cosine"], first["cellglot_query"], atol=1e-6)
    assert best["cell_type"].tolist() == first["cell_type"].astype(str).tolist()
    embedded = tmp_path / "embedding.h5ad"
    assert cellglot_command("embed", cell_text_folder, cells, "-o", embedded, *CPU).status == 0
    done = cellglot_command("query", cell_text_folder, embedded, "B cell", "-o", tmp_path / "two.h5ad", *CPU)
    assert done.status == 0, done.err
    again = ad.read_h5ad(tmp_path / "two.h5ad")
    np.testing.assert_allclose(again.obs["cellglot_query"], after.obs["cellglot_query"], atol=1e-5)


@pytest.fixture(scope="module")
def folder(cell_text_folder, vocabulary, blood, cells, tmp_path_factory):
    """A folder with models and cells under short names."""
    from cellglot.modeling import ScCelloConfig, ScCelloModel
    from cellglot.tokenization import RankValueTokenizer

    folder = tmp_path_factory.mktemp("wrong")
    (folder / "langcell").symlink_to(cell_text_folder)
    (folder / "few.h5ad").symlink_to(cells)
    tokenizer = RankValueTokenizer.from_vocabulary(vocabulary)
    torch.manual_seed(0)
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    ScCelloModel(ScCelloConfig(vocab_size=tokenizer.vocab_size, **small)).save_pretrained(folder / "sccello")
    tokenizer.save_pretrained(folder / "sccello")
    other = blood[:5].copy()
    other.var_names = [f"mouse{i}" for i in range(other.n_vars)]
    other.write_h5ad(folder / "mouse.h5ad")
    blood[:3].write_h5ad(folder / "three.h5ad")
    np.save(folder / "other.npy", np.ones((4, 8), dtype=np.float32))
    np.save(folder / "good.npy", np.eye(8, dtype=np.float32))
    (folder / "c.json").write_text("{")
    return folder


ASK = ["annotate", "langcell", "few.h5ad", "-o", "new.h5ad"]
ERRORS = {
    "no candidates": (ASK, "no candidates: name at least one cell type"),
    "empty candidate": ([*ASK, "--candidates", "B cell,,T cell"], "candidate 2 of 3 is empty"),
    "two sources": ([*ASK, "--candidates", "a", "--candidates-file", "c.json"], "not by both"),
    "broken file": ([*ASK, "--candidates-file", "c.json"], "c.json is not JSON"),
    "no such branch": ([*ASK, "--ontology-branch", "leukozyte"], "'leukozyte' is not a known cell type"),
    "no CL term": (
        [*ASK, "--ontology-branch", "leukocyte", "--candidates", "odd"],
        "'odd' is not a known cell type",
    ),
    "leaves of nothing": ([*ASK, "--candidates", "B cell", "--leaves-only"], "need a branch"),
    "unknown ontology": ([*ASK, "--candidates", "B cell", "--ontology", "no.obo"], "ontology 'no.obo' is not a file"),
    "wrong template": ([*ASK, "--candidates", "B cell", "--template", "cell"], "has no field such as {name}"),
    "alpha": ([*ASK, "--candidates", "B cell", "--alpha", "3"], "alpha=3"),
    "dtype": ([*ASK, "--candidates", "B cell", "--dtype", "int8"], "dtype 'int8'"),
    "labels": ([*ASK, "--candidates", "B cell", "--labels", "weather"], "no column 'weather' in obs"),
    "output": (["annotate", "langcell", "few.h5ad", "-o", "new.csv", "--candidates", "a"], "are written as .h5ad"),
    "output is input": (
        ["annotate", "langcell", "few.h5ad", "-o", "few.h5ad", "--candidates", "a"],
        "the file of cells",
    ),
    "no folder": (
        ["annotate", "langcell", "few.h5ad", "-o", "x/new.h5ad", "--candidates", "a"],
        "there is no folder x",
    ),
    "table": ([*ASK, "--candidates", "B cell", "--table", "t.xls"], "tables are written as .csv"),
    "too few to draw": (
        ["annotate", "langcell", "three.h5ad", "-o", "new.h5ad", "--candidates", "a", "--plot", "p.png"],
        "3 cells are too few for a UMAP",
    ),
    "no known genes": (
        ["annotate", "langcell", "mouse.h5ad", "-o", "new.h5ad", "--candidates", "B cell"],
        "no gene of these cells",
    ),
    "another model": (
        ["annotate", "sccello", "few.h5ad", "-o", "new.h5ad", "--candidates", "B cell"],
        "sccello is of type 'sccello': it embeds and classifies cells, but does not read texts",
    ),
    "no model": (
        ["annotate", "nowhere", "few.h5ad", "-o", "new.h5ad", "--candidates", "B cell"],
        "nowhere is not a folder",
    ),
    "query of another model": (["query", "sccello", "few.h5ad", "B cell"], "does not read texts"),
    "empty query": (["query", "langcell", "few.h5ad", " "], "the text to search for is empty"),
    "top": (["query", "langcell", "few.h5ad", "B cell", "--top", "0"], "top=0"),
    "other embeddings": (["query", "langcell", "other.npy", "B cell"], "but this model's are normalised and of size"),
    "no cells to write": (["query", "langcell", "good.npy", "B cell", "-o", "new.h5ad"], "contains only embeddings"),
}


@pytest.mark.parametrize(("command", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_are_one_line(cellglot_command, folder, monkeypatch, command, message):
    monkeypatch.chdir(folder)
    done = cellglot_command(*command, "--device", "cpu")
    assert done.status == 2
    assert message in done.err
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in done.err
    assert not (folder / "new.h5ad").exists()


def test_long_texts_are_said(cellglot_command, cell_text_folder, cells, tmp_path):
    (tmp_path / "c.json").write_text(json.dumps({"long": "a b " * 400, "short": "b cell"}))
    given = ["--candidates-file", tmp_path / "c.json"]
    done = cellglot_command("annotate", cell_text_folder, cells, "-o", tmp_path / "out.h5ad", *given, *CPU)
    assert done.status == 0, done.err
    assert "1 texts were truncated to the text encoder's maximum length" in done.out
