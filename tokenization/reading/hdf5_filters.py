"""Compression of HDF5 that h5py does not read alone, as AnnData writes it with the package hdf5plugin."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import h5py


FILTERS = {32001: "blosc", 32004: "lz4", 32008: "bitshuffle", 32013: "zfp", 32015: "zstd", 32026: "blosc2"}


def missing_filter(dataset: h5py.Dataset, settings: Any) -> str | None:
    """Load what a data set was compressed by; where it is not there, say so.

    Parameters
    ----------
    dataset
        The data set.
    settings
        Its creation property list.
    """
    missing = _missing(settings)
    if missing is not None and find_spec("hdf5plugin") is not None:
        import_module("hdf5plugin")  # its import is what registers filters
        missing = _missing(settings)
    if missing is None:
        return None
    kind = f"{FILTERS.get(missing, 'unknown means')} (HDF5's filter {missing})"
    return f"{dataset.name} is compressed by {kind}, which h5py alone does not read: pip install hdf5plugin"


def _missing(settings: Any) -> int | None:
    """Return the number of a filter that is not there."""
    codes = (settings.get_filter(i)[0] for i in range(settings.get_nfilters()))
    return next((code for code in codes if not h5py.h5z.filter_avail(code)), None)


__all__ = ["missing_filter"]
