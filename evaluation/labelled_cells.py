"""Cells for an evaluation: counts, labels, batches, donors, and a checksum."""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix, vstack

from cellglot.outputs import sha256
from cellglot.tokenization.reading.cells import Cells, read_cells
from cellglot.tokenization.reading.labels import Labels, read_labels


logger = logging.getLogger(__name__)

GROUPS = ("donor_id", "dataset_id")


@dataclass
class LabelledCells:
    """Opened cells with labels, batches and groups.

    Parameters
    ----------
    checksum
        SHA-256 of the file, or of the counts of an AnnData.
    label_column, batch_column, group_column
        Columns of obs of labels, batches and donors (or data sets), or None.
    labels, batches, groups
        One value per cell, None if missing; shape (cells,). None without a column.
    options
        ``gene_column``, ``min_coverage`` as for the tokenizers.
    """

    cells: Cells
    source: str
    checksum: str
    label_column: str | None = None
    batch_column: str | None = None
    group_column: str | None = None
    labels: np.ndarray | None = None
    batches: np.ndarray | None = None
    groups: np.ndarray | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.cells)

    @property
    def labelled(self) -> np.ndarray:
        """Whether each cell has a label, shape (cells,)."""
        if self.labels is None:
            return np.zeros(len(self), dtype=bool)
        return np.array([label is not None for label in self.labels])

    def classes(self) -> list[str]:
        """Return the distinct labels, sorted."""
        return [] if self.labels is None else sorted({label for label in self.labels if label is not None})

    def subset(self, numbers: Iterable[int] | np.ndarray) -> AnnData:
        """Read the counts of some cells, in the given order, as an AnnData, without loading the others."""
        wanted = np.asarray(numbers)
        order = np.argsort(wanted, kind="stable")
        parts, first = [], 0
        for chunk in self.cells.chunks():
            inside = wanted[order][(wanted[order] >= first) & (wanted[order] < first + chunk.shape[0])]
            parts.append(chunk[inside - first])
            first += chunk.shape[0]
        matrix = csr_matrix((0, self.cells.n_genes)) if not parts else vstack(parts, format="csr")
        counts = self.cells.counts  # its names of genes are those that models read: of mouse the human orthologs
        var = pd.DataFrame(dict(counts.columns or {}), index=pd.Index([str(g) for g in counts.index]))
        return AnnData(matrix[np.argsort(order, kind="stable")], var=var)

    def facts(self) -> dict[str, Any]:
        """Return a description as plain types, for JSON."""
        counts = Counter(label for label in self.labels if label is not None) if self.labels is not None else {}
        return {
            "source": self.source,
            "sha256": self.checksum,
            "cells": len(self),
            "genes": self.cells.n_genes,
            "counts_in": self.cells.counts.described_location,
            "label_column": self.label_column,
            "cells_of_label": dict(sorted(counts.items())),
            "cells_without_label": int((~self.labelled).sum()),
            "batch_column": self.batch_column,
            "batches": None if self.batches is None else len({b for b in self.batches if b is not None}),
            "donor_column": self.group_column,
            "donors": None if self.groups is None else len({g for g in self.groups if g is not None}),
        }


def open_labelled_cells(
    source: "str | os.PathLike | AnnData",
    *,
    labels: str | None = None,
    batches: str | None = None,
    donors: str | None = None,
    layer: str | None = None,
    species: str | None = None,
    **options: Any,
) -> LabelledCells:
    """Open cells and read their labels.

    Parameters
    ----------
    source
        File in a format of `cellglot.tokenization.read_cells`, or an AnnData.
    labels
        Column of cell types; by default the column that is read as ``cell_type``, if there is one. Missing labels are
        None, as `cellglot.tokenization.reading.labels` reads them.
    batches
        Column of batches.
    donors
        Column of donors or data sets that are not split; by default that of ``donor_id``, else of ``dataset_id``.
    layer, species
        Where the counts are, and of which species, as for `cellglot.tokenization.read_cells`.
    **options
        ``gene_column``, ``min_coverage`` as for the tokenizers.

    Raises
    ------
    ValueError
        If a column does not exist, or no cell has a label.
    """
    cells = read_cells(source, layer=layer, species=species)
    known = cells.metadata_columns
    columns = {
        "label": labels or known.get("cell_type"),
        "batch": batches,
        "group": donors or next((known[name] for name in GROUPS if name in known), None),
    }
    read = {name: None if column is None else _column(cells, column) for name, column in columns.items()}
    values = {name: None if found is None else found.texts for name, found in read.items()}
    if read["label"] is not None and (note := read["label"].note(f"labels in {columns['label']!r}")):
        cells.notes.append(note)
        logger.info("%s: %s", cells.name, note)
    if labels is not None and values["label"] is not None and not any(x is not None for x in values["label"]):
        raise ValueError(f"column {labels!r} of {cells.name}: none of {len(cells):,} cells has a label")
    path = Path(source) if isinstance(source, str | os.PathLike) else None
    return LabelledCells(
        cells,
        source=str(source) if path is not None else f"AnnData of {len(cells):,} cells",
        checksum=_checksum(cells) if path is None else sha256(path),
        label_column=columns["label"],
        batch_column=columns["batch"],
        group_column=columns["group"],
        labels=values["label"],
        batches=values["batch"],
        groups=values["group"],
        options={name: value for name, value in options.items() if value is not None},
    )


def _column(cells: Cells, name: str) -> Labels:
    if name not in cells.obs.names:
        raise ValueError(f"no column {name!r} in obs of {cells.name}; it has {', '.join(cells.obs.names) or 'none'}")
    return read_labels(cells.obs.column(name, 0, len(cells)))


def _checksum(cells: Cells) -> str:
    digest = hashlib.sha256("\n".join(map(str, cells.counts.index)).encode())
    for chunk in cells.chunks():
        for part in (chunk.indptr.astype(np.int64), chunk.indices.astype(np.int64), chunk.data.astype(np.float64)):
            digest.update(part.tobytes())
    return digest.hexdigest()


__all__ = ["LabelledCells", "open_labelled_cells"]
