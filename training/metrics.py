"""Metrics of evaluation during training, added up batch by batch."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from cellglot.tokenization.corpus.corpus import Corpus


IGNORED = -100


class MaskedExpressionMetrics:
    """Mean squared error and explained variance of masked expression.

    ``masked_mse`` is the mean of (y - p)^2 over all masked genes of all held-out cells; ``explained_variance`` is
    1 - Var(y - p) / Var(y) over the same values, 0 for a constant guess.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.n = 0
        self.sums = np.zeros(4)

    def __call__(self, prediction: Any, compute_result: bool = True) -> dict[str, float]:
        """Add a batch; give the metrics at the last one."""
        self.add(_numpy(prediction.predictions), _numpy(prediction.label_ids))
        return self.compute() if compute_result else {}

    def add(self, predicted: np.ndarray, target: np.ndarray) -> None:
        """Add values of any shape; targets of -100 are left out."""
        known = target != IGNORED
        target = target[known].astype(np.float64)
        error = target - predicted[known]
        self.n += target.size
        self.sums += [target.sum(), (target**2).sum(), error.sum(), (error**2).sum()]

    def compute(self) -> dict[str, float]:
        """Return the metrics and begin anew."""
        mean, squares, error_mean, error_squares = self.sums / max(self.n, 1)
        self._reset()
        variance = squares - mean**2
        return {
            "masked_mse": float(error_squares),
            "explained_variance": float(1 - (error_squares - error_mean**2) / variance) if variance > 0 else 0.0,
        }


class ClassificationMetrics:
    """Accuracy and macro F1 over the classes that occur among labels or predictions; label -100 is left out.

    Labels beyond the model's classes can never be predicted: they count as errors, and as classes with an F1 of 0.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.predicted: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []

    def __call__(self, prediction: Any, compute_result: bool = True) -> dict[str, float]:
        """Add a batch; give the metrics at the last one."""
        labels = _numpy(prediction.label_ids).astype(np.int64)
        self.predicted.append(_numpy(prediction.predictions).argmax(axis=-1)[labels != IGNORED])
        self.labels.append(labels[labels != IGNORED])
        if not compute_result:
            return {}
        predicted, labels = np.concatenate(self.predicted), np.concatenate(self.labels)
        self._reset()
        return _class_scores(labels, predicted)


class LabelSetMetrics(ClassificationMetrics):
    """Accuracy and macro F1 of labels that leave several classes open.

    A prediction is right where the label may be it. Macro F1 is over the classes of cells whose label leaves one class
    open. Labels that no class is for count as errors.

    Parameters
    ----------
    sets
        Whether each label may be each class, bool, shape (labels, classes).
    """

    def __init__(self, sets: np.ndarray) -> None:
        super().__init__()
        self.sets = sets

    def __call__(self, prediction: Any, compute_result: bool = True) -> dict[str, float]:
        """Add a batch; return the metrics at the last one."""
        labels = _numpy(prediction.label_ids).astype(np.int64)
        self.predicted.append(_numpy(prediction.predictions).argmax(axis=-1)[labels != IGNORED])
        self.labels.append(labels[labels != IGNORED])
        if not compute_result:
            return {}
        predicted, labels = np.concatenate(self.predicted), np.concatenate(self.labels)
        self._reset()
        if not len(labels):
            return {}
        of_cells, open_classes = self.sets[labels], self.sets.sum(axis=1)[labels]
        scores = {"accuracy": float(of_cells[np.arange(len(labels)), predicted].mean())}
        one = open_classes == 1
        if one.any():
            scores["macro_f1"] = _class_scores(of_cells[one].argmax(axis=1), predicted[one])["macro_f1"]
        return scores


class GeneClassMetrics:
    """Accuracy and macro F1 of genes, each with the class of the highest mean probability over the cells it is in.

    ``token_accuracy`` and ``token_macro_f1`` are those of every gene in every cell on its own.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._reset()

    def _reset(self) -> None:
        self.sums: dict[int, np.ndarray] = {}
        self.classes: dict[int, int] = {}
        self.table = np.zeros((self.number, self.number), dtype=np.int64)

    def __call__(self, prediction: Any, compute_result: bool = True) -> dict[str, float]:
        """Add a batch; give the metrics at the last one.

        Predictions are scores, shape (cells, tokens, classes); labels are classes and token ids, shape (cells, tokens,
        2), -100 where there is none.
        """
        given = _numpy(prediction.label_ids).astype(np.int64)
        kept = given[..., 0] != IGNORED
        labels, genes = given[kept].T
        scores = torch.from_numpy(_numpy(prediction.predictions)[kept])
        probabilities = scores.softmax(dim=-1).numpy()
        np.add.at(self.table, (labels, probabilities.argmax(axis=-1)), 1)
        different, rows = np.unique(genes, return_inverse=True)
        sums = np.zeros((len(different), self.number))
        np.add.at(sums, rows, probabilities)
        for gene, total in zip(different.tolist(), sums, strict=True):
            self.sums[gene] = self.sums.get(gene, 0) + total
        self.classes.update(zip(genes.tolist(), labels.tolist(), strict=True))
        return self._compute() if compute_result else {}

    def _compute(self) -> dict[str, float]:
        genes = list(self.sums)
        predicted = np.array([int(self.sums[g].argmax()) for g in genes], dtype=np.int64)
        of_genes = _class_scores(np.array([self.classes[g] for g in genes], dtype=np.int64), predicted)
        rows, columns = self.table.nonzero()
        of_tokens = _class_scores(rows, columns, self.table[rows, columns])
        self._reset()
        return of_genes | {f"token_{name}": value for name, value in of_tokens.items()}


class ValueMetrics:
    """Mean squared error, in the value's unit, R2 and Pearson correlation of a predicted value; NaN is left out.

    R2 and Pearson's are there only where they are defined: for values that differ, and predictions that do.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.predicted: list[np.ndarray] = []
        self.values: list[np.ndarray] = []

    def __call__(self, prediction: Any, compute_result: bool = True) -> dict[str, float]:
        """Add a batch; give the metrics at the last one."""
        values = _numpy(prediction.label_ids).astype(np.float64).ravel()
        known = ~np.isnan(values)
        self.values.append(values[known])
        self.predicted.append(_numpy(prediction.predictions).astype(np.float64).reshape(len(values))[known])
        if not compute_result:
            return {}
        predicted, values = np.concatenate(self.predicted), np.concatenate(self.values)
        self._reset()
        if not len(values):
            return {}
        scores = {"mse": float(np.mean((values - predicted) ** 2))}
        if values.std() > 0:
            scores["r2"] = 1 - scores["mse"] / float(values.var())
            if predicted.std() > 0:
                scores["pearson"] = float(np.corrcoef(values, predicted)[0, 1])
        return scores


def _class_scores(labels: np.ndarray, predicted: np.ndarray, numbers: np.ndarray | None = None) -> dict[str, float]:
    """Score predicted classes, each standing for some number of items; nothing where there are no items."""
    from sklearn.metrics import accuracy_score, f1_score

    if not len(labels):
        return {}
    return {
        "accuracy": float(accuracy_score(labels, predicted, sample_weight=numbers)),
        "macro_f1": float(f1_score(labels, predicted, average="macro", sample_weight=numbers, zero_division=0)),
    }


def masked_gene_rows(logits: torch.Tensor | None, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum up the masked genes of each cell.

    Parameters
    ----------
    logits
        Scores at masked positions, shape (masked positions, vocabulary), None where there is no such objective.
    labels
        Ids of masked genes, -100 elsewhere, shape (cells, tokens).

    Returns
    -------
    predictions
        Summed cross entropy of masked genes, and how many have the highest score; shape (cells, 2).
    numbers
        Masked genes, shape (cells, 1).
    """
    predictions = torch.zeros(len(labels), 2, device=labels.device)
    masked = labels != IGNORED
    if logits is None:
        return predictions, torch.zeros(len(labels), 1, device=labels.device)
    cell, wanted, scores = masked.nonzero()[:, 0], labels[masked], logits.float()
    predictions[:, 0].index_add_(0, cell, torch.nn.functional.cross_entropy(scores, wanted, reduction="none"))
    predictions[:, 1].index_add_(0, cell, (scores.argmax(dim=-1) == wanted).float())
    return predictions, masked.sum(dim=1, keepdim=True).float()


def expressed_gene_mean_scores(corpus: Corpus) -> dict[str, float]:
    """Score the guess that an expressed gene has its mean among the training cells that express it.

    What a model of masked expression has to beat: it knows which gene is asked for, and nothing of the cell.

    Returns
    -------
    dict
        ``mse`` and ``explained_variance`` over all expressed genes of the held-out cells, as in
        `MaskedExpressionMetrics` (which looks at a random part of the same values).
    """
    size = corpus.manifest["vocab_size"]
    counts, sums = np.zeros(size), np.zeros(size)
    for ids, values in _expression(corpus, "train"):
        counts += np.bincount(ids, minlength=size)
        sums += np.bincount(ids, weights=values, minlength=size)
    means = sums / np.maximum(counts, 1)
    metrics = MaskedExpressionMetrics()
    for ids, values in _expression(corpus, "validation"):
        metrics.add(means[ids], values)
    scores = metrics.compute()
    return {"mse": scores["masked_mse"], "explained_variance": scores["explained_variance"]}


def _expression(corpus: Corpus, split: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for shard in corpus.shards(split):
        for batch in pq.ParquetFile(shard).iter_batches(batch_size=4096, columns=["input_ids", "expression_values"]):
            ids, values = batch.column(0), batch.column(1)
            part = slice(ids.offsets[0].as_py(), ids.offsets[-1].as_py())
            yield ids.values.to_numpy()[part], values.values.to_numpy()[part].astype(np.float64)


def _numpy(values: Any) -> np.ndarray:
    return values.float().cpu().numpy() if hasattr(values, "cpu") else np.asarray(values)


__all__ = ["ClassificationMetrics", "GeneClassMetrics", "LabelSetMetrics", "MaskedExpressionMetrics", "ValueMetrics"]
