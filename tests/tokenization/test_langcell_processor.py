import json

import numpy as np
import pytest
import torch

from cellglot.tokenization import LangCellProcessor, RankValueTokenizer


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cell", "type", ":", ";", ".", "b", "t", "a", "lymphocyte"]


@pytest.fixture(scope="module")
def text_tokenizer(tmp_path_factory):
    from transformers import BertTokenizerFast

    path = tmp_path_factory.mktemp("words") / "vocab.txt"
    path.write_text("\n".join(WORDS))
    return BertTokenizerFast(vocab=str(path), model_max_length=512)


@pytest.fixture
def processor(vocabulary, text_tokenizer):
    return LangCellProcessor(RankValueTokenizer.from_vocabulary(vocabulary), text_tokenizer)


@pytest.fixture
def few(blood):
    return blood[:3].copy()


def test_cells_and_texts(processor, few):
    given = processor(few, text=["cell type: B cell.", "T cell"], return_tensors="pt")
    assert list(given) == ["input_ids", "attention_mask", "text_input_ids", "text_attention_mask"]
    assert list(given) == processor.model_input_names
    assert torch.equal(given["input_ids"], processor.tokenizer(few, return_tensors="pt")["input_ids"])
    assert given["text_input_ids"].shape == (2, 8)
    assert given["text_input_ids"][1].tolist() == [2, 11, 5, 3, 0, 0, 0, 0]
    assert given["text_attention_mask"].sum(1).tolist() == [8, 4]
    assert processor.last_report is processor.tokenizer.last_report is not None


def test_cells_or_texts_alone(processor, few):
    assert list(processor(few, return_tensors="np")) == ["input_ids", "attention_mask"]
    given = processor(text="B cell")
    assert given["text_input_ids"] == [[2, 10, 5, 3]]
    assert len(processor(few.X[:2], genes=list(few.var_names))["input_ids"]) == 2


def test_long_texts_are_cut_counted_and_said(processor, monkeypatch):
    from cellglot.tokenization import processing_langcell

    said = []
    monkeypatch.setattr(processing_langcell.logger, "warning", said.append)
    given = processor(text=["a " * 600, "B cell", "a " * 510], return_tensors="pt")
    assert given["text_input_ids"].shape == (3, 512)
    assert given["text_input_ids"][0, -1] == 3  # [SEP] stays
    assert processor.texts_cut == 1
    assert said == ["1 of 3 texts have more than 512 tokens (the longest has 602) and were cut."]
    processor(text=["B cell"])
    assert processor.texts_cut == 0 and len(said) == 1
    assert processor(text=["a a a a"], text_max_length=4)["text_input_ids"] == [[2, 12, 12, 3]]


def test_bad_input(processor, few):
    for text in ([""], ["B cell", "  "], ["B cell", None]):
        with pytest.raises(ValueError, match=r"text \d of \d is empty"):
            processor(few, text=text)
    with pytest.raises(ValueError, match="no candidates"):
        processor(few, text=[])
    with pytest.raises(ValueError, match="neither cells nor text"):
        processor()
    with pytest.raises(TypeError, match="genes"):
        processor(text="B cell", genes=["CD3E"])
    with pytest.raises(TypeError, match="does not take word"):
        processor(few, word=1)


def test_saved_is_loaded(processor, few, tmp_path):
    from transformers import AutoProcessor, AutoTokenizer

    processor.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "text_tokenizer" / "config.json").read_text()) == {"model_type": "bert"}
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is LangCellProcessor
    assert type(AutoTokenizer.from_pretrained(tmp_path)) is RankValueTokenizer
    texts = ["cell type: B cell.", "T cell"]
    expected = processor(few, text=texts, return_tensors="pt")
    given = loaded(few, text=texts, return_tensors="pt")
    assert all(torch.equal(expected[name], given[name]) for name in expected)


@pytest.mark.long
def test_loaded_without_cellglot(processor, few, langcell_config, stranger, tmp_path):
    from cellglot.modeling import LangCellModel

    torch.manual_seed(0)
    model = LangCellModel(langcell_config(vocab_size=processor.tokenizer.vocab_size)).eval()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    texts = ["cell type: B cell.", "T cell"]
    expected = model.annotate(**processor(few, text=texts, return_tensors="pt")).scores
    np.savez(tmp_path / "cells.npz", X=few.X.toarray(), genes=np.array(few.var_names, dtype=str))
    script = f"""
        import numpy as np, transformers
        folder = {str(tmp_path)!r} + "/model"
        processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        model = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
        assert type(processor).__module__.startswith("transformers_modules")
        assert type(processor.text_tokenizer).__name__.startswith("Bert")
        cells = np.load({str(tmp_path)!r} + "/cells.npz")
        inputs = processor(cells["X"], text={texts!r}, genes=cells["genes"].tolist(), return_tensors="pt")
        np.save({str(tmp_path)!r} + "/scores.npy", model.annotate(**inputs).scores.numpy())
    """
    stranger(script)
    assert np.allclose(np.load(tmp_path / "scores.npy"), expected.numpy(), atol=1e-6)
