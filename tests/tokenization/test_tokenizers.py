import json
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellglot.tokenization import (
    ExceiverTokenizer,
    GeneCoverageError,
    GeneVocabulary,
    NotCountsError,
    RankValueTokenizer,
    read_cells,
)


def naive_ranks(counts, medians, tokens, cls=None, length=None):
    """Rank tokens one cell at a time, by Python's own sort."""
    cells = []
    for row in counts:
        ranked = sorted((-c / m, t) for c, m, t in zip(row, medians, tokens, strict=True) if c > 0)
        cell = [t for _, t in ranked]
        cell = cell if cls is None else [cls, *cell]
        cells.append(cell[:length])
    return cells


def a_vocabulary(n, seed=0):
    random = np.random.default_rng(seed)
    genes = [f"ENSG{i:011d}" for i in range(n)]
    return GeneVocabulary.from_statistics(
        genes, medians=random.uniform(0.5, 4, n), means=random.uniform(0, 2, n), stds=random.uniform(0.1, 2, n)
    )


# -------------------------------------------------------------------- rank values


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n_cells=st.integers(1, 6),
    n_genes=st.integers(1, 40),
    ties=st.booleans(),
    length=st.integers(2, 45),
)
def test_rank_tokens_are_those_of_a_plain_sort(seed, n_cells, n_genes, ties, length):
    random = np.random.default_rng(seed)
    medians = random.choice([0.5, 1.0, 2.0], n_genes) if ties else random.uniform(0.1, 9, n_genes)
    vocab = GeneVocabulary.from_statistics([f"ENSG{i:011d}" for i in range(n_genes)], medians=medians)
    tokenizer = RankValueTokenizer.from_vocabulary(vocab, model_max_length=length)
    counts = random.poisson(1.0, (n_cells, n_genes)) * random.integers(1, 50, (n_cells, n_genes))
    tokens = tokenizer(counts, genes=vocab.genes)["input_ids"]
    expected = naive_ranks(counts, 1 / (1 / medians), tokenizer.vocabulary.gene_token_ids, n_genes + 2, length)
    assert tokens == expected


def test_values_that_differ_beyond_the_sorted_bits_are_ordered_exactly():
    medians = 2.0 * (1 + np.arange(64)[::-1] * 1e-13)  # all alike in their leading 32 bits
    vocab = GeneVocabulary.from_statistics([f"ENSG{i:011d}" for i in range(64)], medians=medians)
    tokenizer = RankValueTokenizer.from_vocabulary(vocab, add_cls_token=False)
    tokens = tokenizer(np.ones((2, 64)), genes=vocab.genes)["input_ids"]
    assert tokens == naive_ranks(np.ones((2, 64)), medians, range(2, 66))


def test_long_and_short_cells_in_blocks(random_counts, monkeypatch):
    from cellglot.tokenization import gene_encoding

    counts = sp.vstack([random_counts(40, 900, 1, 0.05), random_counts(3, 900, 2, 0.99), sp.csr_matrix((2, 900))])
    vocab = a_vocabulary(900)
    tokenizer = RankValueTokenizer.from_vocabulary(vocab)
    whole = tokenizer(counts, genes=vocab.genes)["input_ids"]
    monkeypatch.setattr(gene_encoding, "BLOCK_VALUES", 300)
    assert tokenizer(counts, genes=vocab.genes)["input_ids"] == whole
    assert whole[:43] == naive_ranks(
        counts.toarray()[:43], vocab.medians, tokenizer.vocabulary.gene_token_ids, tokenizer.cls_token_id, 2048
    )
    assert whole[43:] == [[tokenizer.cls_token_id]] * 2


def test_duplicate_columns_are_summed(random_counts):
    vocab = a_vocabulary(12)
    counts = random_counts(20, 18, 3, 0.5)
    names = [*vocab.genes, *vocab.genes[:6]]
    summed = counts.toarray()[:, :12]
    summed[:, :6] += counts.toarray()[:, 12:]
    for tokenizer in (
        RankValueTokenizer.from_vocabulary(vocab, return_expression_values=True),
        ExceiverTokenizer.from_vocabulary(vocab),
    ):
        doubled, single = tokenizer(counts, genes=names), tokenizer(summed, genes=vocab.genes)
        assert doubled["input_ids"] == single["input_ids"]
        assert doubled["expression_values"] == single["expression_values"]
        tokenizer(counts, genes=names)
        assert tokenizer.last_report.summed == 6


def test_totals_of_all_genes_and_of_the_vocabulary(random_counts):
    vocab = a_vocabulary(10)
    counts = random_counts(8, 14, 4, 0.8).toarray()
    names = [*vocab.genes, "W", "X", "Y", "Z"]
    given = {}
    for total in ("all", "vocabulary"):
        tokenizer = RankValueTokenizer.from_vocabulary(vocab, total=total, return_expression_values=True)
        given[total] = tokenizer(counts, genes=names, min_coverage=0)
    assert given["all"]["input_ids"] == given["vocabulary"]["input_ids"]
    for total, columns in (("all", 14), ("vocabulary", 10)):
        for cell, (tokens, values) in enumerate(
            zip(given[total]["input_ids"], given[total]["expression_values"], strict=True)
        ):
            scaled = counts[cell] / counts[cell, :columns].sum() * 1e4
            expected = [0.0, *np.log1p(scaled[np.array(tokens[1:], int) - 2])]
            assert np.allclose(values, expected, rtol=1e-6)


def test_cells_cut_are_counted(random_counts):
    vocab = a_vocabulary(50)
    counts = random_counts(10, 50, 5, 0.9)
    tokenizer = RankValueTokenizer.from_vocabulary(vocab, model_max_length=21)
    tokens = tokenizer(counts, genes=vocab.genes)["input_ids"]
    expressed = np.diff(counts.indptr)
    assert [len(t) for t in tokens] == np.minimum(expressed + 1, 21).tolist()
    assert tokenizer.last_report.cells_cut == (expressed > 20).sum()
    assert tokenizer.last_report.tokens_cut == np.maximum(expressed - 20, 0).sum()
    with pytest.raises(ValueError, match="leaves no room for a gene"):
        tokenizer(counts, genes=vocab.genes, max_length=1)


def test_golden_gene_tokens(golden):
    table = pd.read_csv(golden / "gene_tokens" / "vocabulary.tsv", sep="\t")
    tokens = dict(zip(table.ensembl_id, table.token_id, strict=True)) | {"<pad>": 0, "<mask>": 1, "<cls>": 25426}
    vocab = GeneVocabulary.from_released(tokens, dict(zip(table.ensembl_id, table["median"], strict=True)))
    cells = ad.read_h5ad(golden / "gene_tokens" / "counts.h5ad")
    expected = np.load(golden / "gene_tokens" / "tokens.npz")
    check_reference_tokens(vocab, cells, expected)


@pytest.mark.reference
def test_the_150_reference_cells(reference_data):
    genes = reference_data / "genes"
    vocab = GeneVocabulary.from_released(genes / "token_dictionary.pkl", genes / "gene_median_dictionary.pkl")
    cells = ad.read_h5ad(reference_data / "cells" / "pbmc_facs.h5ad")[:150]
    check_reference_tokens(
        vocab, cells, np.load(reference_data / "reference_tokens" / "pbmc_facs_first150_tokens.npz")
    )


def check_reference_tokens(vocab, cells, expected):
    langcell = RankValueTokenizer.from_vocabulary(vocab, add_cls_token=False, model_max_length=10**6)
    sccello = RankValueTokenizer.from_vocabulary(
        vocab, total="vocabulary", return_expression_values=True, model_max_length=10**6
    )
    plain, with_cls = langcell(cells, min_coverage=0), sccello(cells, min_coverage=0)
    offsets, cls_offsets = expected["offsets"], expected["sccello_offsets"]
    for cell in range(len(cells)):
        part = slice(offsets[cell], offsets[cell + 1])
        reference = expected["langcell_tokens_without_cls"][part]
        value = dict(zip(reference.tolist(), expected["normalised_values"][part], strict=True))
        assert sorted(plain["input_ids"][cell]) == sorted(reference.tolist())
        # equal up to ties: the values along our order are those along theirs
        ours = np.array([value[t] for t in plain["input_ids"][cell]])
        assert np.allclose(ours, expected["normalised_values"][part], rtol=1e-6, atol=0)
        part = slice(cls_offsets[cell], cls_offsets[cell + 1])
        value = dict(
            zip(expected["sccello_tokens"][part].tolist(), expected["sccello_log1p_values"][part], strict=True)
        )
        tokens = with_cls["input_ids"][cell]
        assert tokens[0] == 25426
        assert np.allclose([value[t] for t in tokens], with_cls["expression_values"][cell], rtol=1e-5)


# -------------------------------------------------------------------- Exceiver


@pytest.mark.parametrize("factor", [1, 9], ids=["small counts", "small and large counts"])
def test_standardised_expression_is_that_of_the_formula(random_counts, factor):
    vocab = a_vocabulary(30)
    vocab.stds[4] = 0.0
    counts = random_counts(15, 30, 6)
    counts.data[::3] *= factor
    tokenizer = ExceiverTokenizer.from_vocabulary(vocab, clip=3.0)
    batch = tokenizer(counts, genes=vocab.genes)
    dense = counts.toarray().astype(float)
    scaled = np.log1p(dense / dense.sum(1, keepdims=True) * 1e4)
    stds = np.where(vocab.stds == 0, 1, vocab.stds)
    expected = np.minimum((scaled - vocab.means) / stds, 3.0) + 1
    for cell in range(15):
        genes = np.flatnonzero(dense[cell])
        assert batch["input_ids"][cell] == genes.tolist()
        assert np.allclose(batch["expression_values"][cell], expected[cell, genes], rtol=1e-5)
    assert np.allclose(tokenizer.background_values, np.minimum(-vocab.means / stds, 3.0) + 1, rtol=1e-6)
    assert (tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.vocab_size) == (30, 31, 32)


@pytest.mark.parametrize("factor", [1, 2.0**28], ids=["", "counts too large to be sorted along"])
def test_genes_come_in_the_order_of_their_ids_whatever_the_order_of_columns(random_counts, factor):
    vocab = a_vocabulary(25)
    counts = random_counts(9, 25, 7) * factor
    shuffled = np.random.default_rng(0).permutation(25)
    tokenizer = ExceiverTokenizer.from_vocabulary(vocab)
    a = tokenizer(counts, genes=vocab.genes)
    b = tokenizer(counts[:, shuffled], genes=[vocab.genes[i] for i in shuffled])
    assert a["input_ids"] == b["input_ids"]
    assert a["expression_values"] == b["expression_values"]


def test_genes_are_not_cut():
    tokenizer = ExceiverTokenizer.from_vocabulary(a_vocabulary(5))
    with pytest.raises(ValueError, match="a cell expresses 5 genes: .* does not cut"):
        tokenizer(np.ones((2, 5)), genes=tokenizer.vocabulary.genes, max_length=3)


def test_measured_genes_are_those_of_the_file_and_all_for_cells_that_name_expressed_genes(blood, vocabulary):
    tokenizer = RankValueTokenizer.from_vocabulary(vocabulary)
    part = blood[:5, :300].copy()
    part.var_names = [*part.var_names[:299], "of no vocabulary"]
    found = tokenizer.measured_genes(part)
    assert found.shape == (tokenizer.vocab_size,) and found.dtype == bool
    assert set(np.flatnonzero(found)) == set(tokenizer.find_genes(list(part.var_names[:299])))
    assert np.array_equal(tokenizer.measured_genes(part.X.toarray(), list(part.var_names)), found)
    named = tokenizer.measured_genes([{blood.var_names[0]: 3}, {blood.var_names[1]: 1}])
    assert set(np.flatnonzero(named)) == set(tokenizer.vocabulary.gene_token_ids.tolist())


def test_find_genes_names_those_outside_the_vocabulary(vocabulary):
    tokenizer = ExceiverTokenizer.from_vocabulary(vocabulary)
    gene = tokenizer.vocabulary.genes[5]
    assert tokenizer.find_genes([gene]).tolist() == [5]
    with pytest.raises(KeyError, match="2 of 3 genes are not in the vocabulary.*NOPE, NADA"):
        tokenizer.find_genes([gene, "NOPE", "NADA"])


# -------------------------------------------------------------------- what both take and give


def tokenizers(vocab):
    return [
        RankValueTokenizer.from_vocabulary(vocab, return_expression_values=True),
        ExceiverTokenizer.from_vocabulary(vocab),
    ]


@pytest.fixture
def forms(random_counts, tmp_path):
    """The same cells in every form that tokenizers take."""
    counts = random_counts(12, 20, 8)
    genes = a_vocabulary(20).genes
    adata = ad.AnnData(counts, var=pd.DataFrame(index=genes))
    adata.write_h5ad(tmp_path / "csr.h5ad")
    by_columns = adata.copy()
    by_columns.X = counts.tocsc()
    by_columns.write_h5ad(tmp_path / "csc.h5ad")
    dense = adata.copy()
    dense.X = counts.toarray()
    dense.write_h5ad(tmp_path / "dense.h5ad")
    duplicated = sp.csr_matrix(
        (np.r_[counts.data, np.zeros(1)], np.r_[counts.indices, 3], np.r_[counts.indptr[:-1], counts.nnz + 1]),
        shape=counts.shape,
    )
    return {
        "AnnData": (adata, None),
        "AnnData, dense": (dense, None),
        "AnnData, by columns": (by_columns, None),
        "backed": (ad.read_h5ad(tmp_path / "csr.h5ad", backed="r"), None),
        "backed by columns": (ad.read_h5ad(tmp_path / "csc.h5ad", backed="r"), None),
        "backed dense": (ad.read_h5ad(tmp_path / "dense.h5ad", backed="r"), None),
        "opened file": (read_cells(tmp_path / "csc.h5ad"), None),
        "view": (ad.AnnData(sp.vstack([counts, counts]).tocsr(), var=pd.DataFrame(index=genes))[:12], None),
        "dense": (counts.toarray(), genes),
        "integers": (counts.toarray().astype(np.int16), genes),
        "lists": (counts.toarray().tolist(), genes),
        "CSR": (counts, genes),
        "CSC": (counts.tocsc(), genes),
        "COO": (counts.tocoo(), genes),
        "sparse array": (sp.csr_array(counts), genes),
        "explicit zero": (duplicated, genes),
        "tensor": (torch.from_numpy(counts.toarray()), genes),
        "sparse tensor by rows": (torch.from_numpy(counts.toarray()).to_sparse_csr(), genes),
        "sparse tensor by columns": (torch.from_numpy(counts.toarray()).to_sparse_csc(), genes),
        "sparse tensor of coordinates": (torch.from_numpy(counts.toarray()).to_sparse_coo(), genes),
        "dictionary of keys": (counts.todok(), genes),
        "data frame": (pd.DataFrame(counts.toarray(), columns=genes), None),
        "sparse data frame": (pd.DataFrame.sparse.from_spmatrix(counts, columns=genes), None),
        "data frame of pandas' integers": (pd.DataFrame(counts.toarray(), columns=genes).astype("Int64"), None),
        "mappings": ([{g: c for g, c in zip(genes, row, strict=True) if c} for row in counts.toarray()], None),
    }


def test_every_form_gives_the_same_tokens(forms):
    for tokenizer in tokenizers(a_vocabulary(20)):
        expected = tokenizer(*forms["CSR"][:1], genes=forms["CSR"][1])
        for name, (cells, genes) in forms.items():
            batch = tokenizer(cells, genes=genes)
            assert batch["input_ids"] == expected["input_ids"], name
            assert batch["expression_values"] == expected["expression_values"], name


def test_a_single_cell(random_counts):
    vocab = a_vocabulary(20)
    counts = random_counts(3, 20, 9).toarray()
    for tokenizer in tokenizers(vocab):
        expected = tokenizer(counts, genes=vocab.genes)["input_ids"]
        assert tokenizer(counts[1], genes=vocab.genes)["input_ids"] == expected[1:2]
        named = {g: c for g, c in zip(vocab.genes, counts[1], strict=True) if c}
        assert tokenizer(named)["input_ids"] == expected[1:2]
        series = pd.Series(counts[1], index=vocab.genes)
        assert tokenizer(series)["input_ids"] == expected[1:2]
        assert tokenizer([named, series.astype("Int64")])["input_ids"] == expected[1:2] * 2
        halves = pd.concat([series // 2, series - series // 2])  # a gene that stands twice is summed
        assert tokenizer(halves)["input_ids"] == expected[1:2]


def test_values_that_are_missing_masked_or_text_are_refused(random_counts):
    vocab = a_vocabulary(20)
    counts = random_counts(3, 20, 9).toarray()
    frame = pd.DataFrame(counts, columns=vocab.genes).astype("Int64")
    missing = frame.copy()
    missing.iloc[1, 2] = pd.NA
    masked = np.ma.masked_array(counts, mask=counts == counts.max())
    for tokenizer in tokenizers(vocab):
        with pytest.raises(NotCountsError, match=r"1 missing \(NaN\)"):
            tokenizer(missing)
        with pytest.raises(NotCountsError, match=f"cell 0 has <NA> for the gene '{vocab.genes[2]}', not a count"):
            tokenizer(missing.iloc[1])
        with pytest.raises(NotCountsError, match=f"cell 1 has 'many' for the gene '{vocab.genes[0]}', not a count"):
            tokenizer([{vocab.genes[0]: 3}, {vocab.genes[0]: "many"}])
        with pytest.raises(NotCountsError, match="1 of the data frame's 21 columns are not numbers: sample. "):
            tokenizer(frame.assign(sample="a"))
        with pytest.raises(NotCountsError, match=f"{masked.mask.sum()} values are masked"):
            tokenizer(masked, genes=vocab.genes)


@pytest.mark.parametrize("kind", ["pt", "np"])
def test_tensors_are_padded(random_counts, kind):
    vocab = a_vocabulary(20)
    counts = random_counts(7, 20, 10)
    for tokenizer in tokenizers(vocab):
        ragged = tokenizer(counts, genes=vocab.genes)
        batch = tokenizer(counts, genes=vocab.genes, return_tensors=kind)
        longest = max(map(len, ragged["input_ids"]))
        assert isinstance(batch["input_ids"], torch.Tensor if kind == "pt" else np.ndarray)
        for cell, tokens in enumerate(ragged["input_ids"]):
            padding = longest - len(tokens)
            assert batch["input_ids"][cell].tolist() == tokens + [tokenizer.pad_token_id] * padding
            assert batch["attention_mask"][cell].tolist() == [1] * len(tokens) + [0] * padding
            assert batch["expression_values"][cell].tolist() == ragged["expression_values"][cell] + [0.0] * padding
        wider = tokenizer(counts, genes=vocab.genes, return_tensors=kind, pad_to_multiple_of=16)
        assert wider["input_ids"].shape[1] % 16 == 0


def test_saved_is_loaded(tmp_path, vocabulary, blood):
    for tokenizer in (
        RankValueTokenizer.from_vocabulary(vocabulary, total="vocabulary", add_cls_token=False, model_max_length=100),
        ExceiverTokenizer.from_vocabulary(vocabulary, clip=5.0, target_sum=1e3),
    ):
        folder = tmp_path / type(tokenizer).__name__
        tokenizer.save_pretrained(folder)
        loaded = type(tokenizer).from_pretrained(folder)
        assert dict(loaded(blood[:20])) == dict(tokenizer(blood[:20]))
        assert len(loaded) == loaded.vocab_size == tokenizer.vocab_size
        saved = json.loads((folder / "tokenizer_config.json").read_text())
        assert saved["auto_map"]["AutoTokenizer"][0].endswith(type(tokenizer).__name__)


def test_ids_tokens_and_symbols():
    vocab = GeneVocabulary.from_statistics(
        ["ENSG00000000001", "ENSG00000000002"], symbols={"ENSG00000000001": "ONE"}, medians=[1.0, 2.0]
    )
    tokenizer = RankValueTokenizer.from_vocabulary(vocab)
    assert tokenizer.convert_tokens_to_ids(["ENSG00000000002", "<cls>"]) == [3, 4]
    assert tokenizer.convert_ids_to_tokens([2, 3]) == ["ENSG00000000001", "ENSG00000000002"]
    assert tokenizer.decode([4, 2, 3]) == "<cls> ONE ENSG00000000002"
    assert tokenizer.decode([4, 2, 3], skip_special_tokens=True) == "ONE ENSG00000000002"
    with pytest.raises(KeyError, match="'ONE' is not in the vocabulary of 2 genes"):
        tokenizer.convert_tokens_to_ids("ONE")
    with pytest.raises(KeyError, match="no token has the id 9"):
        tokenizer.decode([9])


def test_the_report_of_a_call(blood, vocabulary):
    tokenizer = RankValueTokenizer.from_vocabulary(
        GeneVocabulary.from_statistics(vocabulary.genes[:400], medians=vocabulary.medians[:400])
    )
    tokenizer(blood, min_coverage=0)
    report = tokenizer.last_report
    counts = blood.X.toarray()
    known = counts[:, :400]
    assert (report.genes, report.matched, report.unknown, report.cells) == (765, 400, 365, 700)
    assert report.counts == counts.sum()
    assert report.coverage == pytest.approx(known.sum() / counts.sum())
    lost = counts[:, 400:].sum(0)
    worst = np.argsort(-lost, kind="stable")[:10]
    assert report.largest_losses == [(blood.var_names[400 + i], float(lost[i])) for i in worst]
    assert "400 of 765 genes are in the vocabulary" in report.summary()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.uint16])
def test_counts_are_added_up_exactly(dtype):
    """Float32 cannot hold the sum of these counts, nor many sums on the way to it."""
    largest = 1 << (15 if dtype is np.uint16 else 24)
    counts = sp.csr_matrix(np.array([[largest, 1, 1], [1, largest - 1, 0]], dtype=dtype))
    vocab = a_vocabulary(3)
    for genes in (vocab.genes, [*vocab.genes[:2], "ENSG99999999999"]):
        tokenizer = RankValueTokenizer.from_vocabulary(vocab)
        tokenizer(counts, genes=genes)
        assert tokenizer.last_report.counts == 2 * largest + 2
        assert tokenizer.last_report.counts_covered == 2 * largest + 2 - (genes != vocab.genes)


# -------------------------------------------------------------------- finding counts


def test_counts_are_found_where_they_are(blood, vocabulary):
    tokenizer = ExceiverTokenizer.from_vocabulary(vocabulary)
    expected = tokenizer(blood)["input_ids"]
    logged = blood.copy()
    logged.X = blood.X.log1p() * 0.7
    with pytest.raises(NotCountsError, match="X has values that are not whole numbers"):
        tokenizer(logged)
    logged.layers["counts"] = blood.X
    assert tokenizer(logged)["input_ids"] == expected
    assert tokenizer.last_report.counts_in == "layers['counts']"
    del logged.layers["counts"]
    logged.layers["mine"] = blood.X
    with pytest.raises(NotCountsError, match=r"Other layers: layers\['mine'\]"):
        tokenizer(logged)
    assert tokenizer(logged, layer="mine")["input_ids"] == expected
    logged.raw = blood
    assert tokenizer(logged)["input_ids"] == expected
    assert tokenizer.last_report.counts_in == "raw.X"


def test_raw_with_more_genes_or_counts_is_preferred(blood, vocabulary):
    tokenizer = ExceiverTokenizer.from_vocabulary(vocabulary)
    fewer = blood[:, :600].copy()
    fewer.raw = blood
    tokenizer(fewer)
    assert tokenizer.last_report.counts_in == "raw.X"
    same = blood.copy()
    same.raw = blood
    tokenizer(same)
    assert tokenizer.last_report.counts_in == "X"


def test_log_normalised_counts_are_recovered(blood, blood_log, vocabulary):
    tokenizer = ExceiverTokenizer.from_vocabulary(vocabulary)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recovered = tokenizer(blood_log)
    assert recovered["input_ids"] == tokenizer(blood)["input_ids"]
    assert np.allclose(recovered["expression_values"][3], tokenizer(blood)["expression_values"][3])
    tokenizer(blood_log)
    assert tokenizer.last_report.counts_in == "raw.X (recovered from log1p values)"


# -------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1.0, "negative values"),
        (np.nan, "missing"),
        (np.inf, "infinite"),
        (0.5, "not whole numbers"),
    ],
)
@pytest.mark.parametrize("cell", [0, 300])
def test_bad_values_are_refused_and_their_cell_named(value, message, cell):
    vocab = a_vocabulary(4)
    counts = np.ones((400, 4))
    counts[cell, 2] = value
    for tokenizer in tokenizers(vocab):
        with pytest.raises(NotCountsError, match=message):
            tokenizer(counts, genes=vocab.genes)


@pytest.mark.parametrize(
    ("cells", "genes", "message"),
    [
        (np.zeros((0, 3)), ["a", "b", "c"], "is empty: 0 cells x 3 genes"),
        (np.zeros((3, 0)), [], "is empty: 3 cells x 0 genes"),
        (np.ones((2, 3)), None, "needs the names of its columns"),
        (np.ones((2, 3)), ["a", "b"], "3 columns, but there are 2 genes"),
        (np.ones((2, 3, 4)), ["a"], "not .cells, genes."),
        (np.array([["a", "b"]]), ["a", "b"], "not numbers"),
    ],
)
def test_matrices_that_are_none(cells, genes, message):
    for tokenizer in tokenizers(a_vocabulary(4)):
        with pytest.raises(ValueError, match=message):
            tokenizer(cells, genes=genes)


@pytest.mark.parametrize("cells", ["cells.h5ad", 3, None])
def test_what_is_no_cells(cells):
    for tokenizer in tokenizers(a_vocabulary(4)):
        with pytest.raises(TypeError, match="read_cells"):
            tokenizer(cells)


def test_no_gene_matched():
    for tokenizer in tokenizers(a_vocabulary(4)):
        with pytest.raises(GeneCoverageError, match=r"covers no gene.*2 of 2 genes \(100%\) are not in it"):
            tokenizer(np.ones((2, 2)), genes=["X", "Y"])


def test_low_coverage_is_an_error_that_says_how_low():
    vocab = a_vocabulary(4)
    counts = np.array([[1, 1, 1, 1, 20]])
    for tokenizer in tokenizers(vocab):
        with pytest.raises(
            GeneCoverageError, match=r"16\.7% of these cells' counts .below 50%.: 1 of 5 genes .*e\.g\. 'X'"
        ):
            tokenizer(counts, genes=[*vocab.genes, "X"])
        assert tokenizer(counts, genes=[*vocab.genes, "X"], min_coverage=0.1)["input_ids"]


def test_cells_without_a_known_gene_are_counted():
    vocab = a_vocabulary(3)
    counts = np.array([[1, 2, 3, 0], [0, 0, 0, 1], [0, 0, 0, 0]])
    rank, exceiver = tokenizers(vocab)
    assert rank(counts, genes=[*vocab.genes, "X"])["input_ids"][1:] == [[rank.cls_token_id]] * 2
    assert exceiver(counts, genes=[*vocab.genes, "X"])["input_ids"][1:] == [[], []]
    assert rank.last_report.cells_without_genes == exceiver.last_report.cells_without_genes == 2
    assert exceiver(counts[1:2], genes=[*vocab.genes, "X"], min_coverage=0, return_tensors="pt")[
        "input_ids"
    ].shape == (1, 0)


def test_arguments_that_do_not_exist_are_refused(blood, vocabulary):
    tokenizer = ExceiverTokenizer.from_vocabulary(vocabulary)
    with pytest.raises(TypeError, match="does not take stride"):
        tokenizer(blood, stride=2)
    with pytest.raises(ValueError, match="return_tensors='tf'"):
        tokenizer(blood, return_tensors="tf")
    with pytest.raises(ValueError, match="total='both'"):
        RankValueTokenizer.from_vocabulary(vocabulary, total="both")


def test_tokenizers_need_their_statistics():
    vocab = GeneVocabulary.from_statistics(["A"])
    with pytest.raises(ValueError, match="needs the medians"):
        RankValueTokenizer.from_vocabulary(vocab)
    with pytest.raises(ValueError, match="needs the means"):
        ExceiverTokenizer.from_vocabulary(vocab)
    with pytest.raises(ValueError, match=r"gene_vocab\.json"):
        ExceiverTokenizer()


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (RankValueTokenizer, "model_max_length", "long"), (RankValueTokenizer, "model_max_length", 0),
        (RankValueTokenizer, "model_max_length", 7.5), (RankValueTokenizer, "target_sum", float("nan")),
        (RankValueTokenizer, "add_cls_token", 3), (ExceiverTokenizer, "clip", None),
        (ExceiverTokenizer, "target_sum", -1), (ExceiverTokenizer, "min_coverage", [0.5]),
        (ExceiverTokenizer, "min_coverage", 50),
    ],
)  # fmt: skip
def test_settings_that_no_cell_can_be_encoded_with_are_refused(tmp_path, kind, name, value):
    with pytest.raises(ValueError, match=f"^{name}="):
        kind.from_vocabulary(a_vocabulary(3), **{name: value})
    kind.from_vocabulary(a_vocabulary(3)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {name: value}))
    with pytest.raises(ValueError, match=f"{name}="):
        kind.from_pretrained(tmp_path)
