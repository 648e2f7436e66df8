"""The linear latent: a weighted sum of log counts beside the latents that were learned."""

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModel

from cellglot.modeling.configuration_exceiver import ExceiverConfig
from cellglot.modeling.configuration_langcell import LangCellCellConfig, LangCellConfig
from cellglot.modeling.configuration_sccello import ScCelloConfig
from cellglot.modeling.gene_sums import implied_counts
from cellglot.modeling.masked_genes import masked_embeddings
from cellglot.modeling.modeling_exceiver import ExceiverForSequenceClassification, ExceiverModel
from cellglot.modeling.modeling_langcell import LangCellForSequenceClassification, LangCellModel
from cellglot.modeling.modeling_sccello import ScCelloForPreTraining, ScCelloForSequenceClassification, ScCelloModel


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


# -------------------------------------------------------------------- rank-value tokens

RANKED = {
    "vocab_size": GENES + 3, "hidden_size": HIDDEN, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 16, "max_position_embeddings": 64, "pooling": "mean", "encoder_tokens": 6,
}  # fmt: skip
TEXT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 20}


@pytest.fixture
def ranked():
    """Tokens of three cells, padded; medians of tokens; and the weights of 12 genes."""
    random = np.random.default_rng(0)
    ids = np.zeros((3, GENES + 1), dtype=np.int64)
    for cell, number in enumerate((GENES, 20, 9)):
        ids[cell, : number + 1] = [GENES + 2, *(random.permutation(GENES)[:number] + 2)]
    medians = torch.zeros(GENES + 3)
    medians[2:-1] = torch.from_numpy(random.uniform(1, 9, GENES)).float()
    genes, weights = random.permutation(GENES)[:USED] + 2, random.normal(size=(USED, HIDDEN))
    return torch.from_numpy(ids), medians, genes, weights, random.normal(size=HIDDEN)


def set_latent(network, ranked):
    _, medians, genes, weights, shift = ranked
    network.linear_latent.medians.copy_(medians)
    network.linear_latent.set_weights(
        torch.from_numpy(genes), torch.from_numpy(weights).float(), torch.zeros(USED), torch.from_numpy(shift).float()
    )


def test_of_rank_value_tokens_it_reads_implied_counts_of_all_tokens(ranked, tmp_path):
    ids, medians, genes, weights, shift = ranked
    torch.manual_seed(0)
    model = ScCelloModel(ScCelloConfig(**RANKED, linear_genes=USED)).eval()
    set_latent(model, ranked)
    plain = ScCelloModel(ScCelloConfig(**RANKED)).eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    counts = implied_counts(medians[ids]).numpy()
    logs = np.log1p(counts * (1e4 / counts.sum(axis=1, keepdims=True)))
    expected = np.zeros((3, HIDDEN)) - shift
    for gene, weight in zip(genes, weights, strict=True):
        expected += (logs * (ids.numpy() == gene)).sum(axis=1, keepdims=True) * weight
    with torch.no_grad():
        found = model(ids)
        assert found.last_hidden_state.shape == (3, 6, HIDDEN)
        torch.testing.assert_close(found.pooler_output[:, :HIDDEN], plain(ids).pooler_output)
        np.testing.assert_allclose(found.pooler_output[:, HIDDEN:], expected, atol=1e-4)
        alone = torch.cat([model(row[row > 0][None]).pooler_output for row in ids])
        masked = model(ids, (ids > 0).long()).pooler_output
        torch.testing.assert_close(alone, found.pooler_output, atol=1e-5, rtol=1e-5)  # padded as unpadded
        torch.testing.assert_close(masked, found.pooler_output)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(again(ids).pooler_output, found.pooler_output)
    cell = ids[1][ids[1] > 0]
    hidden, copies = masked_embeddings(model, {"input_ids": cell})
    assert hidden.tolist() == cell[1:].tolist()  # also those that the encoder does not read
    without = cell.clone()
    without[7] = 1  # <mask>
    with torch.no_grad():
        torch.testing.assert_close(copies[6:7], model(without[None]).pooler_output)


def test_classifiers_and_langcell_read_it(ranked):
    ids = ranked[0]
    head = ScCelloForSequenceClassification(ScCelloConfig(**RANKED, linear_genes=USED, num_labels=3))
    config = LangCellConfig(cell_config=RANKED | {"linear_genes": USED}, text_config=TEXT, projection_dim=10)
    config.num_labels = 3
    other, both = LangCellForSequenceClassification(config), LangCellModel(config).eval()
    for model in (head, other):
        set_latent(getattr(model, model.encoder_name), ranked)
        assert model(ids, labels=torch.tensor([0, 1, 2])).logits.shape == (3, 3)
    set_latent(both.cell_model, ranked)
    texts = torch.tensor([[5, 6, 7], [8, 9, 0]])
    with torch.no_grad():
        found = both(ids, text_input_ids=texts)
        together = both.match(ids, text_input_ids=texts)
        alone = torch.cat([both.match(row[row > 0][None], text_input_ids=texts) for row in ids])
        read = both.cell_model(ids)
    assert found.pooler_output.shape == (3, 10) and found.logits.shape == (3, 2)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    assert read.last_hidden_state.shape == (3, 6, HIDDEN)
    assert set(config.auto_map) == {"AutoConfig", "AutoModel", "AutoModelForSequenceClassification"}


def test_pretraining_and_packed_cells_are_refused(ranked):
    config = ScCelloConfig(**{**RANKED, "encoder_tokens": None}, linear_genes=USED)
    with pytest.raises(ValueError, match="linear_genes=12 is for embeddings and classifiers of cells"):
        ScCelloForPreTraining(config)
    with pytest.raises(ValueError, match="linear_genes needs each cell in a row of its own"):
        ScCelloModel(config)(ranked[0][:1], position_ids=torch.arange(GENES + 1)[None])
    for wrong in ({"linear_genes": GENES + 1}, {"linear_genes": -1}):
        with pytest.raises((ValueError, StrictDataclassError), match="the model has 30 genes"):
            ScCelloConfig(**RANKED, **wrong)
        with pytest.raises((ValueError, StrictDataclassError), match="the model has 30 genes"):
            LangCellCellConfig(**RANKED, **wrong)
