"""Shrinking directions of a linear latent in which laboratories differ."""

from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix

from cellglot.evaluation.embedding import embed_cells
from cellglot.model_cards.collection.cells import LABEL
from cellglot.model_cards.collection.linear_components import shrinking, with_linear_latent
from cellglot.modeling.configuration_sccello import ScCelloConfig
from cellglot.modeling.modeling_sccello import ScCelloModel
from cellglot.tokenization.gene_vocabulary import GeneVocabulary
from cellglot.tokenization.reading.cells import read_cells
from cellglot.tokenization.tokenization_rank_value import RankValueTokenizer


def means_of(random, laboratory, types=5, size=4):
    """Means of types in three data sets that differ along one direction."""
    own = random.normal(size=(types, size))
    return {
        str(t): own[t] + np.outer(np.array([-1.0, 0.0, 1.0]), laboratory) + 0.01 * random.normal(size=(3, size))
        for t in range(types)
    }


def test_the_direction_of_laboratories_is_shrunk_and_others_are_kept():
    random = np.random.default_rng(0)
    laboratory = np.array([3.0, 4.0, 0.0, 0.0])
    matrix = shrinking(means_of(random, laboratory), 1.0)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)
    shared = laboratory / 5.0
    # all differences lie in one of four directions: its eigenvalue is four times the mean, the others are near zero
    np.testing.assert_allclose(matrix @ shared, shared / np.sqrt(5.0), atol=1e-3)
    across = np.array([4.0, -3.0, 0.0, 0.0]) / 5.0
    np.testing.assert_allclose(matrix @ across, across, atol=1e-3)
    np.testing.assert_allclose(shrinking(means_of(random, laboratory), 0.0), np.eye(4), atol=1e-12)


def test_a_type_of_one_data_set_says_nothing_about_laboratories():
    random = np.random.default_rng(1)
    means = means_of(random, np.array([1.0, 0.0, 0.0, 0.0]))
    one = means | {"rare": np.array([[9.0, 9.0, 9.0, 9.0]])}
    np.testing.assert_allclose(shrinking(one, 2.0), shrinking(means, 2.0))
    with pytest.raises(ValueError, match="no type is in two data sets"):
        shrinking({"rare": means["0"][:1]}, 1.0)


@pytest.fixture(scope="module")
def laboratories(tmp_path_factory):
    """Two data sets of two types of cells: markers tell types apart, further genes tell the laboratories apart."""
    random, folder, parts = np.random.default_rng(2), tmp_path_factory.mktemp("laboratories"), []
    for number in range(2):
        types = np.repeat(["B", "NK"], 40)
        rates = np.full((80, 24), 2.0)
        rates[types == "B", :6] = rates[types == "NK", 6:12] = 6.0
        rates[:, 12:18] += 12.0 * number
        adata = ad.AnnData(
            csr_matrix(random.poisson(rates).astype(np.float32)),
            obs=pd.DataFrame({LABEL: types}, index=[f"{number}-{i}" for i in range(80)]),
            var=pd.DataFrame(index=[f"ENSG{n:011d}" for n in range(24)]),
        )
        adata.write_h5ad(folder / f"{number}.h5ad")
        parts.append(SimpleNamespace(path=folder / f"{number}.h5ad"))
    return parts


def types_of_cells(cells):
    return cells.obs[LABEL].astype(str).to_numpy().astype(object)


def latents(sets, shrinkage):
    """Types, and the linear latent of all cells by a tiny scCello, one data set after the other."""
    torch.manual_seed(0)
    vocabulary = GeneVocabulary.from_statistics([f"ENSG{n:011d}" for n in range(24)], medians=[2.0] * 24)
    tokenizer = RankValueTokenizer.from_vocabulary(vocabulary, add_cls_token=True, model_max_length=32)
    config = ScCelloConfig(
        vocab_size=27, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=32, pooling="mean",
    )  # fmt: skip
    cells = [ad.read_h5ad(part.path) for part in sets]
    made = with_linear_latent(
        ScCelloModel(config).eval(), tokenizer, sets, 24, 0, labels=1, shrinkage=shrinkage, types=types_of_cells
    )
    found = []
    for part in cells:
        with read_cells(part) as opened:
            found.append(embed_cells(made, tokenizer, opened, progress=False, min_coverage=0.0)[:, -8:])
    return [types_of_cells(part) for part in cells], found


def test_a_linear_latent_with_shrinkage_keeps_types_and_loses_laboratories(laboratories):
    ratios, deviations = [], []
    for shrinkage in (0.0, 10.0):
        types, found = latents(laboratories, shrinkage)
        means = np.array(
            [[part[t == name].mean(axis=0) for name in ("B", "NK")] for part, t in zip(found, types, strict=True)]
        )
        between_types = np.linalg.norm(means[:, 0] - means[:, 1], axis=1).mean()
        between_sets = np.linalg.norm(means[0] - means[1], axis=1).mean()
        ratios.append(between_types / between_sets)
        deviations.append(np.mean([part.var(axis=0).sum() for part in found]))
    assert ratios[1] > 2 * ratios[0]
    assert deviations[0] == pytest.approx(deviations[1], rel=0.1)  # the scale is set after it
