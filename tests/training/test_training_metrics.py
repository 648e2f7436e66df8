from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import accuracy_score, explained_variance_score, f1_score, mean_squared_error

from cellglot.training.metrics import ClassificationMetrics, MaskedExpressionMetrics, expressed_gene_mean_scores


def prediction(predictions, label_ids):
    return SimpleNamespace(predictions=torch.from_numpy(predictions), label_ids=torch.from_numpy(label_ids))


def test_masked_expression_in_batches():
    random = np.random.default_rng(0)
    target = random.normal(1, 2, (90, 7)).astype(np.float32)
    predicted = (target * 0.6 + random.normal(0.3, 1, target.shape)).astype(np.float32)
    metrics = MaskedExpressionMetrics()
    for _ in range(2):  # begins anew after each result
        for part in np.split(np.arange(90), [13, 50]):
            result = metrics(prediction(predicted[part], target[part]), compute_result=part[-1] == 89)
        assert result["masked_mse"] == pytest.approx(mean_squared_error(target.ravel(), predicted.ravel()))
        assert result["explained_variance"] == pytest.approx(
            explained_variance_score(target.ravel(), predicted.ravel()), rel=1e-6
        )


def test_masked_expression_at_its_ends():
    metrics, target = MaskedExpressionMetrics(), np.arange(12.0).reshape(3, 4)
    assert metrics(prediction(target, target)) == {"masked_mse": 0.0, "explained_variance": 1.0}
    assert metrics(prediction(np.full((3, 4), 2.0), target))["explained_variance"] == pytest.approx(0.0)
    assert metrics(prediction(target, np.ones((3, 4))))["explained_variance"] == 0.0  # no variance to explain
    assert metrics.compute() == {"masked_mse": 0.0, "explained_variance": 0.0}


def test_half_precision_is_added_up_in_double():
    target = torch.full((64, 64), 3.0, dtype=torch.bfloat16)
    batch = SimpleNamespace(predictions=target + 1, label_ids=target)
    assert MaskedExpressionMetrics()(batch)["masked_mse"] == 1.0


def test_classification_in_batches():
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 60)
    logits = random.normal(size=(60, 5)).astype(np.float32)
    logits[np.arange(60), labels] += 1
    metrics = ClassificationMetrics()
    assert metrics(prediction(logits[:25], labels[:25]), compute_result=False) == {}
    result = metrics(prediction(logits[25:], labels[25:]))
    predicted = logits.argmax(1)
    assert result["accuracy"] == accuracy_score(labels, predicted)
    assert result["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro", zero_division=0))
    again = metrics(prediction(logits[:10], labels[:10]))
    assert again["accuracy"] == accuracy_score(labels[:10], predicted[:10])


def test_the_mean_of_a_gene_as_a_guess(corpus):
    def expression(split):
        table = pd.concat(
            [pq.read_table(s, columns=["input_ids", "expression_values"]).to_pandas() for s in corpus.shards(split)]
        )
        return pd.DataFrame({name: np.concatenate(table[name].to_list()) for name in table})

    train, held_out = expression("train"), expression("validation")
    means = train.groupby("input_ids").expression_values.apply(lambda v: v.astype(float).mean())
    guess = held_out.input_ids.map(means).fillna(0.0)
    scores = expressed_gene_mean_scores(corpus)
    assert scores["mse"] == pytest.approx(mean_squared_error(held_out.expression_values, guess), rel=1e-5)
    assert scores["explained_variance"] == pytest.approx(
        explained_variance_score(held_out.expression_values, guess), rel=1e-4
    )
    assert 0 < scores["explained_variance"] < 1
