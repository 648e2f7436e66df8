"""Padding, truncation and tensors are asked for as of other tokenizers, in tokenizers and in the processor."""

import numpy as np
import pytest
import torch
from transformers import AutoProcessor

from cellglot.tokenization import ExceiverTokenizer, RankValueTokenizer


@pytest.fixture(scope="module")
def counts(vocabulary):
    """Three cells that express 12, 3 and 1 genes."""
    made = np.zeros((3, 12), dtype=np.float32)
    for cell, number in enumerate((12, 3, 1)):
        made[cell, :number] = np.arange(1, number + 1)
    return {"cells": made, "genes": list(vocabulary.genes[:12])}


@pytest.fixture(scope="module", params=["exceiver", "rank-value"])
def tokenizer(request, vocabulary):
    kind = ExceiverTokenizer if request.param == "exceiver" else RankValueTokenizer
    return kind.from_vocabulary(vocabulary)


def test_lists_are_ragged_unless_padding_is_asked_for(tokenizer, counts):
    plain = tokenizer(**counts)
    lengths = [len(ids) for ids in plain["input_ids"]]
    assert len(set(lengths)) == 3
    assert tokenizer(**counts, padding=False) == plain
    for padding, width in ((True, max(lengths)), ("longest", max(lengths)), ("max_length", 20)):
        options = {"max_length": 20} if padding == "max_length" else {}
        padded = tokenizer(**counts, padding=padding, **options)
        tensors = tokenizer(**counts, padding=padding, return_tensors="np", **options)
        for name, rows in padded.items():
            assert isinstance(rows, list)
            assert {len(row) for row in rows} == {width}
            np.testing.assert_array_equal(np.array(rows, dtype=tensors[name].dtype), tensors[name])
            assert rows[0][: lengths[0]] == plain[name][0]


def test_tensors_without_padding_need_cells_of_one_length(tokenizer, counts):
    with pytest.raises(ValueError, match="tensors need padding"):
        tokenizer(**counts, padding=False, return_tensors="pt")
    one = {"cells": counts["cells"][:1], "genes": counts["genes"]}
    found = tokenizer(**one, padding=False, return_tensors="pt")
    assert torch.equal(found["input_ids"], tokenizer(**one, return_tensors="pt")["input_ids"])
    with pytest.raises(ValueError, match="return_tensors='tf'"):
        tokenizer(**counts, return_tensors="tf")


def test_truncation_of_ranked_genes(vocabulary, counts):
    tokenizer = RankValueTokenizer.from_vocabulary(vocabulary, model_max_length=5)
    lengths = {
        given: [len(ids) for ids in tokenizer(**counts, truncation=given)["input_ids"]]
        for given in (None, True, "longest_first", False)
    }
    assert lengths[None] == lengths[True] == lengths["longest_first"]
    assert max(lengths[True]) == 5 < max(lengths[False])
    assert tokenizer.last_report.cells_cut == 0
    with pytest.raises(ValueError, match="more than the 5 to pad to"):
        tokenizer(**counts, truncation=False, padding="max_length", max_length=5)
    with pytest.raises(ValueError, match="truncation='some'"):
        tokenizer(**counts, truncation="some")


def test_exceiver_keeps_all_genes(vocabulary, counts):
    tokenizer = ExceiverTokenizer.from_vocabulary(vocabulary)
    for truncation in (None, True, False):
        assert tokenizer(**counts, truncation=truncation) == tokenizer(**counts)
    with pytest.raises(ValueError, match="does not cut"):
        tokenizer(**counts, truncation=True, max_length=4)


def test_the_processor_pads_and_cuts_cells_and_texts(cell_text_folder, counts):
    processor = AutoProcessor.from_pretrained(cell_text_folder)
    texts = ["a cell", "a cell of the blood that makes many antibodies"]
    found = processor(**counts, text=texts, padding=True, truncation=True)
    assert {len(row) for row in found["input_ids"]} == {max(map(len, processor(**counts)["input_ids"]))}
    assert len({len(row) for row in found["text_input_ids"]}) == 1
    assert len({len(row) for row in processor(text=texts)["text_input_ids"]}) == 2
    short = processor(text=texts, padding="max_length", truncation=True, text_max_length=8, return_tensors="pt")
    assert short["text_input_ids"].shape == (2, 8)
    assert processor.texts_cut == 1
