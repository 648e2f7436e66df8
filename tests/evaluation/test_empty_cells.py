"""Barcodes without a count on a gene of the model, as unfiltered files have: NaN, wherever they are embedded."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix, vstack
from transformers import pipeline

from cellglot.evaluation import plots
from cellglot.evaluation.annotation.by_classifier import classify_cells, load_classifier
from cellglot.evaluation.benchmark.models import EvaluatedModel
from cellglot.evaluation.embed_file import embed_file
from cellglot.evaluation.embedding import class_names, embed_cells
from cellglot.evaluation.labelled_cells import open_labelled_cells
from cellglot.modeling import ExceiverForSequenceClassification, ExceiverModel, ScCelloConfig, ScCelloModel
from cellglot.tokenization import ExceiverTokenizer, RankValueTokenizer


EMPTY = np.arange(24) % 4 == 1
QUIET = {"progress": False, "device": "cpu"}


@pytest.fixture(scope="module")
def unfiltered(blood):
    """Cells of blood, every fourth without a count but for one on a gene that no model knows."""
    counts = csr_matrix(blood.X[:24]).copy()
    counts = vstack([csr_matrix(counts[i].shape, dtype=counts.dtype) if EMPTY[i] else counts[i] for i in range(24)])
    counts = ad.AnnData(csr_matrix(counts), obs=blood.obs[["cell_type"]].iloc[:24].copy(), var=blood.var.copy())
    stranger = ad.AnnData(csr_matrix(EMPTY[:, None].astype(np.float32)), obs=counts.obs.copy())
    stranger.var_names = ["gene of nobody"]
    return ad.concat([counts, stranger], axis=1, merge="same")


@pytest.fixture(scope="module")
def path(unfiltered, tmp_path_factory):
    path = tmp_path_factory.mktemp("unfiltered") / "cells.h5ad"
    unfiltered.write_h5ad(path)
    return path


def check(embedding):
    embedding = np.asarray(embedding)
    assert np.isnan(embedding[EMPTY]).all() and np.isfinite(embedding[~EMPTY]).all()


def test_embed_writes_nan_in_every_format(model_folders, path, tmp_path):
    said = embed_file(
        model_folders["model"], path, tmp_path / "e.h5ad", plot=tmp_path / "e.png", batch_size=5, **QUIET
    )
    assert "6 of 24 cells express no gene of the model: an unfiltered file?" in said
    written = ad.read_h5ad(tmp_path / "e.h5ad")
    check(written.X)
    embed_file(model_folders["model"], path, tmp_path / "e.npy", **QUIET)
    embed_file(model_folders["model"], path, tmp_path / "e.parquet", **QUIET)
    check(np.load(tmp_path / "e.npy"))
    check(np.stack(pd.read_parquet(tmp_path / "e.parquet")["embedding"]))


def test_helpers_of_python_and_the_pipeline(model_folders, unfiltered):
    folder = model_folders["model"]
    model, tokenizer = ExceiverModel.from_pretrained(folder), ExceiverTokenizer.from_pretrained(folder)
    check(embed_cells(model, tokenizer, unfiltered, batch_size=6, **QUIET))
    check(pipeline("cell-embedding", model=model, tokenizer=tokenizer)(unfiltered))


def test_tokens_that_stand_before_genes_are_none(model_folders, unfiltered):
    vocabulary = ExceiverTokenizer.from_pretrained(model_folders["model"]).vocabulary
    tokenizer = RankValueTokenizer.from_vocabulary(vocabulary, add_cls_token=True)
    config = ScCelloConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        pad_token_id=tokenizer.pad_token_id,
        cls_token_id=tokenizer.cls_token_id,
        mask_token_id=tokenizer.mask_token_id,
    )
    check(embed_cells(ScCelloModel(config), tokenizer, unfiltered, **QUIET))


def test_classes(model_folders, unfiltered, path):
    found = classify_cells(*load_classifier(model_folders["classifier"]), unfiltered, **QUIET)
    check(found.scores)
    check(found.embedding)
    assert [name is None for name in found.predicted] == EMPTY.tolist()
    folder = model_folders["classifier"]
    network = ExceiverForSequenceClassification.from_pretrained(folder)
    model = EvaluatedModel("it", network, ExceiverTokenizer.from_pretrained(folder), device="cpu")
    check(model.embed(open_labelled_cells(path), progress=False))
    logits = model.logits(unfiltered, progress=False)
    check(logits)
    assert (class_names(logits, ["a", "b", "c"]) == "no prediction").tolist() == EMPTY.tolist()


def test_a_picture_of_too_few_cells_with_an_embedding():
    embedding = np.full((9, 3), np.nan, dtype=np.float32)
    embedding[:3] = 1
    with pytest.raises(ValueError, match="3 cells are too few"):
        plots.umap_coordinates(embedding)
