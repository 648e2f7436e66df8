"""The linear latent of Exceiver: a weighted sum of log counts beside the latents that were learned."""

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from cellglot.modeling.configuration_exceiver import ExceiverConfig
from cellglot.modeling.masked_genes import masked_embeddings
from cellglot.modeling.modeling_exceiver import ExceiverForSequenceClassification, ExceiverModel


GENES, USED, HIDDEN, LATENTS = 30, 12, 8, 3
PAD = GENES
SIZES = {
    "vocab_size": GENES + 2, "gene_embedding_size": 8, "hidden_size": HIDDEN, "num_latents": LATENTS,
    "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
}  # fmt: skip


@pytest.fixture
def cells():
    """Three cells of different numbers of genes, as Exceiver reads them, and their log counts."""
    random = np.random.default_rng(0)
    deviations, zeros = random.uniform(0.5, 2, GENES), random.uniform(-1, 1, GENES)
    logs = np.where(random.random((3, GENES)) < 0.5, random.uniform(0.1, 3, (3, GENES)), 0.0)
    width = int((logs > 0).sum(axis=1).max())
    ids, values = np.full((3, width), PAD), np.zeros((3, width), dtype=np.float32)
    for cell in range(3):
        genes = np.flatnonzero(logs[cell])
        ids[cell, : len(genes)] = genes
        values[cell, : len(genes)] = logs[cell, genes] / deviations[genes] + zeros[genes]
    return torch.from_numpy(ids), torch.from_numpy(values), logs, deviations, zeros


def model_of(cells, pooling):
    """An encoder with weights of 12 genes; the weights and the shift."""
    _, _, _, deviations, zeros = cells
    torch.manual_seed(0)
    model = ExceiverModel(ExceiverConfig(**SIZES, pooling=pooling, linear_genes=USED)).eval()
    random = np.random.default_rng(1)
    genes, weights = random.permutation(GENES)[:USED], random.normal(size=(USED, HIDDEN))
    shift = random.normal(size=HIDDEN)
    model.linear_latent.set_weights(
        torch.from_numpy(genes), torch.from_numpy(weights * deviations[genes][:, None]).float(),
        torch.from_numpy(zeros[genes]).float(), torch.from_numpy(shift).float(),
    )  # fmt: skip
    return model, genes, weights, shift


@pytest.mark.parametrize("pooling", ["mean", "flatten"])
def test_it_is_the_weighted_sum_of_log_counts(cells, pooling, tmp_path):
    ids, values, logs, *_ = cells
    model, genes, weights, shift = model_of(cells, pooling)
    with torch.no_grad():
        outputs = model(ids, values)
        plain = ExceiverModel(ExceiverConfig(**SIZES, pooling=pooling)).eval()
        plain.load_state_dict(model.state_dict(), strict=False)
        before = plain(ids, values)
    expected = logs[:, genes] @ weights - shift
    assert outputs.last_hidden_state.shape == (3, LATENTS + 1, HIDDEN)
    np.testing.assert_allclose(outputs.last_hidden_state[:, -1], expected, atol=1e-5)
    np.testing.assert_allclose(outputs.pooler_output[:, -HIDDEN:], expected, atol=1e-5)
    torch.testing.assert_close(outputs.pooler_output[:, :-HIDDEN], before.pooler_output)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(
            ExceiverModel.from_pretrained(tmp_path)(ids, values).pooler_output, outputs.pooler_output
        )


def test_hidden_genes_add_nothing(cells):
    ids, values, *_ = cells
    model, *_ = model_of(cells, "mean")
    number = int((ids[0] != PAD).sum())
    genes, copies = masked_embeddings(model, {"input_ids": ids[0, :number], "expression_values": values[0, :number]})
    masked = torch.eye(number, dtype=torch.bool)
    with torch.no_grad():
        expected = model(
            ids[0, :number].repeat(number, 1), values[0, :number].repeat(number, 1), masked_genes=masked
        ).pooler_output
    assert copies.shape == (number, 2 * HIDDEN) and genes.tolist() == ids[0, :number].tolist()
    torch.testing.assert_close(copies, expected, atol=1e-5, rtol=1e-4)


def test_heads_read_it_and_wrong_numbers_are_refused(cells):
    ids, values, *_ = cells
    config = ExceiverConfig(**SIZES, pooling="mean", linear_genes=USED, num_labels=3)
    head = ExceiverForSequenceClassification(config)
    assert head(ids, values, labels=torch.tensor([0, 1, 2])).logits.shape == (3, 3)
    for number in (-1, GENES + 1):
        with pytest.raises((ValueError, StrictDataclassError), match=f"linear_genes={number}: the model has 30 genes"):
            ExceiverConfig(**SIZES, linear_genes=number)
