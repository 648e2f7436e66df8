"""Sums over cells of the states of genes, kept beside the output of a file so that a stopped run is resumed."""

import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cellglot.evaluation.unfinished import UnfinishedRun
from cellglot.outputs import atomic


SUMS_FILE = "sums.npz"
SECONDS = 60.0  # between two times that sums are kept


class StateSums(UnfinishedRun):
    """Sums of the states of each gene over cells, and numbers of cells.

    Parameters
    ----------
    run, folder, overwrite
        As for `UnfinishedRun`.
    tokens
        Tokens of the vocabulary.

    Attributes
    ----------
    batches : int
        Number of batches that were added, also by an earlier run.
    resumed : int
        Number of batches that an earlier run had added.
    """

    kind, record, parts = "genes", "genes.json", "sums"

    def __init__(self, run: Mapping[str, Any], tokens: int, folder: Path | None = None, overwrite: bool = False):
        super().__init__(run, folder, overwrite)
        self.tokens = tokens
        self.cells = np.zeros(tokens, dtype=np.int64)
        self.sums: np.ndarray | None = None
        self.batches = self.resumed = 0
        self._kept = time.monotonic()

    def find(self) -> None:
        """Read the sums of an earlier run; damaged ones are computed again."""
        assert self.folder is not None
        try:
            with np.load(self.folder / SUMS_FILE, allow_pickle=False) as file:
                cells, sums, batches = file["cells"], file["sums"], int(file["batches"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return
        if len(cells) == len(sums) == self.tokens:
            self.cells, self.sums, self.batches, self.resumed = cells, sums, batches, batches

    def stop(self) -> None:
        """Keep the sums."""
        if self.batches > self.resumed:
            self._keep()

    def add(self, token_ids: torch.Tensor, states: torch.Tensor) -> None:
        """Add the states of the genes of a batch of cells.

        Parameters
        ----------
        token_ids
            Shape (genes of all cells,), each at most once in a cell.
        states
            Shape (genes of all cells, size).

        Raises
        ------
        ValueError
            If a state is not finite.
        """
        if not bool(torch.isfinite(states).all()):
            raise ValueError("the state of a gene is not finite: use float32 weights (dtype)")
        self.batches += 1
        if not len(token_ids):
            return
        genes, places, numbers = token_ids.unique(return_inverse=True, return_counts=True)
        part = torch.zeros(len(genes), states.shape[1], device=states.device).index_add(0, places, states.float())
        if self.sums is None:
            self.sums = np.zeros((self.tokens, states.shape[1]))
        at = genes.cpu().numpy()
        self.sums[at] += part.cpu().numpy()
        self.cells[at] += numbers.cpu().numpy()
        if self.folder is not None and time.monotonic() - self._kept > SECONDS:
            self._keep()

    def _keep(self) -> None:
        assert self.folder is not None
        if self.sums is not None:
            with atomic(self.folder / SUMS_FILE) as temporary, open(temporary, "wb") as file:
                np.savez(file, cells=self.cells, sums=self.sums, batches=np.array(self.batches))
        self._kept = time.monotonic()

    def means(self) -> np.ndarray:
        """Return the mean state of each token, NaN for those of no cell, float32, shape (tokens, size)."""
        assert self.sums is not None
        with np.errstate(invalid="ignore", divide="ignore"):
            return (self.sums / self.cells[:, None]).astype(np.float32)


__all__ = ["StateSums"]
