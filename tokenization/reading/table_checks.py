"""Stored tables of cells and genes, checked before a value of them is used: shapes, types, lengths, lost chunks."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import zarr

from cellglot.tokenization.reading.errors import CellFileError
from cellglot.tokenization.reading.zarr_chunks import absent_chunks


MOST_COLUMNS = 10_000
_PARTS = (("codes", "categories"), ("values", "mask"))


def check_table(group: Any, name: str, n: int | None = None, rows: str = "cells") -> list[str]:
    """Check that a group is a data frame of AnnData whose columns have one value for each row.

    Parameters
    ----------
    group
        The group ``obs`` or ``var``.
    n
        Rows that there have to be; by default as many as names.

    Returns
    -------
    list of str
        What is read although chunks of it are missing.
    """
    encoding = _text(group.attrs.get("encoding-type", "dataframe"))
    if encoding != "dataframe":
        raise CellFileError(f"{name} is stored as {encoding!r}, not as a table")
    if "encoding-type" not in group.attrs and "_index" not in group.attrs and "column-order" not in group.attrs:
        raise CellFileError(f"{name} does not say which of its columns holds names: its attributes are missing")
    index = _text(group.attrs.get("_index", "_index"))
    columns = column_names(group, name)
    notes: list[str] = []
    if index in group:
        n_names = _check_column(group[index], f"{name}['names']", notes, names=True)
        if n_names is None:
            raise CellFileError(f"the names of {name} are stored in a way that is not read")
        n = n_names if n is None else n
        check_length(f"{name}['names']", n_names, n, rows)
    for column in columns:
        if column == index or column == "__categories":
            continue
        if column not in group:
            raise CellFileError(f"{name} lists a column {column!r} that is not there: it is damaged")
        label = f"{name}[{column!r}]"
        length = _check_column(group[column], label, notes)
        if length is None:  # left to what reads it
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
    return [_text(value) for value in values.ravel()]


def check_length(name: str, length: int, n: int, rows: str = "cells") -> None:
    """Check that something has one value for each cell or gene."""
    if length != n:
        raise CellFileError(f"{name} has {length:,} values, but the matrix has {n:,} {rows}")


def _check_column(element: Any, label: str, notes: list[str], names: bool = False) -> int | None:
    """Check a stored column and return its length; None where it is stored in a way that is not read."""
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
    held = next((parts for parts in _PARTS if all(part in element for part in parts)), None)
    if held is None:
        return
    for part in held:
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
    """Refuse lost chunks of zarr that hold names or categories; say which other ones are read as what they may be.

    Writers leave out chunks of nothing but zeros or empty texts: that a text stands there once is possible.
    """
    n_categories = int(parts["categories"].shape[0]) if "categories" in parts else 2
    for part, array in parts.items():
        absent = absent_chunks(array)
        if not absent or part == "mask":  # where nothing is missing, zarr writes no chunk of a mask
            continue
        lost = f"{label} lacks {absent:,} of its chunks of {part}"
        is_text = not isinstance(array, zarr.Array) or np.dtype(array.dtype).kind not in "biufM"
        if (names or part == "categories") and (is_text or array.shape[0] > 1):
            raise CellFileError(f"{lost}: the copy is incomplete, copy the store again")
        if part == "codes" and n_categories > 1:
            notes.append(
                f"{lost}, which are read as the first category: their writer left out chunks of nothing else, or the "
                "copy is incomplete"
            )
        elif part == "values" and is_text:
            notes.append(
                f"{lost}, which are read as empty texts: their writer left out chunks of nothing else, or the copy is "
                "incomplete"
            )


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


__all__ = ["MOST_COLUMNS", "check_length", "check_table", "column_names"]
