"""The one reader of labels: what is missing, what is one label in two spellings, and what was changed on the way."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd


# What files write where a cell has no label, compared without case and without blanks at the ends.
MISSING_LABELS = frozenset(
    (
        "", "nan", "na", "n/a", "n.a.", "<na>", "#n/a", "nat", "none", "null", "missing", "-", "--", "?", ".",
        "unknown", "unassigned", "unannotated", "unlabelled", "unlabeled", "undefined", "undetermined",
        "not available", "not applicable", "not provided", "not annotated", "not assigned",
    )
)  # fmt: skip

# Of these, what pandas and NumPy make of missing values that are turned to text: never somebody's word.
MISSING_TEXTS = ("", "nan", "NaN", "None", "<NA>", "NaT")

_LISTED = 5


@dataclass
class Labels:
    """Labels of cells as texts.

    Parameters
    ----------
    texts
        Label of each cell, None where it has none; object, shape (cells,).
    missing
        Text that was taken for a missing label -> cells. Missing values of pandas are not in it.
    cleaned
        Cells whose label had blanks at its ends.
    """

    texts: np.ndarray
    missing: Counter[str] = field(default_factory=Counter)
    cleaned: int = 0

    def note(self, name: str = "labels") -> str:
        """Say what was taken for missing and what was cleaned; empty where nothing was.

        Parameters
        ----------
        name
            Of the column, for the sentence.
        """
        parts = []
        if self.missing:
            listed = ", ".join(f"{text!r} ({n:,})" for text, n in self.missing.most_common(_LISTED))
            more = f" and {len(self.missing) - _LISTED:,} more texts" if len(self.missing) > _LISTED else ""
            parts.append(f"{self.missing.total():,} cells have {listed}{more}, which counts as no label")
        if self.cleaned:
            parts.append(f"{self.cleaned:,} labels had blanks at their ends, which are left out")
        return f"{name}: {'; '.join(parts)}" if parts else ""


def label_text(value: Any) -> str | None:
    """Return a label as text; None where it is missing.

    Blanks at the ends are left out. Whole numbers are written without a fraction, whatever their type: 1 and 1.0 are
    ``"1"``. Missing are None, NaN, NaT, ``pandas.NA`` and the texts in `MISSING_LABELS`, compared without case.

    Parameters
    ----------
    value
        Text, bytes, number, date or what else a table holds.
    """
    text = value_text(value)
    if text is None:
        return None
    text = text.strip()
    return None if text.casefold() in MISSING_LABELS else text


def value_text(value: Any) -> str | None:
    """Return a value of a table as text, as it is but for whole floats (1.0 is ``"1"``); None where pandas misses it.

    Parameters
    ----------
    value
        Text, bytes, number, date or what else a table holds.
    """
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if value is None or value is pd.NaT or value is pd.NA:
        return None
    if isinstance(value, float | np.floating):
        number = float(value)
        if number != number:
            return None
        return str(int(number)) if number.is_integer() and abs(number) < 1e15 else str(value)
    if isinstance(value, np.datetime64):
        value = pd.Timestamp(value)
    elif isinstance(value, np.timedelta64):
        value = pd.Timedelta(value)
    if value is pd.NaT:
        return None
    if isinstance(value, pd.Timestamp) and value.tz is None and value == value.normalize():
        return value.date().isoformat()
    return str(value)


def carried_texts(values: Iterable[Any]) -> np.ndarray:
    """Return a column of text as token Parquet carries it, object, shape (cells,).

    Blanks at the ends are left out, and texts that pandas makes of missing values (`MISSING_TEXTS`) are None. What
    people write where they have no label (``unknown``) stays: it is a word of the CELLxGENE schema, and `label_text`
    takes it for missing where it is read as a label.
    """
    codes, different = _different(values)
    texts = [None if text is None else text.strip() for text in map(value_text, different)]
    return np.array([*(None if text in MISSING_TEXTS else text for text in texts), None], dtype=object)[codes]


def read_labels(values: Iterable[Any]) -> Labels:
    """Read the labels of cells, each different one once.

    Parameters
    ----------
    values
        A column of obs: an array, a series, a list.

    Returns
    -------
    Labels
        Texts, with what was taken for missing and what was cleaned.
    """
    codes, different = _different(values)
    texts = np.array([*(label_text(v) for v in different), None], dtype=object)
    counts = np.bincount(codes[codes >= 0], minlength=len(different)).tolist()
    missing: Counter[str] = Counter()
    cleaned = 0
    for value, text, n in zip(different, texts, counts, strict=False):
        given = value_text(value)
        if given is None or not n:
            continue
        if text is None:
            missing[given] += n
        elif given != text:
            cleaned += n
    return Labels(texts[codes], missing, cleaned)


def _different(values: Iterable[Any]) -> tuple[np.ndarray, list[Any]]:
    """Return the number of each value among the different ones, -1 for missing ones, and the different ones."""
    if isinstance(values, pd.Series | pd.Index | pd.Categorical):
        categorical = values.array if isinstance(values, pd.Series | pd.Index) else values
        if isinstance(categorical, pd.Categorical):
            return np.asarray(categorical.codes, dtype=np.intp), list(categorical.categories)
        array = np.asarray(values.astype(object) if isinstance(values, pd.Series | pd.Index) else values, dtype=object)
    else:
        given = values if isinstance(values, np.ndarray) else list(values)
        array = given if isinstance(given, np.ndarray) and given.dtype.kind in "iufb" else _objects(given)
    kinds = set(map(type, array)) if array.dtype == object else set()
    try:
        if len(kinds & {bool, np.bool_}) < len(kinds - {type(None)}) and kinds & {bool, np.bool_}:
            raise TypeError("True and 1 are the same to a table of hashes")
        codes, different = pd.factorize(array)
    except TypeError:  # or something in it cannot be hashed
        codes, different = pd.factorize(_objects([value_text(v) for v in array]))
    return codes, list(different)


def _objects(values: Sequence[Any] | np.ndarray) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values if isinstance(values, np.ndarray) and values.dtype == object else list(values)
    return array


__all__ = ["MISSING_LABELS", "MISSING_TEXTS", "Labels", "carried_texts", "label_text", "read_labels", "value_text"]
