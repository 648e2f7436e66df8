"""Annotation by the graph of a classifier that ships: PyTorch's results, without PyTorch."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch
from transformers import pipeline

import cellglot
from cellglot.modeling.graph_alone import FACTS_FILE, GRAPH_FILE, GraphAlone, has_graph_alone


MODEL = "blood-exceiver"


@pytest.fixture(scope="module")
def folder():
    return Path(cellglot.model_path(MODEL))


@pytest.fixture(scope="module")
def cells(folder):
    """Cells of random genes and depths, two of them without a known gene."""
    rng = np.random.default_rng(0)
    names = list(json.loads((folder / "gene_vocab.json").read_text())["token_ids"])[:3000]
    counts = rng.poisson(rng.gamma(0.3, 1.0, (200, len(names)))).astype(np.float32)
    counts[[3, 77]] = 0
    adata = ad.AnnData(counts)
    adata.var_names = names
    return adata


def test_results_are_those_of_pytorch(cells):
    by_graph, by_torch = (cellglot.annotate(cells, MODEL, copy=True, backend=b) for b in (None, "torch"))
    for name in ("cell_type", "prediction_set", "broader_type", "reason", "best_class"):
        assert list(by_graph.obs[f"cellglot_{name}"].astype(str)) == list(by_torch.obs[f"cellglot_{name}"].astype(str))
    for name in ("cellglot_scores", "X_cellglot"):
        np.testing.assert_allclose(by_graph.obsm[name], by_torch.obsm[name], rtol=1e-4, atol=1e-5)
    assert np.isnan(by_graph.obsm["X_cellglot"]).any(axis=1).sum() == 2
    assert by_graph.uns["cellglot"].keys() == by_torch.uns["cellglot"].keys()


def test_genes_that_a_file_lacks_are_expected_alike_by_all_ways(cells, folder, tmp_path):
    by_graph, by_torch = (cellglot.annotate(cells, MODEL, copy=True, backend=b) for b in (None, "torch"))
    annotate = pipeline("cell-type-annotation", model=str(folder), device="cpu")
    by_pipeline = annotate(cells, min_coverage=0.0)
    assert [found["label"] for found in by_pipeline[:3]] == list(by_torch.obs["cellglot_cell_type"].astype(str)[:3])
    confidence = [np.nan if found["confidence"] is None else found["confidence"] for found in by_pipeline]
    np.testing.assert_allclose(confidence, by_torch.obs["cellglot_confidence"], rtol=1e-3, atol=1e-4)
    network = cellglot.load_model(MODEL)
    with torch.no_grad():
        inputs = network.tokenizer(cells[:3].copy(), min_coverage=0.0, return_tensors="pt")
        measured = torch.from_numpy(network.tokenizer.measured_genes(cells))
        every, given = network.network(**inputs).logits, network.network(**inputs, measured_genes=measured).logits
    assert (every - given).abs().max() > 0.1  # most genes of the model are missing
    cellglot.export(MODEL, tmp_path / "graphs")
    by_export = cellglot.annotate(cells, tmp_path / "graphs", copy=True, backend="onnx")
    for other in (by_graph, by_export):
        np.testing.assert_allclose(
            other.obsm["cellglot_scores"], by_torch.obsm["cellglot_scores"], rtol=1e-3, atol=1e-4
        )


def test_the_command_does_not_import_pytorch(cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    program = (
        "import sys, cellglot.cli\n"
        "sys.argv = 'cellglot annotate cells.h5ad -o new.h5ad --table new.csv --min-coverage 0'.split()\n"
        "try:\n    cellglot.cli.app()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print(sorted({'torch', 'scipy', 'anndata', 'sklearn', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("[]")
    assert ad.read_h5ad(tmp_path / "new.h5ad").n_obs == len(cells)


@pytest.mark.parametrize("name", ["blood-exceiver", "blood-sccello", "blood-langcell"])
def test_classifiers_that_ship_have_the_graph_of_their_weights(name):
    command = f"python -m cellglot.model_cards.collection {name} --graph"
    assert has_graph_alone(cellglot.model_path(name)), f"the weights changed: {command}"


def test_graphs_of_other_weights_do_not_count(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "model")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"gene_sum_weight": 0.1}))
    assert not has_graph_alone(copy)
    (copy / FACTS_FILE).unlink()
    assert not has_graph_alone(copy)


def test_damaged_graphs_are_named(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "model")
    (copy / GRAPH_FILE).write_bytes(b"not a graph")
    with pytest.raises(ValueError, match=r"graph\.onnx .*damaged.*--backend torch"):
        GraphAlone(copy).open()
