"""Similar cells within a reference: the nearest other cells of given cells."""

import difflib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from cellglot.evaluation.mapping.mapped import DEFAULT_COLUMNS, reference_values
from cellglot.evaluation.mapping.neighbours import QUERIES_AT_ONCE, exact_neighbours, without_self
from cellglot.evaluation.mapping.reference import Reference


SHOWN_IDS = 3
COMPARED_IDS = 20_000  # of a large reference, in the search for ids that are spelled alike


def similar_cells(
    reference: Reference, cells: Sequence[str], *, k: int = 15, columns: Sequence[str] | None = None
) -> pd.DataFrame:
    """Find the nearest other cells of cells of a reference, by cosine.

    Parameters
    ----------
    cells
        Ids, as `Reference.names` has them. Cells that share an id are all looked up.
    k
        Number of similar cells; all others if the reference has fewer.
    columns
        Columns of the reference to show; by default the cell type and its ontology id, where it has them.

    Returns
    -------
    DataFrame
        A row for each cell and similar cell, the nearest first: ``cell_id``, ``cell_number`` (in the reference),
        ``rank``, ``similar_cell``, ``similar_cell_number``, ``distance`` (1 - cosine), and for each column COLUMN
        (of the cell) and ``similar_COLUMN``.

    Raises
    ------
    ValueError
        If an id is unknown (names similar ids), a column does not exist, or there are no other cells.
    """
    if k < 1:
        raise ValueError(f"k {k}: it is 1 or more")
    if isinstance(cells, str) or not len(cells):
        raise ValueError(f"{cells!r}: a list with the id of at least one cell is needed")
    if len(reference) < 2:
        raise ValueError(f"{reference.name} has a single cell: there are no other cells")
    if columns is not None:
        reference.check_columns(columns)
    shown = DEFAULT_COLUMNS if columns is None else tuple(dict.fromkeys(columns))
    names = reference.names()
    rows = _rows(names, list(dict.fromkeys(str(cell) for cell in cells)), reference.name)
    wide = min(k + 1, len(reference))
    asked = np.asarray(reference.vectors[rows], dtype=np.float32)
    few = len(rows) <= QUERIES_AT_ONCE
    found = exact_neighbours(asked, reference.vectors, wide) if few else reference.search(asked, wide)
    numbers, distances = without_self(*found, rows)
    cell, similar = np.repeat(rows, wide - 1), numbers.reshape(-1)
    table = {
        "cell_id": names[cell],
        "cell_number": cell,
        "rank": np.tile(np.arange(1, wide), len(rows)),
        "similar_cell": names[similar],
        "similar_cell_number": similar,
        "distance": distances.reshape(-1),
    }
    for name in shown:
        if name in reference.columns:
            values = reference_values(reference, name)
            # a column of the reference may have the name of a result; the similar cells' one never has
            table |= {name: values[cell]} if name not in table else {}
            table[f"similar_{name}"] = values[similar]
    return pd.DataFrame(table)


def _rows(names: np.ndarray, cells: list[str], where: str) -> np.ndarray:
    """Return the numbers of cells, in the order of the ids; refuse unknown ids."""
    rows = np.flatnonzero(pd.Index(names).isin(cells))
    if unknown := [cell for cell in cells if cell not in set(names[rows])]:
        told = ", ".join(map(repr, unknown[:SHOWN_IDS])) + (", ..." if len(unknown) > SHOWN_IDS else "")
        close = _alike(unknown[0], names)
        hint = f"ids that are spelled alike: {', '.join(map(repr, close))}" if close else f"the first is {names[0]!r}"
        raise ValueError(f"{where} has no cell {told}; {hint}")
    order = {cell: place for place, cell in enumerate(cells)}
    return rows[np.argsort([order[name] for name in names[rows]], kind="stable")]


def _alike(asked: str, names: np.ndarray) -> list[str]:
    """Return ids that contain the one that is asked for or are spelled alike."""
    inside = [name for name in names if asked.lower() in name.lower()] if asked else []
    if inside:
        return sorted(inside, key=len)[:SHOWN_IDS]
    near = sorted(names, key=lambda name: abs(len(name) - len(asked)))[:COMPARED_IDS]
    return difflib.get_close_matches(asked, near, n=SHOWN_IDS)


__all__ = ["similar_cells"]
