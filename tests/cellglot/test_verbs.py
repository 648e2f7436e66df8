"""The verbs of cellglot: from Python and from the command line the same, on files and on AnnData."""

import doctest
import inspect
import json
import shutil

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import cellglot
from cellglot.cli import app
from cellglot.modeling import collection


VERBS = (
    "read_cells", "tokenize", "pretrain", "finetune", "load_model", "embed", "annotate", "query", "index",
    "map", "similar", "perturb", "genes", "evaluate", "publish", "models", "model_path",
)  # fmt: skip
CPU = {"device": "cpu"}


class Contains(doctest.OutputChecker):
    """Looks for what an example shows in what it prints: bars and losses come with it."""

    def check_output(self, want, got, optionflags):
        return want.strip() in got


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny tensors are computed by one thread: waiting for others takes longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def few(blood):
    """Two dozen cells, the fourth without counts."""
    cells = blood[:24].copy()
    counts = cells.X.tolil()
    counts[3] = 0
    cells.X = counts.tocsr()
    return cells


@pytest.fixture(scope="module")
def file(few, tmp_path_factory):
    path = tmp_path_factory.mktemp("few") / "few.h5ad"
    few.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def models(gene_classifiers, cell_text_folder):
    return gene_classifiers | {"langcell": cell_text_folder}


def command(*words):
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


# -------------------------------------------------------------------- the face


def test_the_verbs_are_documented_with_an_example():
    assert set(VERBS) <= set(cellglot.__all__)
    for name in VERBS:
        verb = getattr(cellglot, name)
        text = inspect.getdoc(verb)
        assert doctest.DocTestParser().get_examples(text), f"cellglot.{name} has no example"
        for section in ("Parameters", "Returns", "Raises", "Examples")[name == "models" :]:
            assert f"\n{section}\n{'-' * len(section)}" in text, f"cellglot.{name} lacks {section}"


def test_the_examples_run(few, file, models, blood, no_process, tmp_path, monkeypatch):
    """One after the other in one folder: what one writes is what the next reads."""
    cells = blood[:60].copy()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    for name, folder in {"classifier": models["classifier"], "langcell": models["langcell"]}.items():
        (tmp_path / name).symlink_to(folder)
    shutil.copytree(models["classifier"], tmp_path / "collection" / "blood-exceiver")
    facts = {"family": "exceiver", "purpose": "cell classification", "default": True}
    (tmp_path / "collection" / "blood-exceiver" / "collection.json").write_text(json.dumps(facts))
    monkeypatch.setattr(collection, "collection_folder", lambda: tmp_path / "collection")
    monkeypatch.chdir(tmp_path)
    small = ["model.num_latents=16", "model.hidden_size=4", "model.num_hidden_layers=1", "trainer.max_steps=1"]
    cellglot.pretrain(cells, "exceiver_tiny.yaml", "model", settings=small)
    runner = doctest.DocTestRunner(Contains())
    for name in VERBS:
        found = doctest.DocTestParser().get_doctest(
            inspect.getdoc(getattr(cellglot, name)), {"adata": cells.copy()}, name, None, 0
        )
        said = []
        runner.run(found, out=said.append)
        assert not said, "".join(said)


# -------------------------------------------------------------------- AnnData and files


@pytest.mark.parametrize("model", ["base", "classifier", "adapter", "langcell"])
def test_embeddings_of_anndata_are_those_of_the_file(few, file, models, model, tmp_path):
    before = few.copy()
    assert cellglot.embed(before, models[model], **CPU) is None
    copy = cellglot.embed(few, cellglot.load_model(models[model]), copy=True, **CPU)
    assert "X_cellglot" not in few.obsm and "cellglot" not in few.uns
    backed = ad.read_h5ad(file, backed="r")
    cellglot.embed(backed, models[model], **CPU)
    cellglot.embed(file, models[model], output=tmp_path / "python.npy", **CPU)
    command("embed", models[model], file, "-o", tmp_path / "command.npy", "--device", "cpu")
    expected = np.load(tmp_path / "command.npy")
    assert np.isnan(expected[3]).all() and np.isfinite(np.delete(expected, 3, axis=0)).all()
    for found in (before, copy, backed):
        np.testing.assert_allclose(found.obsm["X_cellglot"], expected, atol=1e-5)
        assert found.uns["cellglot"]["model"] == str(models[model])
    np.testing.assert_array_equal(np.load(tmp_path / "python.npy"), expected)


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("classifier", {}, []),
        ("adapter", {}, []),
        ("base", {"adapter": "adapter"}, ["--adapter", "adapter"]),
        (
            "langcell",
            {"candidates": ["B cell", "CD4-positive, alpha-beta T cell", "odd, cell"], "alpha": 0.5},
            ["--candidates", 'B cell,CD4-positive, alpha-beta T cell,"odd, cell"', "--alpha", "0.5"],
        ),
        (
            "langcell",
            {"ontology_branch": "monocyte", "back_off_below": 0.9, "labels": "cell_type"},
            ["--ontology-branch", "monocyte", "--back-off-below", "0.9", "--labels", "cell_type"],
        ),
    ],
)
def test_annotation_of_anndata_is_that_of_the_file(few, file, models, model, options, words, tmp_path):
    options = {k: models[v] if k == "adapter" else v for k, v in options.items()}
    words = [str(models[word]) if word == "adapter" else word for word in words]
    found, output = few.copy(), tmp_path / "out.h5ad"
    assert cellglot.annotate(found, models[model], **options, **CPU) is None
    command("annotate", models[model], file, "-o", output, *words, "--device", "cpu")
    expected = ad.read_h5ad(output)
    added = [name for name in expected.obs if name not in few.obs]
    assert added and [name for name in found.obs if name not in few.obs] == added
    for name in added:
        if isinstance(expected.obs[name].dtype, pd.CategoricalDtype):
            assert found.obs[name].astype(object).equals(expected.obs[name].astype(object)), name
        else:
            np.testing.assert_allclose(found.obs[name].astype(float), expected.obs[name].astype(float), atol=1e-4)
    assert set(found.obsm) == set(expected.obsm) >= {"X_cellglot", "cellglot_scores"}
    assert set(found.uns["cellglot"]) == set(expected.uns["cellglot"])
    assert list(found.uns["cellglot"]["classes"]) == list(expected.uns["cellglot"]["classes"])
    found.write_h5ad(tmp_path / "again.h5ad")


def test_a_copy_and_a_backed_file_are_annotated_without_a_change_on_disk(few, file, models):
    size, copied = file.stat().st_mtime_ns, cellglot.annotate(few, models["classifier"], copy=True, **CPU)
    backed = ad.read_h5ad(file, backed="r")
    in_memory = cellglot.annotate(backed, models["classifier"], copy=True, **CPU)
    assert not in_memory.isbacked and "cellglot_cell_type" not in backed.obs
    cellglot.annotate(backed, models["classifier"], **CPU)
    for one in (in_memory, backed):
        assert one.obs["cellglot_cell_type"].tolist() == copied.obs["cellglot_cell_type"].tolist()
    assert file.stat().st_mtime_ns == size and "cellglot_cell_type" not in few.obs


def test_a_view_of_cells_is_annotated(few, models):
    view = few[[5, 1, 3]]
    cellglot.annotate(view, models["classifier"], **CPU)
    whole = cellglot.annotate(few, models["classifier"], copy=True, **CPU)
    expected = whole.obs["cellglot_cell_type"].iloc[[5, 1, 3]].tolist()
    assert view.obs["cellglot_cell_type"].tolist() == expected and "cellglot_cell_type" not in few.obs


def test_queries_use_the_embeddings_that_are_there(few, file, models, tmp_path, monkeypatch):
    found, model = few.copy(), cellglot.load_model(models["langcell"])
    cellglot.query(found, "a B cell", model, **CPU)
    command("query", models["langcell"], file, "a B cell", "-o", tmp_path / "out.h5ad", "--device", "cpu")
    expected = ad.read_h5ad(tmp_path / "out.h5ad")
    np.testing.assert_allclose(found.obs["cellglot_query"], expected.obs["cellglot_query"], atol=1e-5)
    assert found.obs["cellglot_query_rank"].tolist() == expected.obs["cellglot_query_rank"].tolist()
    assert found.uns["cellglot_query"] == "a B cell" and found.obs["cellglot_query_rank"].iloc[3] == 0
    cellglot.embed(found, model, **CPU)
    monkeypatch.setattr("cellglot.evaluation.search.file.embed_cells", None)  # not called
    again = cellglot.query(found, "a B cell", models["langcell"], copy=True, **CPU)
    np.testing.assert_allclose(again.obs["cellglot_query"], found.obs["cellglot_query"], atol=1e-5)


def test_pictures_of_anndata(few, models, tmp_path):
    for verb, name in ((cellglot.embed, "one.png"), (cellglot.annotate, "two.svg")):
        found = few[:12].copy()
        verb(found, models["classifier"], plot=tmp_path / name, **CPU)
        assert found.obsm["X_cellglot_umap"].shape == (12, 2) and (tmp_path / name).stat().st_size > 1000
        with pytest.raises(ValueError, match="exists"):
            verb(found, models["classifier"], plot=tmp_path / name, **CPU)


def test_models_say_what_they_are_for(models):
    purposes = {name: cellglot.load_model(folder) for name, folder in models.items()}
    assert {name: model.purpose for name, model in purposes.items()} == {
        "base": "embeddings",
        "classifier": "classes of cells",
        "adapter": "classes of cells",
        "langcell": "cells and texts",
    }
    assert purposes["classifier"].classes == ("B cell", "T cell", "monocyte", "odd")
    assert purposes["langcell"].processor is not None and purposes["base"].processor is None
    assert "ScCelloForSequenceClassification for classes of cells: 3" in str(purposes["adapter"])
    assert next(cellglot.load_model(models["base"], dtype="bfloat16").network.parameters()).dtype == torch.bfloat16


WRONG = {
    "no output": (lambda cells, file, m: cellglot.embed(file, m), ValueError, "name one for the result by output"),
    "output of AnnData": (
        lambda cells, file, m: cellglot.annotate(cells, m, output="x.h5ad"),
        ValueError,
        "output is for cells of a file",
    ),
    "copy of a file": (
        lambda cells, file, m: cellglot.embed(file, m, output="x.npy", copy=True),
        ValueError,
        "copy is for an AnnData",
    ),
    "a matrix": (lambda cells, file, m: cellglot.embed(cells.X, m), TypeError, "a path or an AnnData, not csr_matrix"),
    "no model": (lambda cells, file, m: cellglot.embed(cells, "nowhere"), ValueError, "nowhere is not a folder"),
    "texts for classes": (
        lambda cells, file, m: cellglot.annotate(cells, m, candidates=["B cell"], smooth=3),
        ValueError,
        "predicts its own classes: candidates, smooth are for",
    ),
    "no texts": (lambda cells, file, m: cellglot.query(cells, "a", m), ValueError, "does not read texts"),
    "dtype": (lambda cells, file, m: cellglot.load_model(m, dtype="int8"), ValueError, "'int8': it is float32"),
}


@pytest.mark.parametrize(("call", "error", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said(few, file, models, call, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        call(few.copy(), file, models["classifier"])
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------- corpora and training


def test_tokens_of_anndata_are_those_of_its_file(blood, tmp_path):
    cells = blood[:60].copy()
    cells.obs["age, years"], cells.obs["sex"] = np.arange(60), pd.Categorical(["m", "f"] * 30)
    cells.obs["grade"] = pd.array([1, None] * 30, dtype="Int64")
    cells.layers["counts"], cells.X = cells.X.copy(), cells.X * 0.5
    cells.write_h5ad(tmp_path / "AnnData.h5ad")
    options = {"layer": "counts", "obs_columns": ["age, years", "sex"], "rename": {"grade": "stage"}}
    of_memory = cellglot.tokenize(cells, tmp_path / "memory", processes=1, **options)
    words = ["--obs-column", '"age, years",sex', "--rename", "grade=stage", "--layer", "counts", "--processes", "1"]
    command("tokenize", tmp_path / "AnnData.h5ad", "-o", tmp_path / "file", *words)
    of_file = cellglot.Corpus.open(tmp_path / "file")
    for split in ("train", "validation"):
        frames = [pd.concat(map(pd.read_parquet, corpus.shards(split))) for corpus in (of_memory, of_file)]
        pd.testing.assert_frame_equal(*frames)
        assert {"age, years", "sex", "stage"} <= set(frames[0])
    assert of_memory.manifest["vocabulary_digest"] == of_file.manifest["vocabulary_digest"]
    # The same cells again are the same run: nothing is done twice, nothing is refused.
    assert cellglot.tokenize(cells, tmp_path / "memory", processes=1, **options).manifest == of_memory.manifest


def test_several_cells_and_a_corpus_train_alike(blood, tmp_path):
    one, two = blood[:40].copy(), blood[40:80].copy()
    two.write_h5ad(tmp_path / "two.h5ad")
    corpus = cellglot.tokenize([one, tmp_path / "two.h5ad"], tmp_path / "tokens", processes=1)
    assert [file["name"] for file in corpus.manifest["files"]] == ["AnnData-1", "two"]
    settings = ["trainer.max_steps=1", "model.num_hidden_layers=1", "trainer.use_cpu=true"]
    found = cellglot.pretrain(corpus, "exceiver_tiny.yaml", tmp_path / "model", settings=settings)
    words = ["--config", "exceiver_tiny.yaml", "--corpus", tmp_path / "tokens", "-o", tmp_path / "by_command"]
    said = command("pretrain", *words, "--set", ",".join(settings))
    assert f"eval_loss: {found['eval_loss']:.4f}" in said
    with pytest.raises(ValueError, match="for AnnData and files at once"):
        cellglot.tokenize([one, tmp_path / "two.h5ad"], tmp_path / "more", layer="X")


def test_training_in_several_processes_takes_a_corpus(blood, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="tokenize the cells first"):
        cellglot.pretrain(blood[:40], "exceiver_tiny.yaml", tmp_path / "model")
