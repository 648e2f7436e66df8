"""Compiled loops give the tokens, values and reports of NumPy."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from cellglot.tokenization import ExceiverTokenizer, GeneVocabulary, RankValueTokenizer
from cellglot.tokenization import tokenization_gene_expression as tokenizer_module
from cellglot.tokenization.count_matrix import CountRows, open_counts
from cellglot.tokenization.kernels import encoding as compiled_encoding
from cellglot.tokenization.tokenization_gene_expression import GeneExpressionTokenizer


FIELDS = ("tokens", "values", "totals", "tokens_cut", "clipped_counts")
BOUNDS = {"indptr": "tokens", "clipped_indptr": "clipped_counts"}


def a_vocabulary(n, seed=0, ties=False):
    random = np.random.default_rng(seed)
    return GeneVocabulary.from_statistics(
        [f"ENSG{i:011d}" for i in range(n)],
        medians=random.choice([0.5, 1.0, 2.0], n) if ties else random.uniform(0.1, 9, n),
        means=random.uniform(0, 2, n),
        stds=random.choice([0.0, 0.05, 0.5, 2.0], n),
    )


def encoded(tokenizer, rows, genes, compiled):
    """Encode some cells; give every field of the result, and the columns with what they lost."""
    counts = open_counts(sp.csr_matrix((1, len(genes))), genes=genes)
    columns = tokenizer.gene_columns(counts)
    columns.compiled = compiled_encoding if compiled else None
    parts = list(tokenizer.encode_rows(rows, columns))
    fields = {}
    for name in FIELDS:
        own = [getattr(part, name) for part in parts]
        fields[name] = None if own[0] is None else np.concatenate(own)
    for name, of in BOUNDS.items():
        if fields[of] is not None:
            fields[name] = np.concatenate([np.diff(getattr(part, name)) for part in parts])
    return fields, columns


def check(tokenizer, rows, genes):
    by_numpy, columns = encoded(tokenizer, rows, genes, compiled=False)
    by_loops, others = encoded(tokenizer, rows, genes, compiled=True)
    for name, expected in by_numpy.items():
        if expected is None:
            assert by_loops[name] is None, name
        elif name == "values":  # logarithms may be of another library where processors have wider registers
            np.testing.assert_array_max_ulp(by_loops[name], expected, maxulp=1)
        else:
            np.testing.assert_array_equal(by_loops[name], expected, err_msg=name)
    assert by_loops["tokens"].dtype == np.int32
    assert others.counts_seen == columns.counts_seen == rows.data.sum(dtype=np.float64)
    np.testing.assert_array_equal(others.counts_lost, columns.counts_lost)
    return by_loops


def the_rows(counts, data=np.float32, indices=np.int32):
    matrix = sp.csr_matrix(counts)
    return CountRows(matrix.data.astype(data), matrix.indices.astype(indices), matrix.indptr.astype(np.int64))


def tokenizers(vocabulary):
    for total in ("all", "vocabulary"):
        for first in (True, False):
            yield RankValueTokenizer.from_vocabulary(
                vocabulary, add_cls_token=first, total=total, return_expression_values=True, model_max_length=21
            )
    yield RankValueTokenizer.from_vocabulary(vocabulary)
    yield ExceiverTokenizer.from_vocabulary(vocabulary)
    yield ExceiverTokenizer.from_vocabulary(vocabulary, clip=0.5)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n_cells=st.integers(1, 6),
    n_genes=st.integers(1, 120),
    unknown=st.integers(0, 9),
    ties=st.booleans(),
    largest=st.sampled_from([1, 3, 15, 16, 200, 60_000]),
)
def test_loops_give_what_numpy_gives(seed, n_cells, n_genes, unknown, ties, largest):
    random = np.random.default_rng(seed)
    vocabulary = a_vocabulary(n_genes, seed, ties)
    genes = [*vocabulary.genes, *(f"unknown{i}" for i in range(unknown))]
    order = random.permutation(len(genes))
    counts = random.integers(1, largest, (n_cells, len(genes)), endpoint=True)
    counts *= random.random(counts.shape) < 0.6
    for tokenizer in tokenizers(vocabulary):
        check(tokenizer, the_rows(counts), [genes[i] for i in order])


@pytest.mark.parametrize("indices", [np.uint8, np.uint16, np.int32, np.int64])
@pytest.mark.parametrize("data", [np.uint8, np.uint16, np.uint32, np.int64, np.float32, np.float64])
def test_any_types_of_counts_and_columns(random_counts, data, indices):
    vocabulary = a_vocabulary(200)
    rows = the_rows(random_counts(7, 200, 3), data, indices)
    for tokenizer in tokenizers(vocabulary):
        check(tokenizer, rows, vocabulary.genes)


def test_cells_without_counts_and_stored_zeros():
    vocabulary = a_vocabulary(3)
    zeros = CountRows(np.array([0.0, 2.0, 0.0]), np.array([0, 1, 2]), np.array([0, 0, 2, 3, 3]))
    for tokenizer in tokenizers(vocabulary):
        check(tokenizer, zeros, vocabulary.genes)
        check(tokenizer, CountRows(np.empty(0), np.empty(0, np.int32), np.zeros(3, np.int64)), vocabulary.genes)


def test_many_equal_values_are_ordered_by_token():
    n_genes = 5_000
    vocabulary = GeneVocabulary.from_statistics([f"ENSG{i:011d}" for i in range(n_genes)], medians=np.ones(n_genes))
    genes = np.random.default_rng(0).permutation(vocabulary.genes).tolist()
    tokenizer = RankValueTokenizer.from_vocabulary(vocabulary, add_cls_token=False, model_max_length=n_genes)
    counts = np.ones((2, n_genes))
    counts[1, ::3] = 2
    fields = check(tokenizer, the_rows(counts), genes)
    assert (np.diff(fields["tokens"][:n_genes]) == 1).all()


def test_values_that_differ_in_their_last_bits_are_ordered_exactly():
    medians = 2.0 * (1 + np.arange(64)[::-1] * 1e-13)
    medians[:3] = [1e-30, 1.0, 1e30]  # far from the others, whose leading bits are then all the same
    vocabulary = GeneVocabulary.from_statistics([f"ENSG{i:011d}" for i in range(64)], medians=medians)
    tokenizer = RankValueTokenizer.from_vocabulary(vocabulary, add_cls_token=False)
    fields = check(tokenizer, the_rows(np.ones((2, 64))), vocabulary.genes)
    assert fields["tokens"][:64].tolist() == [t + 2 for t in np.argsort(medians, kind="stable")]


def test_duplicate_columns_are_summed_before(random_counts):
    vocabulary = a_vocabulary(12)
    genes = [*vocabulary.genes, *vocabulary.genes[:6]]
    for tokenizer in tokenizers(vocabulary):
        check(tokenizer, the_rows(random_counts(20, 18, 3, 0.5)), genes)


@pytest.mark.parametrize("n_genes", [200, 300, 70_000])
def test_token_ids_of_one_two_and_three_bytes(n_genes):
    vocabulary = a_vocabulary(n_genes)
    random = np.random.default_rng(1)
    genes = random.permutation(vocabulary.genes).tolist()
    counts = sp.random(5, n_genes, 0.02, "csr", random_state=1, data_rvs=lambda n: random.integers(1, 9, n))
    rows = CountRows(counts.data, counts.indices, counts.indptr.astype(np.int64))
    fields = check(ExceiverTokenizer.from_vocabulary(vocabulary), rows, genes)
    assert len(fields["tokens"]) == counts.nnz
    check(RankValueTokenizer.from_vocabulary(vocabulary), rows, genes)


@pytest.mark.parametrize("ties", [False, True])
def test_cells_with_more_genes_than_two_bytes_number(ties):
    vocabulary = a_vocabulary(70_000, ties=ties)
    random = np.random.default_rng(2)
    genes = random.permutation(vocabulary.genes).tolist()
    counts = random.integers(1, 5, (2, 70_000))
    counts[1, ::2] = 0
    tokenizer = RankValueTokenizer.from_vocabulary(vocabulary, add_cls_token=False, model_max_length=70_000)
    assert len(check(tokenizer, the_rows(counts), genes)["tokens"]) == 105_000
    assert len(check(ExceiverTokenizer.from_vocabulary(vocabulary), the_rows(counts), genes)["tokens"]) == 105_000


@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_matrix, np.asarray])
def test_compiled_loops_take_over_after_much_work_where_cellglot_runs(form, random_counts, monkeypatch):
    monkeypatch.setattr(GeneExpressionTokenizer, "counts_encoded", 0)
    vocabulary = a_vocabulary(40)
    counts = random_counts(9, 40, 2).toarray()
    cells, n_stored = form(counts), np.count_nonzero(counts)
    monkeypatch.setattr(tokenizer_module, "LARGE_WORK", 2 * n_stored)
    tokenizer = RankValueTokenizer.from_vocabulary(vocabulary, return_expression_values=True)
    by_numpy, report = tokenizer(cells, genes=vocabulary.genes), tokenizer.last_report
    assert GeneExpressionTokenizer.counts_encoded == n_stored
    opened = open_counts(cells, genes=vocabulary.genes)
    assert opened.n_stored == (None if form is np.asarray else n_stored)
    known_ahead = tokenizer.gene_columns(opened).compiled
    assert known_ahead is (None if form is np.asarray else compiled_encoding)
    ExceiverTokenizer.from_vocabulary(vocabulary)(cells, genes=vocabulary.genes)  # work of all tokenizers counts
    assert tokenizer.gene_columns(opened).compiled is compiled_encoding
    assert dict(tokenizer(cells, genes=vocabulary.genes)) == dict(by_numpy)
    assert tokenizer.last_report == report
    monkeypatch.setattr(GeneExpressionTokenizer, "load_compiled", None)  # as in a copy of its file
    assert tokenizer.gene_columns(opened).compiled is None


def test_loops_that_do_not_load_are_reported_and_numpy_goes_on(random_counts, monkeypatch, caplog):
    def fail():
        raise ImportError("Numba needs NumPy 2.3 or less")

    monkeypatch.setattr(GeneExpressionTokenizer, "load_compiled", staticmethod(fail))
    monkeypatch.setattr(GeneExpressionTokenizer, "counts_encoded", tokenizer_module.LARGE_WORK)
    vocabulary = a_vocabulary(40)
    counts = open_counts(random_counts(9, 40, 2), genes=vocabulary.genes)
    tokenizer = RankValueTokenizer.from_vocabulary(vocabulary)
    for _ in range(2):
        assert tokenizer.gene_columns(counts).compiled is None
    assert [r.getMessage() for r in caplog.records] == [
        "compiled loops do not load, the slower ones of NumPy are used: Numba needs NumPy 2.3 or less"
    ]
