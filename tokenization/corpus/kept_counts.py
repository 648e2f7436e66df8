"""Counts that one pass over a corpus has decoded, kept on disk for the next one, as small as they are."""

import os
import shutil
from pathlib import Path

import numpy as np

from cellglot.outputs.writing import temporary_name
from cellglot.tokenization.count_matrix import CountRows


MOST_BYTES = 2 << 30
_FREE_FOR_OTHERS = 4  # times as much as is kept stays free
_LOOKS = 32  # into the folder, at least, before a process fills what is left of it: so many may share it


class KeptCounts:
    """A folder of chunks of counts; of what would not fit, nothing is kept, and it has to be read from its file again.

    Parameters
    ----------
    folder
        Where the chunks lie; several processes may share it.
    most_bytes
        Size of the folder.
    """

    def __init__(self, folder: str | os.PathLike, most_bytes: int = MOST_BYTES):
        self.folder, self.most_bytes = Path(folder), most_bytes
        self._granted, self._full = 0, False

    def keep(self, name: str, rows: CountRows) -> None:
        """Keep a chunk of checked counts, unless there is no room."""
        path = self.folder / f"{name}.npy"
        temporary = temporary_name(path)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self._fits(rows.data.nbytes + rows.indices.nbytes + rows.indptr.nbytes):
                return
            with open(temporary, "wb") as file:
                for array in (rows.data, rows.indices, rows.indptr):
                    np.save(file, array)
            temporary.replace(path)
        except OSError:  # a full disk: the work goes on without
            temporary.unlink(missing_ok=True)

    def _fits(self, n_bytes: int) -> bool:
        """Whether there is room; the folder is looked at now and then only: that takes the longer the fuller it is."""
        if n_bytes > self._granted and not self._full:
            kept = sum(entry.stat().st_size for entry in os.scandir(self.folder))
            free = shutil.disk_usage(self.folder).free
            left = min(self.most_bytes, free // _FREE_FOR_OTHERS) - kept
            self._granted, self._full = max(left // _LOOKS, n_bytes), left < n_bytes
        self._granted -= n_bytes
        return not self._full

    def load(self, name: str) -> CountRows | None:
        """Return a chunk that was kept, None where it was not, or not whole."""
        try:
            with open(self.folder / f"{name}.npy", "rb") as file:
                data, indices, indptr = (np.load(file, allow_pickle=False) for _ in range(3))
        except (OSError, ValueError, EOFError):
            return None
        whole = len(indptr) and indptr[0] == 0 and indptr[-1] == len(data) == len(indices)
        return CountRows(data, indices, indptr) if whole else None


__all__ = ["KeptCounts"]
