"""Compression of HDF5 that h5py does not read alone, as AnnData writes it with the package hdf5plugin."""

from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec

import h5py


FILTERS = {32001: "blosc", 32004: "lz4", 32008: "bitshuffle", 32013: "zfp", 32015: "zstd", 32026: "blosc2"}
UNREAD_GROUPS = ("uns", "obsm", "obsp", "varm", "varp")  # of AnnData, that nothing is read from


def prepare_filters(file: h5py.File) -> str | None:
    """Load what the matrices and tables of a file were compressed by; where it is not there, say so."""
    missing = next(_missing(file), None)
    if missing is not None and find_spec("hdf5plugin") is not None:
        import_module("hdf5plugin")  # its import is what registers filters
        missing = next(_missing(file), None)
    if missing is None:
        return None
    name, code = missing
    kind = f"{FILTERS.get(code, 'unknown means')} (HDF5's filter {code})"
    return f"{name} is compressed by {kind}, which h5py alone does not read: pip install hdf5plugin"


def _missing(group: h5py.Group, unread: tuple[str, ...] = UNREAD_GROUPS) -> Iterator[tuple[str, int]]:
    """Give data sets and the numbers of filters that are not there."""
    for name in group:
        if name in unread:
            continue
        item = group.get(name)  # None where a link leads nowhere
        if isinstance(item, h5py.Group):
            yield from _missing(item, ())
        if not isinstance(item, h5py.Dataset):
            continue
        settings = item.id.get_create_plist()
        codes = (settings.get_filter(i)[0] for i in range(settings.get_nfilters()))
        yield from ((item.name, code) for code in codes if not h5py.h5z.filter_avail(code))


__all__ = ["prepare_filters"]
