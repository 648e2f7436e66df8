"""Counts that a visitor pastes as text: a table of genes x cells, or of cells x genes, or JSON of gene -> count."""

import csv
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix

from cellglot.inputs.errors import InputError


EXAMPLE = "gene\tcell 1\tcell 2\nCD3D\t4\t0\nCD79A\t0\t7\n"
LONGEST_SHOWN = 40


class PastedTableError(InputError):
    """A pasted text is not a table of counts; the message names the line."""


def read_pasted(text: str, known_genes: Callable[[Sequence[str]], int]) -> AnnData:
    """Read a pasted table.

    Parameters
    ----------
    text
        Fields are separated by tabs, commas, semicolons or spaces. The first column, and the first line of a table of
        several columns, are names.
    known_genes
        How many of some names are genes of the model: it decides whether genes are rows or columns.

    Returns
    -------
    AnnData
        Counts, cells x genes, as they were given; they are checked where cells are read.

    Raises
    ------
    PastedTableError
        If the text is not a table of numbers.
    """
    text = text.strip().removeprefix("\ufeff")
    if not text:
        raise PastedTableError("The table is empty: paste a line for each gene, its name first")
    if text[0] in "{[":
        return _from_json(text)
    rows = _rows(text)
    header = _header(rows)
    body = rows[1:] if header is not None else rows
    if not body:
        raise PastedTableError("The table has a first line only: paste a line for each gene, its name first")
    width = len(body[0][1])
    if width < 2:
        raise PastedTableError(
            f"Line {body[0][0]} has one field, {_shown(body[0][1][0])}: paste a gene and its counts, separated by "
            "tabs, commas or spaces"
        )
    names, values = [row[0].strip() for _, row in body], _numbers(body, width)
    others = (
        [f"cell {n}" for n in range(1, width)] if header is None else header[1:] if len(header) == width else header
    )
    if header is not None and known_genes(others) > known_genes(names):
        return _table(values, names, others)
    return _table(values.T, others, names)


def _rows(text: str) -> list[tuple[int, list[str]]]:
    """Split a text into (number of the line, fields)."""
    first = text.split("\n", 1)[0]
    delimiter = next((sign for sign in "\t,;" if sign in first), None)
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if delimiter is None:
        return [(number, line.split()) for number, line in lines]
    read = csv.reader([line for _, line in lines], delimiter=delimiter)
    return [(number, fields) for (number, _), fields in zip(lines, read, strict=False)]


def _header(rows: list[tuple[int, list[str]]]) -> list[str] | None:
    """Return the first line if it is one of names; it may be one field shorter than the others."""
    first = [field.strip() for field in rows[0][1]]
    longer = len(rows) > 1 and len(rows[1][1]) == len(first) + 1
    return first if longer or any(_number(field) is None for field in first[1:]) else None


def _numbers(rows: list[tuple[int, list[str]]], width: int) -> np.ndarray:
    values = np.empty((len(rows), width - 1))
    for place, (number, row) in enumerate(rows):
        if len(row) != width:
            raise PastedTableError(f"Line {number} has {len(row):,} fields, line {rows[0][0]} has {width:,}")
        for column, field in enumerate(row[1:]):
            value = _number(field)
            if value is None:
                raise PastedTableError(f"Line {number}, field {column + 2}: {_shown(field)} is not a number")
            values[place, column] = value
    return values


def _number(field: str) -> float | None:
    """Return a number; NaN for fields that say that it is missing, None for other texts."""
    text = field.strip()
    if text.lower() in ("nan", "na", "n/a", ""):
        return math.nan
    try:
        return float(text)
    except ValueError:
        return None


def _table(values: np.ndarray, cells: Sequence[str], genes: Sequence[str]) -> AnnData:
    obs, var = pd.DataFrame(index=_index(cells)), pd.DataFrame(index=_index(genes))
    return AnnData(csr_matrix(values.astype(np.float32)), obs=obs, var=var)


def _index(names: Sequence[str]) -> pd.Index:
    return pd.Index([str(name) for name in names], dtype=object)


def _from_json(text: str) -> AnnData:
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PastedTableError(f"The text begins as JSON, but is not: {error}") from error
    cells = given if isinstance(given, list) else [given]
    if not cells or not all(isinstance(cell, dict) and cell for cell in cells):
        raise PastedTableError('The JSON is not a cell, {"CD3D": 4, "CD79A": 0}, or a list of such cells')
    genes = list(dict.fromkeys(gene for cell in cells for gene in cell))
    place = {gene: number for number, gene in enumerate(genes)}
    values = np.zeros((len(cells), len(genes)))
    for row, cell in enumerate(cells):
        for gene, count in cell.items():
            values[row, place[gene]] = _json_number(row, gene, count)
    return _table(values, [f"cell {n}" for n in range(1, len(cells) + 1)], genes)


def _json_number(row: int, gene: str, count: Any) -> float:
    if isinstance(count, bool) or not isinstance(count, int | float):
        raise PastedTableError(f"Cell {row + 1}, {_shown(gene)}: {_shown(str(count))} is not a number")
    return float(count)


def _shown(text: str) -> str:
    return repr(text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]} ...")


__all__ = ["EXAMPLE", "PastedTableError", "read_pasted"]
