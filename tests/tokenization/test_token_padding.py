"""Padding of tokenized cells by the tokenizer, as transformers' collators ask for it; added tokens; state."""

import copy
import hashlib
import pickle

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
)

from cellglot.tokenization import ExceiverTokenizer, GeneVocabulary, LangCellProcessor, RankValueTokenizer


GENES = [f"ENSG{number:011d}" for number in range(12)]
CELLS = [{gene: 1 + place for place, gene in enumerate(GENES[:number])} for number in (3, 7, 0, 5)]
KINDS = {
    "exceiver": (ExceiverTokenizer, {}),
    "ranks": (RankValueTokenizer, {"model_max_length": 10}),
    "ranks and values": (RankValueTokenizer, {"model_max_length": 10, "return_expression_values": True}),
}


@pytest.fixture(params=KINDS)
def tokenizer(request):
    statistics = np.linspace(0.5, 2.0, len(GENES))
    vocabulary = GeneVocabulary.from_statistics(GENES, medians=statistics, means=statistics, stds=statistics)
    kind, options = KINDS[request.param]
    return kind.from_vocabulary(vocabulary, **options)


def rows_of(batch, **more):
    rows = [{name: batch[name][cell] for name in batch} for cell in range(len(batch["input_ids"]))]
    return [row | {name: given[cell] for name, given in more.items()} for cell, row in enumerate(rows)]


def as_arrays(batch):
    return {name: np.asarray(values) for name, values in batch.items()}


FORMS = {
    "lists": lambda row: row,
    "arrays": lambda row: {name: np.asarray(values) for name, values in row.items()},
    "tensors": lambda row: {name: torch.tensor(values) for name, values in row.items()},
}


@pytest.mark.parametrize("form", FORMS)
def test_padding_a_batch_gives_what_a_call_gives(tokenizer, form):
    tokenizer_call = as_arrays(tokenizer(CELLS, return_tensors="np"))
    given = tokenizer(CELLS)
    rows = [FORMS[form](row) for row in rows_of(given)]
    if form != "lists":  # an empty cell has no entry that tells its type
        for row in rows:
            row["input_ids"] = row["input_ids"].astype(int) if form == "arrays" else row["input_ids"].long()
    for batch in (rows, {name: [row[name] for row in rows] for name in rows[0]}):
        padded = tokenizer.pad(batch)
        kinds = {type(values) for values in padded.values()}
        assert kinds == {{"lists": list, "arrays": np.ndarray, "tensors": torch.Tensor}[form]}
        assert padded.keys() == tokenizer_call.keys()
        for name, values in as_arrays(padded).items():
            np.testing.assert_array_equal(values.astype(np.float32), tokenizer_call[name].astype(np.float32))
    assert rows[0]["input_ids"].__len__() < 8, "what is given stays as it is"
    tensors = tokenizer.pad(rows, return_tensors="pt")
    types = {"input_ids": torch.int64, "attention_mask": torch.int64, "expression_values": torch.float32}
    assert {name: values.dtype for name, values in tensors.items()} == {name: types[name] for name in tensors}


@pytest.mark.parametrize("side", ["right", "left"])
def test_sides_lengths_and_multiples(tokenizer, side):
    tokenizer.padding_side = side
    rows = rows_of(tokenizer(CELLS))
    longest = max(len(row["input_ids"]) for row in rows)
    for options, width in (
        ({"pad_to_multiple_of": 16}, 16),
        ({"padding": "max_length", "max_length": 11}, 11),
        ({"padding": "longest", "max_length": 50}, longest),
    ):
        padded = tokenizer.pad(rows, return_tensors="np", **options)
        for name, fill in (("input_ids", tokenizer.pad_token_id), ("attention_mask", 0), ("expression_values", 0)):
            if name in padded:
                assert padded[name].shape == (len(rows), width)
                for row, values in zip(rows, padded[name], strict=True):
                    n = len(row[name])
                    there, padding = (
                        (values[:n], values[n:]) if side == "right" else (values[width - n :], values[: width - n])
                    )
                    np.testing.assert_allclose(there, row[name], rtol=1e-6)
                    assert (padding == fill).all()
    np.testing.assert_array_equal(
        tokenizer(CELLS, return_tensors="np")["input_ids"], tokenizer.pad(rows, return_tensors="np")["input_ids"]
    )
    other = {"right": "left", "left": "right"}[side]
    assert tokenizer.pad(rows, padding_side=other)["attention_mask"][0] == padded["attention_mask"][0].tolist()[::-1]


def test_one_cell_and_no_padding(tokenizer):
    row = rows_of(tokenizer(CELLS))[0]
    length = len(row["input_ids"])
    padded = tokenizer.pad(row, padding="max_length", max_length=9, return_tensors="pt")
    assert {values.shape for values in padded.values()} == {(9,)} and padded["attention_mask"].sum() == length
    assert dict(tokenizer.pad(row)) == row
    ragged = tokenizer.pad(tokenizer(CELLS), padding=False)
    assert ragged["input_ids"] == tokenizer(CELLS)["input_ids"]
    with pytest.raises(ValueError, match="tensors need padding"):
        tokenizer.pad(tokenizer(CELLS), padding=False, return_tensors="pt")
    without = [{"input_ids": one["input_ids"]} for one in rows_of(tokenizer(CELLS))]
    assert tokenizer.pad(without)["attention_mask"] == tokenizer.pad(tokenizer(CELLS))["attention_mask"]
    assert set(tokenizer.pad(without, return_attention_mask=False)) == {"input_ids"}


def test_further_fields_are_padded_with_tokens_or_queries(tokenizer):
    given = tokenizer(CELLS)
    lengths = [len(tokens) for tokens in given["input_ids"]]
    rows = rows_of(
        given,
        masked_genes=[[True] * n for n in lengths],
        labels=[[0.5] * min(n, 2) for n in lengths],
        query_ids=[tokens[:2] for tokens in given["input_ids"]],
        gene_labels=[[1] * n for n in lengths],
        special_tokens_mask=[[0] * n for n in lengths],
        places=[[[1, 2]] * n for n in lengths],
        cell_type_ids=[0, 1, -100, 2],
        scores=[[0.1, 0.2, 0.3]] * 4,
    )
    padded = tokenizer.pad(rows, return_tensors="pt")
    there = padded["attention_mask"].bool()
    assert padded["masked_genes"].dtype == torch.bool and torch.equal(padded["masked_genes"], there)
    assert padded["query_ids"].shape == padded["labels"].shape == (4, 2) and padded["labels"].dtype == torch.float32
    asked = padded["query_ids"] != tokenizer.pad_token_id
    assert torch.equal(padded["labels"], asked * 0.5)
    assert torch.equal(padded["gene_labels"], torch.where(there, 1, -100))
    assert torch.equal(padded["special_tokens_mask"], (~there).long())
    assert padded["places"].shape == (*there.shape, 2) and not padded["places"][~there].any()
    assert padded["cell_type_ids"].tolist() == [0, 1, -100, 2] and padded["scores"].shape == (4, 3)
    lists = tokenizer.pad(rows)
    for name, values in padded.items():
        np.testing.assert_allclose(np.asarray(lists[name], dtype=np.float64), values.double(), rtol=1e-6)


def test_collators_of_transformers(tokenizer):
    given = tokenizer(CELLS)
    labels = [[1] * len(tokens) for tokens in given["input_ids"]]
    batch = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=4)(rows_of(given, labels=[0, 1, 2, 0]))
    assert {values.shape for name, values in batch.items() if name != "labels"} == {(4, 8)}
    assert batch["labels"].tolist() == [0, 1, 2, 0]
    batch = DataCollatorForTokenClassification(tokenizer)(rows_of(given, labels=labels))
    assert torch.equal(batch["labels"], torch.where(batch["attention_mask"].bool(), 1, -100))
    if tokenizer.mask_token is None:
        with pytest.raises(ValueError, match="does not have a mask token"):
            DataCollatorForLanguageModeling(tokenizer)
        return
    batch = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.9)(rows_of(given))
    ids, labels = batch["input_ids"], batch["labels"]
    assert (labels != -100).any() and (ids[labels == -100] != tokenizer.mask_token_id).all()
    assert not torch.isin(labels, torch.tensor(tokenizer.all_special_ids)).any(), "special tokens are not asked for"


def test_what_cannot_be_padded_is_named(tokenizer):
    rows = rows_of(tokenizer(CELLS), name=["a", "b", "c", "d"])
    for given, options, message in (
        (rows, {"return_tensors": "pt"}, "the field name does not contain numbers"),
        ([], {}, "with the field input_ids"),
        ({"attention_mask": [1]}, {}, "but got attention_mask"),
        ([rows[0], {"input_ids": [1]}], {}, "cells 0 and 1 of the batch do not have the same fields: .*name"),
        ({"input_ids": [[1], [2]], "labels": [1]}, {}, "field labels does not have 2 cells"),
        (rows_of(tokenizer(CELLS), odd=[[1], [1, 2], [], [1]]), {"return_tensors": "np"}, "odd has rows of different"),
        (
            tokenizer(CELLS),
            {"padding": "max_length", "max_length": 2, "return_tensors": "np"},
            "more than the 2 to pad",
        ),
        (tokenizer(CELLS), {"padding": "all"}, "padding='all'"),
        (tokenizer(CELLS), {"padding_side": "top"}, "padding_side='top'"),
        (tokenizer(CELLS), {"return_tensors": "tf"}, "return_tensors='tf'"),
    ):
        with pytest.raises(ValueError, match=message):
            tokenizer.pad(given, **options)
    assert tokenizer.pad(rows)["name"] == ["a", "b", "c", "d"]
    if isinstance(tokenizer, ExceiverTokenizer):
        with pytest.raises(ValueError, match="ExceiverTokenizer has no length"):
            tokenizer.pad(tokenizer(CELLS), padding="max_length")


# -------------------------------------------------------------------- added tokens


def test_added_tokens_come_behind_all_ids_and_are_saved(tokenizer, tmp_path):
    before, ids = len(tokenizer), tokenizer(CELLS)["input_ids"]
    assert before == tokenizer.vocab_size == max(tokenizer.get_vocab().values()) + 1
    assert tokenizer.add_tokens(["<batch>", GENES[0], "<batch>"]) == 1, "a gene and a token that are there are not new"
    assert tokenizer.add_special_tokens({"sep_token": "<sep>", "extra_special_tokens": ["<donor>"]}) == 2
    assert (len(tokenizer), tokenizer.vocab_size) == (before + 3, before)
    new = ["<batch>", "<sep>", "<donor>"]
    assert sorted(tokenizer.convert_tokens_to_ids(new)) == list(range(before, before + 3))
    assert tokenizer.get_vocab().keys() >= {*new, *GENES} and tokenizer.sep_token_id == tokenizer.get_vocab()["<sep>"]
    tokenizer.save_pretrained(tmp_path)
    for again in (
        AutoTokenizer.from_pretrained(tmp_path),
        copy.deepcopy(tokenizer),
        pickle.loads(pickle.dumps(tokenizer)),
    ):
        assert (len(again), again.get_vocab()) == (len(tokenizer), tokenizer.get_vocab())
        every = again.convert_tokens_to_ids(new)
        assert again.convert_ids_to_tokens(every) == new and again.decode(every) == " ".join(new)
        assert set(again.all_special_tokens) == set(tokenizer.all_special_tokens)
        assert again(CELLS)["input_ids"] == ids
        assert again.add_tokens(["<later>"]) == 1 and again.convert_tokens_to_ids("<later>") == before + 3


def test_ids_with_gaps_are_not_given_twice():
    vocabulary = GeneVocabulary({"<pad>": 0, "<mask>": 1, GENES[0]: 5, GENES[1]: 9, "<cls>": 20}, medians=np.ones(2))
    tokenizer = RankValueTokenizer.from_vocabulary(vocabulary)
    assert len(tokenizer) == 21 and tokenizer.add_tokens(["<new>"]) == 1
    assert tokenizer.convert_tokens_to_ids(["<new>", "<cls>", GENES[1]]) == [21, 20, 9]
    assert tokenizer({GENES[1]: 2})["input_ids"] == [[20, 9]]


def test_an_added_class_token_is_put_before_cells_and_odd_tokens_are_refused(tokenizer, caplog):
    if isinstance(tokenizer, RankValueTokenizer):
        tokenizer.add_special_tokens({"cls_token": "<cell>"})
        assert {tokens[0] for tokens in tokenizer(CELLS)["input_ids"]} == {len(tokenizer) - 1}
    with pytest.raises(ValueError, match="'two words' contains blanks"):
        tokenizer.add_tokens("two words")
    with pytest.raises(TypeError, match="the token 3 is of the type int"):
        tokenizer.add_tokens([3])
    tokenizer.add_tokens(["NEWGENE"])
    assert "NEWGENE" in tokenizer.get_vocab()


# -------------------------------------------------------------------- state


def state_of(thing):
    return hashlib.sha256(pickle.dumps(thing)).hexdigest()


def test_a_call_leaves_a_report_and_the_same_tokenizer(tokenizer):
    hasher = pytest.importorskip("datasets.fingerprint").Hasher

    def look(row):
        return tokenizer(row["cell"])

    before = state_of(tokenizer), hasher.hash(tokenizer), hasher.hash(look)
    batch = tokenizer(CELLS)
    DataCollatorWithPadding(tokenizer)(rows_of(batch))
    list(tokenizer.batches(CELLS))
    assert tokenizer.last_report.cells == len(CELLS)
    assert before == (state_of(tokenizer), hasher.hash(tokenizer), hasher.hash(look))
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.get_vocab() == tokenizer.get_vocab() and again.last_report is None
    assert again(CELLS) == batch and again.vocabulary == tokenizer.vocabulary
    assert len(pickle.dumps(tokenizer)) < 5000


def test_a_processor_is_the_same_after_a_call(cell_text_folder, blood):
    hasher = pytest.importorskip("datasets.fingerprint").Hasher
    processor = LangCellProcessor.from_pretrained(cell_text_folder)
    before = hasher.hash(processor), state_of(processor.tokenizer)
    given = processor(blood[:2], text=["b cell", "a much longer text " * 99], return_tensors="pt")
    assert processor.texts_cut == 1 and processor.last_report.cells == 2
    assert before == (hasher.hash(processor), state_of(processor.tokenizer))
    assert copy.deepcopy(processor)(text="b cell")["text_input_ids"] == processor(text="b cell")["text_input_ids"]
    pairs = [dict(processor(blood[cell], text=text)) for cell, text in ((0, "b cell"), (1, "natural killer cell"))]
    pairs = [{name: values[0] for name, values in pair.items()} for pair in pairs]
    padded = processor.pad(pairs, return_tensors="pt")
    expected = processor(blood[:2], text=["b cell", "natural killer cell"], return_tensors="pt")
    assert padded.keys() == expected.keys()
    assert all(torch.equal(padded[name], expected[name]) for name in padded)
    assert given["text_input_ids"].shape[1] == 512
