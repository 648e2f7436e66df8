import numpy as np
import pytest
import torch

from cellglot.modeling import (
    ExceiverForSequenceClassification,
    ExceiverModel,
    LangCellForSequenceClassification,
    LangCellModel,
    ScCelloForPreTraining,
    ScCelloModel,
)
from cellglot.modeling.masked_genes import (
    SharedAttention,
    cell_encoder,
    cosine_distances,
    gene_distances,
    masked_embeddings,
)


CASES = {
    f"sccello, {pooling}, {layers} layers": ("sccello", {"pooling": pooling, "num_hidden_layers": layers})
    for pooling in ("cls", "mean")
    for layers in (1, 2, 3)
} | {
    f"exceiver, {unexpressed}, {pooling}": ("exceiver", {"unexpressed_genes": unexpressed, "pooling": pooling})
    for unexpressed in ("exclude", "bias")
    for pooling in ("flatten", "mean")
} | {"langcell": ("langcell", {}), "langcell, mean": ("langcell", {"cell": {"pooling": "mean"}})}  # fmt: skip


@pytest.fixture
def make_model(sccello_config, exceiver_config, langcell_config):
    """Make a tiny model with random weights that attend to few genes, and a cell of all its genes but two."""

    def make(kind, changes, model_class=None):
        torch.manual_seed(1)
        config = {"sccello": sccello_config, "exceiver": exceiver_config, "langcell": langcell_config}[kind](**changes)
        classes = {"sccello": ScCelloModel, "exceiver": ExceiverModel, "langcell": LangCellModel}
        model = (model_class or classes[kind])(config).eval()
        cell = {"input_ids": torch.randperm(28) + 2}
        if kind == "exceiver":
            encoder = cell_encoder(model)
            encoder.set_background_values(torch.randn(encoder.config.num_genes) + 1)
            cell["expression_values"] = torch.randn(28) * 3
        else:
            cell["input_ids"] = torch.cat([torch.tensor([41]), cell["input_ids"]])
        return model, cell

    return make


def straightforward(model, cell):
    """One forward pass for every hidden gene."""
    encoder, ids = cell_encoder(model), cell["input_ids"]
    found = []
    for place in range(len(ids)):
        if encoder.config.model_type == "exceiver":
            hidden = torch.zeros(1, len(ids), dtype=torch.bool)
            hidden[0, place] = True
            batch = {name: values[None] for name, values in cell.items()} | {"masked_genes": hidden}
        elif place == 0:
            continue  # <cls>
        else:
            batch = {"input_ids": ids[None].clone()}
            batch["input_ids"][0, place] = encoder.config.mask_token_id
        with torch.inference_mode():
            found.append(encoder(**batch).pooler_output[0])
    return torch.stack(found)


@pytest.mark.parametrize("case", CASES)
def test_equal_to_a_forward_pass_for_every_gene(make_model, case):
    model, cell = make_model(*CASES[case])
    genes, embeddings = masked_embeddings(model, cell, at_once=5)
    expected = straightforward(model, cell)
    assert genes.tolist() == cell["input_ids"].tolist()[-28:]
    assert torch.allclose(embeddings, expected, atol=1e-5)
    assert expected.std(dim=0).max() > 1e-3  # hiding genes matters


@pytest.mark.parametrize(
    ("kind", "model_class"),
    [
        ("sccello", ScCelloForPreTraining),
        ("exceiver", ExceiverForSequenceClassification),
        ("langcell", LangCellForSequenceClassification),
    ],
)
def test_models_with_heads_are_taken_by_their_encoders(make_model, kind, model_class):
    model, cell = make_model(kind, {}, model_class)
    assert torch.allclose(masked_embeddings(model, cell)[1], straightforward(model, cell), atol=1e-5)


def test_a_key_that_holds_nearly_all_weight_loses_no_digits():
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 5, 4), torch.randn(2, 6, 4), torch.randn(2, 6, 4)
    key[:, 3] = query[:, 2] * 20  # query 2 looks at nothing else
    new_key, new_value = torch.randn(2, 6, 4), torch.randn(2, 6, 4)
    shared = SharedAttention(query, key, value, 1.0)
    assert shared.weights[:, 2, 3].min() > 0.9999
    found = shared.replace(torch.arange(6), new_key, new_value)
    for place in range(6):
        keys, values = key.double(), value.double()
        keys[:, place], values[:, place] = new_key[:, place].double(), new_value[:, place].double()
        expected = (query.double() @ keys.mT).softmax(-1) @ values
        assert torch.allclose(found[place].transpose(0, 1).double(), expected, atol=1e-6)


def test_distances_are_one_minus_cosine(make_model):
    model, cell = make_model("sccello", {})
    genes, distances = gene_distances(model, cell)
    whole = model(input_ids=cell["input_ids"][None]).pooler_output[0].detach()
    expected = 1 - torch.cosine_similarity(whole[None], straightforward(model, cell)).numpy()
    assert genes.shape == distances.shape == (28,) and distances.dtype == np.float64
    assert distances == pytest.approx(expected, abs=1e-6)


def test_small_distances_keep_their_digits():
    whole = np.array([1.0, 0.0])
    assert cosine_distances(whole, np.array([[1.0, 1e-7]]))[0] == pytest.approx(5e-15, rel=1e-6)
    assert cosine_distances(whole, np.array([[-2.0, 0.0], [0.0, 3.0], [0.0, 0.0]])) == pytest.approx([2, 1, 1])


def test_a_cell_of_one_token_and_another_model_are_refused(make_model):
    model, cell = make_model("sccello", {})
    with pytest.raises(ValueError, match="a cell of 1 tokens"):
        masked_embeddings(model, {"input_ids": cell["input_ids"][:1]})
    with pytest.raises(ValueError, match="masking genes of Linear is unsupported"):
        masked_embeddings(torch.nn.Linear(2, 2), cell)
