"""The task "gene-sets": models and baselines on the same genes."""

import numpy as np
import pytest

from cellglot.evaluation.benchmark.evaluate import evaluate_models
from cellglot.evaluation.benchmark.gene_sets import BASELINES, IN_CELLS, STATIC
from cellglot.evaluation.benchmark.models import load_evaluated_model


SMALL = {"draws": 20, "progress": False, "device": "cpu", "tasks": ["gene-sets"]}


@pytest.fixture(scope="module")
def cells(blood):
    """Cells in which 12 genes are expressed together."""
    cells = blood[:120].copy()
    counts = cells.X.tolil()
    for place in range(12):
        counts[np.flatnonzero(np.arange(120) % 3 == 0), place] = 30 + place
        counts[np.flatnonzero(np.arange(120) % 3 != 0), place] = 0
    cells.X = counts.tocsr()
    return cells


@pytest.fixture(scope="module")
def sets(cells):
    random, names = np.random.default_rng(0), list(cells.var_names)
    found = {"together": names[:12], "unknown": ["no gene"]}
    return found | {f"random {i}": random.choice(names[12:], 15, replace=False).tolist() for i in range(9)}


def test_models_and_baselines_are_scored_on_the_same_genes(model_folders, gene_classifiers, cells, sets, monkeypatch):
    from cellglot.evaluation.benchmark import gene_sets

    tables = []
    real = gene_sets.score_sets

    def keeping(*given):
        tables.append(real(*given).set_index("set"))
        return tables[-1]

    monkeypatch.setattr(gene_sets, "score_sets", keeping)
    models = {"exceiver": model_folders["classifier"], "sccello": gene_classifiers["base"]}
    found = evaluate_models(models, cells, gene_sets=sets, **SMALL)
    columns = {"exceiver", "sccello", "log counts + PCA", *BASELINES}
    assert set(found.results) == {STATIC, IN_CELLS} and found.record.columns[:2] == ["exceiver", "sccello"]
    for by_model in found.results.values():
        assert set(by_model) == columns
        details = [result.details for result in by_model.values()]
        assert len({(d["genes"], d["gene_sets"]) for d in details}) == 1
        assert {d["gene_sets_left_out"] for d in details} == {1}
        assert all(0 <= s.low <= s.value <= s.high <= 1 for r in by_model.values() for s in r.metrics.values())
    static, pca, coexpression, random = tables[0], *tables[-3:]
    for table in (pca, coexpression):
        assert table.loc["together", "auroc"] > 0.99 and table.loc["together", "p_value"] < 0.01
    assert 0.2 < random.loc["together", "auroc"] < 0.8 and static["genes"].eq(random["genes"]).all()
    assert found.results[STATIC][BASELINES[0]].metrics == found.results[IN_CELLS][BASELINES[0]].metrics
    table = found.table()
    assert (
        "gene sets: static, AUROC against genes of like expression" in table
        and "on the same" in found.record.summary()
    )


def test_genes_that_a_model_lacks_are_similar_to_none(gene_classifiers, cells, sets):
    renamed = cells.copy()
    renamed.var_names = [f"{n}-unknown" if i < 6 else n for i, n in enumerate(cells.var_names)]
    own = sets | {"together": list(renamed.var_names[:12])}
    model = load_evaluated_model(gene_classifiers["base"], device="cpu")
    model.name = "model"
    found = evaluate_models([model], renamed, gene_sets=own, with_baselines=False, **SMALL)
    details = found.results[IN_CELLS]["model"].details
    assert details["genes"] - details["genes_with_embedding"] == 6


def test_sets_of_other_genes_are_undefined_and_missing_ones_refused(gene_classifiers, cells):
    given = {"m": gene_classifiers["base"]}
    found = evaluate_models(given, cells, gene_sets={"a": ["CD3D", "CD3E"]}, **SMALL)
    assert "none of 1 gene sets" in found.results[STATIC]["m"].undefined["auroc_matched"]
    with pytest.raises(ValueError, match="'gene-sets' needs gene sets"):
        evaluate_models(given, cells, **SMALL)
