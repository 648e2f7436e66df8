import anndata
import numpy as np
import pyarrow.parquet as pq
import pytest

from cellglot.tokenization import RankValueTokenizer
from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.corpus.tokenize import tokenize_corpus
from cellglot.training.config import read_section
from cellglot.training.data.collators import ExceiverCollator
from cellglot.training.data.dataset import CellDataset
from cellglot.training.data.rank_value_collator import rank_value_collator
from cellglot.training.data.thinning import ThinningSettings, count_encoding, thinning_of


KINDS = ("exceiver", "rank-value", "rank-value by vocabulary")


@pytest.fixture(scope="module")
def corpora(blood_file, corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rank-value")
    options = {"return_expression_values": True}
    made = {
        total: tokenize_corpus(
            [blood_file],
            folder / total,
            tokenizer="rank-value",
            tokenizer_options=options | {"total": total},
            genes=None if total == "all" else corpus.tokenizer().vocabulary.genes[::2],
            validation_fraction=0.2,
            processes=1,
            progress=False,
        )
        for total in ("all", "vocabulary")
    }
    return dict(zip(KINDS, (corpus, made["all"], made["vocabulary"]), strict=True))


def counts_by_gene(corpus, blood, cell):
    """Counts of a training cell of the file on genes of the vocabulary: token id -> count."""
    shards = [pq.read_table(s, columns=["cell_index"])["cell_index"].to_numpy() for s in corpus.shards("train")]
    row = blood.X[int(np.concatenate(shards)[cell])].toarray().ravel()
    match = corpus.tokenizer().vocabulary.resolve(blood.var_names)
    counts: dict[int, int] = {}
    for token, n in zip(match.token_ids[match.known].tolist(), row[match.known].tolist(), strict=True):
        if n:
            counts[token] = counts.get(token, 0) + int(n)
    return counts


@pytest.mark.parametrize("kind", KINDS)
def test_counts_come_back_exactly_and_give_the_tokenizers_tokens(corpora, blood, kind):
    corpus = corpora[kind]
    encoding, cells = count_encoding(corpus.tokenizer(), corpus), CellDataset(corpus, "train")
    for number in range(0, len(cells), 9):
        cell = cells[(0, number)]
        tokens, counts = encoding.counts(cell)
        assert dict(zip(tokens.tolist(), counts.tolist(), strict=True)) == counts_by_gene(corpus, blood, number)
        again = encoding.encode(cell, tokens, counts)
        assert again["input_ids"].tolist() == cell["input_ids"].tolist()
        if kind != "rank-value by vocabulary":
            covered = counts.sum() / cell["expression_total"]
            same = np.allclose(again["expression_values"], cell["expression_values"], atol=1e-6)
            assert same == (covered == 1), "values are scaled by the counts that are left"


def test_clipped_counts_come_back(corpora):
    corpus = corpora["exceiver"]
    cells = CellDataset(corpus, "train")
    clipped = [cells[n]["clipped_counts"] for n in range(len(cells))]
    assert sum(map(len, clipped)) > 20 and max(c.max(initial=0) for c in clipped) > 1
    for number, counts in enumerate(clipped[:100]):
        assert len(counts) == (cells[number]["expression_values"] == 11).sum()


@pytest.mark.parametrize("kind", KINDS[:2])
def test_thinned_cells_are_what_the_tokenizer_makes_of_fewer_counts(corpora, kind):
    corpus = corpora[kind]
    tokenizer, cells = corpus.tokenizer(), CellDataset(corpus, "train")
    thinning = thinning_of(ThinningSettings(**{"thin_counts": 0.5, "drop_tokens": 0.2}), tokenizer, corpus, 0)
    encoding, vocabulary = count_encoding(tokenizer, corpus), tokenizer.vocabulary
    rows, given = np.zeros((20, len(vocabulary.genes))), []
    place = {token: i for i, token in enumerate(vocabulary.gene_token_ids.tolist())}
    for number in range(20):
        before = encoding.counts(cells[(0, number)])
        thinned = thinning(cells[(0, number)])
        stays = {"expression_total": 0.0, "clipped_counts": np.empty(0)}
        assert stays.keys() & cells[0].keys() <= thinned.keys()
        random = np.random.default_rng([0, 1, number, 1])
        random.uniform(), random.uniform()
        left = random.binomial(before[1].astype(int), 0.5)
        left[random.random(len(left)) < 0.2] = 0
        rows[number, [place[t] for t in before[0].tolist()]] = left
        given.append(thinned)
    expected = tokenizer(rows, genes=vocabulary.genes)
    for thinned, ids in zip(given, expected["input_ids"], strict=True):
        assert thinned["input_ids"].tolist() == ids
    if kind == "exceiver":
        for thinned, values in zip(given, expected["expression_values"], strict=True):
            assert thinned["expression_values"].tolist() == values


def test_shares_and_numbers_of_counts(corpora):
    corpus = corpora["rank-value"]
    tokenizer, cells = corpus.tokenizer(), CellDataset(corpus, "train")
    encoding = count_encoding(tokenizer, corpus)

    def left(settings):
        thinning = thinning_of(ThinningSettings(**settings), tokenizer, corpus, 3)
        random = [np.random.default_rng([3, 1, n, 1]) for n in range(len(cells))]
        assert random[0].random() == np.random.default_rng([3, 1, 0, 1]).random()
        pairs = []
        for n in range(len(cells)):
            cell = cells[(0, n)]
            counts = dict(zip(*(x.tolist() for x in encoding.counts(cell)), strict=True))
            thinned = thinning(cell)
            genes = [t for t in thinned["input_ids"].tolist() if t != tokenizer.cls_token_id]
            assert set(genes) <= set(counts) and thinned["input_ids"][0] == tokenizer.cls_token_id
            values = np.expm1(thinned["expression_values"][1:])
            pairs.append((sum(counts.values()), np.rint(values / values.min()).sum(), len(genes), len(counts)))
        return np.array(pairs).T

    before, after, genes, all_genes = left({"thin_counts": 0.3})
    assert 0.28 < after.sum() / before.sum() < 0.32
    median = np.median(before)
    before, after, genes, all_genes = left({"thin_to_median": 0.4})
    deep = before > 0.4 * median
    assert deep.sum() > 500 and abs(after[deep].mean() / median - 0.4) < 0.01
    assert abs(np.corrcoef(before[deep], after[deep])[0, 1]) < 0.2, "depth no longer tells cells apart"
    before, after, genes, all_genes = left({"thin_to_median": 100})
    assert (genes == all_genes).all(), "a cell with fewer counts keeps them"
    *_, genes, all_genes = left({"drop_tokens": [0.0, 0.5]})
    assert 0.72 < (genes / all_genes).mean() < 0.78 and (genes / all_genes).std() > 0.1


def test_draws_depend_on_seed_epoch_and_cell_alone(corpora):
    for kind in KINDS[:2]:
        corpus = corpora[kind]
        tokenizer, cells = corpus.tokenizer(), CellDataset(corpus, "train")
        settings = {"thin_counts": [0.2, 1.0], "drop_tokens": [0.0, 0.5]}
        one, other = (thinning_of(ThinningSettings(**settings), tokenizer, corpus, seed) for seed in (0, 1))
        first = one(cells[(0, 4)])["input_ids"].tolist()
        one(cells[(0, 5)])
        assert one(cells[(0, 4)])["input_ids"].tolist() == first
        assert one(cells[(1, 4)])["input_ids"].tolist() != first
        assert other(cells[(0, 4)])["input_ids"].tolist() != first


@pytest.mark.parametrize("kind", KINDS[:2])
def test_collators_thin_training_cells_alone(corpora, kind):
    corpus = corpora[kind]
    tokenizer, cells = corpus.tokenizer(), CellDataset(corpus, "train")
    thinning = thinning_of(ThinningSettings(**{"thin_to_median": [0.15, 0.3]}), tokenizer, corpus, 0)

    def make(thinning):
        if kind == "exceiver":
            return ExceiverCollator(tokenizer.pad_token_id, 0, thinning=thinning)
        return rank_value_collator(tokenizer, mask_fraction=0.0, max_length=512, thinning=thinning)

    lengths = [
        make(t)([cells[(epoch, n)] for n in range(8)] + [cells[(epoch, -1)]])["attention_mask"].sum(dim=1)
        for t, epoch in ((None, 0), (thinning, -1), (thinning, 0))
    ]
    assert lengths[0].tolist() == lengths[1].tolist(), "held-out cells have no epoch, and stay as they are"
    assert (lengths[2][:8] < lengths[0][:8]).all() and lengths[2][8] == 0


def test_tokens_are_left_out_without_counts(blood, blood_file, tmp_path):
    corpus = tokenize_corpus([blood_file], tmp_path / "c", tokenizer="rank-value", processes=1, progress=False)
    tokenizer, cells = corpus.tokenizer(), CellDataset(corpus, "train")
    thinning = thinning_of(ThinningSettings(**{"drop_tokens": 0.5}), tokenizer, corpus, 0)
    for number in range(30):
        cell = cells[(0, number)]
        left = thinning(cell)["input_ids"].tolist()
        assert left[0] == tokenizer.cls_token_id
        assert left == [t for t in cell["input_ids"].tolist() if t in set(left)], "the order is kept"
        assert 0.35 < len(left) / len(cell["input_ids"]) < 0.65
    with pytest.raises(ValueError, match="return_expression_values=true, or set data.thin_counts=null"):
        thinning_of(ThinningSettings(**{"thin_counts": 0.5}), tokenizer, corpus, 0)
    assert thinning_of(ThinningSettings(**{"thin_counts": None, "drop_tokens": 0}), tokenizer, corpus, 0) is None


def test_a_cell_that_would_lose_everything_stays(blood, tmp_path):
    few = anndata.AnnData(blood.X[:40].copy(), obs=blood.obs[:40].copy(), var=blood.var.copy())
    few.write_h5ad(tmp_path / "few.h5ad")
    corpus = tokenize_corpus([tmp_path / "few.h5ad"], tmp_path / "c", processes=1, progress=False)
    tokenizer, cells = corpus.tokenizer(), CellDataset(corpus, "train")
    thinning = thinning_of(ThinningSettings(**{"thin_counts": 1e-9}), tokenizer, corpus, 0)
    assert thinning(cells[(0, 0)])["input_ids"].tolist() == cells[0]["input_ids"].tolist()


def test_a_corpus_without_totals_is_refused(corpora, tmp_path):
    corpus = corpora["rank-value"]
    shard = pq.read_table(corpus.shards("train")[0]).drop_columns(["expression_total"])
    pq.write_table(shard, tmp_path / "train.parquet")
    manifest = corpus.manifest | {"shards": [{"file": "train.parquet", "split": "train", "cells": len(shard)}]}
    with pytest.raises(ValueError, match="has no totals of cells.*tokenize again, or set data.thin_counts"):
        thinning_of(ThinningSettings(**{"thin_counts": 0.5}), corpus.tokenizer(), Corpus(tmp_path, manifest), 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"thin_counts": 0}, "data.thin_counts 0: it is a share from above 0 to 1, or a pair of these"),
        ({"thin_counts": [0.5, 1.5]}, "data.thin_counts"),
        ({"thin_counts": True}, "data.thin_counts"),
        (
            {"thin_to_median": [0.8, 0.2]},
            "data.thin_to_median .0.8, 0.2.: it is a multiple above 0 of the median cell",
        ),
        ({"thin_to_median": "many"}, "data.thin_to_median 'many'"),
        ({"drop_tokens": 1.0}, "data.drop_tokens 1.0: it is a share from 0 to below 1"),
        ({"drop_tokens": [0.1, 0.2, 0.3]}, "data.drop_tokens"),
    ],
)
def test_shares_that_are_none_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        read_section(ThinningSettings, settings, "data")


def test_vocabularies_of_other_tokenizers_of_the_corpus_are_not_needed(corpora):
    """A model's own tokenizer gives no values: what they were scaled to is known from the corpus's."""
    corpus = corpora["rank-value"]
    of_model = RankValueTokenizer.from_vocabulary(corpus.tokenizer().vocabulary, target_sum=1.0)
    cells = CellDataset(corpus, "train")
    counts = [count_encoding(t, corpus).counts(cells[0])[1].tolist() for t in (of_model, corpus.tokenizer())]
    assert counts[0] == counts[1]
