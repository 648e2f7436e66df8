"""From cells to batches: padding, and masks that depend only on seed, epoch and cell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cellglot.modeling.cell_losses import IGNORED
from cellglot.tokenization.reading.labels import label_text
from cellglot.training.data.thinning import Thinning


@dataclass
class ExceiverCollator:
    """Pads cells and masks expressed genes, as Exceiver is trained.

    ``num_masked`` of the expressed genes of each cell are drawn without replacement. They keep their position and id
    and are marked in ``masked_genes``; their ids are the queries, their values the labels (Connell et al. 2022 and the
    released code). The draw depends on seed, epoch and cell, so it is the same in any process and after resuming.

    Parameters
    ----------
    pad_token_id
        Token id of padding.
    num_masked
        Genes to mask in each cell; 0 masks none and gives no queries. In a cell with fewer than twice as many genes,
        half of the genes are masked and the queries are padded.
    seed
        Seed of the masks.
    labels
        Class name -> number, for classification.
    label_column
        Column of class names.
    thinning
        Removes counts and genes from training cells, before all other steps.
    """

    pad_token_id: int
    num_masked: int
    seed: int = 0
    labels: Mapping[str, int] | None = None
    label_column: str | None = None
    thinning: Thinning | None = None

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch of examples of `cellglot.training.data.dataset.CellDataset`.

        Returns
        -------
        dict
            ``input_ids``, ``expression_values``, ``attention_mask``, shape (cells, genes); with masking
            ``masked_genes``, and ``query_ids`` and labels of shape (cells, num_masked). The labels of expression are
            ``labels``, or ``expression_labels`` if ``labels`` are classes.

        Raises
        ------
        ValueError
            If there are no cells.
        """
        if not examples:
            raise ValueError("no cells to make a batch of")
        if self.thinning is not None:
            examples = [self.thinning(example) for example in examples]
        n_cells = len(examples)
        width = max(1, *(len(e["input_ids"]) for e in examples))
        input_ids = np.full((n_cells, width), self.pad_token_id, dtype=np.int64)
        values = np.zeros((n_cells, width), dtype=np.float32)
        masked = np.zeros((n_cells, width), dtype=bool)
        query_ids = np.full((n_cells, self.num_masked), self.pad_token_id, dtype=np.int64)
        targets = np.full((n_cells, self.num_masked), IGNORED, dtype=np.float32)
        for cell, example in enumerate(examples):
            n = len(example["input_ids"])
            input_ids[cell, :n] = example["input_ids"]
            values[cell, :n] = example["expression_values"]
            drawn = self._draw(example, n)
            masked[cell, drawn] = True
            query_ids[cell, : len(drawn)] = input_ids[cell, drawn]
            targets[cell, : len(drawn)] = values[cell, drawn]
        batch = {
            "input_ids": torch.from_numpy(input_ids),
            "expression_values": torch.from_numpy(values),
            "attention_mask": torch.from_numpy((input_ids != self.pad_token_id).astype(np.int64)),
        }
        if self.num_masked:
            batch["masked_genes"] = torch.from_numpy(masked)
            batch["query_ids"] = torch.from_numpy(query_ids)
            batch["labels" if self.labels is None else "expression_labels"] = torch.from_numpy(targets)
        if self.labels is not None:
            names = [label_text(e.get(self.label_column)) for e in examples]  # type: ignore[arg-type]
            batch["labels"] = torch.tensor([-100 if name is None else self.labels.get(name, -100) for name in names])
        return batch

    def _draw(self, example: Mapping[str, Any], n: int) -> np.ndarray:
        """Draw the positions to mask among the `n` genes of a cell, in ascending order."""
        num_masked = min(self.num_masked, n // 2)
        if num_masked == 0:
            return np.empty(0, dtype=np.int64)
        random = np.random.default_rng([self.seed, example["epoch"] + 1, example["cell"]])
        return np.sort(random.choice(n, num_masked, replace=False))


__all__ = ["ExceiverCollator"]
