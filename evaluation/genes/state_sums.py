"""Sums over cells of the states of genes, kept beside the output of a file so that a stopped run is resumed."""

import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cellglot.inputs import InputError, read_json
from cellglot.outputs import OutputError, OutputFolder, atomic, write_json


RUN_FILE, SUMS_FILE = "genes.json", "sums.npz"
SECONDS = 60.0  # between two times that sums are kept


class StateSums:
    """Sums of the states of each gene over cells, and numbers of cells.

    Parameters
    ----------
    run
        What the sums depend on. Sums of another run are refused.
    tokens
        Tokens of the vocabulary.
    folder
        Where sums are kept; None for memory alone.
    overwrite
        Delete the sums of another run.

    Attributes
    ----------
    batches : int
        Number of batches that were added, also by an earlier run.
    resumed : int
        Number of batches that an earlier run had added.

    Raises
    ------
    OutputError
        On entering, if the folder has sums of another run, or must not be written to.
    """

    def __init__(self, run: Mapping[str, Any], tokens: int, folder: Path | None = None, overwrite: bool = False):
        self.run, self.tokens, self.folder, self.overwrite = dict(run), tokens, folder, overwrite
        self.cells = np.zeros(tokens, dtype=np.int64)
        self.sums: np.ndarray | None = None
        self.batches = self.resumed = 0
        self._output = None if folder is None else OutputFolder(folder, "genes")
        self._kept = time.monotonic()

    def __enter__(self) -> "StateSums":
        if self._output is None:
            return self
        self._output.__enter__()
        try:
            self._find()
        except BaseException as error:
            self._output.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(self, *error: object) -> None:
        if self._output is None:
            return
        try:
            if error[0] is not None and self.batches > self.resumed:
                self._keep()
        finally:
            self._output.__exit__(*error)

    def _find(self) -> None:
        assert self.folder is not None and self._output is not None
        record = self.folder / RUN_FILE
        if record.exists() and _record(record) != self.run:
            if not self.overwrite:
                raise OutputError(
                    f"{self.folder} has sums of a run with other cells, model or settings: repeat that run to resume "
                    "it, or delete its sums by --overwrite (overwrite=True)"
                )
            self._output.clear()
        if not record.exists():
            self._output.clear()
            write_json(record, self.run)
        try:
            with np.load(self.folder / SUMS_FILE, allow_pickle=False) as file:
                cells, sums, batches = file["cells"], file["sums"], int(file["batches"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return  # none, or damaged: computed again
        if len(cells) == len(sums) == self.tokens:
            self.cells, self.sums, self.batches, self.resumed = cells, sums, batches, batches

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

    def remove(self) -> None:
        """Delete what is kept: the result is written."""
        if self._output is not None:
            self._output.clear()
            self.batches = self.resumed

    def remove_folder(self) -> None:
        """Remove the folder, if nothing else is in it. Call it after leaving."""
        if self.folder is not None and self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


def _record(path: Path) -> Any:
    try:
        return read_json(path)
    except (InputError, OSError, ValueError):
        return None


__all__ = ["StateSums"]
