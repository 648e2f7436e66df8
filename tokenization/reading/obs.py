"""Metadata of cells under the names of the CELLxGENE schema, read by ranges of cells."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd

from cellglot.tokenization.reading.errors import CellFileError, names_the_file
from cellglot.tokenization.reading.labels import value_text


# The schema's columns of obs, in the order in which token Parquet carries them.
SCHEMA_COLUMNS = (
    "cell_type",
    "cell_type_ontology_term_id",
    "tissue",
    "tissue_ontology_term_id",
    "tissue_type",
    "disease",
    "disease_ontology_term_id",
    "assay",
    "assay_ontology_term_id",
    "suspension_type",
    "development_stage",
    "development_stage_ontology_term_id",
    "sex",
    "sex_ontology_term_id",
    "self_reported_ethnicity",
    "self_reported_ethnicity_ontology_term_id",
    "organism",
    "organism_ontology_term_id",
    "is_primary_data",
    "donor_id",
    "dataset_id",
)

# Other names under which files carry these columns, in lower case with underscores.
USUAL_NAMES = {
    "cell_type": ("celltype", "cell_types", "celltypes", "cell_ontology_class"),
    "cell_type_ontology_term_id": ("cell_ontology_id", "cell_ontology_term_id", "cl_id"),
    "tissue": ("organ", "organ_tissue"),
    "disease": ("diagnosis",),
    "assay": ("technology", "sequencing_technology", "library_technology"),
    "development_stage": ("developmental_stage",),
    "sex": ("gender",),
    "self_reported_ethnicity": ("ethnicity",),
    "donor_id": ("donor", "donorid", "patient", "patient_id", "individual", "individual_id", "subject", "subject_id"),
    "dataset_id": ("dataset", "dataset_name"),
}


class CellTable(Protocol):
    """A table of cells of which ranges of rows can be read."""

    names: list[str]
    source: str  # the file, for messages

    def __len__(self) -> int: ...

    def index(self, start: int, stop: int) -> np.ndarray:
        """Read names of cells as strings, shape (stop - start,)."""
        ...

    def column(self, name: str, start: int, stop: int) -> np.ndarray:
        """Read a column; missing values are None in text and NaN in numbers, shape (stop - start,)."""
        ...

    def is_read(self, name: str) -> bool:
        """Whether a column is stored in a supported way."""
        ...

    def series(self, name: str) -> pd.Series:
        """Read a whole column with its type: categories, whole numbers with missing values, ..."""
        ...


class FrameTable:
    """A data frame in memory, with a row for each cell."""

    source = ""  # the file, if there is one

    def __init__(self, frame: pd.DataFrame):
        self.frame = frame
        self.names = [str(c) for c in frame.columns]
        self._positions = {str(c): i for i, c in enumerate(frame.columns)}

    def __len__(self) -> int:
        return len(self.frame)

    def index(self, start: int, stop: int) -> np.ndarray:
        """Read names of cells."""
        return _names(plain_column(self.frame.index[start:stop].to_series()))

    def column(self, name: str, start: int, stop: int) -> np.ndarray:
        """Read a column."""
        return plain_column(self.frame.iloc[start:stop, self._positions[name]])

    def is_read(self, name: str) -> bool:
        """Whether there is such a column: all are supported."""
        return name in self._positions

    def series(self, name: str) -> pd.Series:
        """Read a whole column with its type."""
        return self.frame.iloc[:, self._positions[name]]


COLUMN_PARTS = (("codes", "categories"), ("values", "mask"))  # of columns that are groups


class StoredTable:
    """A data frame in HDF5 or zarr, as AnnData writes it since version 0.7; only the rows that are needed are read.

    Parameters
    ----------
    group
        The group ``obs`` or ``var``; without names in it, the names are numbers.
    n_cells
        Number of rows; None for the number of names.
    """

    source = ""

    def __init__(self, group: Any, n_cells: int | None):
        self.group = group
        self._index_name = as_text(group.attrs.get("_index", "_index"))
        listed = group.attrs.get("column-order")
        names = list(group) if listed is None else [as_text(c) for c in listed]
        self.names = [c for c in names if c in group and c not in (self._index_name, "__categories")]
        self._categories: dict[str, np.ndarray] = {}
        self.n_cells = next(iter(reversed(self.lengths().values())), 0) if n_cells is None else n_cells

    def is_read(self, name: str) -> bool:
        """Whether a column is stored in a supported way."""
        element = self.group[name]
        return not hasattr(element, "keys") or any(set(parts) <= set(element) for parts in COLUMN_PARTS)

    def __len__(self) -> int:
        return self.n_cells

    def lengths(self) -> dict[str, int]:
        """Return the number of values of each column and of the names (as ``"names"``) without reading them."""
        stored = {name: self.group[name] for name in self.names}
        if self._index_name in self.group:
            stored["names"] = self.group[self._index_name]
        return {name: length for name, element in stored.items() for length in _lengths(element)}

    @names_the_file
    def index(self, start: int, stop: int) -> np.ndarray:
        """Read names of cells."""
        if self._index_name not in self.group:
            return np.arange(start, stop).astype(str).astype(object)
        return _names(self.column(self._index_name, start, stop))

    @names_the_file
    def column(self, name: str, start: int, stop: int) -> np.ndarray:
        """Read a column."""
        codes, categories = self._coded(name)
        if codes is not None:
            return self._decode(name, codes[start:stop], categories)
        values = stored_values(self.group[name], start, stop)
        if values is None:
            stored = sorted(self.group[name])
            raise ValueError(f"column {name!r} is stored in an unsupported way: it has {', '.join(stored)}")
        return values

    @names_the_file
    def series(self, name: str) -> pd.Series:
        """Read a whole column with its type."""
        codes, categories = self._coded(name)
        if codes is None:
            nullable = _nullable(self.group[name])
            return pd.Series(
                with_type(self.column(name, 0, self.n_cells)) if nullable is None else nullable, copy=False
            )
        self._decode(name, codes[0:0], categories)
        values, element = with_type(self._categories[name][:-1]), self.group[name]
        described = element if hasattr(element, "keys") else categories
        ordered = bool(described.attrs.get("ordered", False))
        if not pd.Index(values).is_unique or pd.isna(values).any():
            return pd.Series(with_type(self.column(name, 0, self.n_cells)), copy=False)
        return pd.Series(pd.Categorical.from_codes(np.asarray(codes[:]).astype(np.int64), values, ordered=ordered))

    def _coded(self, name: str) -> tuple[Any, Any]:
        """Return the stored codes and categories of a column; None and None if it has no categories."""
        element = self.group[name]
        if hasattr(element, "keys"):
            coded = {"codes", "categories"} <= set(element)
            return (element["codes"], element["categories"]) if coded else (None, None)
        categories = element.attrs.get("categories")  # AnnData 0.7 keeps them elsewhere, by reference
        return (None, None) if categories is None else (element, self.group[categories])

    def _decode(self, name: str, codes: np.ndarray, categories: Any) -> np.ndarray:
        if name not in self._categories:
            values = stored_values(categories, 0, _lengths(categories)[0])
            if values is None:
                raise ValueError(f"the categories of column {name!r} are stored in an unsupported way")
            self._categories[name] = np.append(values.astype(object), [None])
        known, codes = self._categories[name], np.asarray(codes)
        if len(codes) and not (codes.min() >= -1 and codes.max() < len(known) - 1):
            raise CellFileError(
                f"column {name!r} has codes from {codes.min()} to {codes.max()}, but {len(known) - 1:,} categories: "
                "it is damaged"
            )
        return known[codes]


def _lengths(element: Any) -> list[int]:
    """Return the length of a stored column, or of the shortest of its parts."""
    parts = (
        [element[p] for p in ("codes", "values", "mask") if p in element] if hasattr(element, "keys") else [element]
    )
    return [min(int(part.shape[0]) for part in parts)] if parts else []


def stored_values(element: Any, start: int, stop: int) -> np.ndarray | None:
    """Read a part of a stored array by `plain_values`, shape (stop - start,); None if it is stored in another way.

    A nullable array is a group of ``values`` and ``mask``, which is true for missing values: these become None.
    """
    if not hasattr(element, "keys"):
        return plain_values(element[start:stop])
    if not {"values", "mask"} <= set(element):
        return None
    values = plain_values(element["values"][start:stop]).astype(object)
    values[np.asarray(element["mask"][start:stop], dtype=bool)] = None
    return values


def _nullable(element: Any) -> Any:
    """Read whole numbers or booleans with a mask as a nullable array of pandas; None for anything else."""
    if not hasattr(element, "keys") or not {"values", "mask"} <= set(element):
        return None
    if np.dtype(element["values"].dtype).kind not in "iub":
        return None
    values, mask = np.asarray(element["values"][:]), np.asarray(element["mask"][:], dtype=bool)
    return pd.arrays.BooleanArray(values, mask) if values.dtype.kind == "b" else pd.arrays.IntegerArray(values, mask)


def plain_column(values: pd.Series) -> np.ndarray:
    """Return a column of a data frame as numbers, or as objects with None for missing values.

    Dates, durations and bytes become text.
    """
    if isinstance(values.dtype, np.dtype) and values.dtype.kind in "iufb":
        return values.to_numpy()
    plain = values.astype(object).to_numpy(dtype=object, copy=True)
    plain[pd.isna(values).to_numpy()] = None
    kind = pd.api.types.infer_dtype(values.cat.categories if hasattr(values, "cat") else plain, skipna=True)
    return plain if kind in PLAIN_KINDS else _texts(plain)


def plain_values(values: np.ndarray) -> np.ndarray:
    """Return numbers unchanged, and texts of any kind, dates and durations as an object array of strings."""
    if values.dtype.kind in "Mm":
        return _texts(values.astype("M8[ns]" if values.dtype.kind == "M" else "m8[ns]"))
    return _strings(values) if values.dtype.kind in "OSUTV" else values


def with_type(values: np.ndarray) -> Any:
    """Return objects with None for missing values (cells,) in the type of the values that are not missing.

    Whole numbers and booleans become nullable types of pandas, other numbers float64 with NaN; anything else is
    returned unchanged.
    """
    if values.dtype != object:
        return values
    kind = pd.api.types.infer_dtype(values, skipna=True)
    try:
        if kind == "integer":
            return pd.array(values, dtype="Int64")
        if kind == "boolean":
            return pd.array(values, dtype="boolean")
        if kind in ("floating", "mixed-integer-float"):
            return values.astype(np.float64)
    except (OverflowError, TypeError, ValueError):
        pass  # whole numbers of more than 64 bits
    return values


# Kinds of values, as pandas names them, that are kept unchanged.
PLAIN_KINDS = ("string", "empty", "boolean", "integer", "floating", "mixed-integer-float")


def _texts(values: np.ndarray) -> np.ndarray:
    texts = np.empty(len(values), dtype=object)
    texts[:] = [value_text(v) for v in values]
    return texts


def _names(values: np.ndarray) -> np.ndarray:
    """Return names of cells as strings; a missing one is ``"NA"``."""
    names = np.empty(len(values), dtype=object)
    names[:] = ["NA" if v is None else v if type(v) is str else str(v) for v in values.tolist()]
    return names


def _strings(values: Any) -> np.ndarray:
    array = np.asarray(values)
    strings = np.empty(len(array), dtype=object)
    strings[:] = [
        v.decode("utf-8", "replace") if isinstance(v, bytes) else None if v is None else str(v) for v in array.tolist()
    ]
    return strings


def as_text(value: Any) -> str:
    """Return a text of HDF5 or zarr, of any type, as a string."""
    return str(_strings([value])[0])


def schema_names(columns: Sequence[str], rename: Mapping[str, str] | None = None) -> dict[str, str]:
    """Find the columns of the schema, under their own or a usual name.

    Parameters
    ----------
    rename
        The file's name -> the schema's name; these are not searched for.

    Returns
    -------
    dict
        Schema name -> the file's name, in the schema's order.
    """
    rename = dict(rename or {})
    missing = [c for c in rename if c not in columns]
    if missing:
        raise ValueError(f"no column {missing[0]!r} in obs to rename; it has {', '.join(columns) or 'none'}")
    taken = {wanted: have for have, wanted in rename.items()}
    normalized = {re.sub(r"[^a-z0-9]+", "_", c.lower()).strip("_"): c for c in reversed(list(columns))}
    found: dict[str, str] = {}
    for name in SCHEMA_COLUMNS:
        if name in taken:
            found[name] = taken[name]
        elif name in columns:
            found[name] = name
        else:
            usual = next((normalized[u] for u in (name, *USUAL_NAMES.get(name, ())) if u in normalized), None)
            if usual is not None and usual not in rename:
                found[name] = usual
    return found | {wanted: have for wanted, have in taken.items() if wanted not in found}


__all__ = ["SCHEMA_COLUMNS", "CellTable", "FrameTable", "StoredTable", "schema_names"]
