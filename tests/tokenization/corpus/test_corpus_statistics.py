import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse as sp

from cellglot.tokenization.corpus.gene_statistics import CorpusStatistics


def add(statistics, counts, totals=None, genes=None, wanted=None):
    """Add cells; what their totals have more than these counts lies on a gene that is none of these."""
    genes = np.arange(counts.shape[1]) if genes is None else genes
    if totals is not None:
        others = totals - np.asarray(counts.sum(1)).ravel()
        counts, genes = sp.hstack([others[:, None], counts]), [-1, *genes]
    counts = counts.tocsr()
    statistics.update(counts.data.astype(float), counts.indices, counts.indptr, np.asarray(genes), wanted)


@pytest.fixture
def cells(random_counts):
    counts = sp.vstack([random_counts(300, 40, 1), random_counts(200, 40, 2, 0.05)]).tocsr()
    counts[:, 39] = 0
    counts.eliminate_zeros()
    totals = np.asarray(counts.sum(1)).ravel() * 1.5 + 1  # genes of the file that are not among these count, too
    return counts, totals


def test_means_and_deviations_are_those_of_the_dense_matrix(cells):
    counts, totals = cells
    statistics = CorpusStatistics(40)
    for start in range(0, 500, 130):
        add(statistics, counts[start : start + 130], totals[start : start + 130])
    dense = counts.toarray().astype(float)
    own = np.maximum(dense.sum(1, keepdims=True), 1)
    logs = np.log1p(dense / own * 1e4)
    assert statistics.n_cells == 500
    assert np.allclose(statistics.mean, logs.mean(0), rtol=1e-12)
    assert np.allclose(statistics.std, logs.std(0), rtol=1e-10)
    assert statistics.detected.tolist() == (dense > 0).sum(0).tolist()


def test_medians_are_near_the_exact_ones(cells):
    counts, totals = cells
    statistics = CorpusStatistics(40)
    add(statistics, counts, totals)
    scaled = counts.toarray() / totals[:, None] * 1e4
    exact = [np.median(s[s > 0]) if (s > 0).any() else np.nan for s in scaled.T]
    assert np.allclose(statistics.medians(), exact, rtol=0.008, equal_nan=True)
    assert np.isnan(statistics.medians()[39])


def test_columns_are_counted_for_their_genes(cells):
    counts, totals = cells
    genes = np.random.default_rng(0).permutation(40)
    by_gene, by_column = CorpusStatistics(40), CorpusStatistics(40)
    add(by_gene, counts, totals)
    add(by_column, counts.tocsc()[:, genes].tocsr(), totals, genes)
    assert np.array_equal(by_column.medians(), by_gene.medians(), equal_nan=True)
    assert np.array_equal(by_column.detected, by_gene.detected)
    assert np.allclose(by_column.mean, by_gene.mean, rtol=1e-13)


def test_cells_that_are_not_wanted_leave_no_trace(cells):
    counts, totals = cells
    wanted = np.arange(500) % 3 > 0
    some, alone = CorpusStatistics(40), CorpusStatistics(40)
    add(some, counts, totals, wanted=wanted)
    add(alone, counts[wanted], totals[wanted])
    assert some.n_cells == alone.n_cells == wanted.sum()
    assert np.array_equal(some.histogram, alone.histogram) and np.array_equal(some.detected, alone.detected)
    assert np.allclose(some.mean, alone.mean, rtol=1e-13) and np.allclose(some.std, alone.std, rtol=1e-11)
    before = some.histogram.copy()
    add(some, counts, totals, wanted=np.zeros(500, dtype=bool))
    assert some.n_cells == wanted.sum() and np.array_equal(some.histogram, before)


def test_stored_zeros_and_cells_without_these_genes_add_nothing_but_their_number():
    statistics = CorpusStatistics(2)
    stored = sp.csr_matrix((np.array([3, 0, 5, 0]), np.array([0, 1, 2, 2]), np.array([0, 2, 3, 4, 4])), shape=(4, 3))
    add(statistics, stored, genes=[0, 1, -1])
    assert statistics.n_cells == 4 and statistics.detected.tolist() == [1, 0] and statistics.histogram.sum() == 1
    assert statistics.mean[1] == 0 and np.isclose(statistics.mean[0], np.log1p(1e4) / 4)


def test_counted_in_parts_it_is_the_same(cells):
    counts, _ = cells
    whole, parts = CorpusStatistics(40), CorpusStatistics(40)
    add(whole, counts, None)
    for start in range(0, 500, 77):
        add(parts, counts[start : start + 77], None)
    assert np.array_equal(parts.histogram, whole.histogram)
    assert whole.histogram.sum() == counts.nnz


@pytest.mark.parametrize("factor", [1, 20], ids=["small counts", "large counts"])
def test_each_value_is_counted_in_its_bucket(cells, factor):
    counts, totals = cells
    statistics = CorpusStatistics(40)
    add(statistics, counts * factor, totals * factor)
    counts = counts.tocoo()
    scaled = (counts.data * 1e4 / totals[counts.row]).astype(np.float32)
    octave = np.floor(np.log2(scaled)).astype(int)
    bucket = np.floor((scaled / 2.0**octave - 1) * (1 << statistics.bits)).astype(int)
    expected = np.zeros_like(statistics.histogram)
    np.add.at(expected, (octave + 8, bucket, counts.col), 1)
    assert np.array_equal(statistics.histogram, expected)


def test_counts_need_not_be_whole():
    statistics = CorpusStatistics(2)
    add(statistics, sp.csr_matrix([[2.5, 0.5], [1.0, 2.0]]), None)
    logs = np.log1p([[2.5 / 3 * 1e4, 0.5 / 3 * 1e4], [1e4 / 3, 2e4 / 3]])
    assert np.allclose(statistics.mean, logs.mean(0), rtol=1e-12)
    assert np.allclose(statistics.std, logs.std(0), rtol=1e-10)


@pytest.mark.long
def test_where_compiled_code_cannot_be_kept_it_is_compiled_anew(tmp_path):
    run = (
        "import numba.core.caching as caching; caching.CacheImpl._locator_classes = []; "
        "from cellglot.tokenization.kernels.jit import compiled; "
        "print(compiled(lambda number: number + 1)(2))"
    )
    done = subprocess.run([sys.executable, "-c", run], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3"]


def test_the_median_of_two_values_is_their_mean():
    statistics = CorpusStatistics(1)
    add(statistics, sp.csr_matrix([[1.0], [9.0]]), np.array([100.0, 100.0]))
    assert statistics.medians() == pytest.approx([500.0], rel=0.001)


def test_values_beyond_the_histogram_are_not_lost():
    statistics = CorpusStatistics(2)
    add(statistics, sp.csr_matrix([[1.0, 1e9]]), np.array([1e9 + 1]))
    assert statistics.histogram.sum() == 2
    assert statistics.detected.tolist() == [1, 1]


def test_any_order_of_merging_gives_the_same_medians_and_moments(cells):
    counts, totals = cells
    parts = []
    for start in (0, 100, 350):
        stop = {0: 100, 100: 350, 350: 500}[start]
        parts.append(CorpusStatistics(40))
        add(parts[-1], counts[start:stop], totals[start:stop])
    merged = []
    for order in ((0, 1, 2), (2, 0, 1)):
        whole = CorpusStatistics(40)
        for part in order:
            whole.merge(parts[part])
        merged.append(whole)
    assert np.array_equal(merged[0].medians(), merged[1].medians(), equal_nan=True)
    assert np.allclose(merged[0].mean, merged[1].mean, rtol=1e-13)
    assert np.allclose(merged[0].std, merged[1].std, rtol=1e-13)


def test_saved_is_loaded(cells, tmp_path):
    counts, totals = cells
    statistics = CorpusStatistics(40)
    add(statistics, counts, totals)
    statistics.save(tmp_path / "s.npz")
    loaded = CorpusStatistics.load(tmp_path / "s.npz", 40)
    for name, value in statistics.state().items():
        assert np.array_equal(loaded.state()[name], value)
    assert [p.name for p in tmp_path.iterdir()] == ["s.npz"]


def test_large_values_do_not_lose_the_variance():
    statistics = CorpusStatistics(1)
    for _ in range(50):
        add(statistics, sp.csr_matrix(np.full((100, 1), 3.0)), np.full(100, 3.0))
    assert statistics.std[0] == pytest.approx(0.0, abs=1e-7)


def test_statistics_of_another_version_are_refused(cells, tmp_path):
    counts, totals = cells
    statistics = CorpusStatistics(40)
    add(statistics, counts, totals)
    for name, other in (("without", {}), ("other", {"layout": np.array([40, 22 << 12])})):
        np.savez(tmp_path / f"{name}.npz", **other, **statistics.state())
        with pytest.raises(ValueError, match=rf"{name}.npz was written by another version of cellglot: start again"):
            CorpusStatistics.load(tmp_path / f"{name}.npz", 40)
