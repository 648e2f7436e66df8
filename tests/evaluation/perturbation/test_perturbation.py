"""Perturbed genes of a file and of an AnnData: against counts that are changed by hand, controls, states, resuming."""

import numpy as np
import pandas as pd
import pytest
import torch

import cellglot
from cellglot.evaluation.perturbation import effects as effects_module
from cellglot.evaluation.perturbation.effects import Measuring
from cellglot.evaluation.perturbation.genes import matched_controls
from cellglot.evaluation.perturbation.statistics import GeneEffects, false_discovery_rate, permutation_p, rank_among
from cellglot.evaluation.perturbation.tokens import Expression
from cellglot.modeling import LangCellForSequenceClassification
from cellglot.modeling.loaded_model import LoadedModel
from cellglot.outputs import OutputError


CPU = {"device": "cpu", "controls": 8, "permutations": 50}
MODELS = ("exceiver", "exceiver classes", "sccello", "sccello classes", "adapter", "langcell classes")


@pytest.fixture(scope="module")
def cells(blood):
    """Thirty cells, one of them without counts."""
    few = blood[:30].copy()
    counts = few.X.tolil()
    counts[4] = 0
    few.X = counts.tocsr()
    few.obs["state"] = ["resting"] * 20 + ["active"] * 9 + [None]
    return few


@pytest.fixture(scope="module")
def models(model_folders, gene_classifiers):
    """One of each kind: without a head, with classes, an adapter, LangCell."""
    from cellglot.tokenization import RankValueTokenizer

    base = cellglot.load_model(gene_classifiers["base"])
    tokenizer = RankValueTokenizer.from_vocabulary(base.tokenizer.vocabulary, model_max_length=60)
    torch.manual_seed(3)
    from cellglot.modeling import LangCellConfig

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    cell = {"vocab_size": tokenizer.vocab_size, "initializer_range": 0.3, "max_position_embeddings": 60} | sizes
    text = {"vocab_size": 50, "max_position_embeddings": 16} | sizes
    config = LangCellConfig(cell_config=cell, text_config=text, projection_dim=8)
    config.num_labels = 3
    langcell = LoadedModel(
        "langcell",
        LangCellForSequenceClassification(config).eval(),
        tokenizer,
        None,
        "classes of cells",
        ("a", "b", "c"),
    )
    return {
        "exceiver": model_folders["model"],
        "exceiver classes": model_folders["classifier"],
        "sccello": base,
        "sccello classes": gene_classifiers["classifier"],
        "adapter": gene_classifiers["adapter"],
        "langcell classes": langcell,
    }


def embedded(cells, model):
    """Embeddings of an AnnData."""
    found = cells.copy()
    cellglot.embed(found, model, device="cpu", min_coverage=0.0)
    return found.obsm["X_cellglot"].astype(float)


@pytest.mark.parametrize("name", MODELS)
def test_deleting_is_a_count_of_zero(models, cells, name):
    model = models[name] if isinstance(models[name], LoadedModel) else cellglot.load_model(models[name])
    found = cellglot.perturb(
        cells, model, delete=["CD74", "LYZ"], cell_type="resting", towards="active", column="state", **CPU
    )
    table = found.table().set_index("symbol")
    has_classes = name in ("exceiver classes", "sccello classes", "adapter", "langcell classes")
    assert any(column.startswith("change ") for column in table) == has_classes
    if has_classes:  # what one class loses the others win
        assert table.filter(like="change ").sum(axis=1).abs().max() < 1e-5
        assert table.filter(like="change ").abs().max().max() > 1e-5
    assert "CD74" in str(found) and "1 cells express no gene of the model" in str(found)
    if name.startswith("exceiver"):
        return  # a zero changes the total that scales the other genes; tokens are compared in tests/modeling
    before = embedded(cells, model)
    resting, active = np.setdiff1d(np.arange(20), [4]), before[20:29].mean(axis=0)
    way = active - before[resting].mean(axis=0)
    for symbol in ("CD74", "LYZ"):
        column = list(cells.var_names).index(symbol)
        rows = resting[cells.X[resting, column].toarray().ravel() > 0]
        changed = cells.copy()
        counts = changed.X.tolil()
        counts[:, column] = 0
        changed.X = counts.tocsr()
        after = embedded(changed, model)
        read = np.flatnonzero(np.abs(after[rows] - before[rows]).max(axis=1) > 1e-7)
        assert table.loc[symbol, "cells"] >= len(read) > 0
        a, b = before[rows], after[rows]
        moved = ((b - a) @ way / (way @ way)).sum() / table.loc[symbol, "cells"]
        cosine = (1 - (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).sum()
        np.testing.assert_allclose(table.loc[symbol, "progress"], moved, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(
            table.loc[symbol, "shift_cosine"], cosine / table.loc[symbol, "cells"], rtol=1e-3, atol=1e-6
        )


@pytest.mark.parametrize("name", ["exceiver", "sccello"])
def test_overexpressing(models, cells, name):
    found = cellglot.perturb(cells, models[name], overexpress="CD79A,LYZ", max_cells=10, **CPU)
    table = found.table()
    assert set(table["symbol"]) == {"CD79A", "LYZ"} and (table["perturbation"] == "overexpress").all()
    assert (table["cells"] == table["cells"].max()).all() and table["cells"].max() in (
        9,
        10,
    )  # also where it has no count
    assert (table["shift_cosine"] > 0).all() and "progress" not in table
    assert "20 further cells were not drawn" in str(found)


def test_a_stopped_run_is_resumed(models, cells, tmp_path, monkeypatch):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    options = {"all_genes": True, "max_cells": 12, "overwrite": False} | CPU
    whole = cellglot.perturb(
        tmp_path / "cells.h5ad", models["sccello classes"], output=tmp_path / "whole.csv", **options
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cells.h5ad", "whole.csv"]
    monkeypatch.setattr(effects_module, "PART_CELLS", 4)
    real, calls = Measuring.effects, []

    def failing(self, *given):
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, *given)

    monkeypatch.setattr(Measuring, "effects", failing)
    output = tmp_path / "table.parquet"
    with pytest.raises(KeyboardInterrupt):
        cellglot.perturb(tmp_path / "cells.h5ad", models["sccello classes"], output=output, **options)
    parts = tmp_path / "table.parquet.unfinished"
    assert not output.exists() and len(list(parts.glob("part-*.npz"))) == 2
    with pytest.raises(OutputError, match="parts of a run with other"):
        cellglot.perturb(tmp_path / "cells.h5ad", models["exceiver"], output=output, **options)
    (parts / "part-000001.npz").write_bytes(b"damaged")
    again = cellglot.perturb(tmp_path / "cells.h5ad", models["sccello classes"], output=output, **options)
    assert "4 cells were finished by an earlier run" in str(again) and not parts.exists()
    pd.testing.assert_frame_equal(again.table(), whole.table(), rtol=1e-4, atol=1e-7)
    written = pd.read_parquet(output)
    assert list(written["symbol"]) == list(again.table()["symbol"]) and len(written) > 300
    with pytest.raises(OutputError, match="exists"):
        cellglot.perturb(tmp_path / "cells.h5ad", models["sccello classes"], output=output, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delete": ["LYZZ"]}, r"'LYZZ' is not in the vocabulary of the model \(similar names: LYZ"),
        ({"delete": ["LYZ", "nothing at all"]}, "1 of 2 genes cannot be perturbed: 'nothing at all' is not in"),
        ({"delete": ["LYZ"], "overexpress": ["CD74"]}, "one of the three"),
        ({}, "one of the three"),
        ({"delete": []}, "no genes to perturb"),
        (
            {"delete": ["LYZ"], "towards": "aktive", "column": "state"},
            "no cells of the state 'aktive'; did you mean 'active'",
        ),
        ({"delete": ["LYZ"], "towards": "active", "column": "stade"}, "no column 'stade' in obs"),
        ({"delete": ["LYZ"], "towards": "active", "cell_type": "active", "column": "state"}, "name two states"),
        ({"delete": ["LYZ"], "controls": -1}, "controls -1"),
        ({"delete": ["LYZ"], "max_cells": 0}, "max_cells 0"),
        ({"delete": ["LYZ"], "output": "table.xlsx"}, "tables are written as"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(models, cells, options, message):
    with pytest.raises(ValueError, match=message):
        cellglot.perturb(cells, models["sccello"], device="cpu", **options)


def test_genes_without_counts_and_few_controls_are_said(models, cells):
    without = cells.copy()
    counts = without.X.tolil()
    counts[:, list(without.var_names).index("LYZ")] = 0
    without.X = counts.tocsr()
    with pytest.raises(ValueError, match="'LYZ' is not expressed in any of the cells to perturb"):
        cellglot.perturb(without, models["sccello"], delete=["LYZ"], device="cpu")
    with pytest.raises(ValueError, match="LYZ: expressed in none of the chosen cells"):
        cellglot.perturb(without, models["exceiver"], overexpress=["LYZ"], device="cpu")
    with pytest.raises(ValueError, match="'LYZ' is not among the genes of"):
        fewer = without[:, without.var_names != "LYZ"]
        cellglot.perturb(fewer, models["sccello"], delete=["LYZ"], device="cpu", min_coverage=0.0)
    found = cellglot.perturb(cells, models["sccello"], delete=["LYZ"], controls=10_000, permutations=5, device="cpu")
    number = int(found.table()["controls"].iloc[0])
    assert 0 < number < 10_000 and "fewer than 10000 control genes" in str(found) and f"LYZ {number:,}" in str(found)


@pytest.mark.reference
def test_a_real_knock_out(reference_data):
    path = reference_data / "perturbation" / "thp1_crispr_papalexi.h5ad"
    options = {"column": "perturbation", "cell_type": "control", "towards": "STAT1", "max_cells": 40, "device": "cpu"}
    found = cellglot.perturb(path, "blood-sccello", delete=["STAT2", "TNFRSF14"], permutations=20, **options)
    table = found.table().set_index("symbol")
    assert (table["cells"] > 0).all() and table["p_value"].between(1 / 21, 1).all()
    assert len(table.filter(like="change ").columns) == len(cellglot.load_model("blood-sccello").classes)
    assert "2,346 further cells were not drawn" in str(found)


# -------------------------------------------------------------------- statistics


def test_controls_have_the_expression_of_their_gene():
    means = np.geomspace(0.01, 100, 60)
    expression = Expression(means, np.ones(60, dtype=int), np.ones(60, dtype=bool))
    genes = np.array([0, 30, 59])
    found = matched_controls(genes, expression, np.arange(60), 4)
    for gene, own in zip(genes, found, strict=True):
        assert gene not in own and len(set(own.tolist())) == len(own) == 4
        assert (np.abs(np.log2(means[own] / means[gene])) <= 1).all()
    again = matched_controls(genes[1:], expression, np.arange(60), 4)
    assert [a.tolist() for a in again] == [a.tolist() for a in found[1:]]  # not by what else is asked for


def test_permutations_find_what_differs_and_nothing_else():
    random = np.random.default_rng(0)
    n_cells, n_genes = 40, 30
    cells, genes = (a.ravel() for a in np.meshgrid(np.arange(n_cells), np.arange(n_genes), indexing="ij"))
    kept = random.random(len(cells)) < 0.7
    cells, genes = cells[kept], genes[kept]
    values = random.normal(size=len(cells)) + 2.0 * (genes == 3) - 2.0 * (genes == 4)
    found = GeneEffects.sort(cells, genes, values, n_genes)
    means = found.means()
    np.testing.assert_allclose(means[7], values[genes == 7].mean())
    controls = np.arange(5, n_genes)
    p = np.array([permutation_p(found, g, controls, 200, 0) for g in (3, 4, *range(5, 30))])
    assert p[0] == 1 / 201 and p[1] == 1.0 and 0.2 < np.median(p[2:]) < 0.8
    assert rank_among(means[3], means[controls]) == 1 / 26 and rank_among(means[4], means[controls]) == 1.0
    assert np.isnan(permutation_p(found, 3, np.empty(0, dtype=int), 10, 0)) and np.isnan(rank_among(1.0, np.empty(0)))
    adjusted = false_discovery_rate(np.array([0.01, np.nan, 0.04, 0.03]))
    np.testing.assert_allclose(adjusted, [0.03, np.nan, 0.04, 0.04])
