"""From cells and their texts to batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from cellglot.modeling.cell_losses import IGNORED
from cellglot.training.data.rank_value_collator import RankValueCollator
from cellglot.training.data.texts import Values, row_values


@dataclass
class CellTextCollator:
    """Pads cells and masks their genes, and adds the text of each cell, which is already tokenized.

    Parameters
    ----------
    cells
        Collator of the cells.
    text_tokens
        Tokens of each different text.
    text_of
        Values of `columns` -> position in `text_tokens`, -100 for none.
    columns
        Columns that determine the text of a cell.
    """

    cells: RankValueCollator
    text_tokens: Sequence[Sequence[int]] = field(repr=False)
    text_of: Mapping[Values, int] = field(repr=False)
    columns: Sequence[str]
    pad_token_id: int

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch of examples of `cellglot.training.data.dataset.CellDataset`, read with `columns`.

        Returns
        -------
        dict
            The batch of `RankValueCollator`, ``text_input_ids`` and ``text_attention_mask``, shape (cells, text
            tokens), and ``text_ids``, shape (cells,). The text of a cell without text, and of the cell -1, is only
            padding, and its id is -100.
        """
        known = (row_values(e, self.columns) if e["cell"] >= 0 else None for e in examples)
        ids = [IGNORED if values is None else self.text_of.get(values, IGNORED) for values in known]
        tokens = [[] if i == IGNORED else list(self.text_tokens[i]) for i in ids]
        width = max(1, *map(len, tokens))
        padded = torch.tensor([t + [self.pad_token_id] * (width - len(t)) for t in tokens])
        lengths = torch.tensor([len(t) for t in tokens])
        return self.cells(examples) | {
            "text_input_ids": padded,
            "text_attention_mask": (torch.arange(width) < lengths[:, None]).long(),
            "text_ids": torch.tensor(ids),
        }


__all__ = ["CellTextCollator"]
