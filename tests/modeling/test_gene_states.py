"""States of genes and attention between them, against forward passes of single cells."""

import pytest
import torch

from cellglot.modeling import (
    ExceiverForMaskedExpression,
    ExceiverForSequenceClassification,
    ExceiverModel,
    LangCellModel,
    ScCelloForSequenceClassification,
    ScCelloModel,
    gene_states,
)
from cellglot.modeling.gene_states import attention_is_symmetric, gene_attention, states_come_from, static_embeddings
from cellglot.modeling.masked_genes import cell_encoder


MODELS = {
    "sccello": ("sccello", ScCelloModel, {}),
    "sccello, first tokens": ("sccello", ScCelloForSequenceClassification, {"encoder_tokens": 6, "pooling": "mean"}),
    "langcell": ("langcell", LangCellModel, {}),
    "exceiver": ("exceiver", ExceiverModel, {"linear_genes": 20}),
    "exceiver, all genes": ("exceiver", ExceiverModel, {"unexpressed_genes": "bias"}),
    "exceiver, decoder": ("exceiver", ExceiverForMaskedExpression, {}),
    "exceiver, classes": ("exceiver", ExceiverForSequenceClassification, {}),
}
FROM = {"exceiver": "latents", "exceiver, all genes": "latents"}


@pytest.fixture
def make(sccello_config, exceiver_config, langcell_config):
    """A tiny model, three cells as a padded batch, and each alone."""

    def make(name):
        kind, model_class, changes = MODELS[name]
        torch.manual_seed(1)
        config = {"sccello": sccello_config, "exceiver": exceiver_config, "langcell": langcell_config}[kind](**changes)
        model = model_class(config).eval()
        encoder = cell_encoder(model)
        pad = encoder.config.pad_token_id
        ids = torch.stack(
            [torch.nn.functional.pad(torch.randperm(38)[:n] + 2, (0, 10 - n), value=pad) for n in (10, 7, 2)]
        )
        batch = {"input_ids": ids, "attention_mask": (ids != pad).long()}
        if kind == "exceiver":
            encoder.set_background_values(torch.randn(encoder.config.num_genes) + 1)
            batch["expression_values"] = torch.randn(ids.shape) * 3
        else:
            ids[:, 0] = encoder.config.cls_token_id
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        alone = [{name: values[i : i + 1, :n] for name, values in batch.items()} for i, n in enumerate(lengths)]
        return model, batch, alone

    return make


def hidden_states(model, cell):
    """Genes and their states in one cell, as the documentation defines them."""
    encoder, ids = cell_encoder(model), cell["input_ids"][0]
    output = encoder(**cell)
    if not hasattr(encoder, "latent_queries"):
        return ids[1 : output.last_hidden_state.shape[1]], output.last_hidden_state[0, 1:]
    if hasattr(model, "decoder"):
        return ids, model.decoder(encoder.gene_embedding(ids[None]), output.last_hidden_state)[0]
    weights = through_softmax(encoder, cell).mean(dim=0)
    return ids, (weights / weights.sum(dim=0)).T @ output.last_hidden_state[0, : encoder.config.num_latents]


def through_softmax(encoder, cell):
    """Attention of the latents to the genes of a cell, by one softmax over all keys, shape (heads, latents, genes)."""
    block, config, ids = encoder.encoder, encoder.config, cell["input_ids"][0]
    attention = block.cross_attn
    values, bias, places = cell["expression_values"][0], torch.zeros(len(ids)), torch.arange(len(ids))
    genes = ids
    if config.unexpressed_genes == "bias":
        genes, places = torch.arange(config.num_genes), ids
        values = encoder.background_values.clone().index_copy(0, ids, values)
        bias = torch.ones(len(genes)).index_fill(0, ids, 0.0)
    sources = block.norm_key_value(encoder.gene_embedding(genes) * values[:, None])
    key = attention.split_heads(attention.k_proj(sources[None]))[0]
    query = attention.split_heads(attention.q_proj(block.norm_query(encoder.latent_queries[None])))[0]
    return (query @ key.transpose(-1, -2) * attention.scaling + bias).softmax(dim=-1)[..., places]


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_states_are_those_of_single_cells(make, name):
    model, batch, alone = make(name)
    ids, states = gene_states.gene_states(model, batch)
    found = [hidden_states(model, cell) for cell in alone]
    assert ids.tolist() == torch.cat([genes for genes, _ in found]).tolist()
    torch.testing.assert_close(states, torch.cat([own for _, own in found]), atol=1e-5, rtol=1e-4)
    assert states_come_from(model) == FROM.get(name, "decoder" if "exceiver" in name else "hidden states")
    table = cell_encoder(model).get_input_embeddings().weight
    torch.testing.assert_close(static_embeddings(model, torch.tensor([5, 3])), table[[5, 3]])


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_attention_is_that_of_the_network(make, name, monkeypatch):
    monkeypatch.setattr(gene_states, "PAIRS_AT_ONCE", 200)  # two cells at once
    model, batch, alone = make(name)
    encoder = cell_encoder(model)
    found = list(gene_attention(model, batch))
    assert len(found) == 3 and attention_is_symmetric(model) == name.startswith("exceiver")
    for (ids, weights), cell in zip(found, alone, strict=True):
        if attention_is_symmetric(model):
            expected, genes = [w.T @ w for w in through_softmax(encoder, cell)], cell["input_ids"][0]
            expected = torch.stack(expected).mean(dim=0) / encoder.config.num_latents
            if encoder.config.unexpressed_genes == "exclude":
                torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
        else:
            encoder.set_attn_implementation("eager")
            layers = encoder(**cell, output_attentions=True).attentions
            expected = torch.stack([layer[0].mean(dim=0) for layer in layers]).mean(dim=0)[1:, 1:]
            genes = cell["input_ids"][0][1 : 1 + len(expected)]
        assert ids.tolist() == genes.tolist()
        torch.testing.assert_close(weights, expected, atol=1e-6, rtol=1e-4)


def test_other_networks_are_refused():
    with pytest.raises(ValueError, match="genes of Linear are unsupported"):
        static_embeddings(torch.nn.Linear(2, 2), torch.tensor([0]))
