"""Count the chunks of arrays of zarr: those declared, those stored, those missing. zarr is not imported for HDF5."""

import math
import os
import re
import sys
from pathlib import Path
from typing import Any


_CHUNK = re.compile(r"\d+(\.\d+)*")


def expected_chunks(array: Any) -> int:
    """Return the number of chunks, or of shards, of an array that is completely stored."""
    return math.prod(-(-n // length) for n, length in zip(array.shape, array.shards or array.chunks, strict=True))


def present_chunks(array: Any) -> int:
    """Count the chunks (shards) of an array in its folder, without reading them."""
    from zarr.storage import LocalStore

    store = array.store
    if not isinstance(store, LocalStore):
        return min(expected_chunks(array), array.nchunks_initialized)
    folder = store.root / array.path
    if not folder.is_dir():
        return 0
    deepest = folder / "c" if array.metadata.zarr_format == 3 else folder
    return _count_chunks(deepest, array.ndim) if deepest.is_dir() else 0


def _count_chunks(folder: Path | str, levels: int) -> int:
    n = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if not _CHUNK.fullmatch(entry.name):
                continue
            if not entry.is_dir(follow_symlinks=False):
                n += 1
            elif levels > 1:
                n += _count_chunks(entry.path, levels - 1)
    return n


def absent_chunks(array: Any) -> int:
    """Count missing chunks: the writer left them out because they are zeros, or a copy lost them. HDF5 has none."""
    zarr = sys.modules.get("zarr")  # without it, there is no array of zarr
    if zarr is None or not isinstance(array, zarr.Array):
        return 0
    return max(expected_chunks(array) - present_chunks(array), 0)


__all__ = ["absent_chunks", "expected_chunks", "present_chunks"]
