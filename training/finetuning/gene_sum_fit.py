"""Gene sums fitted by themselves: logistic regression on all genes, over cells drawn in random order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.dataclasses import strict

from cellglot.modeling.gene_sums import GeneSums, StandardizedGeneSums
from cellglot.modeling.label_losses import label_terms
from cellglot.progress import progress_bars
from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.training.config import TrainingConfig, read_section
from cellglot.training.data.label_collators import LabelledCells
from cellglot.training.data.labels import read_column
from cellglot.training.families.records import family_of
from cellglot.training.finetuning.label_levels import label_level_task
from cellglot.training.finetuning.settings import FinetuneSettings, finetune_settings
from cellglot.training.finetuning.tasks import BOTH


WARM_UP = 0.1  # of the steps


@strict
@dataclass(kw_only=True)
class GeneSumSettings:
    """How gene sums are fitted.

    Parameters
    ----------
    share
        Share of the scores that the gene sums have afterwards; by default as the model says.
    steps, batch_size
        Number of batches, and cells of each.
    learning_rate, weight_decay
        Of AdamW, with a cosine schedule.
    balance
        Cells of a data set are drawn ``n ** -balance`` times as often, n its number, and so are those of a label.
    balance_open
        Cells of labels that leave several classes open are drawn this often, relative to the others.
    """

    share: float | int | None = None
    steps: int = 2200
    batch_size: int = 64
    learning_rate: float | int = 3e-3
    weight_decay: float | int = 1e-2
    balance: float | int = 0.5
    balance_open: float | int = 0.7


def fit_gene_sums(
    folder: str | Path, corpus: Corpus, config: TrainingConfig, column: str, settings: GeneSumSettings
) -> None:
    """Fit the gene sums of a trained classifier from the start, and save the classifier again.

    Batches of a network's training are of cells of similar length, which is fast, but each batch is then of few data
    sets, and a cell that is drawn twice in an epoch loses the same counts. Here cells are drawn in random order, and
    lose other counts each time.

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
    collator = task.collator(family.collators(tokenizer, network.config, data, corpus, seed)[0], True)
    network.gene_sums.reset_weights()
    network.gene_sums.set_statistics(tokenizer)
    chances = _chances(task.train, corpus, of_labels, list(task.facts["labels"]), collator.sets, settings)
    _learn(network, task.train, collator, chances, settings, seed)
    if settings.share is not None:
        network.config.gene_sum_weight = settings.share
    network.save_pretrained(folder)


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


def _learn(
    network: Any, cells: LabelledCells, collator: Any, chances: np.ndarray, settings: GeneSumSettings, seed: int
) -> None:
    sums, steps = network.gene_sums.train(), settings.steps
    random = np.random.default_rng(seed)
    groups = [
        {"params": [sums.weight], "weight_decay": settings.weight_decay},
        {"params": [sums.bias], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate)
    warm_up = max(1, int(WARM_UP * steps))

    def rate(step: int) -> float:
        return min(1.0, step / warm_up) * 0.5 * (1 + float(np.cos(np.pi * step / steps)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    with progress_bars("steps") as bars:
        bar = bars.add_task("gene sums", total=steps, cells=settings.batch_size)
        for step in range(steps):
            drawn = random.choice(len(cells), settings.batch_size, p=chances)
            batch = collator(cells.__getitems__([(step, int(cell)) for cell in drawn]))
            loss = label_terms(network.config, _scores(sums, batch), batch["labels"]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bars.update(bar, completed=step + 1, note=f"loss {loss.item():.4f}")
    sums.eval()


def _scores(sums: GeneSums, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    ids, mask = batch["input_ids"], batch["attention_mask"]
    if isinstance(sums, StandardizedGeneSums):
        return sums(ids, batch["expression_values"], mask.bool())
    return sums(ids, mask)


__all__ = ["GeneSumSettings", "fit_gene_sums"]
