"""Batches without padding: the cells of a batch one after the other in a single row."""

from collections.abc import Mapping
from typing import Any

import torch


OF_TOKENS = ("input_ids", "labels")  # shape (cells, tokens)


def packed(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Pack the cells of a padded batch into one row, as scCello and LangCell take them.

    Parameters
    ----------
    batch
        ``input_ids``, ``attention_mask`` and perhaps ``labels``, shape (cells, tokens), with the tokens of a cell
        first; other fields have one entry for each cell.

    Returns
    -------
    dict
        The fields of tokens, shape (1, tokens of all cells), and ``position_ids``, which starts again at 0 with each
        cell, without ``attention_mask``. Rows without a token are left out of all fields. A batch without any token is
        returned as it is.
    """
    mask = batch["attention_mask"].bool()
    filled = mask.any(dim=1)
    if not filled.any():
        return dict(batch)
    places = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    made = {"position_ids": places[mask].unsqueeze(0)}
    for name, values in batch.items():
        if name in OF_TOKENS:
            made[name] = values[mask].unsqueeze(0)
        elif name != "attention_mask":
            made[name] = values[filled] if isinstance(values, torch.Tensor) else values
    return made


def with_tokens(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return a padded batch without its rows that have no token; all of them if no row has one."""
    filled = batch["attention_mask"].bool().any(dim=1)
    if filled.all() or not filled.any():
        return dict(batch)
    return {n: values[filled] if isinstance(values, torch.Tensor) else values for n, values in batch.items()}


__all__ = ["packed", "with_tokens"]
