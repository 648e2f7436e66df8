"""Metrics of evaluation during training, updated batch by batch."""

from typing import Any

import numpy as np
import torch

from cellglot.modeling.cell_losses import IGNORED
from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.training.data.expression import CorpusExpression


class BatchMetrics:
    """Metrics that are updated batch by batch."""

    def __init__(self) -> None:
        self._reset()

    def __call__(self, prediction: Any, compute_result: bool = True) -> dict[str, float]:
        """Add a batch; after the last one return the metrics and start again."""
        self.add(_numpy(prediction.predictions), _numpy(prediction.label_ids))
        if not compute_result:
            return {}
        metrics = self.compute()
        self._reset()
        return metrics

    def add(self, predicted: np.ndarray, labels: np.ndarray) -> None:
        """Add the predictions and labels of a batch."""
        raise NotImplementedError

    def compute(self) -> dict[str, float]:
        """Return the metrics of all batches since the start."""
        raise NotImplementedError

    def _reset(self) -> None:
        raise NotImplementedError


class MaskedExpressionMetrics(BatchMetrics):
    """Mean squared error and explained variance of masked expression.

    ``masked_mse`` is the mean of (y - p)^2 over all masked genes of all held-out cells; ``explained_variance`` is
    1 - Var(y - p) / Var(y) over the same values, 0 for a constant prediction. Labels of -100 are left out.
    """

    def _reset(self) -> None:
        self.n = 0
        self.sums = np.zeros(4)

    def add(self, predicted: np.ndarray, labels: np.ndarray) -> None:
        """Add values of any shape."""
        known = labels != IGNORED
        target = labels[known].astype(np.float64)
        error = target - predicted[known]
        self.n += target.size
        self.sums += [target.sum(), (target**2).sum(), error.sum(), (error**2).sum()]

    def compute(self) -> dict[str, float]:
        """Return the metrics."""
        mean, squares, error_mean, error_squares = self.sums / max(self.n, 1)
        variance = squares - mean**2
        return {
            "masked_mse": float(error_squares),
            "explained_variance": float(1 - (error_squares - error_mean**2) / variance) if variance > 0 else 0.0,
        }


class MaskedGeneMetrics(BatchMetrics):
    """Metrics of masked genes, and of a property that a model finds right or wrong for each cell.

    ``masked_gene_loss``: mean cross entropy of masked genes over the vocabulary; ``masked_gene_accuracy``: share of
    masked genes whose score is the highest; and `name`: share of cells for which the model is right, among those with
    a label. Each batch is that of `masked_gene_rows` with one column more: right, and whether the cell has a label.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def _reset(self) -> None:
        self.sums = np.zeros(5)

    def add(self, predicted: np.ndarray, labels: np.ndarray) -> None:
        """Add rows of shape (cells, 3) and (cells, 2)."""
        self.sums += np.concatenate([predicted, labels], axis=1).sum(axis=0, dtype=np.float64)

    def compute(self) -> dict[str, float]:
        """Return the metrics; those without genes or cells are missing."""
        loss, found, right, genes, cells = self.sums.tolist()
        metrics = {"masked_gene_loss": loss / genes, "masked_gene_accuracy": found / genes} if genes else {}
        return metrics | ({self.name: right / cells} if cells else {})


class ClassificationMetrics(BatchMetrics):
    """Accuracy and macro F1 over the classes that occur among labels or predictions; label -100 is left out.

    Labels beyond the classes of the model count as errors, and as classes with an F1 of 0.
    """

    def _reset(self) -> None:
        self.predicted: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []

    def add(self, predicted: np.ndarray, labels: np.ndarray) -> None:
        """Add scores, shape (cells, classes), and classes, shape (cells,)."""
        labels = labels.astype(np.int64)
        self.predicted.append(predicted.argmax(axis=-1)[labels != IGNORED])
        self.labels.append(labels[labels != IGNORED])

    def compute(self) -> dict[str, float]:
        """Return the metrics; none without labels."""
        return _class_scores(np.concatenate(self.labels), np.concatenate(self.predicted))


class LabelSetMetrics(ClassificationMetrics):
    """Accuracy and macro F1 of labels that allow several classes.

    A prediction is right if the label allows it. Macro F1 is over the classes of cells whose label allows only one.
    Labels that allow no class count as errors.

    Parameters
    ----------
    sets
        Whether each label may be each class, bool, shape (labels, classes).
    """

    def __init__(self, sets: np.ndarray) -> None:
        super().__init__()
        self.sets = sets

    def compute(self) -> dict[str, float]:
        """Return the metrics; none without labels."""
        predicted, labels = np.concatenate(self.predicted), np.concatenate(self.labels)
        if not len(labels):
            return {}
        of_cells = self.sets[labels]
        scores = {"accuracy": float(of_cells[np.arange(len(labels)), predicted].mean())}
        one = of_cells.sum(axis=1) == 1
        if one.any():
            scores["macro_f1"] = _class_scores(of_cells[one].argmax(axis=1), predicted[one])["macro_f1"]
        return scores


class GeneClassMetrics(BatchMetrics):
    """Accuracy and macro F1 of genes; a gene's class is that of the highest mean probability over its cells.

    ``token_accuracy`` and ``token_macro_f1`` are those of each gene in each cell.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__()

    def _reset(self) -> None:
        self.sums: dict[int, np.ndarray] = {}
        self.classes: dict[int, int] = {}
        self.table = np.zeros((self.number, self.number), dtype=np.int64)

    def add(self, predicted: np.ndarray, labels: np.ndarray) -> None:
        """Add scores, shape (cells, tokens, classes), and classes with token ids, shape (cells, tokens, 2)."""
        given = labels.astype(np.int64)
        kept = given[..., 0] != IGNORED
        labels, genes = given[kept].T
        probabilities = torch.from_numpy(predicted[kept]).softmax(dim=-1).numpy()
        np.add.at(self.table, (labels, probabilities.argmax(axis=-1)), 1)
        different, rows = np.unique(genes, return_inverse=True)
        sums = np.zeros((len(different), self.number))
        np.add.at(sums, rows, probabilities)
        for gene, total in zip(different.tolist(), sums, strict=True):
            self.sums[gene] = self.sums.get(gene, 0) + total
        self.classes.update(zip(genes.tolist(), labels.tolist(), strict=True))

    def compute(self) -> dict[str, float]:
        """Return the metrics; none without labels."""
        genes = list(self.sums)
        predicted = np.array([int(self.sums[g].argmax()) for g in genes], dtype=np.int64)
        of_genes = _class_scores(np.array([self.classes[g] for g in genes], dtype=np.int64), predicted)
        rows, columns = self.table.nonzero()
        of_tokens = _class_scores(rows, columns, self.table[rows, columns])
        return of_genes | {f"token_{name}": value for name, value in of_tokens.items()}


class ValueMetrics(BatchMetrics):
    """Mean squared error, in the unit of the value, R2 and Pearson correlation of a predicted value; NaN is left out.

    R2 and Pearson's correlation are missing if they are undefined: if all values, or all predictions, are the same.
    """

    def _reset(self) -> None:
        self.predicted: list[np.ndarray] = []
        self.values: list[np.ndarray] = []

    def add(self, predicted: np.ndarray, labels: np.ndarray) -> None:
        """Add predictions and values, shape (cells,) or (cells, 1)."""
        values = labels.astype(np.float64).ravel()
        known = ~np.isnan(values)
        self.values.append(values[known])
        self.predicted.append(predicted.astype(np.float64).reshape(len(values))[known])

    def compute(self) -> dict[str, float]:
        """Return the metrics; none without values."""
        predicted, values = np.concatenate(self.predicted), np.concatenate(self.values)
        if not len(values):
            return {}
        scores = {"mse": float(np.mean((values - predicted) ** 2))}
        if values.std() > 0:
            scores["r2"] = 1 - scores["mse"] / float(values.var())
            if predicted.std() > 0:
                scores["pearson"] = float(np.corrcoef(values, predicted)[0, 1])
        return scores


class SeveralLabelsMetrics(BatchMetrics):
    """Average precision and AUROC of labels that a cell may have at the same time, means over labels; NaN is left out.

    Only labels that some held-out cells have, and others do not, are scored. ``chance`` is the average precision of
    scores that know nothing: the mean share of cells with the label.
    """

    def _reset(self) -> None:
        self.predicted: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []

    def add(self, predicted: np.ndarray, labels: np.ndarray) -> None:
        """Add scores, and 0 or 1, both of shape (cells, classes)."""
        known = ~np.isnan(labels).any(axis=1)
        self.predicted.append(predicted[known].astype(np.float64))
        self.labels.append(labels[known] > 0.5)

    def compute(self) -> dict[str, float]:
        """Return the metrics; none without a label that can be scored."""
        from sklearn.metrics import average_precision_score, roc_auc_score

        predicted, labels = np.concatenate(self.predicted), np.concatenate(self.labels)
        if not len(labels):
            return {}
        scored = np.flatnonzero(labels.any(axis=0) & ~labels.all(axis=0))
        if not len(scored):
            return {}
        pairs = [(labels[:, number], predicted[:, number]) for number in scored]
        return {
            "auprc": float(np.mean([average_precision_score(*pair) for pair in pairs])),
            "auroc": float(np.mean([roc_auc_score(*pair) for pair in pairs])),
            "chance": float(labels[:, scored].mean()),
        }


def _class_scores(labels: np.ndarray, predicted: np.ndarray, numbers: np.ndarray | None = None) -> dict[str, float]:
    """Score predicted classes, each of some number of items; nothing without items."""
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
        Scores at masked positions, shape (masked positions, vocabulary), None without this objective.
    labels
        Ids of masked genes, -100 elsewhere, shape (cells, tokens).

    Returns
    -------
    predictions
        Summed cross entropy of masked genes, and number of those with the highest score; shape (cells, 2).
    numbers
        Number of masked genes, shape (cells, 1).
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
    """Score a baseline of masked expression: for each gene its mean among the training cells that express it.

    Returns
    -------
    dict
        ``mse`` and ``explained_variance`` over all expressed genes of the held-out cells, as in
        `MaskedExpressionMetrics` (which uses a random part of the same values).
    """
    train, held_out = (CorpusExpression(corpus, [split]) for split in ("train", "validation"))
    counts, sums = np.zeros(train.n_genes), np.zeros(train.n_genes)
    for values in train.values():
        counts += np.bincount(values.indices, minlength=train.n_genes)
        sums += np.bincount(values.indices, weights=values.data, minlength=train.n_genes)
    means = sums / np.maximum(counts, 1)
    metrics = MaskedExpressionMetrics()
    for values in held_out.values():
        metrics.add(means[values.indices], values.data)
    scores = metrics.compute()
    return {"mse": scores["masked_mse"], "explained_variance": scores["explained_variance"]}


def _numpy(values: Any) -> np.ndarray:
    return values.float().cpu().numpy() if hasattr(values, "cpu") else np.asarray(values)


__all__ = [
    "ClassificationMetrics",
    "GeneClassMetrics",
    "LabelSetMetrics",
    "MaskedExpressionMetrics",
    "MaskedGeneMetrics",
    "ValueMetrics",
]
