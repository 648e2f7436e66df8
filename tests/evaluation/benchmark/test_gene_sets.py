"""The task "gene-sets": models and baselines on the same genes."""

import numpy as np
import pytest

from cellglot.evaluation.benchmark.evaluate import evaluate_models
from cellglot.evaluation.benchmark.gene_sets import BASELINES, IN_CELLS, STATIC
from cellglot.evaluation.benchmark.models import load_evaluated_model
from cellglot.evaluation.benchmark.pathways import BY_TEXTS, PROBE, active_pathways


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
        table = real(*given)
        tables.append(table.set_index("set"))
        return table

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
        assert table.loc["together", "auroc"] > 0.99 and table.loc["together", "p_value"] < 0.05
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


# -------------------------------------------------------------------- pathways


@pytest.fixture(scope="module")
def programs(blood):
    """Cells in which four sets of genes are expressed together, each in cells of its own, and the sets."""
    cells = blood[:160].copy()
    random, counts, names = np.random.default_rng(1), cells.X.tolil(), list(cells.var_names)
    sets = {}
    for number in range(4):
        genes = np.arange(14 * number, 14 * number + 14)
        on = random.random(160) < 0.25
        for gene in genes:
            counts[:, gene] = np.where(on, random.poisson(20, 160), random.poisson(0.5, 160))[:, None]
        sets[f"REACTOME_PROGRAM_{number}"] = [names[gene] for gene in genes]
    cells.X = counts.tocsr()
    return cells, sets


def test_pathways_are_decided_by_genes_that_models_do_not_read(programs, cell_text_folder):
    cells, sets = programs
    given = SMALL | {"tasks": ["pathways"]}
    found = evaluate_models({"langcell": cell_text_folder}, cells, gene_sets=sets, **given)
    assert set(found.results) == {PROBE, BY_TEXTS}
    assert set(found.results[PROBE]) == {"langcell", "log counts + PCA"} and set(found.results[BY_TEXTS]) == {
        "langcell"
    }
    pca = found.results[PROBE]["log counts + PCA"]
    assert pca.metrics["average_precision"].value > 0.8 and pca.metrics["auroc"].value > 0.9
    assert pca.details["chance_of_average_precision"] < 0.4 and pca.details["test_cells"] == 40
    assert pca.details["genes_read"] == cells.n_vars - 28
    assert found.results[BY_TEXTS]["langcell"].details["texts"][0].startswith("a cell with active pathway: program ")
    assert "Pathways: 4, active in a quarter of the cells" in found.record.summary()
    assert "pathways: by texts, average precision" in found.table()


def test_pathways_that_overlap_are_scored_once(programs):
    from cellglot.evaluation.benchmark.baselines import log_counts
    from cellglot.evaluation.benchmark.gene_sets import GeneSetJobs
    from cellglot.evaluation.labelled_cells import open_labelled_cells

    cells, sets = programs
    data = open_labelled_cells(cells)
    twice = sets | {f"{name}_AGAIN": genes for name, genes in sets.items()}
    jobs = GeneSetJobs(data, lambda: log_counts(data.cells), twice)
    made = active_pathways(log_counts(data.cells), jobs.scored, seed=0)
    assert len(made.names) == 4 and made.active.shape == (160, 4) and made.test.sum() == 40
    assert (made.active.mean(axis=0) <= 0.25).all() and made.active.any(axis=0).all()
    few = GeneSetJobs(data, lambda: log_counts(data.cells), {"one": sets["REACTOME_PROGRAM_0"]})
    assert "fewer than two gene sets" in active_pathways(log_counts(data.cells), few.scored)
