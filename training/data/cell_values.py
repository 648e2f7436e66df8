"""Values of cells from columns of token Parquet, and the check that they are values a tokenizer writes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


# Columns that the tokenizer writes, not all of them for each corpus.
TOKEN_COLUMNS = ("input_ids", "expression_values", "expression_total", "clipped_counts")


class DamagedCellError(ValueError):
    """A cell of a corpus contains values that no tokenizer writes; the message names the shard and the row."""

    def __init__(self, message: str):
        # from a loader process comes the text of its traceback, which ends with the message
        super().__init__(message.rsplit("DamagedCellError: ", 1)[-1].strip())


def column_values(column: Any) -> list[Any]:
    """Return the values of each row of an Arrow column; those of lists as arrays that share their memory."""
    column = column.combine_chunks()
    if hasattr(column, "offsets"):
        bounds = column.offsets.to_numpy().tolist()
        flat = column.values.to_numpy(zero_copy_only=False)
        return [flat[low:stop] for low, stop in zip(bounds, bounds[1:], strict=False)]
    return column.to_pylist()


def find_damage(tokens: Mapping[str, list[Any]], vocab_size: int) -> tuple[int, str] | None:
    """Find token ids beyond the vocabulary, and values that are not finite or do not match the tokens.

    Parameters
    ----------
    tokens
        Column of `TOKEN_COLUMNS` -> value of each cell.

    Returns
    -------
    tuple or None
        The first damaged row among these, and what is wrong with it.
    """
    ids = tokens["input_ids"]
    flat = np.concatenate(ids) if ids else np.empty(0, dtype=np.int64)
    if len(flat) and (flat.min() < 0 or flat.max() >= vocab_size):
        bad = [len(i) and (i.min() < 0 or i.max() >= vocab_size) for i in ids]
        return _first(bad), f"input_ids has ids outside the {vocab_size:,} of the vocabulary"
    values = tokens.get("expression_values")
    if values is not None and (sizes := list(map(len, values))) != (wanted := list(map(len, ids))):
        bad = [have != want for have, want in zip(sizes, wanted, strict=True)]
        return _first(bad), "expression_values has another length than input_ids"
    for name in (n for n in tokens if n != "input_ids" and tokens[n]):
        values = tokens[name]
        whole = np.concatenate(values) if isinstance(values[0], np.ndarray) else np.array(values, dtype=float)
        if whole.dtype.kind == "f" and not np.isfinite(whole).all():
            bad = [not np.isfinite(np.array(v, dtype=float)).all() for v in values]
            return _first(bad), f"{name} contains NaN or infinite values"
    return None


def _first(bad: Sequence[Any]) -> int:
    return next(i for i, wrong in enumerate(bad) if wrong)


__all__ = ["TOKEN_COLUMNS", "DamagedCellError", "column_values", "find_damage"]
