"""From cells as rank-value tokens to batches: padding, masked genes, rows of cell types."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from cellglot.modeling.cell_losses import IGNORED
from cellglot.tokenization.reading.labels import label_text
from cellglot.training.data.thinning import Thinning


@dataclass
class RankValueCollator:
    """Pads cells and masks genes as BERT does; draws depend only on seed, epoch and cell.

    Each gene token (never ``<cls>`` or ``<pad>``) is drawn with the same chance; of those drawn, 80% become
    ``<mask>``, 10% a random gene, and 10% stay (the released code of Geneformer and scCello). Random tokens are drawn
    from the genes: our choice, the released code draws from all tokens.

    Parameters
    ----------
    gene_ids
        Ids of all genes.
    mask_fraction
        Chance of a gene to be masked; 0 masks none and gives no ``labels``.
    max_length
        Tokens of a cell to keep; the genes of the lowest ranks are cut. None keeps all.
    cell_types
        Label -> row of the model's cell types, -100 for a type that the model does not have, for ``cell_type_ids``.
    cell_type_columns
        Columns with labels; the first label that is in `cell_types` is used.
    thinning
        Removes counts and genes from training cells, before all other steps.
    """

    pad_token_id: int
    mask_token_id: int
    cls_token_id: int
    gene_ids: np.ndarray = field(repr=False)
    mask_fraction: float = 0.15
    seed: int = 0
    max_length: int | None = None
    cell_types: Mapping[str, int] | None = None
    cell_type_columns: Sequence[str] = ()
    thinning: Thinning | None = None

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch of examples of `cellglot.training.data.dataset.CellDataset`.

        Returns
        -------
        dict
            ``input_ids`` and ``attention_mask``, shape (cells, tokens). With masking ``labels`` of that shape, -100
            for genes that are not masked; with cell types ``cell_type_ids``, shape (cells,), -100 for none.
        """
        if not examples:
            raise ValueError("no cells to make a batch of")
        if self.thinning is not None:
            examples = [self.thinning(example) for example in examples]
        cells = [np.asarray(e["input_ids"])[: self.max_length] for e in examples]
        width = max(1, *map(len, cells))
        input_ids = np.full((len(cells), width), self.pad_token_id, dtype=np.int64)
        for row, tokens in enumerate(cells):
            input_ids[row, : len(tokens)] = tokens
        batch = {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy((input_ids != self.pad_token_id).astype(np.int64)),
        }
        if self.mask_fraction:
            targets = np.full((len(cells), width), IGNORED, dtype=np.int64)
            for row, (example, tokens) in enumerate(zip(examples, cells, strict=True)):
                if len(tokens):
                    self._mask(example, tokens, input_ids[row], targets[row])
            batch["labels"] = torch.from_numpy(targets)
        if self.cell_types is not None:
            batch["cell_type_ids"] = torch.tensor([self._cell_type(e) for e in examples])
        return batch

    def _mask(self, example: Mapping[str, Any], tokens: np.ndarray, row: np.ndarray, targets: np.ndarray) -> None:
        random = np.random.default_rng([self.seed, example["epoch"] + 1, example["cell"]])
        genes = np.flatnonzero((tokens != self.cls_token_id) & (tokens != self.pad_token_id))
        chosen = genes[random.random(len(genes)) < self.mask_fraction]
        fate = random.random(len(chosen))
        replaced = self.gene_ids[random.integers(0, len(self.gene_ids), len(chosen))]  # as `choice`, in half the time
        targets[chosen] = tokens[chosen]
        row[chosen] = np.where(fate < 0.8, self.mask_token_id, np.where(fate < 0.9, replaced, tokens[chosen]))

    def _cell_type(self, example: Mapping[str, Any]) -> int:
        names = (label_text(example.get(column)) for column in self.cell_type_columns)
        known = self.cell_types or {}
        return next((known[name] for name in names if name is not None and name in known), IGNORED)


def rank_value_collator(tokenizer: Any, **options: Any) -> RankValueCollator:
    """Make the collator of a `RankValueTokenizer`; `options` are the other fields of the collator."""
    return RankValueCollator(
        tokenizer.pad_token_id,
        tokenizer.mask_token_id,
        tokenizer.cls_token_id,
        tokenizer.vocabulary.gene_token_ids,
        **options,
    )


__all__ = ["RankValueCollator", "rank_value_collator"]
