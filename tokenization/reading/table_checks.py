"""Check stored tables of cells and genes before use: shapes, types, lengths, missing chunks."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from cellglot.tokenization.reading.chunk_counts import absent_chunks
from cellglot.tokenization.reading.errors import CellFileError
from cellglot.tokenization.reading.obs import COLUMN_PARTS, as_text


MOST_COLUMNS = 10_000


def check_table(group: Any, name: str, n: int | None = None, rows: str = "cells") -> list[str]:
    """Check that a group is a data frame of AnnData whose columns have one value for each row.

    Parameters
    ----------
    group
        The group ``obs`` or ``var``.
    n
        Number of rows; by default the number of names.

    Returns
    -------
    list of str
        Notes about missing chunks that do not prevent reading.
    """
    encoding = as_text(group.attrs.get("encoding-type", "dataframe"))
    if encoding != "dataframe":
        raise CellFileError(f"{name} is stored as {encoding!r}, not as a table")
    if "encoding-type" not in group.attrs and "_index" not in group.attrs and "column-order" not in group.attrs:
        raise CellFileError(f"{name} does not say which of its columns contains names: its attributes are missing")
    index = as_text(group.attrs.get("_index", "_index"))
    columns = column_names(group, name)
    notes: list[str] = []
    if index in group:
        n_names = _check_column(group[index], f"{name}['names']", notes, names=True)
        if n_names is None:
            raise CellFileError(f"the names of {name} are stored in an unsupported way")
        n = n_names if n is None else n
        check_length(f"{name}['names']", n_names, n, rows)
    for column in columns:
        if column == index or column == "__categories":
            continue
        if column not in group:
            raise CellFileError(f"{name} lists a column {column!r} that is not there: it is damaged")
        label = f"{name}[{column!r}]"
        length = _check_column(group[column], label, notes)
        if length is None:  # unsupported: said if it is read
            continue
        n = length if n is None else n
        check_length(label, length, n, rows)
    return notes


def column_names(group: Any, name: str) -> list[str]:
    """Read the names of a table's columns."""
    listed = group.attrs.get("column-order")
    if listed is None:
        return list(group)
    values = np.asarray(listed)
    if values.size and (values.ndim != 1 or values.dtype.kind not in "OSUT"):
        raise CellFileError(
            f"the names of the columns of {name} (column-order) are {values.dtype} of shape {values.shape}"
        )
    if values.size > MOST_COLUMNS:
        raise CellFileError(f"{name} has {values.size:,} columns, more than {MOST_COLUMNS:,}: it is damaged")
    return [as_text(value) for value in values.ravel()]


def check_length(name: str, length: int, n: int, rows: str = "cells") -> None:
    """Check that something has one value for each cell or gene."""
    if length != n:
        raise CellFileError(f"{name} has {length:,} values, but the matrix has {n:,} {rows}")


def _check_column(element: Any, label: str, notes: list[str], names: bool = False) -> int | None:
    """Check a stored column and return its length; None if it is stored in an unsupported way."""
    parts = dict(_parts(element, label))
    if not parts:
        return None
    if "codes" in parts and np.dtype(parts["codes"].dtype).kind not in "iu":
        raise CellFileError(f"{label} has codes of type {parts['codes'].dtype}, not integers")
    if "mask" in parts and np.dtype(parts["mask"].dtype).kind not in "biu":
        raise CellFileError(f"{label} has a mask of type {parts['mask'].dtype}, not booleans")
    lengths = {part: int(array.shape[0]) for part, array in parts.items() if part != "categories"}
    if len(set(lengths.values())) > 1:
        raise CellFileError(
            f"{label} has {' and '.join(f'{n:,} {part}' for part, n in lengths.items())}: it is damaged"
        )
    _check_chunks(parts, label, notes, names)
    return next(iter(lengths.values()))


def _parts(element: Any, label: str) -> Iterator[tuple[str, Any]]:
    if not hasattr(element, "keys"):
        yield "values", _vector(element, label)
        return
    for part in next((parts for parts in COLUMN_PARTS if all(part in element for part in parts)), ()):
        inner = element[part]
        if part == "categories" and hasattr(inner, "keys"):
            for nested in ("values", "mask"):
                if nested not in inner:
                    raise CellFileError(f"{label} has categories without {nested}")
                _vector(inner[nested], f"{label}/{part}/{nested}")
            inner = inner["values"]
        yield part, _vector(inner, f"{label}/{part}")


def _vector(array: Any, label: str) -> Any:
    if hasattr(array, "keys"):
        raise CellFileError(f"{label} is a group, not an array")
    if array.shape is None or len(array.shape) != 1:
        raise CellFileError(f"{label} has shape {array.shape}, not one dimension")
    return array


def _check_chunks(parts: dict[str, Any], label: str, notes: list[str], names: bool) -> None:
    """Refuse missing chunks of names or categories in zarr; note how others are read.

    Writers leave out chunks that contain only zeros or empty texts, so a single category may be an empty text.
    """
    n_categories = int(parts["categories"].shape[0]) if "categories" in parts else 2
    for part, array in parts.items():
        absent = absent_chunks(array)
        if not absent or part == "mask":  # zarr writes no chunk of a mask without missing values
            continue
        lost = f"{label} lacks {absent:,} of its chunks of {part}"
        is_text = np.dtype(array.dtype).kind not in "biufM"
        if (names or part == "categories") and (is_text or array.shape[0] > 1):
            raise CellFileError(f"{lost}: the copy is incomplete, copy the store again")
        if part == "codes" and n_categories > 1:
            notes.append(
                f"{lost}, which are read as the first category: the writer left out chunks of only that, or the "
                "copy is incomplete"
            )
        elif part == "values" and is_text:
            notes.append(
                f"{lost}, which are read as empty texts: the writer left out chunks of only those, or the copy is "
                "incomplete"
            )


__all__ = ["MOST_COLUMNS", "check_length", "check_table", "column_names"]
