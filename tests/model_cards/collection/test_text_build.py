"""Training the texts of a LangCell on the encoder of cells of a base."""

from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from scipy.sparse import csr_matrix

from cellglot.evaluation.annotation.by_texts import annotate_cells
from cellglot.model_cards.collection.cells import LABEL
from cellglot.model_cards.collection.recipe import RecipeError, read_recipe
from cellglot.model_cards.collection.text_card import text_facts, text_results
from cellglot.model_cards.collection.text_learning import (
    Pairs,
    TextTypes,
    TypedCells,
    centre,
    langcell_of,
    learn_texts,
    texts_of_type,
)
from cellglot.model_cards.collection.text_settings import TextSettings
from cellglot.modeling.configuration_sccello import ScCelloConfig
from cellglot.modeling.modeling_sccello import ScCelloModel
from cellglot.tokenization import GeneVocabulary, RankValueTokenizer
from cellglot.tokenization.ontology.cell_ontology import CellOntology
from cellglot.tokenization.processing_langcell import LangCellProcessor
from cellglot.training.data.label_levels import label_levels
from cellglot.training.data.texts import word_tokenizer


GENES = [f"ENSG{n:011d}" for n in range(24)]
B, NK, MONOCYTE, LYMPHOCYTE = "CL:0000236", "CL:0000623", "CL:0000576", "CL:0000542"
TYPES = (B, NK, MONOCYTE)
EITHER = f"{B} | {NK}"
ONTOLOGY = CellOntology.blood()
SETTINGS = TextSettings(
    hidden_size=16, words=300, longest=24, cells=20, intermediate_size=32, steps=60, batch_size=12, terms=8,
    learning_rate=1e-2,
)  # fmt: skip


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Cells of three types, each with four genes of its own, as two data sets; some labels leave the type open."""
    random, folder = np.random.default_rng(0), tmp_path_factory.mktemp("cells")
    parts = []
    for number in range(2):
        types = np.repeat(TYPES, 30)
        rates = np.ones((90, 24))
        for place in range(3):
            rates[types == TYPES[place], 4 * place : 4 * place + 4] = 12
        labels = types.astype(object)
        labels[20:40] = EITHER
        labels[88], labels[89] = "a line", None
        adata = ad.AnnData(
            csr_matrix(random.poisson(rates).astype(np.float32)),
            obs=pd.DataFrame({LABEL: labels, "type": types}, index=[f"{number}-{i}" for i in range(90)]),
            var=pd.DataFrame(index=GENES),
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
    genes = torch.as_tensor(tokenizer.vocabulary.gene_token_ids).long()
    encoder.linear_latent.medians[genes] = 2.0
    encoder.linear_latent.set_weights(genes[:12], torch.from_numpy(weights), torch.zeros(12), torch.zeros(8))
    texts = [text for t in ONTOLOGY.cell_types for text in texts_of_type(t, ONTOLOGY)]
    processor = LangCellProcessor(tokenizer, word_tokenizer(texts, SETTINGS.longest, SETTINGS.words))
    labels = dict.fromkeys([*TYPES, EITHER, "a line"], 9)
    levels = label_levels(labels, ONTOLOGY, fewest=1, classes=[*TYPES, "a line"])
    return encoder, processor, TypedCells.of(cells, tokenizer, levels, SETTINGS.cells, seed=0)


def test_cells_are_drawn_by_label_and_data_set(start):
    _, _, typed = start
    assert set(typed.types) == set(TYPES) and len(typed.tokens) == len(typed.sets) == 160  # no line, no unlabelled
    may, number = np.unique(typed.allowed, axis=0, return_counts=True)
    assert number[may.sum(axis=1) == 2].tolist() == [40] and sorted(number) == [40, 40, 40, 40]
    chances = typed.chances()
    assert chances.sum() == pytest.approx(1)
    of_either = typed.allowed.sum(axis=1) == 2
    assert chances[of_either].sum() == pytest.approx(1 / 7)  # it may be either of two: half of the others
    typed.embed(start[0])
    fewer = typed.without({NK})
    assert len(fewer.tokens) == len(fewer.states) == len(fewer.embedding) == 80 and NK not in fewer.types


def test_texts_mean_the_types_at_below_and_above_them():
    found = TextTypes.of(TYPES, ONTOLOGY, {"CL:0000875"})
    members = {t: set(np.array(TYPES)[row]) for t, row in zip(found.ids, found.members, strict=True)}
    assert tuple(found.ids[:3]) == TYPES and members[B] == {B} and members[LYMPHOCYTE] == {B, NK}
    assert members["CL:0001054"] == {MONOCYTE} and "CL:0000875" not in members  # CD14+; CD16+ was left out
    assert "CL:0000233" not in members  # platelets are neither above nor below


def test_pairs_are_inside_apart_or_open():
    allowed = torch.tensor([[True, False, False], [True, True, False], [False, False, True]])
    members = torch.tensor([[True, False, False], [False, True, False], [False, False, True], [True, True, False]])
    similarity = torch.arange(12.0).reshape(3, 4) / 10
    pairs = Pairs.of(similarity, allowed, members)
    assert pairs.inside.int().tolist() == [[1, 0, 0, 1], [0, 0, 0, 1], [0, 0, 1, 0]]
    assert pairs.apart.int().tolist() == [[0, 1, 1, 0], [0, 0, 1, 0], [1, 1, 0, 1]]
    logs = similarity[:, :3].log_softmax(dim=1).exp()
    expected = -torch.stack([logs[0, 0], logs[1, 0] + logs[1, 1], logs[2, 2]]).log().mean()
    torch.testing.assert_close(pairs.to_types(allowed), expected)
    two = similarity[[0, 2], 0].log_softmax(dim=0)[0]  # the second cell may or may not be of the first type
    three = similarity[:, 3].log_softmax(dim=0)[:2].mean()
    third = similarity[:, 2].log_softmax(dim=0)[2]
    torch.testing.assert_close(pairs.to_cells(), -(two + third + three) / 3)
    for seed in range(5):
        torch.manual_seed(seed)
        of_cells, of_texts, matches = pairs.to_match(members)
        assert matches.tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0]
        assert pairs.inside[of_cells, of_texts].tolist() == (matches == 1).tolist()
        assert pairs.apart[of_cells, of_texts].tolist() == (matches == 0).tolist()


def test_cells_are_annotated_by_texts_of_types(start, cells):
    encoder, processor, typed = start
    torch.manual_seed(0)
    model = langcell_of(encoder, len(processor.text_tokenizer), SETTINGS)
    centre(model, encoder, typed)
    typed.embed(model.cell_model)
    before = {name: values.clone() for name, values in model.cell_model.state_dict().items()}
    learn_texts(model, processor.text_tokenizer, typed, ONTOLOGY, SETTINGS, 0)
    for name, values in model.cell_model.state_dict().items():
        assert torch.equal(values, before[name]), name  # the encoder of cells does not change
    adata = ad.read_h5ad(cells[0].path)
    for place in (0, 1):  # name and definition; the name
        texts = {t: texts_of_type(t, ONTOLOGY)[place] for t in TYPES}
        found = annotate_cells(model, processor, adata, texts, progress=False, min_coverage=0.0)
        right = np.array(TYPES)[found.best] == adata.obs["type"].to_numpy()
        assert right.mean() > 0.8  # 0.33 by chance


def test_the_embedding_is_that_of_the_encoder_around_its_centre(start):
    encoder, processor, typed = start
    model = langcell_of(encoder, len(processor.text_tokenizer), SETTINGS)
    centre(model, encoder, typed)
    plain, label = typed.embed(encoder), np.unique(typed.allowed, axis=0, return_inverse=True)[1].ravel()
    means = torch.stack([plain[torch.from_numpy(label == n)].mean(dim=0) for n in range(4)])
    expected = torch.nn.functional.normalize(plain - means.mean(dim=0), dim=1)
    torch.testing.assert_close(typed.embed(model.cell_model), expected, atol=1e-5, rtol=1e-4)


def test_the_card_has_the_scores_beside_chance():
    score = {"cells": 40, "accuracy": {"value": 0.7}, "macro_f1": {"value": 0.6}}
    low = {"cells": 40, "accuracy": {"value": 0.2}, "macro_f1": {"value": 0.1}}
    row = {"data_set": "first", "texts": "names", "candidates": 9, "left_out": [], "types": ["B", "NK"],
           "model": score, "chance": low}  # fmt: skip
    better = score | {"macro_f1": {"value": 0.8}}
    rows = [row, row | {"data_set": "second", "model": better}, row | {"left_out": ["NK"], "candidates": 1}]
    assert "| first | B, NK | names | 9 | 40 | 0.700 | 0.200 | 0.600 | 0.100 |" in text_results(rows)
    assert "| first | B, NK (left out) | names | 1 |" in text_results(rows)
    facts = text_facts({"scores": [{"name": "other"}], "purpose": "embedding"}, rows)
    assert facts["purpose"] == "zero-shot annotation" and [s["name"] for s in facts["scores"]] == [
        "by names of 9 types, macro F1, 2 data sets of laboratories never seen",
        "by names of 1 types, for types left out of the texts, macro F1, 1 data sets of laboratories never seen",
        "other",
    ]
    assert facts["scores"][0]["value"] == 0.7 and facts["scores"][0]["baselines"] == {"chance": 0.1}


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
