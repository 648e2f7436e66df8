import h5py
import numpy as np
import pytest
import scipy.sparse as sp

from cellglot.tokenization.corpus.count_cache import in_smallest_types, small_rows
from cellglot.tokenization.count_audit import NotCountsError
from cellglot.tokenization.count_matrix import CountMatrix
from cellglot.tokenization.feature_types import Features
from cellglot.tokenization.reading.hdf5_arrays import fast_array
from cellglot.tokenization.reading.matrices import CellFileError, StoredRows


N_CELLS, N_GENES = 60, 700
DAMAGED = {
    "a negative count": ("data", -1, NotCountsError, "negative values"),
    "a missing count": ("data", np.nan, NotCountsError, "missing"),
    "an infinite count": ("data", np.inf, NotCountsError, "infinite"),
    "a broken count": ("data", 1.5, NotCountsError, "not whole numbers"),
    "a column beyond the last": ("indices", N_GENES, CellFileError, "gene indices from .* to 700"),
    "a negative column": ("indices", -2, CellFileError, "gene indices"),
}


@pytest.fixture
def matrix():
    """Counts of which some cells, the first and the last too, have none."""
    rng = np.random.default_rng(0)
    dense = rng.poisson(0.3, (N_CELLS, N_GENES))
    dense[[0, 1, 20, N_CELLS - 1]] = 0
    return sp.csr_matrix(dense)


@pytest.fixture
def stored(tmp_path):
    """Write a matrix as HDF5 has it, compressed, and open it."""
    files = []

    def store(matrix, data="<f4", indices="<i4", features=None, **options):
        files.append(h5py.File(tmp_path / f"{len(files)}.h5", "w"))
        options = options or {"chunks": (64,), "compression": "gzip"}
        files[-1].create_dataset("data", data=matrix.data.astype(data), **options)
        files[-1].create_dataset("indices", data=matrix.indices.astype(indices), **options)
        arrays = (fast_array(files[-1][name]) for name in ("data", "indices"))
        rows = StoredRows(*arrays, matrix.indptr, matrix.shape)
        return CountMatrix(rows, [f"g{i}" for i in range(rows.shape[1])], features=features)

    yield store
    for file in files:
        file.close()


def ranges(n):
    return [(0, n), (0, 1), (0, 2), (5, 5), (3, 25), (19, 22), (n - 1, n), (n - 7, n)]


def assert_same(rows, expected):
    for name in ("data", "indices", "indptr"):
        one, other = getattr(rows, name), getattr(expected, name)
        assert one.dtype == other.dtype, name
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("data", ["<f4", "<f8", "<i4", "<i8", "<u2", ">f4"])
@pytest.mark.parametrize("indices", ["<i4", "<i8", "<u2"])
@pytest.mark.parametrize("options", [{}, {"chunks": (64,), "compression": "gzip"}])
def test_rows_are_those_read_by_other_ways_in_the_smallest_types(matrix, stored, data, indices, options):
    counts = stored(matrix, data, indices, **(options or {"chunks": (50,)}))
    for start, stop in ranges(N_CELLS):
        assert_same(small_rows(counts, start, stop), in_smallest_types(counts.rows(start, stop)))


@pytest.mark.parametrize("largest", [255, 256, 65_535, 65_536, 2**31 - 1])
@pytest.mark.parametrize("n_genes", [256, 257, 65_536, 65_537])
def test_large_counts_and_many_genes(stored, largest, n_genes):
    dense = np.zeros((3, n_genes), dtype=np.int64)
    dense[[0, 0, 2], [0, n_genes - 1, 5]] = 1, 3, largest
    counts = stored(sp.csr_matrix(dense), "<f8", chunks=(2,), compression="gzip")
    rows = small_rows(counts, 0, 3)
    assert_same(rows, in_smallest_types(counts.rows(0, 3)))
    assert rows.data.max() == largest


def test_usual_matrices_are_read_by_the_compiled_loop(matrix, stored, monkeypatch):
    counts = stored(matrix)
    expected = in_smallest_types(counts.rows(0, N_CELLS))
    monkeypatch.delattr(CountMatrix, "rows")
    assert_same(small_rows(counts, 0, N_CELLS), expected)


@pytest.mark.parametrize("order", ["mixed", "twice"])
def test_genes_out_of_order_or_twice_in_a_cell(matrix, stored, monkeypatch, order):
    matrix.data[:] = 60_000 - np.arange(matrix.nnz) % 7  # two of them are more than 16 bits hold
    start = matrix.indptr[30]
    if order == "mixed":
        for array in (matrix.indices, matrix.data):
            array[[start, start + 4]] = array[[start + 4, start]]
    else:
        matrix.indices[start + 1] = matrix.indices[start]
    counts = stored(matrix)
    expected = in_smallest_types(counts.rows(0, N_CELLS))
    monkeypatch.delattr(CountMatrix, "rows")  # nothing is read a second time
    rows = small_rows(counts, 0, N_CELLS)
    assert_same(rows, expected)
    dense = sp.csr_matrix((matrix.data, matrix.indices, matrix.indptr), matrix.shape).toarray()
    np.testing.assert_array_equal(sp.csr_matrix((rows.data, rows.indices, rows.indptr), matrix.shape).toarray(), dense)


def test_columns_that_are_left_out(matrix, stored):
    counts = stored(matrix, features=Features(np.arange(N_GENES) > 0, {"Antibody Capture": 1}))
    rows = small_rows(counts, 0, N_CELLS)
    found = sp.csr_matrix((rows.data, rows.indices, rows.indptr), (N_CELLS, N_GENES - 1)).toarray()
    np.testing.assert_array_equal(found, matrix.toarray()[:, 1:])


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("place", [0, 100, -1])
def test_bad_values_are_refused_as_ever(matrix, stored, damage, place):
    array, value, error, message = DAMAGED[damage]
    matrix.data = matrix.data.astype(np.float64)
    getattr(matrix, array)[place] = value
    counts = stored(matrix, "<f8")
    with pytest.raises(error, match=message):
        small_rows(counts, 0, N_CELLS)


def test_a_chunk_that_cannot_be_inflated_is_an_error(matrix, stored):
    counts = stored(matrix)
    counts.matrix.data.dataset.id.write_direct_chunk((64,), b"this is no deflated chunk")
    with pytest.raises(CellFileError, match="the chunk at 64 cannot be inflated"):
        small_rows(counts, 0, N_CELLS)


def test_offsets_that_fall_are_refused(matrix, stored):
    counts = stored(matrix)
    matrix.indptr[10] = 0
    with pytest.raises(CellFileError, match="indptr decreases"):
        small_rows(counts, 0, N_CELLS)


def test_matrices_in_memory(matrix):
    counts = CountMatrix(matrix, [f"g{i}" for i in range(N_GENES)])
    assert_same(small_rows(counts, 3, 40), in_smallest_types(counts.rows(3, 40)))
    assert small_rows(counts, 3, 40).data.dtype == np.uint8
