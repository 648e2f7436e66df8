"""Gene sums of files that lack genes: what these would add is expected from the genes that are there."""

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from cellglot.modeling.configuration_exceiver import ExceiverConfig
from cellglot.modeling.configuration_sccello import ScCelloConfig
from cellglot.modeling.expected_weights import WEIGHT_SCALE, expected_weights
from cellglot.modeling.modeling_exceiver import ExceiverForSequenceClassification
from cellglot.modeling.modeling_sccello import ScCelloForSequenceClassification


GENES, FACTORS, CLASSES = 30, 4, 3
SIZES = {
    "vocab_size": GENES + 5, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 8, "gene_sums": True, "gene_sum_weight": 1.0, "num_labels": CLASSES, "imputed_genes": GENES,
    "imputation_factors": FACTORS,
}  # fmt: skip


@pytest.fixture
def factors():
    """Weights, means, loadings and variances of genes, and which of them were measured."""
    random = np.random.default_rng(0)
    weight, loadings = random.normal(size=(GENES, CLASSES)), random.normal(size=(GENES, FACTORS))
    return weight, random.normal(size=GENES), loadings, random.uniform(0.2, 2, GENES), random.random(GENES) < 0.6


def network(kind, factors):
    torch.manual_seed(0)
    weight, means, loadings, variances, _ = factors
    if kind == "exceiver":
        sizes = SIZES | {"gene_embedding_size": 8, "num_latents": 2, "num_cross_attention_heads": 2}
        model = ExceiverForSequenceClassification(ExceiverConfig(**sizes)).eval()
        model.gene_sums.deviations[:] = 1
        ids = torch.arange(GENES)
    else:
        model = ScCelloForSequenceClassification(ScCelloConfig(**SIZES, max_position_embeddings=64, pooling="mean"))
        model.eval().gene_sums.medians[2 : GENES + 2] = torch.rand(GENES) + 0.5
        ids = torch.arange(2, GENES + 2)
    model.gene_sums.imputation.set_statistics(ids, means, loadings, variances)
    with torch.no_grad():
        model.gene_sums.weight[ids] = torch.from_numpy(weight).float()
    return model, ids


def test_sums_are_their_expectation_given_the_measured_genes(factors):
    weight, means, loadings, variances, there = factors
    rows, added = expected_weights(weight, means, loadings, variances, there.astype(float), np.linalg.solve)
    cell = np.random.default_rng(1).normal(size=GENES)
    covariance = loadings @ loadings.T + np.diag(variances)
    expected = cell.copy()  # of a normal distribution, by its whole covariance
    among = np.linalg.solve(covariance[np.ix_(there, there)], cell[there] - means[there])
    expected[~there] = means[~there] + covariance[np.ix_(~there, there)] @ among
    assert np.allclose(cell @ rows + added, expected @ weight)
    assert not rows[~there].any()


def test_all_genes_change_nothing_and_none_give_the_mean(factors):
    weight, means, loadings, variances, _ = factors
    rows, added = expected_weights(weight, means, loadings, variances, np.ones(GENES), np.linalg.solve)
    assert np.allclose(rows, weight) and np.allclose(added, 0)
    rows, added = expected_weights(weight, means, loadings, variances, np.zeros(GENES), np.linalg.solve)
    assert not rows.any() and np.allclose(added, means @ weight)


@pytest.mark.parametrize("kind", ["exceiver", "sccello"])
def test_a_model_expects_what_genes_add_that_were_not_measured(kind, factors, tmp_path):
    model, ids = network(kind, factors)
    weight, means, loadings, variances, there = factors
    measured = torch.zeros(GENES + 5, dtype=torch.bool)
    measured[ids[there]] = True
    cells = ids[torch.from_numpy(there)][None].repeat(2, 1)
    inputs = {"input_ids": cells, "attention_mask": torch.ones_like(cells)}
    if kind == "exceiver":
        inputs["expression_values"] = torch.rand(cells.shape) + 0.5
        logs = inputs["expression_values"].double().numpy()
    else:
        logs = model.gene_sums.logs(cells).double().numpy()
    rows, added = expected_weights(weight, means, loadings, variances, there.astype(float), np.linalg.solve)
    expected = torch.from_numpy((logs @ rows[there] + added) * WEIGHT_SCALE).log_softmax(dim=-1)
    with torch.no_grad():
        plain, found = model(**inputs).logits, model(**inputs, measured_genes=measured).logits
        every = model(**inputs, measured_genes=torch.ones_like(measured)).logits
        assert torch.allclose(found.double(), expected, atol=1e-4)
        assert torch.allclose(every, plain, atol=1e-5) and not torch.allclose(found, plain, atol=1e-2)
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path)
        assert torch.allclose(again(**inputs, measured_genes=measured).logits, found, atol=1e-6)
        half = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)
        halves = {k: v.bfloat16() if v.is_floating_point() else v for k, v in inputs.items()}
        assert half(**halves, measured_genes=measured).logits.isfinite().all()


def test_a_model_without_imputation_reads_the_genes_and_ignores_them(factors):
    model, ids = network("sccello", factors)
    model.gene_sums.imputation = None
    measured = torch.zeros(GENES + 5, dtype=torch.bool)
    with torch.no_grad():
        assert torch.equal(model(ids[None]).logits, model(ids[None], measured_genes=measured).logits)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"imputed_genes": 0}, "both are 0, or both are positive"),
        ({"imputation_factors": -1}, "both are 0, or both are positive"),
    ],
)
def test_sizes_that_do_not_match_are_refused(wrong, message):
    with pytest.raises((StrictDataclassError, ValueError), match=message):
        ScCelloConfig(**{**SIZES, **wrong}, max_position_embeddings=64)
