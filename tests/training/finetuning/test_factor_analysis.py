"""Factor analysis of cells whose data sets measured different genes."""

import numpy as np
from scipy.sparse import csr_matrix

from cellglot.modeling.expected_weights import expected_weights
from cellglot.training.finetuning.factor_analysis import fit_factors


CELLS, GENES, FACTORS = 3000, 40, 3


def cells_of_two_data_sets():
    """Expression by known factors; each data set lacks some genes, which are then 0."""
    random = np.random.default_rng(0)
    loadings, means = random.normal(size=(GENES, FACTORS)), random.uniform(1, 3, GENES)
    variances = random.uniform(0.2, 0.6, GENES)
    whole = means + random.normal(size=(CELLS, FACTORS)) @ loadings.T
    whole += random.normal(size=whole.shape) * np.sqrt(variances)
    data_sets = np.repeat([0, 1], CELLS // 2)
    measured = np.ones((2, GENES), dtype=bool)
    measured[0, :12] = measured[1, 28:] = False
    return whole, csr_matrix(whole * measured[data_sets]), measured, data_sets, loadings, variances


def test_the_factors_of_genes_are_found_by_the_cells_that_have_them():
    whole, logs, measured, data_sets, loadings, variances = cells_of_two_data_sets()
    steps = []
    found = fit_factors(logs, measured, data_sets, FACTORS, 60, advance=lambda: steps.append(1))
    assert len(steps) == 60
    true, made = loadings @ loadings.T, found.loadings @ found.loadings.T
    assert np.corrcoef(true.ravel(), made.ravel())[0, 1] > 0.99  # genes that no cell has both, too
    assert np.allclose(found.variances, variances, atol=0.12)
    for i, there in enumerate(measured):
        rows, added = expected_weights(np.eye(GENES), *found, there.astype(float), np.linalg.solve)
        cells = data_sets == i
        off = (logs[cells] @ rows + added - whole[cells])[:, ~there]
        plain = (found.means - whole[cells])[:, ~there]
        assert (off**2).mean() < 0.4 * (plain**2).mean()


def test_a_gene_that_no_cell_has_is_not_expected():
    whole, _, measured, data_sets, *_ = cells_of_two_data_sets()
    measured[:, 20] = False
    logs = csr_matrix(whole * measured[data_sets])
    found = fit_factors(logs, measured, data_sets, FACTORS, 5)
    assert np.isfinite(found.loadings).all() and found.means[20] == 0 and not found.loadings[20].any()
