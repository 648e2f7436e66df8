"""Pad tokenized cells: every field that has an entry for each token or query of a cell."""

from collections.abc import Mapping
from typing import Any

import numpy as np


# Fields whose lengths other fields share: tokens, and genes that a model predicts.
TOKENS, QUERIES = "input_ids", "query_ids"

IGNORED_LABEL = -100  # by losses


def as_columns(encoded: Any) -> tuple[dict[str, Any], bool]:
    """Return a batch as field -> rows, and whether it is a single cell.

    `encoded` is one cell or a batch of cells as a mapping of fields, or a list of cells.
    """
    if isinstance(encoded, list | tuple) and encoded and all(isinstance(cell, Mapping) for cell in encoded):
        names = list(encoded[0])
        for number, cell in enumerate(encoded):
            if set(cell) != set(names):
                differing = ", ".join(sorted({str(name) for name in set(cell) ^ set(names)}))
                raise ValueError(f"cells 0 and {number} of the batch do not have the same fields: {differing}")
        encoded = {name: [cell[name] for cell in encoded] for name in names}
    if not isinstance(encoded, Mapping) or TOKENS not in encoded:
        given = ", ".join(map(str, encoded)) if isinstance(encoded, Mapping) else type(encoded).__name__
        raise ValueError(
            f"padding needs tokens of cells, with the field {TOKENS}, but got {given or 'nothing'}. Call the "
            "tokenizer to turn cells into tokens"
        )
    tokens = encoded[TOKENS]
    single = len(tokens) > 0 and np.ndim(tokens[0]) == 0
    columns = {str(name): [values] if single else values for name, values in encoded.items()}
    n_cells = len(columns[TOKENS])
    for name, rows in columns.items():
        if isinstance(rows, str | bytes) or not hasattr(rows, "__len__") or len(rows) != n_cells:
            raise ValueError(f"the field {name} does not have {n_cells:,} cells as {TOKENS} has")
    return columns, single


def kind_of_tensors(columns: Mapping[str, Any]) -> str | None:
    """Return the kind of the tokens: ``"pt"`` for PyTorch tensors, ``"np"`` for arrays, None for lists."""
    rows = columns[TOKENS]
    for found in (rows, rows[0] if len(rows) else None):
        if isinstance(found, np.ndarray | np.generic):
            return "np"
        if hasattr(found, "detach"):
            return "pt"
    return None


class FieldPadding:
    """Pads the fields of a batch, each to the length of the fields that it belongs to.

    A field belongs to the tokens if every cell has as many entries as tokens, and to the queries if it has as many as
    ``query_ids``. Other fields, such as the label of a cell, are not changed. Ids are padded with the padding token,
    labels with -100 (labels of queries with 0, because models use ``query_ids``), ``special_tokens_mask`` with 1,
    others with 0.

    Parameters
    ----------
    columns
        From `as_columns`.
    on_left
        Put padding before a cell's tokens.
    """

    def __init__(self, columns: Mapping[str, Any], pad_token_id: int, on_left: bool):
        self.columns, self.pad_token_id, self.on_left = columns, pad_token_id, on_left
        self.lengths = {name: _lengths(rows) for name, rows in columns.items()}
        if self.lengths[TOKENS] is None:
            raise ValueError(f"the field {TOKENS} does not contain lists of tokens")

    def longest(self, name: str = TOKENS) -> int:
        """Return the largest number of entries of a cell in a field."""
        return max(self.lengths.get(name) or [0], default=0)

    def group(self, name: str) -> str | None:
        """Return the field that sets the length of a field; None for fields that are not changed."""
        lengths = self.lengths[name]
        if name in (TOKENS, QUERIES):
            return name if lengths is not None else None
        if lengths is None or not lengths:
            return None
        with_queries = lengths == self.lengths.get(QUERIES)
        if with_queries and (_is_labels(name) or lengths != self.lengths[TOKENS]):
            return QUERIES
        return TOKENS if lengths == self.lengths[TOKENS] else None

    def _fill(self, name: str, group: str, values: np.ndarray) -> float:
        if name in (TOKENS, QUERIES):
            return self.pad_token_id
        if _is_labels(name):
            return IGNORED_LABEL if group == TOKENS or values.dtype.kind in "iu" else 0
        return int(name == "special_tokens_mask")

    def as_arrays(self, width: int) -> dict[str, np.ndarray]:
        """Return arrays of int64, float32 or bool, padded to `width` tokens."""
        if self.longest() > width:
            raise ValueError(
                f"a cell has {self.longest():,} tokens, more than the {width:,} to pad to, but tensors need cells of "
                "the same length. Cut them with max_length=... in the call of the tokenizer"
            )
        return {name: self._array(name, rows, width) for name, rows in self.columns.items()}

    def _array(self, name: str, rows: Any, width: int) -> np.ndarray:
        arrays = [_plain(name, row) for row in rows]
        group = self.group(name)
        if group is None:
            shapes = {array.shape for array in arrays}
            if len(shapes) > 1:
                raise ValueError(
                    f"the field {name} has rows of different lengths, which are not those of {TOKENS}: remove it from "
                    "the batch"
                )
            return np.stack(arrays) if arrays else np.zeros(0, dtype=np.int64)
        sample = next((array for array in arrays if array.size), arrays[0] if arrays else np.zeros(0, dtype=np.int64))
        width = width if group == TOKENS else self.longest(QUERIES)
        full = np.full((len(arrays), width, *sample.shape[1:]), self._fill(name, group, sample), dtype=sample.dtype)
        for cell, array in enumerate(arrays):
            if len(array):
                full[cell, width - len(array) if self.on_left else 0 :][: len(array)] = array
        return full

    def as_lists(self, width: int | None) -> dict[str, list]:
        """Return lists, padded to `width` tokens; longer cells are not changed, and None pads nothing."""
        return {name: self._lists(name, rows, width) for name, rows in self.columns.items()}

    def _lists(self, name: str, rows: Any, width: int | None) -> list:
        group = self.group(name)
        plain = [row.tolist() if hasattr(row, "tolist") else row for row in rows]
        if group is None or width is None:
            return plain
        sample = next((np.asarray(row) for row in plain if len(row)), np.zeros(0, dtype=np.int64))
        if sample.dtype.kind not in "biuf":
            return plain
        width = width if group == TOKENS else self.longest(QUERIES)
        entry = np.full(sample.shape[1:], self._fill(name, group, sample), dtype=sample.dtype).tolist()
        more = [[entry] * (width - len(row)) for row in plain]
        if self.on_left:
            return [before + list(row) for row, before in zip(plain, more, strict=True)]
        return [list(row) + after for row, after in zip(plain, more, strict=True)]


def _is_labels(name: str) -> bool:
    return name == "label" or name.endswith("labels")


def _lengths(rows: Any) -> list[int] | None:
    """Return the number of entries of each row; None if rows are numbers or text."""
    sequences = all(not isinstance(row, str | bytes | Mapping) and np.ndim(row) > 0 for row in _firsts(rows))
    return [len(row) for row in rows] if sequences else None


def _firsts(rows: Any) -> Any:
    """Return the beginning of lists, which NumPy would copy, to see whether rows are lists."""
    return (row[:1] if isinstance(row, list | tuple) else row for row in rows)


def _plain(name: str, row: Any) -> np.ndarray:
    """Return a row as an array of int64, float32 or bool."""
    if hasattr(row, "detach"):
        row = row.detach().cpu()
        row = row.float() if str(row.dtype) == "torch.bfloat16" else row  # unsupported by NumPy
    array = np.asarray(row)
    if array.size == 0 and array.dtype.kind == "f" and isinstance(row, list | tuple):
        return array.astype(np.float32 if name == "expression_values" else np.int64)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"the field {name} does not contain numbers: remove it from the batch")
    return array if array.dtype.kind == "b" else array.astype(np.int64 if array.dtype.kind in "iu" else np.float32)


__all__ = ["IGNORED_LABEL", "QUERIES", "TOKENS", "FieldPadding", "as_columns", "kind_of_tensors"]
