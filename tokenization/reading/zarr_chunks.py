"""Check chunks of zarr on disk: that they are inside the store, and are as large as declared."""

import math
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import LocalStore

from cellglot.tokenization.reading.chunk_counts import expected_chunks, present_chunks
from cellglot.tokenization.reading.errors import CellFileError
from cellglot.tokenization.reading.inflation import inflates_beyond


LARGEST_METADATA = 1 << 25  # bytes of JSON
UNSUSPICIOUS_BYTES = 1 << 24
STRONGEST_COMPRESSION = 1_100  # that deflate reaches
MOST_ABSENT = 1_000  # declared chunks for each one that exists
LONGEST_TEXTS = 1 << 10  # bytes, on average over a chunk
LARGEST_CHUNK_OF_TEXTS = 1 << 28  # bytes, or `USUAL_TEXT` for each text
USUAL_TEXT = 1 << 6  # bytes
WIDEST_STORED = 8  # filters may store a number in a type that is wider by this factor


class InsideStore(LocalStore):
    """A folder of zarr, read only: a key outside of the folder, or that is not a regular file, is refused.

    Links into the blobs of the Hub's cache are followed if the store itself is in that cache. zarr passes
    `read_only`, which makes no difference.
    """

    def __init__(self, root: Path | str, *, read_only: bool = True):
        super().__init__(Path(root), read_only=True)
        real = os.path.realpath(root)
        before, snapshots, _ = real.partition("/snapshots/")
        self._within = (f"{real}/", f"{before}/blobs/") if snapshots else (f"{real}/",)
        self._arrays: dict[str, tuple[int, int]] = {}

    def declare(self, array: zarr.Array) -> None:
        """Record how large the chunks of an array may become, and how many chunks its shards have."""
        n = math.prod(array.chunks)
        most = WIDEST_STORED * n * array.dtype.itemsize
        if array.dtype.kind not in "biufcmM":
            most = max(min(LONGEST_TEXTS * n, LARGEST_CHUNK_OF_TEXTS), USUAL_TEXT * n)
        most = max(most, UNSUSPICIOUS_BYTES)
        in_shard = math.prod(array.shards) // math.prod(array.chunks) if array.shards else 1
        self._arrays[array.path] = (most, in_shard)

    def get_sync(self, key: str, **options: Any) -> Any:
        """Read a key; None if it does not exist."""
        self._refuse_outside(key)
        return self._bounded(key, super().get_sync(key, **options))

    async def get(self, key: str, *arguments: Any, **options: Any) -> Any:
        """Read a key; None if it does not exist."""
        self._refuse_outside(key)
        return self._bounded(key, await super().get(key, *arguments, **options))

    async def get_partial_values(self, prototype: Any, key_ranges: Any) -> Any:
        """Read parts of keys."""
        key_ranges = list(key_ranges)
        for key, _ in key_ranges:
            self._refuse_outside(key)
        found = await super().get_partial_values(prototype, key_ranges)
        return [self._bounded(key, content) for (key, _), content in zip(key_ranges, found, strict=True)]

    def _bounded(self, key: str, content: Any) -> Any:
        """Refuse a chunk that inflates far beyond what its array declares."""
        array = key
        while array not in self._arrays:
            array, _, name = array.rpartition("/")
            if not name:
                return content
        if content is None:
            return None
        most, in_shard = self._arrays[array]
        stored = content.as_numpy_array().view(np.uint8)
        if any(inflates_beyond(chunk, most) for chunk in _inner_chunks(stored, in_shard)):
            raise CellFileError(
                f"{key} inflates to more than {most:,} bytes, far beyond its array's chunks: it is damaged"
            )
        return content

    def _refuse_outside(self, key: str) -> None:
        path = os.path.realpath(f"{self.root}/{key}")
        if not path.startswith(self._within):
            raise CellFileError(f"{key} is outside of the store, at {path}, which is not read: copy the data into it")
        try:
            found = os.stat(path)
        except OSError:
            return
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            raise CellFileError(f"{key} is not a regular file")
        if key.rsplit("/", 1)[-1].startswith((".z", "zarr.json")) and found.st_size > LARGEST_METADATA:
            raise CellFileError(f"{key} has {found.st_size:,} bytes, too many for metadata of zarr")

    def count(self, folder: str, most: int) -> int:
        """Count the members of a folder, up to one more than `most`."""
        n = 0
        with os.scandir(self.root / folder) as entries:
            for _ in entries:
                n += 1
                if n > most:
                    break
        return n


def _inner_chunks(stored: np.ndarray, n: int) -> list[np.ndarray]:
    """Return a stored chunk and, if it is a whole shard, the chunks in it by the index at its end."""
    index = stored[-(16 * n + 4) : -4]
    if n == 1 or len(index) != 16 * n:
        return [stored]
    places = np.frombuffer(index.tobytes(), "<u8").reshape(-1, 2)
    within = places[(places[:, 0] < len(stored)) & (places[:, 1] <= len(stored))].astype(np.int64)
    return [stored, *(stored[start : start + length] for start, length in within)]


def check_chunks(array: zarr.Array) -> None:
    """Refuse an array that declares far more than its chunks can contain."""
    if isinstance(array.store, InsideStore):
        array.store.declare(array)
    width = max(int(getattr(array.dtype, "itemsize", 8)), 1)
    declared = math.prod(array.shape) * width
    chunk = math.prod(array.shards or array.chunks) * width
    if max(declared, chunk) <= UNSUSPICIOUS_BYTES:
        return
    present = present_chunks(array)
    if declared > MOST_ABSENT * max(present, 1) * chunk and declared > UNSUSPICIOUS_BYTES:
        raise CellFileError(
            f"{array.name.lstrip('/')} declares {declared:,} bytes (shape {array.shape}) in "
            f"{expected_chunks(array):,} chunks, of which {present:,} are stored: the copy is incomplete, or it "
            "is damaged"
        )
    if chunk > UNSUSPICIOUS_BYTES and chunk > STRONGEST_COMPRESSION * _stored_bytes(array):
        raise CellFileError(
            f"{array.name.lstrip('/')} declares chunks of {chunk:,} bytes, but its files are too small: it is damaged"
        )


def _stored_bytes(array: zarr.Array) -> int:
    if not isinstance(array.store, LocalStore):
        return 0
    return sum(
        os.path.getsize(os.path.join(parent, name))
        for parent, _, names in os.walk(array.store.root / array.path)
        for name in names
    )


__all__ = ["InsideStore", "check_chunks"]
