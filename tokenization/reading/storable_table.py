"""Convert tables with columns of any type to a form that AnnData, Parquet and text files can store."""

import itertools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import h5py
import numpy as np
import pandas as pd

from cellglot.tokenization.reading.elements import write_element
from cellglot.tokenization.reading.labels import value_text
from cellglot.tokenization.reading.obs import with_type


# Kinds of objects, as pandas names them, that AnnData writes as texts.
_TEXT = ("string", "empty")
_NUMBERS = itertools.count()  # HDF5 does not open two files of one name at once, also in memory
_TYPED = ("integer", "boolean", "floating", "mixed-integer-float")


def storable_frame(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Convert each column of a table so that it can be written.

    Numbers, booleans, categories and pandas' nullable types keep their type. Texts with missing values become
    categories; dates, durations and mixed objects become text.

    Returns
    -------
    frame : pandas.DataFrame
        The same rows and columns; names of columns are texts and unique.
    notes : list of str
        Which columns became text, and which were renamed.
    """
    columns: dict[str, Any] = {}
    notes: list[str] = []
    for position, given in enumerate(frame.columns):
        name = _free_name(str(given), columns)
        if name != given:
            notes.append(f"column {given!r} of the table is written as {name!r}")
        columns[name], became = storable_column(frame.iloc[:, position])
        if became:
            notes.append(f"column {name!r} of the table contains {became}: it is written as text")
    index = pd.Index(["NA" if v is None else v for v in map(value_text, frame.index)], dtype=object)
    if not _is_written(index.to_numpy()):
        index = pd.Index([_escaped(v) for v in index], dtype=object)
        notes.append("names contain characters that HDF5 cannot store: these are written as escapes")
    if frame.index.name is not None and str(frame.index.name) not in columns:
        index.name = str(frame.index.name)
    if not columns:
        return pd.DataFrame(index=index), notes
    return pd.DataFrame({name: _without_index(c) for name, c in columns.items()}).set_axis(index), notes


def storable_column(values: pd.Series) -> tuple[Any, str]:
    """Convert a column so that it can be written; if it became text, return also what it contained, else ``""``."""
    column, became = _converted(values)
    if not _is_written(column):
        if not became:
            became = f"values of type {values.dtype} that AnnData does not write"
        column = _as_text(values)
        if not _is_written(column):
            column, became = _as_text(values, _escaped), "text with characters that HDF5 cannot store"
    return column, became


def _converted(values: pd.Series) -> tuple[Any, str]:
    kind = values.dtype
    if isinstance(kind, pd.CategoricalDtype):
        return _categories(values)
    if isinstance(kind, np.dtype) and kind.kind in "iufb":
        return values.to_numpy(), ""
    if isinstance(kind, pd.StringDtype):
        return _as_text(values), ""
    if pd.api.types.is_extension_array_dtype(kind) and not isinstance(kind, pd.ArrowDtype) and kind.kind in "iub":
        return values.array, ""
    objects = values.astype(object).to_numpy(dtype=object, copy=True)
    objects[pd.isna(values).to_numpy()] = None
    found = pd.api.types.infer_dtype(objects, skipna=True)
    if found in _TYPED:
        typed = with_type(objects)
        if not (isinstance(typed, np.ndarray) and typed.dtype == object):
            return typed, ""
    return _as_text(values), "" if found in _TEXT else f"{found} values"


def _categories(values: pd.Series) -> tuple[Any, str]:
    """Keep categories of texts, numbers and booleans; convert others to text."""
    categories, became = _converted(pd.Series(values.cat.categories))
    if not isinstance(categories, np.ndarray):
        categories = pd.Index(categories).astype(object).to_numpy()
    if became and len(set(categories)) < len(categories):
        return _as_text(values), became  # two categories have the same text
    codes = np.asarray(values.cat.codes)
    return pd.Categorical.from_codes(codes, _without_index(categories), ordered=values.cat.ordered), became


def _escaped(value: Any) -> str | None:
    """Return a text in which characters that cannot be written are escaped as in Python."""
    text = value_text(value)
    return None if text is None else text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


def _as_text(values: pd.Series, text_of: Callable[[Any], str | None] = value_text) -> Any:
    """Return texts, as categories if some are missing: AnnData before 0.11 cannot read others with missing values."""
    texts = np.empty(len(values), dtype=object)
    missing = pd.isna(values).to_numpy()
    texts[:] = [None if gone else text_of(v) for v, gone in zip(values.astype(object), missing, strict=True)]
    return pd.Categorical(texts) if any(text is None for text in texts) else texts


def _is_written(column: Any) -> bool:
    """Try to write a column to memory: its categories if it has some, else its values."""
    if isinstance(column, np.ndarray) and column.dtype.kind in "iufb":
        return True
    sample = pd.Categorical(column.categories, ordered=column.ordered) if hasattr(column, "categories") else column
    with h5py.File(f"table-{next(_NUMBERS)}", "w", driver="core", backing_store=False) as file:
        try:
            write_column(file, "column", sample)
        except Exception:  # noqa: BLE001  # AnnData, h5py and pandas raise many types for what they do not write
            return False
    return True


def write_column(group: Any, name: str, column: Any) -> None:
    """Write a column from `storable_column` to a group of HDF5 or zarr, without warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_element(group, name, column)


def _without_index(column: Any) -> Any:
    return column.to_numpy() if isinstance(column, pd.Series) else column


def _free_name(name: str, taken: Mapping[str, Any]) -> str:
    """Return a name that AnnData can write (no slashes, not ``_index``) and that is not taken."""
    name = name.replace("/", "_")
    name = "index_" if name == "_index" else name
    free, number = name, 1
    while free in taken:
        free, number = f"{name}-{number}", number + 1
    return free


__all__ = ["storable_column", "storable_frame", "write_column"]
