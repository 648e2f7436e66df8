"""Read Matrix Market files of counts, genes x cells: check them against their head, and convert them to rows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cellglot.tokenization.reading.bounded_text import bounded_lines, open_bounded
from cellglot.tokenization.reading.errors import CellFileError, reading
from cellglot.tokenization.reading.matrices import CONVERTED_VALUES, ConvertedRows


NUMBERS = ("integer", "real", "pattern", "unsigned-integer")
MOST_COMMENTS = 100_000
_SHORTEST_ENTRY = 4  # bytes: "1 1" and the end of the line
_STRONGEST_COMPRESSION = 1_100  # of deflate


@dataclass(frozen=True)
class MarketHead:
    """The head of a Matrix Market file.

    Parameters
    ----------
    lines
        Number of lines before the first entry.
    fields
        Number of fields of an entry: 3, or 2 (no value) for "pattern".
    """

    shape: tuple[int, int]
    entries: int
    lines: int
    fields: int


def market_to_rows(path: Path, shape: tuple[int, int], folder: Path | None = None) -> ConvertedRows:
    """Open a Matrix Market file of genes x cells, plain or gzipped, as rows of cells.

    Parameters
    ----------
    shape
        (cells, genes), counted in the files of barcodes and features.
    folder
        See `ConvertedRows`.
    """
    head = read_market_head(path)
    if head.shape not in (shape[::-1], shape):
        raise CellFileError(
            f"{path} is {head.shape[0]:,} x {head.shape[1]:,}, but there are {shape[1]:,} features and "
            f"{shape[0]:,} barcodes"
        )
    chunks = _chunk_reader(path, head)
    genes_first = head.shape == shape[::-1]

    def entries() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        seen = 0
        for rows, columns, values in chunks(CONVERTED_VALUES // 8):
            seen += len(rows)
            cells, genes = (columns, rows) if genes_first else (rows, columns)
            if not (cells.min() >= 0 and cells.max() < shape[0] and genes.min() >= 0 and genes.max() < shape[1]):
                raise CellFileError(f"{path} has an entry outside its {shape[1]:,} genes x {shape[0]:,} cells")
            yield cells, genes, values
        if seen != head.entries:
            raise CellFileError(
                f"{path} has {seen:,} entries, but its head declares {head.entries:,}: it may be cut short"
            )

    def sample(genes: np.ndarray | None = None) -> np.ndarray:
        for rows, columns, values in chunks(10_000):
            kept = values if genes is None else values[genes.take(rows if genes_first else columns, mode="clip")]
            if len(kept):
                return kept
        return np.zeros(0, dtype=np.int64)

    return ConvertedRows(shape, entries, sample, folder)


def _chunk_reader(
    path: Path, head: MarketHead
) -> Callable[[int], Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """Return a function that yields chunks of entries: rows and columns (from 0), and values."""
    names = ["row", "column", "value"][: head.fields]
    options: dict[str, Any] = {
        "sep": r"\s+", "header": None, "names": names, "dtype": {"row": np.int64, "column": np.int64},
        "skiprows": head.lines, "index_col": False, "encoding": "latin-1",
    }  # fmt: skip

    def chunks(length: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        seen = 0
        reader = None
        with open_bounded(path) as text:
            while True:
                with reading(path, f"after {seen:,} entries"):
                    try:
                        reader = reader or pd.read_csv(text, chunksize=length, **options)
                        chunk = next(reader, None)
                    except pd.errors.EmptyDataError:
                        return
                    if chunk is None or chunk.empty:
                        return
                    values = _values(chunk, path, seen)
                seen += len(chunk)
                yield chunk["row"].to_numpy() - 1, chunk["column"].to_numpy() - 1, values

    return chunks


def _values(chunk: pd.DataFrame, path: Path, seen: int) -> np.ndarray:
    if "value" not in chunk:
        return np.ones(len(chunk), dtype=np.int8)
    values = chunk["value"].to_numpy()
    if values.dtype.kind not in "iuf":
        raise CellFileError(f"{path} has values that are not numbers after {seen:,} entries")
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise CellFileError(f"{path} has entries without a value after {seen:,} entries")
    return values


def read_market_head(path: Path) -> MarketHead:
    """Read shape, number of entries and number of lines of a Matrix Market file's head."""
    with reading(path, "in its Matrix Market head"):
        lines = bounded_lines(path, "latin-1")
        first = next(lines, "")
        words = first.lower().split()
        if words[:3] != ["%%matrixmarket", "matrix", "coordinate"] or words[4:] != ["general"]:
            raise CellFileError(f"{path} is not a general coordinate Matrix Market file: it begins {first[:60]!r}")
        if words[3] not in NUMBERS:
            raise CellFileError(f"{path} contains {words[3]} numbers; supported are {', '.join(NUMBERS[:3])}")
        line, n_lines = _size_line(path, lines)
        head = _parsed(path, line, n_lines, 2 if words[3] == "pattern" else 3)
        entry = next((line for line in lines if line.strip()), None)
        if entry is not None and len(entry.split()) != head.fields:
            raise CellFileError(
                f"{path}: the first entry has {len(entry.split()):,} fields, not {head.fields}: {entry[:60]!r}"
            )
        lines.close()
        return head


def _size_line(path: Path, lines: Iterator[str]) -> tuple[str, int]:
    for number, line in enumerate(lines, start=2):
        if number > MOST_COMMENTS:
            break
        if not line.startswith("%") and line.strip():
            return line, number
    raise CellFileError(f"{path} has no readable Matrix Market head: no line with rows, columns and entries")


def _parsed(path: Path, line: str, n_lines: int, fields: int) -> MarketHead:
    try:
        rows, columns, entries = (int(n) for n in line.split())
    except ValueError as error:
        raise CellFileError(
            f"{path} has no readable Matrix Market head: found {line[:60]!r}, not rows, columns and entries"
        ) from error
    if min(rows, columns, entries) < 0:
        raise CellFileError(f"{path} declares {rows:,} x {columns:,} with {entries:,} entries: it is damaged")
    size = path.stat().st_size * (_STRONGEST_COMPRESSION if path.name.endswith(".gz") else 1)
    if entries * _SHORTEST_ENTRY > size + 1:
        raise CellFileError(f"{path} declares {entries:,} entries, too many for its size: it may be cut short")
    return MarketHead((rows, columns), entries, n_lines, fields)


__all__ = ["MarketHead", "market_to_rows", "read_market_head"]
