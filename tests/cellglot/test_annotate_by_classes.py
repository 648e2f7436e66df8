"""cellglot annotate with a classifier and with adapters."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.image import imread
from transformers import pipeline

from cellglot.evaluation.annotation.by_classifier import classify_cells, load_classifier


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
    """Two dozen cells, the fourth without counts."""
    few = blood[:24].copy()
    counts = few.X.tolil()
    counts[3] = 0
    few.X = counts.tocsr()
    path = tmp_path_factory.mktemp("few") / "few.h5ad"
    few.write_h5ad(path)
    return path


def test_a_classifier(cellglot_command, gene_classifiers, cells, tmp_path):
    output, table, plot = tmp_path / "out.h5ad", tmp_path / "t.csv", tmp_path / "umap.png"
    model = gene_classifiers["classifier"]
    files = ["-o", output, "--table", table, "--plot", plot]
    done = cellglot_command("annotate", model, cells, *files, "--batch-size", 7, *CPU)
    assert done.status == 0, done.err
    assert "4 classes, 2 of them cell types of the Cell Ontology" in done.out and "765 of 765 genes" in done.out
    assert "1 cells have no prediction" in done.out and all(str(path) in done.out for path in (output, table, plot))
    before, after = ad.read_h5ad(cells), ad.read_h5ad(output)
    expected = pipeline("cell-type-annotation", model=str(model), device="cpu")(before)
    found, types = after.obs["cellglot_cell_type"], after.obs["cellglot_cell_type_ontology_term_id"]
    for number, of_cell in enumerate(expected):
        if of_cell["label"] is None:
            assert number == 3 and found.isna().iloc[3] and np.isnan(after.obs["cellglot_score_uncalibrated"].iloc[3])
            continue
        assert found.iloc[number] == of_cell["label"]
        assert after.obs["cellglot_score_uncalibrated"].iloc[number] == pytest.approx(of_cell["score"], abs=1e-5)
        known = of_cell["cell_type_ontology_term_id"]
        assert types.isna().iloc[number] if known is None else types.iloc[number] == known
    assert (after.X != before.X).nnz == 0 and list(after.obs["cell_type"]) == list(before.obs["cell_type"])
    scores = after.obsm["cellglot_scores"]
    assert scores.shape == (24, 4) and np.allclose(np.delete(scores, 3, axis=0).sum(1), 1)
    two = np.sort(np.delete(scores, 3, axis=0), axis=1)[:, -2:]
    np.testing.assert_allclose(np.delete(after.obs["cellglot_margin"].to_numpy(), 3), two[:, 1] - two[:, 0], atol=1e-6)
    embedding = pipeline("cell-embedding", model=str(model), device="cpu")(before)
    np.testing.assert_allclose(
        np.delete(after.obsm["X_cellglot"], 3, axis=0), np.delete(embedding, 3, axis=0), atol=1e-5
    )
    assert after.obsm["X_cellglot_umap"].shape == (24, 2) and imread(plot).std() > 0.01
    assert after.uns["cellglot"]["classes"].tolist() == ["B cell", "T cell", "monocyte", "odd"]
    assert after.uns["cellglot"]["cell_types"].tolist() == ["CL:0000236", "CL:0000084", "", ""]
    assert pd.read_csv(table).shape == (24, 9)


def test_two_adapters_in_turn_on_one_base(cellglot_command, gene_classifiers, cells, tmp_path):
    from safetensors.torch import load_file, save_file

    base, first, second = gene_classifiers["base"], gene_classifiers["adapter"], tmp_path / "second"
    second.mkdir()
    for file in first.iterdir():
        (second / file.name).write_bytes(file.read_bytes())
    weights = load_file(first / "adapter_model.safetensors")
    save_file({n: -w for n, w in weights.items()}, second / "adapter_model.safetensors", metadata={"format": "pt"})
    scores = []
    for adapter in (first, second):
        options = ["--adapter", adapter, "-o", tmp_path / "out.h5ad", "--overwrite"]
        done = cellglot_command("annotate", base, cells, *options, *CPU)
        assert done.status == 0, done.err
        after = ad.read_h5ad(tmp_path / "out.h5ad")
        assert after.uns["cellglot"]["adapter"] == str(adapter) and after.uns["cellglot"]["model"] == str(base)
        scores.append(after.obsm["cellglot_scores"])
        found = classify_cells(*load_classifier(adapter), ad.read_h5ad(cells), progress=False, device="cpu")
        np.testing.assert_allclose(scores[-1], found.scores, atol=1e-5)
    assert np.nanmax(np.abs(scores[0] - scores[1])) > 0.01
    done = cellglot_command("annotate", first, cells, "-o", tmp_path / "alone.h5ad", *CPU)
    assert done.status == 0, done.err
    np.testing.assert_allclose(ad.read_h5ad(tmp_path / "alone.h5ad").obsm["cellglot_scores"], scores[0], atol=1e-5)


ERRORS = {
    "candidates for a classifier": (
        ["classifier", "--candidates", "B cell", "--shortlist", "2"],
        "classifier predicts its own classes: candidates, shortlist are for LangCell models and texts",
    ),
    "candidates for an adapter": (["base", "--adapter", "adapter", "--alpha", "0.5"], "adapter predicts its own"),
    "no classes": (["base"], "base is not a classifier: fine-tune it (cellglot finetune), pass an adapter"),
    "no adapter": (["base", "--adapter", "classifier"], "classifier has no adapter_config.json"),
    "another base": (["langcell", "--adapter", "adapter"], "adapter was trained on"),
    "candidates for an encoder": (["base", "--candidates", "B cell"], "but does not read texts"),
}


@pytest.mark.parametrize(("arguments", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_are_one_line(
    cellglot_command, gene_classifiers, cell_text_folder, cells, tmp_path, monkeypatch, arguments, message
):
    for name, folder in {**gene_classifiers, "langcell": cell_text_folder}.items():
        (tmp_path / name).symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    done = cellglot_command("annotate", arguments[0], cells, "-o", "new.h5ad", *arguments[1:], *CPU)
    assert done.status == 2
    assert message in done.err and "Traceback" not in done.err
    assert len([line for line in done.err.splitlines() if line.startswith("error: ")]) == 1
    assert not (tmp_path / "new.h5ad").exists()


def test_no_cell_with_known_genes(gene_classifiers, blood):
    empty = blood[:2].copy()
    empty.X = empty.X * 0
    with pytest.raises(ValueError, match="none of 2 cells expresses a gene of the model's vocabulary"):
        classify_cells(*load_classifier(gene_classifiers["classifier"]), empty, progress=False, device="cpu")
