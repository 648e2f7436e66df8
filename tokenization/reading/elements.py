"""Write values into ``.h5ad`` files in the form of AnnData: the usual ones by h5py alone, all others by anndata.

anndata takes longer to import than a few thousand cells to annotate.
"""

from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np
import pandas as pd


def write_element(group: Any, name: str, value: Any) -> None:
    """Write a value under a name of a group; an earlier one is replaced.

    Parameters
    ----------
    group
        Of h5py; of zarr anndata writes all values.
    value
        Array of numbers or texts, `pandas.Categorical`, text, number, truth value, or a mapping of these; or anything
        else that AnnData writes.
    """
    write = _writer(value) if isinstance(group, h5py.Group) and "/" not in name else None
    if write is None:
        from anndata.io import write_elem

        write_elem(group, name, value)
        return
    if name in group:
        del group[name]
    write(group, name, value)


def _writer(value: Any) -> Any:
    """Return the function that writes a value without anndata, or None."""
    if isinstance(value, Mapping):
        usual = type(value) is dict and all(isinstance(k, str) and "/" not in k for k in value)
        return _write_mapping if usual and all(_writer(v) is not None for v in value.values()) else None
    if isinstance(value, pd.Categorical):
        categories = np.asarray(value.categories)
        if isinstance(value.categories, pd.MultiIndex) or _writer(categories) not in (_write_numbers, _write_texts):
            return None
        return _write_categories
    if type(value) is np.ndarray and value.ndim:
        if value.dtype.kind in "biuf":
            return _write_numbers
        texts = value.dtype == object and value.ndim == 1 and all(type(v) is str for v in value)
        return _write_texts if texts and len(value) else None
    if isinstance(value, str):
        return _write_text
    return _write_number if isinstance(value, bool | int | float | np.bool_ | np.integer | np.floating) else None


def _mark(made: Any, kind: str, version: str = "0.2.0") -> Any:
    made.attrs["encoding-type"], made.attrs["encoding-version"] = kind, version
    return made


def _write_numbers(group: h5py.Group, name: str, value: np.ndarray) -> None:
    _mark(group.create_dataset(name, data=value), "array")


def _write_texts(group: h5py.Group, name: str, value: np.ndarray) -> None:
    _mark(group.create_dataset(name, data=value, dtype=h5py.string_dtype()), "string-array")


def _write_text(group: h5py.Group, name: str, value: str) -> None:
    _mark(group.create_dataset(name, data=np.array(value, dtype=object), dtype=h5py.string_dtype()), "string")


def _write_number(group: h5py.Group, name: str, value: Any) -> None:
    _mark(group.create_dataset(name, data=np.array(value)), "numeric-scalar")


def _write_categories(group: h5py.Group, name: str, value: pd.Categorical) -> None:
    made = _mark(group.create_group(name), "categorical")
    made.attrs["ordered"] = bool(value.ordered)
    for part, values in (("codes", value.codes), ("categories", np.asarray(value.categories))):
        write_element(made, part, np.asarray(values))


def _write_mapping(group: h5py.Group, name: str, value: Mapping[str, Any]) -> None:
    made = _mark(group.create_group(name), "dict", "0.1.0")
    for key, item in value.items():
        write_element(made, key, item)


__all__ = ["write_element"]
