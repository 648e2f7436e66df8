"""Tables of cells and genes as AnnData wrote them before version 0.7: arrays of records, categories beside them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from cellglot.tokenization.reading.matrices import CellFileError
from cellglot.tokenization.reading.obs import plain_values


def compound_frame(table: Any, beside: Mapping[str, Any]) -> pd.DataFrame:
    """Read a table stored as one array of records.

    Parameters
    ----------
    table
        Data set of HDF5 or zarr; its first field holds the names.
    beside
        Group ``uns``, which holds ``{column}_categories`` for columns of numbers that stand for categories.

    Raises
    ------
    CellFileError
        If the array has no fields.
    """
    records = table[...]
    if records.dtype.names is None or records.ndim != 1:
        raise CellFileError(f"{table.name} is no table but an array of {records.dtype}, shape {records.shape}")
    index, *names = (name for name in records.dtype.names if records[name].ndim == 1)
    columns = {name: plain_values(records[name]) for name in names}
    for name, codes in columns.items():
        categories = beside.get(f"{name}_categories")
        if categories is None or codes.dtype.kind not in "iu":
            continue
        values = plain_values(np.atleast_1d(categories[...]))
        if codes.min(initial=0) >= -1 and codes.max(initial=-1) < len(values):
            columns[name] = np.append(values.astype(object), [None])[codes]
    return pd.DataFrame(columns, index=pd.Index(plain_values(records[index]).astype(str), dtype=object))


__all__ = ["compound_frame"]
