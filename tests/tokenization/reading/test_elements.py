"""Values that h5py writes alone are those of anndata, byte for byte."""

import h5py
import numpy as np
import pandas as pd
import pytest
from anndata.io import read_elem, write_elem

from cellglot.tokenization.reading.elements import write_element


VALUES = {
    "floats": np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3),
    "no cells": np.zeros((0, 3), np.float64),
    "truth": np.array([True, False]),
    "numbers": np.array([3, -1], np.int16),
    "texts": np.array(["B cell", "natürlich"], dtype=object),
    "no texts": np.array([], dtype=object),
    "fixed texts": np.array(["ab", "c"]),
    "missing": np.array(["a", None], dtype=object),
    "categories": pd.Categorical(["T", None, "B"], categories=["T", "B"]),
    "ordered": pd.Categorical([2, 1, 2], ordered=True),
    "none known": pd.Categorical([None, None]),
    "nullable": pd.array([1, None], dtype="Int64"),
    "text": "blood-exceiver",
    "number": 7,
    "share": np.float32(0.5),
    "yes": True,
    "nested": {"classes": np.array(["x"], dtype=object), "level": 0.9, "deeper": {"a": 1}, "empty": {}},
    "table": pd.DataFrame({"a": [1, 2]}, index=["r", "s"]),
}


def _content(item):
    attributes = {key: np.asarray(value).tolist() for key, value in item.attrs.items()}
    if isinstance(item, h5py.Group):
        return attributes, {name: _content(item[name]) for name in item}
    return attributes, item.dtype, h5py.check_string_dtype(item.dtype), item.shape, item[()].tolist()


@pytest.mark.parametrize("name", VALUES)
def test_written_values_are_those_of_anndata(name):
    """Attributes, types, shapes and values agree; an earlier value of the name is replaced."""
    with h5py.File("elements", "w", driver="core", backing_store=False) as file:
        write_element(file, "ours", {"earlier": 1})
        outcomes = []
        for write, place in ((write_element, "ours"), (write_elem, "theirs")):
            try:
                write(file, place, VALUES[name])
                outcomes.append(_content(file[place]))
            except Exception as error:  # noqa: BLE001  # what anndata refuses, is refused as anndata does
                outcomes.append(type(error))
        assert repr(outcomes[0]) == repr(outcomes[1])
        if not isinstance(outcomes[0], type):
            read_elem(file["ours"])
