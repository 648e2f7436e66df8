"""Training the texts of a LangCell on the encoder of cells of a base."""

from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from scipy.sparse import csr_matrix

from cellglot.model_cards.collection.recipe import RecipeError, read_recipe
from cellglot.model_cards.collection.text_build import text_scores
from cellglot.model_cards.collection.text_card import text_facts, text_results
from cellglot.model_cards.collection.text_learning import (
    TYPE_COLUMN,
    TypedCells,
    centre,
    langcell_of,
    learn_texts,
    targets_of_types,
    texts_of_type,
)
from cellglot.model_cards.collection.text_settings import TextSettings
from cellglot.modeling.configuration_sccello import ScCelloConfig
from cellglot.modeling.modeling_sccello import ScCelloModel
from cellglot.tokenization import GeneVocabulary, RankValueTokenizer
from cellglot.tokenization.ontology.cell_ontology import CellOntology
from cellglot.tokenization.processing_langcell import LangCellProcessor
from cellglot.training.data.texts import wordpiece_tokenizer


GENES = [f"ENSG{n:011d}" for n in range(24)]
TYPES = ("CL:0000236", "CL:0000623", "CL:0000576")  # B, NK, monocyte
ONTOLOGY = CellOntology.blood()
SETTINGS = TextSettings(hidden_size=16, words=300, longest=24, cells=40, intermediate_size=32, steps=80, batch_size=12, terms=8, learning_rate=5e-3)


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Cells of three types, each with four genes of its own, as two data sets."""
    random, folder = np.random.default_rng(0), tmp_path_factory.mktemp("cells")
    parts = []
    for number in range(2):
        types = np.repeat(TYPES, 50)
        rates = np.ones((150, 24))
        for place in range(3):
            rates[types == TYPES[place], 4 * place : 4 * place + 4] = 12
        obs = pd.DataFrame({TYPE_COLUMN: types}, index=[f"{number}-{i}" for i in range(150)])
        adata = ad.AnnData(
            csr_matrix(random.poisson(rates).astype(np.float32)), obs=obs, var=pd.DataFrame(index=GENES)
        )
        adata.write_h5ad(folder / f"{number}.h5ad")
        parts.append(SimpleNamespace(path=folder / f"{number}.h5ad"))
    return parts


@pytest.fixture(scope="module")
def start(cells):
    """An encoder of cells with a linear latent of the genes of each type, the processor, and typed cells."""
    torch.manual_seed(0)
    vocabulary = GeneVocabulary.from_statistics(GENES, medians=[2.0] * 24)
    tokenizer = RankValueTokenizer.from_vocabulary(vocabulary, add_cls_token=True, model_max_length=32)
    encoder = ScCelloModel(
        ScCelloConfig(
            vocab_size=27, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
            max_position_embeddings=32, encoder_tokens=8, pooling="mean", linear_genes=12,
        )
    ).eval()  # fmt: skip
    weights = np.zeros((12, 8), dtype=np.float32)
    weights[np.arange(12), np.arange(12) // 4] = 1
    ids = tokenizer.vocabulary.gene_token_ids[:12]
    encoder.linear_latent.medians[torch.as_tensor(tokenizer.vocabulary.gene_token_ids).long()] = 2.0
    encoder.linear_latent.set_weights(
        torch.as_tensor(ids).long(), torch.from_numpy(weights), torch.zeros(12), torch.zeros(8)
    )
    texts = [text for t in ONTOLOGY.cell_types for text in texts_of_type(t, ONTOLOGY)]
    processor = LangCellProcessor(tokenizer, wordpiece_tokenizer(texts, SETTINGS.words, SETTINGS.longest))
    return encoder, processor, TypedCells.of(cells, tokenizer, TYPES, SETTINGS.cells, seed=0)


def learned(start, without=()):
    encoder, processor, typed = start
    torch.manual_seed(0)
    model = langcell_of(encoder, len(processor.text_tokenizer), SETTINGS)
    centre(model, encoder, typed)
    typed.embed(model.cell_model)
    before = {name: values.clone() for name, values in model.cell_model.state_dict().items()}
    learn_texts(model, processor.text_tokenizer, typed, ONTOLOGY, SETTINGS, 0, set(without))
    for name, values in model.cell_model.state_dict().items():
        assert torch.equal(values, before[name]), name  # the encoder of cells does not change
    return model, processor


def test_cells_are_annotated_by_texts_of_types(start, cells):
    model, processor = learned(start)
    adata = ad.read_h5ad(cells[0].path)
    texts = [texts_of_type(t, ONTOLOGY)[0] for t in TYPES]
    scores = text_scores(model, processor, adata, texts, np.arange(3))
    right = np.array(TYPES)[scores.argmax(axis=1)] == adata.obs[TYPE_COLUMN].to_numpy()
    assert scores.shape == (150, 3) and right.mean() > 0.7  # 0.33 by chance
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)
    twice = text_scores(model, processor, adata[:20].copy(), [texts[0], texts[0], *texts[1:]], np.array([0, 0, 1, 2]))
    np.testing.assert_allclose(twice, scores[:20], atol=1e-5)  # a class of several texts


def test_the_embedding_is_that_of_the_encoder_around_its_centre(start):
    encoder, processor, typed = start
    model = langcell_of(encoder, len(processor.text_tokenizer), SETTINGS)
    centre(model, encoder, typed)
    plain = typed.embed(encoder)
    means = torch.stack([plain[torch.from_numpy(typed.types == t)].mean(dim=0) for t in np.unique(typed.types)])
    expected = torch.nn.functional.normalize(plain - means.mean(dim=0), dim=1)
    torch.testing.assert_close(typed.embed(model.cell_model), expected, atol=1e-5, rtol=1e-4)


def test_types_belong_to_the_cells_at_and_below_them(start):
    encoder, processor, typed = start
    typed.embed(encoder)
    named, targets = targets_of_types(ONTOLOGY, typed, {"CL:0000623"})
    of_type = dict(zip(named, targets, strict=True))
    assert "CL:0000623" not in of_type
    mean = {t: typed.embedding[torch.from_numpy(typed.types == t)].mean(dim=0) for t in TYPES}
    unit = {t: torch.nn.functional.normalize(m, dim=0) for t, m in mean.items()}
    torch.testing.assert_close(of_type["CL:0000236"], unit["CL:0000236"])
    for below in ONTOLOGY.descendants("CL:0000236"):
        torch.testing.assert_close(of_type[below], unit["CL:0000236"])
    above = ONTOLOGY.ancestors("CL:0000236") & ONTOLOGY.ancestors("CL:0000623") - ONTOLOGY.ancestors("CL:0000576")
    both = torch.nn.functional.normalize((mean["CL:0000236"] + mean["CL:0000623"]) / 2, dim=0)
    assert "CL:0000542" in above  # lymphocyte
    for cell_type in above:
        torch.testing.assert_close(of_type[cell_type], both)


def test_word_pieces_spell_words_that_were_not_seen():
    texts = [text for t in ONTOLOGY.cell_types for text in texts_of_type(t, ONTOLOGY)]
    made = wordpiece_tokenizer(texts, 400, 16)
    again = wordpiece_tokenizer(texts[::-1], 400, 16)
    assert made.get_vocab() == again.get_vocab() and len(made) <= 400
    ids = made("monocyte lymphoblast")["input_ids"]
    assert made.unk_token_id not in ids and made.decode(ids, skip_special_tokens=True) == "monocyte lymphoblast"


def test_the_card_has_the_scores_beside_chance():
    score = {"cells": 40, "accuracy": {"value": 0.7}, "macro_f1": {"value": 0.6}}
    low = {"cells": 40, "accuracy": {"value": 0.2}, "macro_f1": {"value": 0.1}}
    rows = [{"data_set": "first", "types": ["B", "NK"], "model": score, "chance": low}]
    found = {"all types": rows, "types left out": [{**rows[0], "model": {}}]}
    assert "| first | all types | B, NK | 40 | 0.700 | 0.200 | 0.600 | 0.100 |" in text_results(found)
    facts = text_facts({"scores": [{"name": "other"}], "purpose": "embedding"}, found)
    assert facts["purpose"] == "zero-shot annotation" and len(facts["scores"]) == 2
    assert facts["scores"][0]["value"] == 0.7 and facts["scores"][0]["baselines"] == {"chance": 0.2}


def test_recipes_of_texts_are_whole(tmp_path):
    recipe = read_recipe("human-langcell")
    assert recipe.kind == "texts" and recipe.base == "human-sccello" and recipe.texts.leave_out
    content = {"name": "x", "title": "x", "summary": "x", "license": "x", "data": [], "kind": "texts"}
    (tmp_path / "data_sets.yaml").write_text("{}")
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(RecipeError, match="kind texts needs base"):
        read_recipe(str(tmp_path / "x.yaml"))
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(content | {"texts": {"stepps": 3}}))
    with pytest.raises(RecipeError, match="stepps"):
        read_recipe(str(tmp_path / "x.yaml"))
