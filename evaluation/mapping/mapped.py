"""Columns of a reference, carried over to cells by votes and means of their nearest neighbours."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cellglot.evaluation.mapping.reference import Reference
from cellglot.evaluation.output import KEY
from cellglot.tokenization.gene_report import GeneReport


DEFAULT_COLUMNS = ("cell_type", "cell_type_ontology_term_id")
FAR = 0.99  # quantile of the reference's own distances, above which a cell is called unlike the reference
CELLS_AT_ONCE = 1 << 12
SHOWN_LABELS = 20


@dataclass
class CarriedColumn:
    """A column of the reference, carried over.

    Parameters
    ----------
    name
        Its name in the reference.
    values
        Labels (None without one) or means (NaN without one), shape (cells,).
    share
        Of labels: share of the neighbours that have the label; NaN for cells without embedding.
    """

    name: str
    values: np.ndarray
    share: np.ndarray | None = None


@dataclass
class MappedCells:
    """Cells and their nearest cells of a reference. Cells that express no gene of the model have no neighbours.

    Parameters
    ----------
    reference
        The reference.
    cell_names
        Shape (cells,).
    embedding
        As the model returns it, shape (cells, size); NaN for cells without a gene of the model.
    numbers
        Numbers of the nearest cells of the reference, the nearest first, -1 for none; shape (cells, k).
    distances
        1 - cosine, shape (cells, k).
    novelty
        Share of the reference's cells that are nearer to their neighbours than this one is to its own, shape (cells,).
    carried
        The columns.
    genes
        Genes matched and lost.
    """

    reference: Reference
    cell_names: np.ndarray
    embedding: np.ndarray
    numbers: np.ndarray
    distances: np.ndarray
    novelty: np.ndarray
    carried: list[CarriedColumn]
    genes: GeneReport

    def __len__(self) -> int:
        return len(self.numbers)

    def __str__(self) -> str:
        return self.summary()

    def columns(self) -> dict[str, Any]:
        """Return one value per cell: the carried columns, shares of neighbours, distance, novelty."""
        found: dict[str, Any] = {}
        for column in self.carried:
            found[column.name] = column.values if column.share is None else pd.Categorical(column.values)
            if column.share is not None:
                found[f"share_{column.name}"] = column.share
        return found | {"distance": self.distances.mean(axis=1), "novelty": self.novelty}

    def table(self) -> pd.DataFrame:
        """Return `columns` as a table, a row for each cell."""
        return pd.DataFrame(self.columns(), index=pd.Index([str(n) for n in self.cell_names], name="cell_id"))

    def similar(self) -> pd.DataFrame:
        """Return the similar cells of the reference: a row for each cell and neighbour, the nearest first."""
        known = np.flatnonzero(self.numbers[:, 0] >= 0)
        k, rows = self.numbers.shape[1], self.numbers[known].reshape(-1)
        columns: dict[str, Any] = {
            "cell_id": np.repeat(np.array([str(n) for n in self.cell_names], dtype=object)[known], k),
            "rank": np.tile(np.arange(1, k + 1), len(known)),
            "similar_cell": self.reference.names()[rows],
            "distance": self.distances[known].reshape(-1),
        }
        for column in self.carried:
            columns[f"similar_{column.name}"] = reference_values(self.reference, column.name)[rows]
        return pd.DataFrame(columns)

    def matrices(self) -> dict[str, np.ndarray]:
        """Return arrays with one row per cell: embedding, numbers of the nearest cells, distances."""
        return {
            f"X_{KEY}_mapping": self.embedding,
            f"{KEY}_mapping_neighbours": self.numbers,
            f"{KEY}_mapping_distances": self.distances,
        }

    def facts(self) -> dict[str, Any]:
        """Return what the cells were mapped to, as plain types."""
        return {
            "reference": self.reference.name,
            "model": self.reference.model.name,
            "metric": "cosine",
            "neighbours": self.numbers.shape[1],
            "columns": np.array([column.name for column in self.carried], dtype=object),
        }

    def summary(self) -> str:
        """Say how far the cells are from the reference, and which labels they got."""
        known = ~np.isnan(self.distances[:, 0])
        lines = [f"{self.numbers.shape[1]:,} nearest of {len(self.reference):,} cells of {self.reference.name}"]
        lines.append(self.genes.summary())
        if (~known).any():
            lines.append(f"{int((~known).sum()):,} cells express no gene of the model: they are not mapped")
        far = float((self.novelty[known] > FAR).mean()) if not np.isnan(self.novelty[known]).any() else 0.0
        told = f"{far:.0%} of the cells are further from the reference than {FAR:.0%} of its own cells from each other"
        if far > 0.5:
            lines.insert(0, f"most of these cells are unlike the reference: {told}")
        elif far:
            lines.append(told)
        labels = next((column for column in self.carried if column.share is not None), None)
        if labels is not None:
            lines.append(_counted(labels))
        return "\n".join(lines)


def carry_column(reference: Reference, name: str, numbers: np.ndarray, distances: np.ndarray) -> CarriedColumn:
    """Carry a column of the reference over to cells, by their nearest neighbours.

    Labels are voted with `vote_weights`; neighbours without a label do not vote, but count in the share. Of numbers
    the mean is taken.

    Parameters
    ----------
    numbers
        Nearest cells of the reference, the nearest first, -1 for cells without; shape (cells, k).
    distances
        To them, of the same shape.
    """
    mapped = numbers[:, 0] >= 0
    if reference.columns[name] == "numbers":
        return CarriedColumn(name, _means(reference.numbers(name), numbers, mapped))
    codes, labels = reference.labels(name)
    chosen = np.full(len(numbers), -1, dtype=np.int64)
    share = np.full(len(numbers), np.nan, dtype=np.float32)
    counts = np.bincount(codes[codes >= 0], minlength=len(labels))
    for start in range(0, len(numbers), CELLS_AT_ONCE):
        block = slice(start, start + CELLS_AT_ONCE)
        voters = np.where(numbers[block] >= 0, codes[numbers[block]], -1)
        chosen[block], share[block] = vote(voters, vote_weights(voters, distances[block], counts))
    share[~mapped] = np.nan
    return CarriedColumn(name, np.array([*labels, None], dtype=object)[chosen], share)


def vote_weights(voters: np.ndarray, distances: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the weight of each of the nearest cells in a vote: nearer cells and rarer labels count more.

    It is exp(-d), d the distance beyond the nearest cell, in means of these distances; divided by the root of the
    number of the reference's cells with the label. Labels of fewer than k cells count as k cells. Our choice, see
    docs/guides/mapping.md.

    Parameters
    ----------
    voters
        Label of each of the nearest cells, the nearest first, -1 for none; shape (cells, k).
    distances
        To them, of the same shape.
    counts
        Cells of the reference with each label, shape (labels,).

    Returns
    -------
    numpy.ndarray
        Of the shape of `voters`; 0 for cells without a label.
    """
    beyond = distances - distances[:, :1]
    near = np.exp(-beyond / np.maximum(beyond.mean(axis=1, keepdims=True), 1e-12))
    rare = np.append(1 / np.sqrt(np.maximum(counts, voters.shape[1])), 0.0)
    return np.nan_to_num(near) * rare[voters]


def vote(voters: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the label of the largest sum of weights, of equal sums that of the nearest cell.

    Parameters
    ----------
    voters
        Label of each of the nearest cells, the nearest first, -1 for none; shape (cells, k).
    weights
        Of the same shape.

    Returns
    -------
    chosen
        Label of each cell, -1 where no cell votes; shape (cells,).
    share
        Share of the nearest cells that have it, float32, shape (cells,).
    """
    equal = voters[:, :, None] == voters[:, None, :]
    votes = np.where(voters < 0, -1.0, np.einsum("cij,cj->ci", equal, weights))
    best = votes.argmax(axis=1)[:, None]
    chosen = np.take_along_axis(voters, best, 1)
    share = ((voters == chosen) & (voters >= 0)).sum(axis=1) / voters.shape[1]
    return chosen[:, 0], share.astype(np.float32)


def reference_values(reference: Reference, name: str) -> np.ndarray:
    """Read a column of the reference: numbers, or labels with None for missing ones; shape (cells,)."""
    if reference.columns[name] == "numbers":
        return reference.numbers(name)
    codes, labels = reference.labels(name)
    return np.array([*labels, None], dtype=object)[codes]


def choose_columns(reference: Reference, names: Sequence[str] | None) -> list[str]:
    """Return the columns to carry over: those that are named, by default the cell type and its ontology id.

    Raises
    ------
    ValueError
        If the reference lacks one, or none is named and it has no cell types; lists those that it has. Or if two
        results would have the same name.
    """
    chosen = list(dict.fromkeys(names)) if names else [name for name in DEFAULT_COLUMNS if name in reference.columns]
    if not chosen:
        raise ValueError(
            f"{reference.name} has no column 'cell_type': name the columns to carry over (--columns); it has "
            f"{', '.join(reference.columns) or 'none'}"
        )
    reference.check_columns(chosen)
    shares = [f"share_{name}" for name in chosen if reference.columns[name] == "labels"]
    results = [*chosen, *shares, "distance", "novelty"]
    if twice := sorted({name for name in results if results.count(name) > 1}):
        raise ValueError(f"two results would be called {', '.join(twice)}: map these columns in runs of their own")
    return chosen


def novelty_of(distances: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Return the share of the reference's cells that are nearer to their neighbours, float32, shape (cells,).

    Parameters
    ----------
    distances
        To the nearest cells of the reference, shape (cells, k); NaN for cells without.
    own
        Those of cells of the reference to other cells of it, shape (some, neighbours). The same number of neighbours
        is compared.
    """
    width = min(distances.shape[1], own.shape[1])
    if not len(own) or not width:
        return np.full(len(distances), np.nan, dtype=np.float32)
    usual, found = np.sort(own[:, :width].mean(axis=1)), distances[:, :width].mean(axis=1)
    shares = np.searchsorted(usual, found, side="left") / len(usual)
    return np.where(np.isnan(found), np.nan, shares).astype(np.float32)


def _means(values: np.ndarray, numbers: np.ndarray, mapped: np.ndarray) -> np.ndarray:
    found = values[numbers]
    known = np.isfinite(found)
    number = known.sum(axis=1)
    sums = np.where(known, found, 0).sum(axis=1)
    return np.where(mapped & (number > 0), sums / np.maximum(number, 1), np.nan)


def _counted(labels: CarriedColumn) -> str:
    """Return a table of the labels: number and share of cells, median share of the neighbours."""
    frame = pd.DataFrame({labels.name: labels.values, "share": labels.share}).dropna()
    counted = frame.groupby(labels.name)["share"].agg(["size", "median"]).sort_values("size", ascending=False)
    lines = [
        f"{label}: {int(row['size']):,} cells ({row['size'] / len(labels.values):.1%}), median share of neighbours "
        f"{row['median']:.2f}"
        for label, row in counted.head(SHOWN_LABELS).iterrows()
    ]
    if len(counted) > SHOWN_LABELS:
        lines.append(f"and {len(counted) - SHOWN_LABELS:,} more labels")
    if missing := len(labels.values) - len(frame):
        lines.append(f"no label: {missing:,} cells")
    return "\n".join(lines)


__all__ = ["CarriedColumn", "MappedCells", "carry_column", "choose_columns", "novelty_of", "vote", "vote_weights"]
