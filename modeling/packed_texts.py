"""What pairs of cells and texts share: texts without padding, each once, and the keys and values of cells."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn


class DistinctTexts(NamedTuple):
    """Texts, each once.

    Parameters
    ----------
    input_ids, key_mask
        Tokens and where there are some, shape (distinct texts, tokens).
    inverse
        Distinct text of each text, shape (texts,).
    """

    input_ids: torch.Tensor
    key_mask: torch.Tensor
    inverse: torch.Tensor


def distinct_texts(input_ids: torch.Tensor, key_mask: torch.Tensor) -> DistinctTexts:
    """Return texts of different tokens, each once.

    Parameters
    ----------
    input_ids, key_mask
        Tokens and where there are some, shape (texts, tokens).
    """
    rows, inverse = torch.unique(input_ids.masked_fill(~key_mask, -1), dim=0, return_inverse=True)
    return DistinctTexts(rows.clamp(min=0), rows >= 0, inverse)


class PackedTexts(NamedTuple):
    """Texts one after the other without padding, those of equal length beside each other.

    Parameters
    ----------
    tokens, positions
        Ids and places in their texts, shape (tokens of all texts,).
    starts
        Where each text begins, shape (texts,).
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    starts: torch.Tensor
    lengths: list[int]

    def runs(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield (first token, last token + 1, texts, their length) of every run of texts of equal length."""
        token = text = 0
        while text < len(self.lengths):
            length, first = self.lengths[text], text
            while text < len(self.lengths) and self.lengths[text] == length:
                text += 1
            stop = token + (text - first) * length
            yield token, stop, text - first, length
            token = stop

    def select(self, rows: list[int]) -> tuple["PackedTexts", torch.Tensor]:
        """Return some texts, by ascending number, and where their tokens stand in the whole."""
        places = torch.cat([torch.arange(self.lengths[r], device=self.starts.device) + self.starts[r] for r in rows])
        lengths = [self.lengths[r] for r in rows]
        return PackedTexts(
            self.tokens[places], self.positions[places], _starts(lengths, places.device), lengths
        ), places


def pack_texts(input_ids: torch.Tensor, key_mask: torch.Tensor, rows: torch.Tensor) -> PackedTexts:
    """Pack some texts, which stand by ascending length.

    Parameters
    ----------
    input_ids, key_mask
        Tokens and where there are some, shape (texts, tokens).
    """
    mask = key_mask[rows]
    lengths = mask.sum(dim=1).tolist()
    return PackedTexts(input_ids[rows][mask], mask.nonzero()[:, 1], _starts(lengths, mask.device), lengths)


def _starts(lengths: list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor([0, *lengths[:-1]], device=device).cumsum(dim=0)


class CellKeys:
    """Cells whose keys and values in the layers of the text encoder are computed when they are asked for.

    Parameters
    ----------
    states
        Hidden states of cells, shape (cells, tokens, size).
    mask
        True where there is a token, of shape (cells, tokens), or None where there is one everywhere.
    keep
        Whether keys and values are kept, for further texts.
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
    """Cut cells after the last token of the longest; the mask is None where there is no padding left.

    Parameters
    ----------
    states
        Hidden states, shape (cells, tokens, size).
    key_mask
        True where there is a token, shape (cells, tokens).
    """
    used = key_mask.any(dim=0).nonzero()
    longest = int(used[-1]) + 1 if len(used) else key_mask.shape[1]
    states, key_mask = states[:, :longest], key_mask[:, :longest]
    return states, None if bool(key_mask.all()) else key_mask


__all__ = ["CellKeys", "DistinctTexts", "PackedTexts", "distinct_texts", "pack_texts", "trim_cells"]
