import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from cellglot import CellOntology
from cellglot.evaluation.annotation import scores as annotation_scores
from cellglot.evaluation.annotation.by_texts import annotate_cells
from cellglot.evaluation.embedding import embed_cells
from cellglot.evaluation.output import write_table
from cellglot.evaluation.text_model import fingerprint
from cellglot.modeling import ExceiverModel
from cellglot.modeling.any_model import load_cell_text_model
from cellglot.tokenization import GeneCoverageError, read_cells
from cellglot.tokenization.ontology.candidates import make_candidates


QUIET = {"progress": False, "device": "cpu"}
NAMES = [
    "B cell",
    "natural killer cell",
    "CD14-positive monocyte",
    "CD4-positive, alpha-beta T cell",
    "dendritic cell",
]
CD4, CD8 = "CL:0000624", "CL:0000625"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny tensors are computed by one thread: waiting for others takes longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def ontology():
    return CellOntology.blood()


@pytest.fixture(scope="module")
def loaded(cell_text_folder):
    return load_cell_text_model(cell_text_folder)


@pytest.fixture(scope="module")
def few(blood):
    return blood[:30].copy()


@pytest.fixture(scope="module")
def asked(ontology):
    return make_candidates(NAMES, ontology, template="{name}")


@pytest.fixture(scope="module")
def plain(loaded, few, asked):
    return annotate_cells(*loaded, few, asked, **QUIET)


def test_scores_are_those_of_the_model(plain, loaded, few):
    model, processor = loaded
    with torch.no_grad():
        one = model.annotate(**processor(few, text=[t[0] for t in plain.candidates.texts], return_tensors="pt"))
    for name in ("scores", "similarity", "matching", "matching_probability"):
        np.testing.assert_allclose(getattr(plain, name), one[name].numpy(), atol=1e-5)
    np.testing.assert_allclose(plain.embedding, embed_cells(model, processor.tokenizer, few, **QUIET), atol=1e-5)
    best = one.scores.argmax(1)
    assert plain.predicted == [NAMES[i] for i in best]
    assert plain.predicted_types == [plain.candidates.cell_types[i] for i in best]
    top = one.scores.topk(2, dim=1).values.numpy()
    np.testing.assert_allclose(plain.score, top[:, 0], atol=1e-5)
    np.testing.assert_allclose(plain.margin, top[:, 0] - top[:, 1], atol=1e-5)
    assert plain.calibration is None and plain.score_name == "score_uncalibrated"
    assert plain.cell_names.tolist() == few.obs_names.tolist()


def test_sources_and_sizes_of_batches_make_no_difference(plain, loaded, few, ontology, tmp_path, asked):
    few.write_h5ad(tmp_path / "few.h5ad")
    sources = {
        "file": (tmp_path / "few.h5ad", {}),
        "matrix": (few.X, {"genes": list(few.var_names)}),
        "csc": (ad.AnnData(sp.csc_matrix(few.X), few.obs, few.var), {}),
        "backed": (ad.read_h5ad(tmp_path / "few.h5ad", backed="r"), {}),
    }
    for number, (cells, options) in enumerate(sources.values()):
        found = annotate_cells(*loaded, cells, asked, batch_size=7 + number, **options, **QUIET)
        np.testing.assert_allclose(found.scores, plain.scores, atol=1e-5)
    model, processor = loaded
    with read_cells(tmp_path / "few.h5ad") as opened:
        pair = (processor.tokenizer, processor.text_tokenizer)
        found = annotate_cells(model, pair, opened, asked, **QUIET)
    np.testing.assert_allclose(found.scores, plain.scores, atol=1e-5)
    assert not model.training and not model.cell_model._forward_hooks


def test_texts_are_encoded_once_and_duplicates_asked_once(loaded, few, ontology, monkeypatch, asked):
    model, _ = loaded
    encoded, annotate = [], model.annotate
    encode = model.text_model.encode_texts
    monkeypatch.setattr(
        model.text_model, "encode_texts", lambda ids, *more: (encoded.append(len(ids)), encode(ids, *more))[1]
    )
    numbers = []
    monkeypatch.setattr(
        model, "annotate", lambda **given: (numbers.append(len(given["text_input_ids"])), annotate(**given))[1]
    )
    found = annotate_cells(*loaded, few, ["B cell", "T cell", "CL:0000236"], ontology=ontology, **QUIET)
    assert encoded == [2] and set(numbers) == {2} and len(numbers) == 2
    assert found.scores.shape == (30, 2)
    assert "1 duplicates are used once: 'CL:0000236' is 'B cell'" in found.summary()
    found = annotate_cells(*loaded, few, {"one": "the same", "two": "the same", "three": "other"}, **QUIET)
    assert encoded == [2, 2]
    np.testing.assert_array_equal(found.scores[:, 0], found.scores[:, 1])
    assert "1 texts belong to several candidates and are encoded once: one, two" in found.summary()


def test_options_reach_the_model(plain, loaded, few, ontology, asked):
    found = annotate_cells(*loaded, few, asked, alpha=1.0, **QUIET)
    np.testing.assert_allclose(found.scores, plain.similarity, atol=1e-5)
    found = annotate_cells(*loaded, few, asked, shortlist=2, **QUIET)
    assert (np.isnan(found.matching_probability).sum(1) == 3).all()
    np.testing.assert_allclose(found.matching.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(0.1 * found.similarity + 0.9 * found.matching, found.scores, atol=1e-5)
    prompts = {"B cell": ["makes antibody", "has CD19"], "odd": ["x"]}
    found = annotate_cells(*loaded, few, prompts, **QUIET)
    assert found.scores.shape == (30, 2)
    one = annotate_cells(*loaded, few, {"a": "makes antibody", "b": "has CD19"}, **QUIET)
    np.testing.assert_allclose(found.matching_probability[:, 0], one.matching_probability.mean(axis=1), atol=1e-5)


def test_smoothing_over_neighbours(plain, loaded, few, ontology, asked):
    found = annotate_cells(*loaded, few, asked, smooth=4, **QUIET)
    cosine = plain.embedding @ plain.embedding.T
    rows = np.argsort(-cosine, axis=1)[:, :5]
    np.testing.assert_allclose(found.scores, plain.scores[rows].mean(axis=1), atol=1e-5)
    np.testing.assert_allclose(found.similarity, plain.similarity, atol=1e-5)
    graph = annotation_scores.neighbor_graph(np.ones((6, 2), dtype=np.float32), 2)
    assert sp.issparse(graph) and graph.nnz == 18 and (graph.diagonal() > 0).all()
    everyone = annotation_scores.neighbor_graph(plain.embedding[:3], 15).toarray()
    np.testing.assert_allclose(everyone, 1 / 3)


def test_calibration_by_labelled_cells(plain, loaded, few, ontology, asked):
    labels = [None] * 30
    labels[:20] = [plain.predicted[i] for i in range(20)]
    labels[20:23] = ["no such type", pd.NA, float("nan")]
    found = annotate_cells(*loaded, few, asked, labels=labels, **QUIET)
    fit = found.calibration
    assert (fit.cells, fit.unused) == (20, {"no such type": 1}) and fit.nll_after < fit.nll_before
    assert found.score_name == "score_calibrated" and "score_calibrated" in found.columns()
    assert found.predicted == plain.predicted
    logits = np.log(plain.scores.astype(float)) / fit.temperature
    expected = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(found.scores, expected / expected.sum(1, keepdims=True), atol=1e-4)
    assert "1 cells were not used: their labels are not candidates: 'no such type' (1)" in found.summary()
    assert "the end of the range" in found.summary()
    by_column = annotate_cells(*loaded, few, asked, labels="cell_type", **QUIET)
    known = by_column.candidates.class_of(few.obs["cell_type"])
    assert by_column.calibration.cells == few.obs["cell_type"].isin(list(known)).sum() > 10


def test_a_known_temperature_is_found():
    random = np.random.default_rng(0)
    true = annotation_scores.calibrated(np.exp(random.normal(size=(4000, 5))), 0.5)
    classes = np.array([random.choice(5, p=p / p.sum()) for p in true.astype(float)])
    temperature, before, after = annotation_scores.fit_temperature(np.sqrt(true), classes)
    assert temperature == pytest.approx(0.5, rel=0.06) and after < before
    with pytest.raises(ValueError, match="no cells to calibrate on"):
        annotation_scores.fit_temperature(true[:0], classes[:0])


def test_backing_off_to_the_parent_of_siblings(ontology):
    names = ["CD4", "CD8", "B cell", "odd"]
    types = [CD4, CD8, "CL:0000236", None]
    mass = np.array(
        [
            [0.7, 0.1, 0.1, 0.1],
            [0.4, 0.3, 0.2, 0.1],
            [0.3, 0.15, 0.35, 0.2],
            [0.3, 0.1, 0.2, 0.4],
            [0.1, 0.1, 0.1, 0.7],
            [0.25, 0.2, 0.15, 0.4],
        ],
        dtype=np.float32,
    )
    found = annotation_scores.back_off(mass, names, types, ontology, 0.6)
    above = ontology.lowest_common_ancestor(CD4, CD8)
    everything = ontology.lowest_common_ancestor(CD4, "CL:0000236")
    assert found.cell_types == [CD4, above, everything, None, None, None]
    assert found.names == ["CD4-positive, alpha-beta T cell", ontology.name(above), "lymphocyte", None, "odd", None]
    np.testing.assert_allclose(found.mass, [0.7, 0.7, 0.8, 0.4, 0.7, 0.4], atol=1e-6)
    assert found.moved.tolist() == [False, True, True, True, False, True]
    nested = annotation_scores.back_off(
        np.array([[0.45, 0.55], [0.55, 0.45]]), ["T cell", "CD4"], ["CL:0000084", CD4], ontology, 0.9
    )
    assert nested.names == ["T cell", "T cell"] and nested.moved.tolist() == [True, False]
    with pytest.raises(ValueError, match="no parents to back off to"):
        annotation_scores.back_off(mass[:, 3:], ["odd"], [None], ontology)
    with pytest.raises(ValueError, match="threshold 0"):
        annotation_scores.back_off(mass, names, types, ontology, 0)


def test_mass_is_what_lies_above_the_floor():
    probability = np.array([[0.9, 0.1, 0.0], [0.0, 0.0, 0.0]])
    powers = np.exp(probability)
    scores = 0.9 * powers / powers.sum(1, keepdims=True)
    mass = annotation_scores.excess_mass(scores, 0.9 / powers.sum(1))
    np.testing.assert_allclose(mass[0], (powers[0] - 1) / (powers[0] - 1).sum(), atol=1e-6)
    np.testing.assert_allclose(mass[1], 1 / 3)


def test_backing_off_of_cells(loaded, few, ontology, plain, asked):
    found = annotate_cells(*loaded, few, asked, back_off_below=0.9, **QUIET)
    assert found.moved.any() and np.array_equal(found.best, plain.best)
    for name, cell_type, best, moved in zip(
        found.predicted, found.predicted_types, found.best, found.moved, strict=True
    ):
        own = found.candidates.cell_types[best]
        assert cell_type in ontology.ancestors(own) if moved else cell_type == own
        assert name == ontology.name(cell_type)
    assert (found.mass >= 0.9 - 1e-5).all()
    assert f"{found.moved.sum()} cells back off to a parent cell type" in found.summary()
    assert {"best_candidate", "mass", "backed_off"} <= set(found.columns())


def test_written_to_anndata(plain, few, tmp_path):
    cells = few.copy()
    plain.write_to(cells)
    cells.write_h5ad(tmp_path / "annotated.h5ad")
    back = ad.read_h5ad(tmp_path / "annotated.h5ad")
    assert back.obs["cellglot_cell_type"].tolist() == plain.predicted
    assert back.obs["cellglot_cell_type_ontology_term_id"].tolist() == plain.predicted_types
    np.testing.assert_allclose(back.obs["cellglot_score_uncalibrated"], plain.score)
    np.testing.assert_allclose(back.obs["cellglot_margin"], plain.margin)
    for name in ("scores", "similarity", "matching"):
        np.testing.assert_allclose(back.obsm[f"cellglot_{name}"], getattr(plain, name), atol=1e-6)
    np.testing.assert_allclose(back.obsm["X_cellglot"], plain.embedding)
    assert back.uns["cellglot"]["classes"].tolist() == NAMES
    assert back.uns["cellglot"]["alpha"] == 0.1
    assert (back.X != few.X).nnz == 0
    with pytest.raises(ValueError, match="30 cells were annotated, but the AnnData has 5"):
        plain.write_to(few[:5].copy())


def test_a_table_and_a_picture(plain, tmp_path):
    for ending in ("csv", "tsv", "parquet"):
        write_table(plain.table(), tmp_path / f"t.{ending}")
    table = pd.read_csv(tmp_path / "t.csv", index_col="cell_id")
    assert list(table.columns)[:4] == ["cell_type", "cell_type_ontology_term_id", "score_uncalibrated", "margin"]
    assert table["cell_type"].tolist() == plain.predicted
    np.testing.assert_allclose(table[[f"score: {n}" for n in NAMES]], plain.scores, atol=1e-6)
    assert pd.read_parquet(tmp_path / "t.parquet").shape == table.shape
    with pytest.raises(ValueError, match=r"t\.xls: tables are written as \.csv"):
        write_table(table, tmp_path / "t.xls")
    figure = plain.plot(np.random.default_rng(0).random((30, 2)))
    assert {t.get_text().split(" (")[0] for t in figure.axes[0].get_legend().get_texts()} == set(plain.predicted)


def test_cells_without_known_genes_get_no_prediction(loaded, few, ontology):
    model, processor = loaded
    cells = few[:6].copy()
    counts = sp.lil_matrix(cells.X)
    counts[2] = 0
    extra = sp.csr_matrix(np.full((6, 1), 3.0, dtype=np.float32))
    cells = ad.AnnData(
        sp.hstack([sp.csr_matrix(counts), extra], format="csr"), var=pd.DataFrame(index=[*few.var_names, "NOGENE"])
    )
    options = {"ontology": ontology, "min_coverage": 0.0, **QUIET}
    found = annotate_cells(*loaded, cells, NAMES, smooth=2, back_off_below=0.5, **options)
    assert found.predicted[2] is None and found.predicted_types[2] is None and found.best[2] == -1
    assert np.isnan(found.scores[2]).all() and np.isnan([found.score[2], found.margin[2]]).all()
    assert np.isnan(found.matching[2]).all() and np.isnan(found.embedding[2]).all()
    assert not np.isnan(np.delete(found.scores, 2, axis=0)).any()
    assert "1 of 6 cells express no gene of the model" in found.summary()
    assert "cells have no prediction" in found.summary()
    found.write_to(cells)
    assert cells.obs["cellglot_cell_type"].isna().tolist()[2]
    with pytest.raises(ValueError, match="none of 1 cells expresses a gene"):
        annotate_cells(*loaded, cells[2:3].copy(), NAMES, **options)
    other = ad.AnnData(few.X[:3], var=pd.DataFrame(index=[f"mouse{i}" for i in range(few.n_vars)]))
    with pytest.raises(GeneCoverageError, match="no gene of these cells"):
        annotate_cells(*loaded, other, NAMES, **options)


def test_long_texts_are_cut_and_counted(loaded, few):
    found = annotate_cells(*loaded, few[:4].copy(), {"long": "a b " * 400, "short": "b cell"}, **QUIET)
    assert found.texts_cut == 1
    assert "1 texts were truncated to the text encoder's maximum length" in found.summary()


def test_what_is_refused(loaded, few, ontology, model_folders):
    model, processor = loaded
    wrong = {
        "no candidates": ([], {}),
        "candidate 2 of 2 is empty": (["B cell", ""], {}),
        "'B cell' has an empty text": ({"B cell": ""}, {}),
        "alpha=2": (NAMES, {"alpha": 2}),
        "shortlist=0": (NAMES, {"shortlist": 0}),
        "smooth=0": (NAMES, {"smooth": 0}),
        "back_off_below=1.5": (NAMES, {"back_off_below": 1.5}),
        "no column 'weather' in obs": (NAMES, {"labels": "weather"}),
        "3 labels for 30 cells": (NAMES, {"labels": ["a"] * 3}),
        "no label matches a candidate": (NAMES, {"labels": ["a"] * 30}),
    }
    for message, (candidates, options) in wrong.items():
        with pytest.raises(ValueError, match=message):
            annotate_cells(model, processor, few, candidates, ontology=ontology, **options, **QUIET)
    with pytest.raises(ValueError, match="needs an ontology"):
        annotate_cells(model, processor, few, NAMES, back_off_below=0.5, **QUIET)
    with pytest.raises(TypeError, match="does not process cells and texts"):
        annotate_cells(model, processor.tokenizer, few, NAMES, **QUIET)
    exceiver = ExceiverModel.from_pretrained(model_folders["model"])
    with pytest.raises(
        ValueError, match="of type 'exceiver': it embeds and classifies cells, but does not read texts"
    ):
        annotate_cells(exceiver, processor, few, NAMES, **QUIET)
    with pytest.raises(ValueError, match="of type 'exceiver'"):
        load_cell_text_model(model_folders["model"])


def test_folders_without_texts_are_refused(loaded, tmp_path):
    from cellglot.modeling import LangCellForSequenceClassification

    model, processor = loaded
    LangCellForSequenceClassification(model.config).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no weights for .* parts of LangCellModel"):
        load_cell_text_model(tmp_path)


def test_the_fingerprint_is_that_of_the_weights(cell_text_folder, loaded):
    model, _ = loaded
    other, _ = load_cell_text_model(cell_text_folder)
    assert fingerprint(other) == fingerprint(model)
    with torch.no_grad():
        other.cell_model.projection.weight[0, 0] += 1
    assert fingerprint(other) != fingerprint(model)
