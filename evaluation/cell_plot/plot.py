"""A plot of cells as data for ``cell_plot.js``: of bounded size, coordinates in 16 bits, values in 8."""

import json
import zlib
from base64 import b64encode
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from cellglot.evaluation.cell_plot.genes import GeneValues, gene_values
from cellglot.tokenization.reading.cells import Cells
from cellglot.tokenization.reading.labels import read_labels


MOST_CELLS = 100_000
MOST_GENES = 100
MOST_GENE_VALUES = 4_000_000  # of all genes; fewer genes where there are many cells
MOST_CLASSES = 1_000
MOST_COLUMNS, MOST_NAMES = 10, 60  # columns of obs that are taken, and different labels in one
TOP, MISSING = 254, 255  # codes of numbers: the highest, and a missing one


class CellPlot:
    """Cells in two dimensions with colourings; the first that is added is shown first.

    More than 100,000 cells are drawn as a random sample, and the plot says so. Cells without coordinates are left out.

    Parameters
    ----------
    coordinates
        Shape (cells, 2); NaN for cells without coordinates.
    rows
        Numbers of the cells that have coordinates, ascending; by default all. All other values are of all cells.
    names
        Name of each cell, shown where the pointer is.
    title
        Shown above.
    seed
        Of the sample.

    Raises
    ------
    ValueError
        If no cell has coordinates.
    """

    def __init__(
        self,
        coordinates: np.ndarray,
        names: "Sequence[Any] | np.ndarray | None" = None,
        title: str = "",
        seed: int = 0,
        rows: np.ndarray | None = None,
    ) -> None:
        picked = np.flatnonzero(np.isfinite(coordinates).all(axis=1))
        if not len(picked):
            raise ValueError("no cell has coordinates: there is nothing to draw")
        self.title, self.notes = title, list[str]()
        if (without := len(coordinates) - len(picked)) > 0:
            words = "cell without an embedding is" if without == 1 else "cells without an embedding are"
            self.notes.append(f"{without:,} {words} not shown.")
        if len(picked) > MOST_CELLS:
            self.notes.append(f"{MOST_CELLS:,} of {len(picked):,} cells are shown, drawn at random.")
            picked = np.sort(np.random.default_rng(seed).choice(picked, MOST_CELLS, replace=False))
        elif rows is not None and names is not None and len(rows) < len(names):
            self.notes.append(f"{len(picked):,} of {len(names):,} cells are shown.")
        self.shown = picked if rows is None else rows[picked]
        x, y = np.asarray(coordinates, dtype=np.float64)[picked].T
        step = max(np.ptp(x), np.ptp(y), 1e-9) / 65535  # one scale for both axes
        self.x = np.round((x - x.min()) / step).astype("<u2")
        self.y = np.round((y.max() - y) / step).astype("<u2")
        self.names = None if names is None else [str(name) for name in np.asarray(names, dtype=object)[self.shown]]
        self.colourings: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return len(self.shown)

    def add_classes(self, name: str, labels: Iterable[Any], missing: str = "missing") -> None:
        """Add a colouring by labels, the most frequent first.

        Parameters
        ----------
        labels
            One for each cell, None or NaN if missing; of all cells, also those that are not shown.
        missing
            Name of the cells without a label.
        """
        texts = read_labels(labels).texts[self.shown]
        counts = pd.Series(texts, dtype=object).value_counts()
        order = sorted(counts.index, key=lambda label: (-counts[label], label))[:MOST_CLASSES]
        if len(order) < len(counts):
            self.notes.append(f"{name}: the {MOST_CLASSES:,} most frequent of {len(counts):,} labels have a colour.")
        code_of = {label: code for code, label in enumerate(order)}
        wide = "<u2" if len(order) > 254 else "u1"
        codes = np.array([code_of.get(text, len(order)) for text in texts], dtype=wide)
        self._add({"name": name, "kind": "classes", "labels": order, "codes": pack(codes), "missing": missing})

    def add_numbers(self, name: str, values: Any, *, gene: bool = False, of_shown: bool = False) -> None:
        """Add a colouring by numbers.

        Parameters
        ----------
        values
            One for each cell, NaN if missing.
        gene
            Whether it is a gene, which is listed among genes.
        of_shown
            Whether the values are of the shown cells only.
        """
        numbers = np.asarray(values, dtype=np.float64)
        numbers = numbers if of_shown else numbers[self.shown]
        known = np.isfinite(numbers)
        low = 0.0 if gene else float(numbers[known].min()) if known.any() else 0.0
        high = float(numbers[known].max()) if known.any() else 1.0
        codes = np.full(len(numbers), MISSING, dtype=np.uint8)
        codes[known] = np.round((numbers[known] - low) / max(high - low, 1e-12) * TOP)
        found = {"name": name, "kind": "numbers", "values": pack(codes), "low": low, "high": high}
        if gene:
            found |= {"gene": True, "says": "log1p of counts per 10,000"}
        self._add(found)

    def add_genes(self, cells: Cells, groups: "Sequence[str | None] | np.ndarray | None" = None) -> None:
        """Add at most 100 genes: those that are higher in a group than elsewhere, then the most variable.

        Parameters
        ----------
        cells
            The opened file of all cells.
        groups
            Group of each cell, or None.
        """
        most = min(MOST_GENES, max(10, MOST_GENE_VALUES // len(self)))
        self.add_gene_values(gene_values(cells, groups, self.shown, most))

    def add_gene_values(self, found: GeneValues) -> None:
        """Add genes whose values were read for the shown cells; see `cellglot.evaluation.cell_plot.genes`."""
        for name, values in zip(found.names, found.values.T, strict=True):
            self.add_numbers(name, values, gene=True, of_shown=True)

    def add_obs(self, cells: Cells, first: Sequence[str] = (), without: Sequence[str | None] = ()) -> None:
        """Add columns of obs: with 2 to 60 different labels, or numbers; at most 10.

        Parameters
        ----------
        first
            Columns to take first.
        without
            Columns to leave out.
        """
        taken, order = 0, [*first, *(name for name in cells.obs.names if name not in first)]
        for name in order:
            if taken == MOST_COLUMNS or name in without or not cells.obs.is_read(name):
                continue
            column = cells.obs.series(name)
            different = column.nunique()
            if different < 2:
                continue
            if pd.api.types.is_float_dtype(column) or (
                pd.api.types.is_integer_dtype(column) and different > MOST_NAMES
            ):
                self.add_numbers(name, column.to_numpy(dtype=np.float64, na_value=np.nan))
            elif different <= MOST_NAMES:
                self.add_classes(name, column.to_numpy(dtype=object))
            else:
                continue
            taken += 1

    def _add(self, colouring: dict[str, Any]) -> None:
        names = {known["name"] for known in self.colourings}
        base, number = colouring["name"], 1
        while colouring["name"] in names:
            number += 1
            colouring["name"] = f"{base} ({'gene' if colouring.get('gene') and number == 2 else number})"
        self.colourings.append(colouring)

    def data(self) -> dict[str, Any]:
        """Return what ``cell_plot.js`` draws, as plain types for JSON."""
        names = None if self.names is None else pack(json.dumps(self.names).encode())
        return {
            "title": self.title,
            "note": " ".join(self.notes),
            "x": pack(self.x),
            "y": pack(self.y),
            "names": names,
            "colourings": self.colourings,
        }


def pack(values: np.ndarray | bytes) -> str:
    """Return bytes, or the bytes of an array, compressed by zlib, in base64."""
    return b64encode(zlib.compress(values if isinstance(values, bytes) else values.tobytes(), 6)).decode()


__all__ = ["CellPlot", "pack"]
