import io
import pickle

import numpy as np
import pandas as pd
import pytest

from cellglot.tokenization import GeneVocabulary


@pytest.fixture
def vocab():
    return GeneVocabulary(
        {"<pad>": 0, "<mask>": 1, "ENSG00000000001": 2, "ENSG00000000002": 3, "ENSG00000000003": 7},
        symbols={"ENSG00000000001": "ONE", "ENSG00000000002": "TWO", "ENSG00000000003": "TWO"},
        aliases={"ENSG00000000001": ["UNO", "PRIMUS"], "ENSG00000000002": ["PRIMUS", "ONE"]},
        medians={"ENSG00000000001": 1.5, "ENSG00000000002": 2.0, "ENSG00000000003": 0.5},
    )


def rule(vocab, *names, **columns):
    match = vocab.resolve(list(names), columns or None)
    return match.token_ids.tolist(), match.report()


def test_gaps_in_ids_count_towards_the_embedding(vocab):
    assert vocab.vocab_size == 8
    assert len(vocab) == 5
    assert vocab.genes == ["ENSG00000000001", "ENSG00000000002", "ENSG00000000003"]


@pytest.mark.parametrize(
    ("name", "token", "by"),
    [
        ("ENSG00000000001", 2, "ensembl_id"),
        ("ENSG00000000002.17", 3, "versioned_id"),
        ("ONE", 2, "symbol"),  # the symbol of one gene wins over an alias of another
        ("UNO", 2, "alias"),
        (" ONE ", 2, "symbol"),
    ],
)
def test_every_rule(vocab, name, token, by):
    tokens, report = rule(vocab, name)
    assert tokens == [token]
    assert report.matched_by_rule[by] == report.matched == 1


@pytest.mark.parametrize("name", ["TWO", "PRIMUS"])
def test_a_name_of_several_genes_is_left_out_and_counted(vocab, name):
    tokens, report = rule(vocab, name)
    assert tokens == [-1]
    assert (report.ambiguous, report.unknown) == (1, 0)


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA, pd.NaT])
def test_names_that_are_missing_or_no_strings(vocab, missing):
    tokens, report = rule(vocab, missing, 7, " TWO", ids=["ENSG00000000001", missing, "ENSG00000000003 "])
    assert (tokens, report.unknown, report.ambiguous) == ([-1, -1, -1], 2, 1)
    tokens, report = rule(vocab, missing, 7, " TWO", gene_ids=["ENSG00000000001", missing, "ENSG00000000003 "])
    assert (tokens, report.matched) == ([2, -1, 7], 2)
    assert vocab.resolve([missing, 7, " TWO"]).names.tolist() == ["", "7", "TWO"]


@pytest.mark.parametrize("name", ["", "one", "NOPE", "ENSMUSG00000000001", "ENST00000000001"])
def test_unknown_names_are_counted(vocab, name):
    tokens, report = rule(vocab, name)
    assert tokens == [-1]
    assert report.unknown == 1


def test_a_gene_with_an_id_of_its_own_is_not_matched_by_its_symbol(vocab):
    tokens, report = rule(vocab, "ENSG00000000099", feature_name=["ONE"])
    assert tokens == [-1]
    assert report.unknown == 1


def test_the_copy_on_y_of_a_pseudoautosomal_gene_is_not_taken_for_the_gene_on_x_by_its_id(vocab):
    tokens, report = rule(vocab, "ENSG00000000001.12", "ENSG00000000001.12_PAR_Y")
    assert tokens == [2, -1]
    assert report.unknown == 1
    tokens, report = rule(vocab, "ENSG00000000001.12", "ENSG00000000001.12_PAR_Y", feature_name=["ONE", "ONE"])
    assert tokens == [2, 2]
    assert (report.matched_by_rule["symbol"], report.summed) == (1, 1)


def test_a_vocabulary_of_symbols_finds_genes_that_have_ids_by_their_symbols():
    symbols = GeneVocabulary.from_statistics(["ONE", "TWO"])
    match = symbols.resolve(["ENSG00000000099", "ENSG00000000098"], {"feature_name": ["TWO", "NOPE"]})
    assert match.token_ids.tolist() == [1, -1]
    assert match.report().matched_by_rule["symbol"] == 1


def test_columns_are_used_where_the_index_tells_nothing(vocab):
    tokens, report = rule(
        vocab, "0", "1", "ENSG00000000003", gene_ids=["ENSG00000000001", "", "x"], symbol=["", "ONE", ""]
    )
    assert tokens == [2, 2, 7]
    assert report.matched_by_rule == {"ensembl_id": 2, "versioned_id": 0, "symbol": 1, "alias": 0, "cleaned_name": 0}
    assert report.summed == 1


def test_two_ids_for_one_gene_are_a_conflict_and_the_index_wins(vocab):
    tokens, report = rule(vocab, "ENSG00000000001", ensembl_id=["ENSG00000000002"])
    assert tokens == [2]
    assert report.conflicts == 1


def test_gene_column_is_the_only_source(vocab):
    match = vocab.resolve(["ENSG00000000001"], {"other": ["ENSG00000000002"]}, gene_column="other")
    assert match.token_ids.tolist() == [3]
    with pytest.raises(ValueError, match=r"no column 'names'.*other"):
        vocab.resolve(["x"], {"other": ["y"]}, gene_column="names")


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        ([f"ENSMUSG{i:011d}" for i in range(30)], "mouse"),
        ([f"ENST{i:011d}" for i in range(30)], "transcripts"),
        ([str(i) for i in range(30)], "numbers"),
    ],
)
def test_hints_say_what_the_names_look_like(vocab, names, hint):
    assert hint in vocab.resolve(names).report().hint


def test_a_vocabulary_without_symbols_asks_for_ids():
    plain = GeneVocabulary.from_statistics(["ENSG00000000001"])
    assert "gene_column='gene_ids'" in plain.resolve([f"GENE{i}" for i in range(20)]).report().hint


def test_the_match_of_the_same_names_is_kept_and_of_others_is_not(vocab):
    first = vocab.resolve(["ONE", "UNO"])
    assert vocab.resolve(["ONE", "UNO"]) is first
    assert vocab.resolve(["UNO", "ONE"]) is not first


def test_saved_is_loaded(vocab, tmp_path):
    vocab.save(tmp_path)
    loaded = GeneVocabulary.load(tmp_path)
    assert loaded == vocab
    assert loaded.medians.tolist() == [1.5, 2.0, 0.5]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gene_stats.safetensors", "gene_vocab.json"]


def test_special_tokens_are_numbered_around_the_genes():
    genes = GeneVocabulary.from_statistics(["A", "B"], means=[0.1, 0.2])
    numbered = genes.with_special_tokens(["<pad>"], ["<cls>"])
    assert numbered.token_ids == {"<pad>": 0, "A": 1, "B": 2, "<cls>": 3}
    assert numbered.means.tolist() == [0.1, 0.2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GeneVocabulary({"A": 0, "B": 0}), "share the id 0"),
        (lambda: GeneVocabulary({"A": -1}), "ids start at 0"),
        (lambda: GeneVocabulary({"A": 0}, medians={"A": 0.0}), "median of gene A is 0.0, not positive"),
        (lambda: GeneVocabulary({"A": 0, "B": 1}, medians={"A": 1.0}), "1 of 2 genes have no median"),
        (lambda: GeneVocabulary({"A": 0}, means=np.zeros(2)), r"shape \(2,\), but the vocabulary has 1 genes"),
        (lambda: GeneVocabulary.from_statistics(["A", "A"]), "occurs twice"),
    ],
)
def test_vocabularies_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("content", ["not json", "{}", "[1]", '{"token_ids": '])
def test_a_damaged_vocabulary_is_named(tmp_path, content):
    (tmp_path / "gene_vocab.json").write_text(content)
    with pytest.raises(ValueError, match="gene_vocab.json is not a gene vocabulary"):
        GeneVocabulary.load(tmp_path)


def test_damaged_statistics_are_named(vocab, tmp_path):
    vocab.save(tmp_path)
    (tmp_path / "gene_stats.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(ValueError, match="gene_stats.safetensors"):
        GeneVocabulary.load(tmp_path)


# -------------------------------------------------------------------- released pickles


def test_released_dictionaries_are_read(tmp_path):
    tokens = {"<pad>": 0, "<mask>": 1, "ENSG00000000001": np.int16(2), "ENSG00000000002": np.int16(3)}
    medians = {"ENSG00000000001": np.float64(1.25), "ENSG00000000002": np.float64(2.5)}
    names = {"ONE": "ENSG00000000001", "UNO": "ENSG00000000001", "TWO": "ENSG00000000002", "FAR": "ENSG00000000009"}
    for name, content in (("tokens", tokens), ("medians", medians), ("names", names)):
        (tmp_path / name).write_bytes(pickle.dumps(content))
    vocab = GeneVocabulary.from_released(tmp_path / "tokens", tmp_path / "medians", tmp_path / "names")
    assert vocab.token_ids["<cls>"] == 4
    assert vocab.medians.tolist() == [1.25, 2.5]
    assert (vocab.symbols["ENSG00000000001"], vocab.aliases) == ("ONE", {"ENSG00000000001": ["UNO"]})


def test_numpy_scalars_of_old_pickles_and_other_byte_orders():
    content = {"a": np.array([1.5], dtype=">f8")[0], "b": np.float32(0.5), "c": True}
    dumped = pickle.dumps(content, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    from cellglot.tokenization.gene_vocabulary import _PlainUnpickler

    assert _PlainUnpickler(io.BytesIO(dumped)).load() == {"a": 1.5, "b": 0.5, "c": True}


class Dangerous:
    def __reduce__(self):
        import os

        return os.system, ("true",)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({"x": Dangerous()}),
        pickle.dumps({"x": np.array([1, 2])}),
        b"no pickle",
        pickle.dumps([1, 2]),
        pickle.dumps({"x": 1})[:-3],
        b"",
    ],
)
def test_anything_but_plain_dictionaries_is_refused(tmp_path, content):
    (tmp_path / "tokens.pkl").write_bytes(content)
    with pytest.raises(ValueError, match="tokens.pkl"):
        GeneVocabulary.from_released(tmp_path / "tokens.pkl")


def test_object_scalars_are_refused(tmp_path):
    hostile = pickle.dumps(np.float64(1)).replace(b"f8", b"O8")
    assert b"O8" in hostile
    (tmp_path / "tokens.pkl").write_bytes(hostile)
    with pytest.raises(ValueError, match="not a number"):
        GeneVocabulary.from_released(tmp_path / "tokens.pkl")


@pytest.mark.reference
def test_the_published_dictionaries(reference_data):
    genes = reference_data / "genes"
    vocab = GeneVocabulary.from_released(
        genes / "token_dictionary.pkl", genes / "gene_median_dictionary.pkl", genes / "gene_name_id_dict.pkl"
    )
    assert (len(vocab.genes), vocab.token_ids["<cls>"], vocab.vocab_size) == (25_424, 25_426, 25_427)
    assert vocab.symbols["ENSG00000141510"] == "TP53"
    assert vocab.resolve(["TP53", "ENSG00000141510.17"]).token_ids.tolist() == [vocab.token_ids["ENSG00000141510"]] * 2
