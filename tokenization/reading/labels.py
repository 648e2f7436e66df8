"""Read labels of cells: find missing ones, clean spellings, and report what was changed."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd


# Texts that mean a missing label, compared without case and without blanks at the ends.
MISSING_LABELS = frozenset(
    (
        "", "nan", "na", "n/a", "n.a.", "<na>", "#n/a", "nat", "none", "null", "missing", "-", "--", "?", ".",
        "unknown", "unassigned", "unannotated", "unlabelled", "unlabeled", "undefined", "undetermined",
        "not available", "not applicable", "not provided", "not annotated", "not assigned",
    )
)  # fmt: skip

# Of these, the texts that pandas and NumPy write for missing values; nobody writes them as a label.
MISSING_TEXTS = ("", "nan", "NaN", "None", "<NA>", "NaT")

_LISTED = 5


@dataclass
class Labels:
    """Labels of cells as texts.

    Parameters
    ----------
    texts
        Label of each cell, None if it has none; object, shape (cells,).
    missing
        Text that counts as a missing label -> number of cells. Missing values of pandas are not in it.
    cleaned
        Number of cells whose label had blanks at its ends.
    """

    texts: np.ndarray
    missing: Counter[str] = field(default_factory=Counter)
    cleaned: int = 0

    def note(self, name: str = "labels") -> str:
        """Describe missing and cleaned labels of the column `name`; empty if there are none."""
        parts = []
        if self.missing:
            listed = ", ".join(f"{text!r} ({n:,})" for text, n in self.missing.most_common(_LISTED))
            more = f" and {len(self.missing) - _LISTED:,} more texts" if len(self.missing) > _LISTED else ""
            parts.append(f"{self.missing.total():,} cells have {listed}{more}, which counts as no label")
        if self.cleaned:
            parts.append(f"{self.cleaned:,} labels had blanks at their ends, which were removed")
        return f"{name}: {'; '.join(parts)}" if parts else ""


def label_text(value: Any) -> str | None:
    """Return a label (text, bytes, number, date or another value of a table) as text; None if it is missing.

    Blanks at the ends are removed. Whole numbers of any type are written without a fraction: 1 and 1.0 are
    ``"1"``. Missing are None, NaN, NaT, ``pandas.NA`` and the texts in `MISSING_LABELS`, compared without case.
    """
    text = value_text(value)
    if text is None:
        return None
    text = text.strip()
    return None if text.casefold() in MISSING_LABELS else text


def value_text(value: Any) -> str | None:
    """Return a value of a table as text, whole floats without a fraction; None if pandas counts it as missing."""
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
    """Return a column of text as it is written to token Parquet, object, shape (cells,).

    Blanks at the ends are removed, and texts that pandas writes for missing values (`MISSING_TEXTS`) become None.
    Other texts for a missing label (``unknown``) stay, because the CELLxGENE schema uses them; `label_text` finds
    them.
    """
    codes, different = _different(values)
    texts = [None if text is None else text.strip() for text in map(value_text, different)]
    return np.array([*(None if text in MISSING_TEXTS else text for text in texts), None], dtype=object)[codes]


def read_labels(values: Iterable[Any]) -> Labels:
    """Read the labels of cells from a column of obs: an array, a series or a list."""
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
            raise TypeError("True and 1 have the same hash")
        codes, different = pd.factorize(array)
    except TypeError:  # or a value cannot be hashed
        codes, different = pd.factorize(_objects([value_text(v) for v in array]))
    return codes, list(different)


def _objects(values: Sequence[Any] | np.ndarray) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values if isinstance(values, np.ndarray) and values.dtype == object else list(values)
    return array


__all__ = ["MISSING_LABELS", "MISSING_TEXTS", "Labels", "carried_texts", "label_text", "read_labels", "value_text"]
