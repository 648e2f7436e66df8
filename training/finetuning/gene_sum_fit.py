"""Gene sums fitted by themselves: logistic regression on all genes, with a penalty, over all drawn cells at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from scipy.optimize import minimize
from scipy.sparse import csr_matrix, vstack

from cellglot.modeling.expected_weights import WEIGHT_SCALE
from cellglot.modeling.gene_imputation import GeneImputation
from cellglot.modeling.gene_sums import StandardizedGeneSums
from cellglot.progress import progress_bars
from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.training.config import TrainingConfig, read_section
from cellglot.training.data.label_collators import LabelledCells
from cellglot.training.data.labels import read_column
from cellglot.training.data.panels import genes_of_data_sets
from cellglot.training.families.records import family_of
from cellglot.training.finetuning.factor_analysis import fit_factors
from cellglot.training.finetuning.label_levels import label_level_task
from cellglot.training.finetuning.settings import FinetuneSettings, finetune_settings
from cellglot.training.finetuning.tasks import BOTH


BATCH = 64  # cells that are collated together
FEWEST_MEASURED = 0.5  # of the cells that are drawn, to impute a gene
IMPOSSIBLE = -1e30  # score of a class that a label rules out


@strict
@dataclass(kw_only=True)
class GeneSumSettings:
    """How gene sums are fitted.

    Parameters
    ----------
    share
        Share of the scores that the gene sums have afterwards; by default as the model says.
    cells
        Cells that are drawn, with replacement.
    as_they_are
        Share of them that keep all their counts and genes. The others are thinned as in the training of the network.
    penalty
        Half of it, times the sum of squared weights, is added to the mean loss of a cell. That of a gene is divided by
        the share of training cells whose data set measured it.
    iterations
        Of L-BFGS, at the most. Few end before the optimum, which is a penalty, too: see docs/models/collection.md.
    balance
        Cells of a data set are drawn ``n ** -balance`` times as often, n its number, and so are those of a label.
    balance_open
        Cells of labels that leave several classes open are drawn this often, relative to the others.
    imputed_genes
        Genes that are imputed where a file did not measure them, the most variable ones, see `GeneImputation`. None
        are if no drawn cell keeps all its genes (``as_they_are: 0``).
    factors, factor_iterations
        Factors of their expression, and iterations to find them.
    data_set_column
        Column of the corpus that names the data set of each cell. A data set measured the genes that it has counts of.
    """

    share: float | int | None = None
    cells: int = 50_000
    as_they_are: float | int = 0.5
    penalty: float | int = 1e-2
    iterations: int = 60
    balance: float | int = 0.5
    balance_open: float | int = 0.7
    imputed_genes: int = 3000
    factors: int = 64
    factor_iterations: int = 20
    data_set_column: str = "dataset_id"

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        for name in ("share", "as_they_are"):
            if (value := getattr(self, name)) is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} {value!r}: it is a share from 0 to 1")
        for name in ("cells", "iterations", "factors", "factor_iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)!r}: it is a number of 1 or more")
        for name in ("penalty", "balance", "balance_open", "imputed_genes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} {getattr(self, name)!r}: it is 0 or more")


def fit_gene_sums(
    folder: str | Path, corpus: Corpus, config: TrainingConfig, column: str, settings: GeneSumSettings
) -> None:
    """Fit the gene sums of a trained classifier from the start, and save the classifier again.

    Batches of a network's training are of cells of similar length, which is fast, but each batch is then of few data
    sets. Here cells are drawn once, some with counts and genes left out, and the loss of all of them is minimised at
    the same time.

    Parameters
    ----------
    folder
        A classifier of labels at several levels, as `finetune` wrote it.
    corpus, config, column
        As for `finetune`.
    settings
        How to fit.
    """
    family, seed = family_of(folder), int(config.trainer.get("seed", 0))
    network: Any = family.model_class("cell-type").from_pretrained(folder, dtype=torch.float32)
    tokenizer = family.tokenizer_of(corpus, type(network).__name__)
    of_labels = finetune_settings(config.finetuning, "cell-type", "full")
    data: Any = read_section(family.finetuning_data, config.data, "data")
    task = label_level_task(corpus, column, of_labels, seed)
    thinned, whole = family.collators(tokenizer, network.config, data, corpus, seed)
    sums = network.gene_sums
    sums.set_statistics(tokenizer)
    random, collators = np.random.default_rng(seed), (task.collator(whole, True), task.collator(thinned, True))
    chances = _chances(task.train, corpus, of_labels, list(task.facts["labels"]), collators[0].sets, settings)
    drawn = random.choice(len(task.train), settings.cells, p=chances)
    kept = round(settings.as_they_are * settings.cells)
    parts = [
        _cells(sums, task.train, cells, collator)
        for cells, collator in zip((drawn[:kept], drawn[kept:]), collators, strict=True)
    ]
    logs = vstack([part[0] for part in parts], format="csr")
    sets = np.concatenate([part[1] for part in parts])
    names, measured = genes_of_data_sets(corpus, BOTH, settings.data_set_column)
    given = [str(name) for name in read_column(corpus, BOTH, settings.data_set_column)]
    of_cells = np.searchsorted(names, given)[task.train.rows]
    scales = np.sqrt(measured[of_cells].mean(axis=0)).astype(np.float32)
    weight, bias = fit_regression(_scaled(logs, scales), sets, settings.penalty, settings.iterations)
    with torch.no_grad():
        sums.weight.copy_(torch.from_numpy(weight * scales[:, None] / WEIGHT_SCALE))
        sums.bias.copy_(torch.from_numpy(bias))
    sums.imputation = _imputation(parts[0][0], measured, of_cells[drawn[:kept]], settings, seed)
    genes, factors = (0, 0) if sums.imputation is None else sums.imputation.loadings.shape
    network.config.imputed_genes, network.config.imputation_factors = genes, factors
    if settings.share is not None:
        network.config.gene_sum_weight = settings.share
    network.save_pretrained(folder)


def _scaled(logs: csr_matrix, scales: np.ndarray) -> csr_matrix:
    """Return features whose penalty is that of the weights divided by the squares of scales."""
    return csr_matrix((logs.data * scales[logs.indices], logs.indices, logs.indptr), shape=logs.shape)


def _imputation(
    logs: csr_matrix, measured: np.ndarray, data_sets: np.ndarray, settings: GeneSumSettings, seed: int
) -> GeneImputation | None:
    """Fit factors to cells that kept all their genes; None if no gene is to be imputed."""
    if not len(data_sets):
        return None
    means = np.asarray(logs.mean(axis=0)).ravel()
    spread = np.asarray(logs.multiply(logs).mean(axis=0)).ravel() - means**2
    spread[measured[data_sets].mean(axis=0) < FEWEST_MEASURED] = 0
    tokens = np.sort(np.argsort(-spread, kind="stable")[: min(settings.imputed_genes, (spread > 0).sum())])
    if not len(tokens):
        return None
    number = min(settings.factors, len(tokens))
    with progress_bars("iterations") as bars:
        bar = bars.add_task("imputation", total=settings.factor_iterations, cells=len(data_sets))
        found = fit_factors(
            logs[:, tokens],
            measured[:, tokens],
            data_sets,
            number,
            settings.factor_iterations,
            seed,
            lambda: bars.advance(bar),
        )
    made = GeneImputation(len(tokens), number)
    made.set_statistics(tokens, found.means, found.loadings, found.variances)
    return made


def _chances(
    cells: LabelledCells,
    corpus: Corpus,
    of_labels: FinetuneSettings,
    names: Sequence[str],
    sets: np.ndarray,
    settings: GeneSumSettings,
) -> np.ndarray:
    """Return the chance of each cell to be drawn, shape (cells,)."""
    chances = np.where(sets.sum(axis=1)[cells.labels] == 1, 1.0, float(settings.balance_open))
    groups = [np.unique(sets, axis=0, return_inverse=True)[1].ravel()[cells.labels]]
    if of_labels.balance_by is not None:
        texts = np.array([str(v) for v in read_column(corpus, BOTH, of_labels.balance_by)], dtype=object)
        groups.append(np.unique(texts, return_inverse=True)[1][cells.rows])
    for group in groups:
        chances *= np.bincount(group)[group] ** -float(settings.balance)
    for name, share in (of_labels.balance_shares or {}).items():
        chosen = cells.labels == names.index(name)
        if chosen.any() and not chosen.all():
            chances[chosen] *= share / (1 - share) * chances[~chosen].sum() / chances[chosen].sum()
    return chances / chances.sum()


def _cells(sums: Any, cells: LabelledCells, drawn: np.ndarray, collator: Any) -> tuple[csr_matrix, np.ndarray]:
    """Return the logs of counts, shape (cells, tokens), and the labels of cells, bool, shape (cells, classes)."""
    parts, labels = [], []
    with progress_bars("cells") as bars:
        bar = bars.add_task("cells for gene sums", total=len(drawn), cells=1)
        for start in range(0, len(drawn), BATCH):
            pairs = [(start + i, int(cell)) for i, cell in enumerate(drawn[start : start + BATCH])]
            batch = collator(cells.__getitems__(pairs))
            parts.append(_sparse(batch["input_ids"], _logs(sums, batch), len(sums.weight)))
            labels.append(batch["labels"].numpy())
            bars.update(bar, completed=min(start + BATCH, len(drawn)))
    size = len(sums.weight), len(sums.bias)
    if not parts:
        return csr_matrix((0, size[0]), dtype=np.float32), np.zeros((0, size[1]), dtype=bool)
    return vstack(parts, format="csr"), np.concatenate(labels)


def _logs(sums: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    ids, mask = batch["input_ids"], batch["attention_mask"]
    if isinstance(sums, StandardizedGeneSums):
        return sums.logs(ids, batch["expression_values"], mask.bool())
    return sums.logs(ids, mask)


def _sparse(ids: torch.Tensor, logs: torch.Tensor, tokens: int) -> csr_matrix:
    there = (logs > 0).numpy()
    starts = np.concatenate([[0], there.sum(axis=1).cumsum()])
    values = logs.numpy()[there].astype(np.float32)
    return csr_matrix((values, ids.numpy()[there].astype(np.int32), starts), shape=(len(ids), tokens))


def fit_regression(
    features: csr_matrix, sets: np.ndarray, penalty: float, iterations: int
) -> tuple[np.ndarray, np.ndarray]:
    """Fit logistic regression to labels that leave several classes open, as `label_set_terms` compares them.

    Parameters
    ----------
    features
        float32, shape (cells, features).
    sets
        Whether each class may be right, bool, shape (cells, classes).
    penalty, iterations
        As for `GeneSumSettings`.

    Returns
    -------
    numpy.ndarray
        Weights, float32, shape (features, classes).
    numpy.ndarray
        Biases, float32, shape (classes,).
    """
    cells, size = features.shape
    classes = sets.shape[1]
    transposed, ruled_out = features.T.tocsr(), np.where(sets, 0, IMPOSSIBLE).astype(np.float32)

    def loss_and_gradient(values: np.ndarray) -> tuple[float, np.ndarray]:
        weight = values[: size * classes].reshape(size, classes)
        scores = features @ weight.astype(np.float32) + values[size * classes :].astype(np.float32)
        every, total = _softmax(scores)
        right, of_set = _softmax(scores + ruled_out)
        loss = float((total - of_set).mean(dtype=np.float64)) + penalty / 2 * float((weight**2).sum())
        off = (every - right) / cells
        slope = transposed @ off + penalty * weight
        return loss, np.concatenate([slope.ravel(), off.sum(axis=0, dtype=np.float64)])

    with progress_bars("iterations") as bars:
        bar = bars.add_task("gene sums", total=iterations, cells=cells)
        found = minimize(
            loss_and_gradient,
            np.zeros((size + 1) * classes),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": iterations},
            callback=lambda _: bars.advance(bar),
        )
        bars.update(bar, total=found.nit, completed=found.nit, note=f"loss {found.fun:.4f}")
    values = found.x.astype(np.float32)
    return values[: size * classes].reshape(size, classes), values[size * classes :]


def _softmax(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities, and the logarithm of the summed exponentials, of each row."""
    most = scores.max(axis=1, keepdims=True)
    powers = np.exp(scores - most)
    total = powers.sum(axis=1, keepdims=True)
    return powers / total, (np.log(total) + most).ravel()


__all__ = ["GeneSumSettings", "fit_gene_sums", "fit_regression"]
