"""pipeline("fill-gene-expression") and pipeline("cell-text-matching"): the models' own numbers, named."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoProcessor, pipeline

from cellglot.modeling import (
    ExceiverConfig,
    ExceiverForMaskedExpression,
    LangCellForPreTraining,
    ScCelloConfig,
    ScCelloForMaskedLM,
    ScCelloForPreTraining,
)
from cellglot.tokenization import ExceiverTokenizer, RankValueTokenizer


FILL, MATCH = "fill-gene-expression", "cell-text-matching"
CPU = {"device": "cpu"}


@pytest.fixture(scope="module")
def folders(vocabulary, cell_text_folder, tmp_path_factory):
    """Tiny pretrained models with their heads of masked genes."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("pretrained")
    genes, ranks = ExceiverTokenizer.from_vocabulary(vocabulary), RankValueTokenizer.from_vocabulary(vocabulary)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    exceiver = ExceiverConfig(
        vocab_size=genes.vocab_size, gene_embedding_size=8, num_latents=4, num_cross_attention_heads=2, **sizes
    )
    rank = {"vocab_size": ranks.vocab_size, "initializer_range": 0.3, **sizes}
    models = {
        "exceiver": (ExceiverForMaskedExpression(exceiver), genes),
        "sccello": (ScCelloForPreTraining(ScCelloConfig(num_cell_types=2, **rank)), ranks),
        "masked-lm": (ScCelloForMaskedLM(ScCelloConfig(**rank)), ranks),
    }
    config = AutoModel.from_pretrained(cell_text_folder).config
    models["langcell"] = (LangCellForPreTraining(config), AutoProcessor.from_pretrained(cell_text_folder))
    for name, (model, inputs) in models.items():
        model.save_pretrained(place / name)
        inputs.save_pretrained(place / name)
    return {name: str(place / name) for name in models}


@pytest.fixture(scope="module")
def cells(vocabulary):
    """Three cells as {gene: count}; the last one expresses the first gene alone."""
    genes = list(vocabulary.genes[:30])
    return [{g: i + 1 for i, g in enumerate(genes)}, {g: 9 - i for i, g in enumerate(genes[:8])}, {genes[0]: 4}]


def test_exceiver_fills_in_expression(folders, cells, vocabulary):
    fill = pipeline(FILL, model=folders["exceiver"], **CPU)
    targets = [vocabulary.symbol(vocabulary.genes[2]), vocabulary.genes[50]]
    found = fill(cells, targets=targets)
    assert [[t["gene"] for t in row] for row in found] == [targets] * 3
    assert found[0][0]["gene_id"] == vocabulary.genes[2]
    tokens = fill.tokenizer(cells[:1], return_tensors="pt")
    ids = torch.as_tensor(fill.tokenizer.find_genes(targets))
    with torch.inference_mode():
        hidden = torch.isin(tokens["input_ids"], ids)
        assert hidden.sum() == 1
        expected = fill.model(**tokens, query_ids=ids[None], masked_genes=hidden).predicted_expression[0]
    for number, place in enumerate((2, 50)):
        of_gene = found[0][number]
        assert of_gene["standardized"] == pytest.approx(float(expected[number]) - 1, abs=1e-5)
        back = (of_gene["expression"] - vocabulary.means[place]) / vocabulary.stds[place]
        assert back == pytest.approx(of_gene["standardized"], abs=1e-4)
    shown = cells[0] | {vocabulary.genes[2]: 1}  # the target's own count is not looked at; the total is
    assert fill(shown, targets=targets[0])[0]["gene_id"] == vocabulary.genes[2]
    with pytest.raises(ValueError, match="top_k is for models that rank genes"):
        fill(cells, targets=targets, top_k=3)


@pytest.mark.parametrize("name", ["sccello", "masked-lm", "langcell"])
def test_rank_models_name_candidates(folders, cells, vocabulary, name):
    fill = pipeline(FILL, model=folders[name], targets=list(vocabulary.genes[:2]), **CPU)
    found = fill(cells, top_k=4)
    assert [[len(t["candidates"]) for t in row] for row in found] == [[4, 4], [4, 4], [4, 0]]
    first = found[0][1]["candidates"]
    assert [c["score"] for c in first] == sorted((c["score"] for c in first), reverse=True)
    assert all(c["gene_id"] in vocabulary.genes and c["gene"] == vocabulary.symbol(c["gene_id"]) for c in first)
    inputs = dict(fill.tokenizer(cells[:1], return_tensors="pt"))
    asked = torch.as_tensor(fill.tokenizer.find_genes(list(vocabulary.genes[:2])))
    hidden = torch.isin(inputs["input_ids"], asked)
    inputs["input_ids"] = inputs["input_ids"].masked_fill(hidden, fill.model.config.mask_token_id)
    with torch.inference_mode():
        whole = fill.model(**inputs).logits
    if name == "masked-lm":
        whole = whole[hidden]
    originals = fill.tokenizer(cells[:1], return_tensors="pt")["input_ids"][hidden]
    scores = whole[int((originals == asked[1]).nonzero()[0])].float().clone()
    scores[[i for i in fill.tokenizer.all_special_ids if i is not None]] = -torch.inf
    best = scores.softmax(dim=-1).topk(4)
    assert [c["gene_id"] for c in first] == fill.tokenizer.convert_ids_to_tokens(best.indices.tolist())
    np.testing.assert_allclose([c["score"] for c in first], best.values.numpy(), atol=1e-5)


def test_what_cannot_be_filled(folders, cells, gene_classifiers):
    fill = pipeline(FILL, model=folders["sccello"], **CPU)
    for options, message in (
        ({}, "no genes to fill"),
        ({"targets": ["NOGENE"]}, "NOGENE"),
        ({"targets": [next(iter(cells[0]))], "top_k": 0}, "top_k=0"),
    ):
        with pytest.raises(ValueError, match=message):
            fill(cells, **options)
    with pytest.raises(ValueError, match="no pipeline 'fill-gene-expression'"):
        pipeline(FILL, model=str(gene_classifiers["classifier"]), **CPU)


def test_matching_returns_the_probabilities_of_the_model(folders, cells):
    match = pipeline(MATCH, model=folders["langcell"], **CPU)
    texts = ["cell type: B cell. ", "It kills.", "cell type: B cell. "]
    found = match(cells, texts=texts)
    assert [[t["text"] for t in row] for row in found] == [texts] * 3
    processor = AutoProcessor.from_pretrained(folders["langcell"])
    inputs = dict(processor(cells, text=texts, return_tensors="pt"))
    with torch.inference_mode():
        probability = match.model.match(**inputs)
        cosine = match.model(**inputs)
    cosine = cosine.pooler_output @ cosine.text_features.T
    np.testing.assert_allclose([[t["score"] for t in row] for row in found], probability.numpy(), atol=1e-5)
    np.testing.assert_allclose([[t["similarity"] for t in row] for row in found], cosine.numpy(), atol=1e-5)
    assert match(cells[0], texts="It kills.")[0]["score"] == pytest.approx(found[0][1]["score"], abs=1e-5)
    for wrong in ([], [" "], [3]):
        with pytest.raises(ValueError, match="no texts|is empty"):
            match(cells, texts=wrong)
    with pytest.raises(ValueError, match="no pipeline 'cell-text-matching'"):
        pipeline(MATCH, model=folders["sccello"], **CPU)
