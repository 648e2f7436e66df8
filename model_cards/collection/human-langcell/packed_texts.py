"""Work that pairs of cells and texts share: distinct texts without padding, and the keys and values of cells."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn


class DistinctTexts(NamedTuple):
    """Texts without repetitions.

    Parameters
    ----------
    input_ids, key_mask
        Tokens, and True for those that are not padding, shape (distinct texts, tokens).
    inverse
        Number of the distinct text of each text, shape (texts,).
    """

    input_ids: torch.Tensor
    key_mask: torch.Tensor
    inverse: torch.Tensor


def distinct_texts(input_ids: torch.Tensor, key_mask: torch.Tensor) -> DistinctTexts:
    """Find the distinct texts among texts of shape (texts, tokens); `key_mask` is True for tokens."""
    rows, inverse = torch.unique(input_ids.masked_fill(~key_mask, -1), dim=0, return_inverse=True)
    return DistinctTexts(rows.clamp(min=0), rows >= 0, inverse)


class PackedTexts(NamedTuple):
    """Texts in one row without padding, by ascending length.

    Parameters
    ----------
    tokens, positions
        Ids, and positions within the texts, shape (tokens of all texts,).
    starts
        First token of each text, shape (texts,).
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    starts: torch.Tensor
    lengths: list[int]

    def runs(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield (first token, last token + 1, texts, their length) for every run of texts of equal length."""
        token = text = 0
        while text < len(self.lengths):
            length, first = self.lengths[text], text
            while text < len(self.lengths) and self.lengths[text] == length:
                text += 1
            stop = token + (text - first) * length
            yield token, stop, text - first, length
            token = stop

    def select(self, rows: list[int]) -> tuple["PackedTexts", torch.Tensor]:
        """Return some texts, by ascending number, and the places of their tokens in the whole row."""
        places = torch.cat([torch.arange(self.lengths[r], device=self.starts.device) + self.starts[r] for r in rows])
        lengths = [self.lengths[r] for r in rows]
        return PackedTexts(
            self.tokens[places], self.positions[places], _starts(lengths, places.device), lengths
        ), places


def pack_texts(input_ids: torch.Tensor, key_mask: torch.Tensor, rows: torch.Tensor) -> PackedTexts:
    """Pack some rows of texts of shape (texts, tokens); `rows` are in the order of ascending length."""
    mask = key_mask[rows]
    lengths = mask.sum(dim=1).tolist()
    return PackedTexts(input_ids[rows][mask], mask.nonzero()[:, 1], _starts(lengths, mask.device), lengths)


def _starts(lengths: list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor([0, *lengths[:-1]], device=device).cumsum(dim=0)


class CellKeys:
    """Cells whose keys and values in the layers of the text encoder are computed when needed.

    Parameters
    ----------
    states
        Hidden states of cells, shape (cells, tokens, size).
    mask
        True for tokens, shape (cells, tokens), or None without padding.
    keep
        Whether to keep keys and values, for further texts.
    """

    def __init__(self, layers: nn.ModuleList, states: torch.Tensor, mask: torch.Tensor | None, keep: bool):
        self.layers, self.states, self.mask, self.keep = layers, states, mask, keep
        self.number = len(states)
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def of_layer(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values in a layer."""
        if number in self._kept:
            return self._kept[number]
        computed = self.layers[number].cross_attn.key_value(self.states)
        if self.keep:
            self._kept[number] = computed
        return computed


def trim_cells(states: torch.Tensor, key_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Remove padding after the last token of the longest cell; return a mask of None if there is no more padding.

    Parameters
    ----------
    states
        Hidden states, shape (cells, tokens, size).
    key_mask
        True for tokens, shape (cells, tokens).
    """
    used = key_mask.any(dim=0).nonzero()
    longest = int(used[-1]) + 1 if len(used) else key_mask.shape[1]
    states, key_mask = states[:, :longest], key_mask[:, :longest]
    return states, None if bool(key_mask.all()) else key_mask


def cells_in_rows(states: torch.Tensor, cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the states of packed cells as a padded batch, and True for its tokens.

    Parameters
    ----------
    states
        Hidden states, shape (tokens of all cells, size).
    cells
        Number of the cell of each token, ascending, shape (tokens of all cells,).
    """
    lengths = torch.bincount(cells)
    rows = nn.utils.rnn.pad_sequence(states.split(lengths.tolist()), batch_first=True)
    return rows, torch.arange(rows.shape[1], device=cells.device) < lengths[:, None]


__all__ = ["CellKeys", "DistinctTexts", "PackedTexts", "cells_in_rows", "distinct_texts", "pack_texts", "trim_cells"]
