"""cellglot annotate with a classifier that has a calibration: what it does not know, the first line, votes."""

import dataclasses
import shutil

import anndata as ad
import numpy as np
import pytest
import torch
from transformers import pipeline

import cellglot
from cellglot import CellOntology
from cellglot.evaluation.annotation.by_classifier import classify_cells, load_classifier
from cellglot.evaluation.annotation.calibration import HeldOutCells, fit_calibration
from cellglot.evaluation.annotation.voting import vote
from cellglot.modeling.annotation_calibration import AnnotationCalibration


CPU = ("--device", "cpu")
NEW = ("confidence", "best_class", "prediction_set", "broader_type", "novelty", "assigned", "reason")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny tensors are computed by one thread: waiting for others takes longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def calibrated(gene_classifiers, blood, tmp_path_factory):
    """The tiny classifier with a calibration by its own predictions on blood, right for four of five cells."""
    folder = tmp_path_factory.mktemp("calibrated") / "classifier"
    shutil.copytree(gene_classifiers["classifier"], folder)
    found = classify_cells(*load_classifier(folder), blood[:120].copy(), progress=False, device="cpu")
    right = found.scores.argmax(axis=1)
    right[::5] = np.argsort(found.scores, axis=1)[::5, -2]
    cells = HeldOutCells(
        np.log(found.scores), found.embedding, np.eye(4, dtype=bool)[right], ["a", "b"] * 60, found.embedding
    )
    ontology = CellOntology.blood()
    fit_calibration([cells], found.embedding, found.classes, found.cell_types, ontology).save(folder)
    return folder


@pytest.fixture(scope="module")
def cells(blood, tmp_path_factory):
    """Two dozen cells, the fourth without counts."""
    few = blood[120:144].copy()
    counts = few.X.tolil()
    counts[3] = 0
    few.X = counts.tocsr()
    path = tmp_path_factory.mktemp("few") / "few.h5ad"
    few.write_h5ad(path)
    return path


def changed(folder, copy, **fields):
    """Another copy of a model, with other numbers in its calibration."""
    shutil.copytree(folder, copy)
    dataclasses.replace(AnnotationCalibration.load(folder), **fields).save(copy)
    return copy


def test_the_command_and_the_pipeline_say_the_same(cellglot_command, calibrated, cells, tmp_path):
    output, table = tmp_path / "out.h5ad", tmp_path / "t.csv"
    asked = ["-o", output, "--table", table, "--vote", "--set-coverage", 0.8, "--umap", tmp_path / "umap.png"]
    done = cellglot_command("annotate", calibrated, cells, *asked, *CPU)
    assert done.status == 0, done.err
    first, head = done.out.splitlines()[:2]
    obs = ad.read_h5ad(output).obs
    assigned = obs["cellglot_assigned"].to_numpy(dtype=bool)
    assert first.startswith(f"{assigned.sum()} of 24 cells are assigned to ") and "median confidence" in head
    assert "unassigned, no gene of the model is expressed: 1 cells" in done.out
    assert obs["cellglot_cell_type"].iloc[3] == "unassigned" and not assigned[3]
    assert "cellglot_cell_type_voted" in obs and "cell_type_voted" in table.read_text().splitlines()[0]
    made = pipeline("cell-type-annotation", model=str(calibrated), device="cpu", set_coverage=0.8)
    for found, (_, row) in zip(made(ad.read_h5ad(cells)), obs.iterrows(), strict=True):
        assert found["label"] == row["cellglot_cell_type"]
        for name in NEW:
            value = row[f"cellglot_{name}"]
            if found[name] is None:
                assert value != value or value is None
            else:
                assert value == (
                    pytest.approx(found[name], abs=1e-4) if name in ("confidence", "novelty") else found[name]
                )
    wide = made(ad.read_h5ad(cells), set_coverage=0.95)
    sizes = [
        [len((f["prediction_set"] or "").split("; ")) for f in each] for each in (made(ad.read_h5ad(cells)), wide)
    ]
    assert all(small <= large for small, large in zip(*sizes, strict=True))
    assert made(ad.read_h5ad(cells), top_k=2)[0][0].keys() == {"label", "score", "cell_type_ontology_term_id"}


def test_scores_of_the_pipeline_are_at_the_temperature_of_the_calibration(calibrated, cells, tmp_path):
    sharp = changed(calibrated, tmp_path / "sharp", temperature=0.5)
    given = ad.read_h5ad(cells)[:3].copy()
    scores = []
    for folder in (calibrated, sharp):
        made = pipeline("cell-type-annotation", model=str(folder), device="cpu")
        scores.append(np.array([[f["score"] for f in of_cell] for of_cell in made(given, top_k=4)]))
    usual = AnnotationCalibration.load(calibrated).temperature
    sharper = scores[0] ** (usual / 0.5)
    np.testing.assert_allclose(scores[1], sharper / sharper.sum(axis=1, keepdims=True), atol=1e-5)


def test_a_foreign_file_is_announced_first(cellglot_command, calibrated, cells, tmp_path, caplog):
    foreign = changed(calibrated, tmp_path / "foreign", most_novelty=-1.0)
    done = cellglot_command("annotate", foreign, cells, "-o", tmp_path / "out.h5ad", *CPU)
    assert done.status == 0, done.err
    first = done.out.splitlines()[0]
    assert first.startswith("WARNING: these cells are mostly foreign to the model: 24 of 24 (100%) are unassigned.")
    assert "Main reason: unlike the cells of training." in first and "B cell, T cell, monocyte, odd" in first
    adata = ad.read_h5ad(cells)
    cellglot.annotate(adata, foreign, device="cpu")
    assert set(adata.obs["cellglot_cell_type"]) == {"unassigned"} and "mostly foreign" in caplog.text
    assert adata.obs["cellglot_best_class"].notna().sum() == 23


def test_few_known_genes_are_announced_first(cellglot_command, gene_classifiers, cells, tmp_path):
    adata = ad.read_h5ad(cells)
    names = adata.var_names.to_numpy(dtype=object).copy()
    names[np.arange(len(names)) % 4 > 0] = "unknown"
    adata.var_names = [f"{name}-{number}" if name == "unknown" else name for number, name in enumerate(names)]
    adata.write_h5ad(tmp_path / "quarter.h5ad")
    asked = ["-o", tmp_path / "out.h5ad", "--min-coverage", 0.1, "--gene-column", "index"]
    model = gene_classifiers["classifier"]
    done = cellglot_command("annotate", model, tmp_path / "quarter.h5ad", *asked, *CPU)
    assert done.status == 0, done.err
    assert done.out.splitlines()[0].startswith("WARNING: the model knows few genes of these cells: ")
    adata.var_names = [f"unknown-{number}" for number in range(adata.n_vars)]
    adata.write_h5ad(tmp_path / "none.h5ad")
    done = cellglot_command("annotate", model, tmp_path / "none.h5ad", "-o", tmp_path / "none_out.h5ad", *CPU)
    assert done.status == 2 and "Traceback" not in done.err and not (tmp_path / "none_out.h5ad").exists()
    assert len([line for line in done.err.splitlines() if line.startswith("error: ")]) == 1


def test_three_cells_are_annotated_but_do_not_vote(cellglot_command, calibrated, cells, tmp_path):
    ad.read_h5ad(cells)[:3].copy().write_h5ad(tmp_path / "three.h5ad")
    done = cellglot_command("annotate", calibrated, tmp_path / "three.h5ad", "-o", tmp_path / "out.h5ad", *CPU)
    assert done.status == 0 and len(ad.read_h5ad(tmp_path / "out.h5ad").obs["cellglot_novelty"]) == 3
    done = cellglot_command("annotate", calibrated, tmp_path / "three.h5ad", "-o", tmp_path / "v.h5ad", "--vote", *CPU)
    assert done.status == 2 and "3 cells are too few for clusters that vote: it takes 10 or more" in done.err
    assert not (tmp_path / "v.h5ad").exists()


def test_twenty_equal_cells_are_of_one_type(calibrated, cells):
    adata = ad.read_h5ad(cells)[[5] * 20].copy()
    adata.obs_names_make_unique()
    cellglot.annotate(adata, calibrated, vote=True, device="cpu")
    assert adata.obs["cellglot_cell_type"].nunique() == 1
    assert list(adata.obs["cellglot_cell_type_voted"]) == list(adata.obs["cellglot_cell_type"])


def test_what_does_not_fit_is_refused(gene_classifiers, calibrated, cells, tmp_path):
    adata = ad.read_h5ad(cells)
    with pytest.raises(ValueError, match="has no calibration: set_coverage is for models that have one"):
        cellglot.annotate(adata, gene_classifiers["classifier"], set_coverage=0.9, device="cpu")
    with pytest.raises(ValueError, match="set coverage 50%: this model was calibrated for 80% to 95%"):
        cellglot.annotate(adata, calibrated, set_coverage=0.5, device="cpu")
    other = changed(calibrated, tmp_path / "other", classes=["a", "b", "c", "d"])
    with pytest.raises(ValueError, match="belongs to a model of other classes"):
        cellglot.annotate(adata, other, device="cpu")
    with pytest.raises(ValueError, match="belongs to a model of other classes"):
        pipeline("cell-type-annotation", model=str(other), device="cpu")


def test_votes_are_those_of_clusters():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, 0.1, (40, 4)), rng.normal(5, 0.1, (40, 4))]).astype(np.float32)
    labels = ["B"] * 36 + ["T"] * 4 + ["unassigned"] * 30 + ["T"] * 10
    x[0], labels[0], labels[1] = np.nan, None, None
    found = vote(x, labels)
    assert found[0] is None and set(found[1:40]) == {"B"} and found.count("unassigned") >= 30
    with pytest.raises(ValueError, match="9 cells are too few for clusters that vote"):
        vote(x[30:39], labels[30:39])
