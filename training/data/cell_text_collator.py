"""Cells with their texts to batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from cellglot.training.data.rank_value_collator import RankValueCollator
from cellglot.training.data.texts import IGNORED, Values, row_values


@dataclass
class CellTextCollator:
    """Pads cells and masks their genes, and adds each cell's text, tokenized before.

    Parameters
    ----------
    cells
        Makes the part of the batch that is cells.
    text_tokens
        Tokens of every text, each text once.
    text_of
        Values of `columns` -> place in `text_tokens`, -100 for none.
    columns
        Columns from which a cell's text is known.
    """

    cells: RankValueCollator
    text_tokens: Sequence[Sequence[int]] = field(repr=False)
    text_of: Mapping[Values, int] = field(repr=False)
    columns: Sequence[str]
    pad_token_id: int

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch.

        Parameters
        ----------
        examples
            From `cellglot.training.data.dataset.CellDataset`, with `columns`.

        Returns
        -------
        dict
            What `RankValueCollator` gives, ``text_input_ids`` and ``text_attention_mask``, shape (cells, text tokens),
            and ``text_ids``, shape (cells,). A cell without text, and one that fills up the batch, has a text of
            padding alone and the id -100.
        """
        ids = [self._text(example) for example in examples]
        tokens = [[] if i == IGNORED else list(self.text_tokens[i]) for i in ids]
        width = max(1, *map(len, tokens))
        padded = torch.tensor([t + [self.pad_token_id] * (width - len(t)) for t in tokens])
        lengths = torch.tensor([len(t) for t in tokens])
        return self.cells(examples) | {
            "text_input_ids": padded,
            "text_attention_mask": (torch.arange(width) < lengths[:, None]).long(),
            "text_ids": torch.tensor(ids),
        }

    def _text(self, example: Mapping[str, Any]) -> int:
        if example["cell"] < 0:
            return IGNORED
        return self.text_of.get(row_values(example, self.columns), IGNORED)


__all__ = ["CellTextCollator"]
