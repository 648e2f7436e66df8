"""Cells of one data set on the genes of another."""

import anndata
import numpy as np
import pytest
from scipy.sparse import csr_matrix

from cellglot.tokenization.corpus.tokenize import tokenize_corpus
from cellglot.training.data.dataset import CellDataset
from cellglot.training.data.panels import genes_of_data_sets, most_variable, panels_of
from cellglot.training.data.thinning import ThinningSettings, thinning_of


GENES = [f"ENSG{n:011d}" for n in range(40)]
PANELS = {"wide": range(40), "narrow": range(0, 40, 2)}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("panels")
    random = np.random.default_rng(0)
    files = []
    for name, measured in PANELS.items():
        counts = np.zeros((60, 40), dtype=np.float32)
        counts[:, list(measured)] = random.poisson(3.0, (60, len(measured)))
        cells = anndata.AnnData(csr_matrix(counts))
        cells.obs_names = [f"{name}-{n}" for n in range(60)]
        cells.var_names, cells.obs["dataset_id"] = GENES, name
        cells.write_h5ad(folder / f"{name}.h5ad")
        files.append(folder / f"{name}.h5ad")
    options = {"tokenizer": "rank-value", "tokenizer_options": {"return_expression_values": True}, "processes": 1}
    return tokenize_corpus(
        files, folder / "corpus", obs_columns=["dataset_id"], validation_fraction=0.0, progress=False, **options
    )


def test_the_genes_of_each_data_set_are_those_of_its_panel(corpus):
    names, measured = genes_of_data_sets(corpus, ["train", "validation"], "dataset_id")
    panels = panels_of(corpus, 0.5, "dataset_id")
    assert names == panels.names == ["narrow", "wide"]
    assert np.array_equal(measured, panels.measured)


def test_the_genes_of_each_data_set_are_found(corpus):
    panels = panels_of(corpus, 0.5, "dataset_id", {"narrow": 3, "of no cell": 5})
    ids = corpus.tokenizer().vocabulary.token_ids
    found = {n: {g for g in GENES if m[ids[g]]} for n, m in zip(panels.names, panels.measured, strict=True)}
    assert found == {name: {GENES[i] for i in measured} for name, measured in PANELS.items()}
    assert dict(zip(panels.names, panels.chances, strict=True)) == {"narrow": 0.75, "wide": 0.25}


def test_cells_keep_only_genes_of_the_data_set_that_is_drawn(corpus):
    tokenizer, cells = corpus.tokenizer(), CellDataset(corpus, "train")
    settings = {"swap_panels": 1.0, "panel_weights": {"wide": 0}}
    thinning = thinning_of(ThinningSettings(**settings), tokenizer, corpus, 0)
    narrow = {tokenizer.vocabulary.token_ids[GENES[i]] for i in PANELS["narrow"]} | {tokenizer.cls_token_id}
    lost = 0
    for n in range(len(cells)):
        before, after = (set(c["input_ids"].tolist()) for c in (cells[(0, n)], thinning(cells[(0, n)])))
        assert after == before & narrow
        lost += len(before) - len(after)
    assert lost > 0
    assert set(thinning(cells[0])["input_ids"].tolist()) == set(cells[0]["input_ids"].tolist()), "held-out cells stay"


def test_panels_of_variable_genes_are_added(corpus):
    panels = panels_of(corpus, 0.5, "dataset_id", {"narrow": 3}, [10, 30])
    sizes = dict(zip(panels.names, panels.measured.sum(axis=1).tolist(), strict=True))
    assert sizes == {
        "narrow": 20, "narrow, 10 variable genes": 10,
        "wide": 40, "wide, 10 variable genes": 10, "wide, 30 variable genes": 30,
    }  # fmt: skip
    assert panels.chances.sum() == pytest.approx(1) and panels.chances[:2].tolist() == [0.375, 0.375]
    random = np.random.default_rng(0)
    means, variances = np.linspace(0.02, 3, 400), np.linspace(0.02, 3, 400) * random.uniform(0.9, 1.1, 400)
    variances[[5, 200, 390]] *= 4
    means = np.append(means, 0.001)
    assert set(most_variable(means, np.append(variances, 9.0))[:3].tolist()) == {5, 200, 390}


def test_half_of_the_cells_are_restricted(corpus):
    settings = ThinningSettings(swap_panels=0.5, panel_weights={"wide": 0})
    thinning = thinning_of(settings, corpus.tokenizer(), corpus, 0)
    wide = [c for c in (CellDataset(corpus, "train")[(0, n)] for n in range(100)) if len(c["input_ids"]) > 30]
    restricted = sum(len(thinning(c)["input_ids"]) < len(c["input_ids"]) for c in wide)
    assert 0.2 < restricted / len(wide) < 0.8


def test_panels_need_two_data_sets_and_possible_settings(corpus):
    with pytest.raises(ValueError, match="no column 'tissue'"):
        panels_of(corpus, 0.5, "tissue")
    with pytest.raises(ValueError, match="swap_panels 1.5: it is a chance from 0 to 1"):
        ThinningSettings(swap_panels=1.5)
    with pytest.raises(ValueError, match="numbers of genes are 1 or more"):
        ThinningSettings(swap_panels=0.5, variable_panels=[100, 0])
    with pytest.raises(ValueError, match="weights are not negative"):
        ThinningSettings(swap_panels=0.5, panel_weights={"wide": -1})
