import pytest
import torch

from cellglot.modeling import (
    ExceiverForSequenceClassification,
    ExceiverModel,
    LangCellForSequenceClassification,
    LangCellModel,
    ScCelloForSequenceClassification,
    ScCelloModel,
    perturbed_genes,
)
from cellglot.modeling.masked_genes import cell_encoder
from cellglot.modeling.perturbed_genes import DELETE, OVEREXPRESS, Change, changed_tokens, embed_tokens, perturb_tokens


MODELS = {
    "sccello": ("sccello", ScCelloModel, {"num_hidden_layers": 3}),
    "sccello, mean": ("sccello", ScCelloModel, {"pooling": "mean", "num_hidden_layers": 1}),
    "sccello, classes": ("sccello", ScCelloForSequenceClassification, {}),
    "sccello, linear, classes": (
        "sccello",
        ScCelloForSequenceClassification,
        {"linear_genes": 20, "encoder_tokens": 10},
    ),
    "langcell": ("langcell", LangCellModel, {}),
    "langcell, classes": ("langcell", LangCellForSequenceClassification, {}),
    "exceiver": ("exceiver", ExceiverModel, {"linear_genes": 20}),
    "exceiver, all genes": ("exceiver", ExceiverModel, {"unexpressed_genes": "bias", "pooling": "mean"}),
    "exceiver, classes": ("exceiver", ExceiverForSequenceClassification, {"num_labels": 3}),
}
GENES = torch.arange(2, 40)


@pytest.fixture
def make(sccello_config, exceiver_config, langcell_config):
    """A tiny model with random weights, and three cells: full (and cut), short, and of two genes."""

    def make(name, limit=25):
        kind, model_class, changes = MODELS[name]
        torch.manual_seed(1)
        config = {"sccello": sccello_config, "exceiver": exceiver_config, "langcell": langcell_config}[kind](**changes)
        config.num_labels = 3
        network = model_class(config).eval()
        cells = [{"input_ids": torch.randperm(38)[:n] + 2} for n in (limit + 1, 14, 2)]
        if kind == "exceiver":
            encoder = cell_encoder(network)
            encoder.set_background_values(torch.randn(encoder.config.num_genes) + 1)
            if encoder.linear_latent is not None:
                encoder.linear_latent.set_weights(
                    torch.arange(10, 30), torch.randn(20, encoder.config.hidden_size), torch.randn(20), torch.zeros(16)
                )
            for cell in cells:
                cell["expression_values"] = torch.randn(len(cell["input_ids"])) * 3
            return network, cells, {"values": dict.fromkeys(GENES.tolist(), 2.0)}
        linear = cell_encoder(network).linear_latent
        if linear is not None:
            linear.set_weights(torch.arange(10, 30), torch.randn(20, 16), torch.zeros(20), torch.zeros(16))
            linear.medians[2:40] = torch.rand(38) * 5 + 1
        for cell in cells:
            cell["input_ids"][0] = 41  # <cls>
        return network, cells, {"limit": limit, "first": 1}

    return make


class Adapted(torch.nn.Linear):
    """A projection that is more than its weights, as an adapter makes it."""

    def forward(self, states):
        return 2 * super().forward(states) + 1


@pytest.mark.parametrize("adapted", ["k_proj", "v_proj"])
def test_projections_of_adapters_are_those_of_forward_passes(make, adapted):
    network, cells, options = make("sccello")
    attention = network.layers[-1].self_attn
    plain = getattr(attention, adapted)
    changed = Adapted(plain.in_features, plain.out_features)
    changed.load_state_dict(plain.state_dict())
    setattr(attention, adapted, changed)
    change = Change(DELETE, **options)
    (copies,) = perturb_tokens(network, cells[:1], GENES, change)
    rows = [changed_tokens(cells[0], gene, change) for gene in copies.genes.tolist()]
    with torch.inference_mode():
        expected = embed_tokens(network, rows, change, 8)
    torch.testing.assert_close(copies.embeddings, expected.embeddings)


@pytest.mark.parametrize("kind", [DELETE, OVEREXPRESS])
@pytest.mark.parametrize("name", MODELS)
def test_copies_are_those_of_forward_passes(make, name, kind, monkeypatch):
    network, cells, options = make(name)
    change = Change(kind, **options)
    found = perturb_tokens(network, cells, GENES, change)
    monkeypatch.setattr(perturbed_genes, "COPIES_AT_ONCE", 5)
    monkeypatch.setattr(perturbed_genes, "WIDTH", 3)
    in_blocks = perturb_tokens(network, cells, GENES, change)
    few = perturb_tokens(network, cells, GENES[[3, 30]], change, batch_size=3)  # not with a shared attention
    for cell, copies, again, some in zip(cells, found, in_blocks, few, strict=True):
        read = set(cell["input_ids"][: change.limit].tolist()) - {41}
        deleted = read if len(read) > 1 else set()
        assert set(copies.genes.tolist()) == (deleted if kind == DELETE else set(GENES.tolist()))
        if not len(copies.genes):
            continue
        with torch.inference_mode():
            rows = [changed_tokens(cell, gene, change) for gene in copies.genes.tolist()]
            one = [embed_tokens(network, [row], Change(kind), 1) for row in rows]
        expected = torch.cat([row.embeddings for row in one])
        assert expected.std(dim=0).max() > 1e-3
        torch.testing.assert_close(copies.embeddings, expected, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(again.embeddings, expected, atol=2e-5, rtol=1e-4)
        places = [copies.genes.tolist().index(g) for g in some.genes.tolist()]
        torch.testing.assert_close(some.embeddings, expected[places], atol=2e-5, rtol=1e-4)
        assert (copies.scores is None) == ("classes" not in name)
        if copies.scores is not None:
            scores = torch.cat([row.scores for row in one])
            assert scores.shape == (len(rows), 3)
            torch.testing.assert_close(copies.scores, scores, atol=2e-5, rtol=1e-4)


def test_what_deleting_and_overexpressing_does_to_tokens():
    ranked = {"input_ids": torch.tensor([41, 7, 8, 9, 10])}
    delete, over = Change(DELETE, limit=4, first=1), Change(OVEREXPRESS, limit=4, first=1)
    assert changed_tokens(ranked, 8, delete)["input_ids"].tolist() == [41, 7, 9, 10]
    assert changed_tokens(ranked, 9, over)["input_ids"].tolist() == [41, 9, 7, 8]
    assert changed_tokens(ranked, 20, over)["input_ids"].tolist() == [41, 20, 7, 8]
    valued = {"input_ids": torch.tensor([3, 5]), "expression_values": torch.tensor([1.0, 4.0])}
    assert changed_tokens(valued, 3, Change(DELETE))["expression_values"].tolist() == [4.0]
    high = Change(OVEREXPRESS, values={3: 2.5, 5: 2.5, 6: 2.5})
    by_gene = {g: changed_tokens(valued, g, high) for g in (3, 5, 6)}
    assert [t["expression_values"][-1].item() for t in by_gene.values()] == [2.5, 4.0, 2.5]  # never lower than it was
    assert by_gene[6]["input_ids"].tolist() == [3, 5, 6]
