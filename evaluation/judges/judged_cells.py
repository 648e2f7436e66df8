"""The cells that a judge scores: those with an embedding, a label and a batch."""

from dataclasses import dataclass

import numpy as np


NO_LABELS, NO_BATCHES = "no cell types were given", "no batches were given"


@dataclass
class JudgedCells:
    """An embedding with labels and batches, without missing values.

    Parameters
    ----------
    embedding
        Shape (cells, size), float32.
    labels, batches
        Of each cell, str, shape (cells,); None if there are none.
    rows
        Numbers of these cells among all.
    left_out
        Reason -> number of cells.
    """

    embedding: np.ndarray
    labels: np.ndarray | None
    batches: np.ndarray | None
    rows: np.ndarray
    left_out: dict[str, int]

    def __len__(self) -> int:
        return len(self.embedding)

    @classmethod
    def of(cls, embedding: np.ndarray, labels: np.ndarray | None, batches: np.ndarray | None) -> "JudgedCells":
        """Leave out cells with NaN in the embedding, without a label, or without a batch, and count them.

        Parameters
        ----------
        labels, batches
            None if missing, for single cells or altogether.
        """
        kept = np.isfinite(embedding).all(axis=1)
        left_out = {"cells_without_embedding": int((~kept).sum())}
        for name, values in (("label", labels), ("batch", batches)):
            known = np.ones(len(kept), dtype=bool) if values is None else np.array([v is not None for v in values])
            left_out[f"cells_without_{name}"] = int((kept & ~known).sum())
            kept = kept & known
        rows = np.flatnonzero(kept)
        return cls(
            np.ascontiguousarray(embedding[rows], dtype=np.float32),
            None if labels is None else np.asarray(labels[rows], dtype=str),
            None if batches is None else np.asarray(batches[rows], dtype=str),
            rows,
            left_out,
        )

    def why_no_labels(self) -> str | None:
        """Return why labels cannot be scored, None if they can."""
        return _why(self.labels, NO_LABELS, "cell type", "cell types")

    def why_no_batches(self) -> str | None:
        """Return why batches cannot be scored, None if they can."""
        return _why(self.batches, NO_BATCHES, "batch", "batches")


def _why(groups: np.ndarray | None, none: str, one: str, several: str) -> str | None:
    if groups is None:
        return none
    sizes = np.unique(groups, return_counts=True)[1]
    if len(sizes) < 2:
        return f"the cells have {len(sizes)} {one if len(sizes) == 1 else several}: at least two are needed"
    return f"every {one} has a single cell" if sizes.max() == 1 else None


__all__ = ["NO_BATCHES", "NO_LABELS", "JudgedCells"]
