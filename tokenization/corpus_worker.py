"""The work on one piece of a corpus: statistics of its cells, or its token shards. Runs in any process."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cellglot.tokenization.background import Behind, ahead
from cellglot.tokenization.cells import Cells
from cellglot.tokenization.corpus_plan import (
    SPLITS,
    FileOptions,
    PlannedFile,
    Split,
    cell_groups,
    conversion_folder,
    open_planned,
)
from cellglot.tokenization.corpus_statistics import CorpusStatistics
from cellglot.tokenization.count_matrix import CountRows
from cellglot.tokenization.gene_encoding import GeneColumns, join, row_sums
from cellglot.tokenization.gene_report import GeneReport
from cellglot.tokenization.gene_vocabulary import GeneVocabulary
from cellglot.tokenization.kept_counts import KeptCounts, in_smallest_types
from cellglot.tokenization.stored_matrix import READ_ERRORS
from cellglot.tokenization.tokenization_gene_expression import GeneExpressionTokenizer


CHUNK_VALUES = 3 << 19
CHUNKS_AHEAD = 3  # the time to read a chunk varies, and so does that to work on it
ROW_GROUP_CELLS = 1 << 11


class BrokenFileError(Exception):
    """A file turned out to be broken while its cells were read.

    Parameters
    ----------
    name
        The file's name in the plan.
    reason
        What is wrong with it.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass
class Job:
    """What every piece of work of a pass has in common.

    Parameters
    ----------
    files, options, split, columns
        From the plan.
    work, output
        Folder of unfinished work, and of the result.
    vocabulary
        Folder of the catalogue of genes (statistics) or of the tokenizer (tokens).
    tokenizer_class
        Class of the tokenizer.
    """

    files: list[PlannedFile]
    options: FileOptions
    split: Split
    columns: dict[str, str]
    work: str
    output: str
    vocabulary: str
    tokenizer_class: type[GeneExpressionTokenizer] | None = None


@dataclass
class _Chunk:
    """Some cells of a file: the first one's number, counts, metadata, and the file's genes."""

    first: int
    rows: CountRows
    metadata: pd.DataFrame
    columns: GeneColumns


class Worker:
    """Does pieces of work of a job, keeping the last file open.

    Parameters
    ----------
    job
        The job.
    genes
        The job's catalogue of genes or its tokenizer, where it is at hand.
    histogram
        Statistics whose histogram takes the values of all units in place; by default each unit gives its own.
    units
        All units that this worker will do, in order, where that is known: it then reads the next one's first cells
        while it works on the last ones of the one before.
    """

    def __init__(
        self,
        job: Job,
        genes: GeneVocabulary | GeneExpressionTokenizer | None = None,
        histogram: CorpusStatistics | None = None,
        units: Sequence[tuple[int, int, int]] | None = None,
    ):
        self.job = job
        self._stream = None if units is None else ahead(self._read_units(units), CHUNKS_AHEAD)
        self._kept = KeptCounts(Path(job.work) / "counts")
        self._number = -1
        self._cells: Cells | None = None
        self._columns: GeneColumns | None = None
        self._statistics: CorpusStatistics | None = None
        self._histogram = None if histogram is None else histogram.histogram
        if job.tokenizer_class is None:
            self.catalogue = genes if isinstance(genes, GeneVocabulary) else GeneVocabulary.load(job.vocabulary)
        else:
            ready = genes if isinstance(genes, GeneExpressionTokenizer) else None
            self.tokenizer = ready or job.tokenizer_class.from_pretrained(job.vocabulary)

    def close(self) -> None:
        """Stop reading, and close the file that is open."""
        if self._stream is not None:
            self._stream.close()
        self._close_file()

    def _close_file(self) -> None:
        if self._cells is not None:
            self._cells.close()
        self._cells, self._number = None, -1

    def _open(self, number: int) -> tuple[Cells, GeneColumns]:
        if number != self._number or self._cells is None or self._columns is None:
            self._close_file()
            file = self.job.files[number]
            folder = conversion_folder(Path(self.job.work), file.path)
            try:
                self._cells = open_planned(file.path, self.job.options, folder)
            except READ_ERRORS as error:
                raise BrokenFileError(file.name, str(error)) from error
            counts = self._cells.counts
            if self.job.tokenizer_class is None:
                match = self.catalogue.resolve(counts.index, counts.columns, self.job.options.gene_column)
                self._columns = GeneColumns(match)
            else:
                self._columns = self.tokenizer.gene_columns(counts, self.job.options.gene_column)
            self._number = number
        return self._cells, self._columns

    def _chunks(self, unit: tuple[int, int, int]) -> Iterator[_Chunk]:
        """Read the cells of a unit in chunks, ahead of the work on them."""
        stream = ahead(self._read_units([unit]), CHUNKS_AHEAD) if self._stream is None else self._stream
        while (chunk := next(stream)) is not None:
            yield chunk

    def _read_units(self, units: Sequence[tuple[int, int, int]]) -> Iterator[_Chunk | None]:
        """Read units chunk by chunk, None after each of them; what goes wrong is laid to the file."""
        for number, start, stop in units:
            cells, columns = self._open(number)
            try:
                for low, high in cells.counts.ranges(CHUNK_VALUES, start=start, stop=stop):
                    yield _Chunk(low, self._rows(number, low, high), cells.metadata(low, high), columns)
            except READ_ERRORS as error:
                raise BrokenFileError(self.job.files[number].name, f"cells {start:,} to {stop:,}: {error}") from error
            yield None

    def _rows(self, number: int, start: int, stop: int) -> CountRows:
        """Read the counts of some cells of the open file: the pass for statistics keeps them for that for tokens."""
        assert self._cells is not None
        name = f"{number:06d}-{start:012d}-{stop:012d}"
        rows = None if self.job.tokenizer_class is None else self._kept.load(name)
        if rows is None:
            rows = in_smallest_types(self._cells.counts.rows(start, stop))
            if self.job.tokenizer_class is None:
                self._kept.keep(name, rows)
        return rows

    def _splits(self, number: int, metadata: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        groups, datasets = cell_groups(metadata, self.job.files[number].name)
        return self.job.split.assign(groups, metadata.index.to_numpy(dtype=object)), datasets

    # ---------------------------------------------------------------- statistics

    def statistics(self, unit: tuple[int, int, int]) -> dict[str, np.ndarray]:
        """Give the statistics of a unit's training cells."""
        if self._statistics is None:
            self._statistics = CorpusStatistics(len(self.catalogue.genes), self._histogram)
        statistics = self._statistics
        for chunk in self._chunks(unit):
            splits, _ = self._splits(unit[0], chunk.metadata)
            rows = chunk.columns.sum_duplicates(_only(chunk.rows, splits == "train"))
            totals = None
            if not chunk.columns.known.all() or rows.data.min(initial=1) <= 0:
                totals = row_sums(rows.data, rows.indptr)
                rows = _positive_known(rows, chunk.columns.known)
            statistics.update(rows.data, rows.indices, rows.indptr, totals, chunk.columns.token_ids)
        state = {name: array.copy() for name, array in statistics.state().items()}
        statistics.clear()
        return state

    # ---------------------------------------------------------------- tokens

    def tokens(self, unit: tuple[int, int, int], unit_number: int) -> dict[str, Any]:
        """Write the token shards of a unit, and a record of what they hold."""
        lengths: dict[str, np.ndarray] = {split: np.zeros(1, dtype=np.int64) for split in SPLITS}
        report: GeneReport | None = None
        shards = _ShardWriter(Path(self.job.output) / "data", unit_number)
        with shards, Behind() as behind:
            for chunk in self._chunks(unit):
                columns = chunk.columns
                if report is None:
                    report = columns.match.report()
                    columns.forget()
                splits, datasets = self._splits(unit[0], chunk.metadata)
                encoded = join(list(self.tokenizer.encode_rows(chunk.rows, columns)))
                self.tokenizer.count_cells(report, encoded)
                carried = {"cell_index": pa.array(np.arange(chunk.first, chunk.first + len(encoded)))}
                carried |= self._metadata(chunk.metadata, datasets, splits)
                behind(shards.add, _record_batch(encoded, carried), splits)
                for split in SPLITS:
                    counted = np.bincount(np.diff(encoded.indptr)[splits == split], minlength=1)
                    lengths[split] = _add(lengths[split], counted)
        assert report is not None  # a unit has cells
        record = {
            "unit": unit_number,
            "file": unit[0],
            "shards": shards.written,
            "lengths": {s: {int(n): int(c) for n, c in enumerate(h) if c} for s, h in lengths.items() if h.any()},
            "report": {
                "cells": report.cells,
                "cells_without_genes": report.cells_without_genes,
                "cells_cut": report.cells_cut,
                "tokens_cut": report.tokens_cut,
            },
            "counts_seen": columns.counts_seen,
            "counts_lost": {int(i): float(columns.counts_lost[i]) for i in np.flatnonzero(columns.counts_lost)},
        }
        write_whole(Path(self.job.work) / "units" / f"{unit_number:06d}.json", json.dumps(record))
        return record

    def _metadata(self, metadata: pd.DataFrame, datasets: np.ndarray, splits: np.ndarray) -> dict[str, pa.Array]:
        columns = {"split": pa.array(splits, pa.string())}
        for name, kind in self.job.columns.items():
            if name == "cell_id":
                values = metadata.index.to_numpy(dtype=object)
            elif name == "dataset_id":
                values = datasets
            elif name in metadata:
                values = metadata[name].to_numpy()
            else:
                values = np.full(len(metadata), None, dtype=object)
            columns[name] = _to_arrow(values, kind)
        return columns


def _positive_known(rows: CountRows, known: np.ndarray) -> CountRows:
    """Keep positive counts on known genes."""
    kept_at = np.flatnonzero(known.take(rows.indices) & (rows.data > 0))
    return CountRows(rows.data.take(kept_at), rows.indices.take(kept_at), np.searchsorted(kept_at, rows.indptr))


def _only(rows: CountRows, kept: np.ndarray) -> CountRows:
    """Keep some cells."""
    if kept.all():
        return rows
    lengths = np.diff(rows.indptr)
    values = np.repeat(kept, lengths)
    indptr = np.concatenate([[0], np.cumsum(lengths[kept])])
    return CountRows(rows.data[values], rows.indices[values], indptr)


def _add(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    longer, shorter = (a, b) if len(a) >= len(b) else (b, a)
    longer = longer.copy()
    longer[: len(shorter)] += shorter
    return longer


def _to_arrow(values: np.ndarray, kind: str) -> pa.Array:
    if kind == "string":
        try:
            return pa.array(values, pa.string(), from_pandas=True)
        except (pa.ArrowTypeError, pa.ArrowInvalid):
            return pa.array([None if v is None or v != v else str(v) for v in values], pa.string())
    if kind == "bool":
        known = {"true": True, "false": False, "1": True, "0": False}
        return pa.array([None if v is None else known.get(str(v).lower()) for v in values], pa.bool_())
    return pa.array(values, pa.type_for_alias(kind), from_pandas=True)


def _record_batch(encoded: Any, metadata: dict[str, pa.Array]) -> pa.RecordBatch:
    offsets = pa.array(encoded.indptr.astype(np.int32))
    columns = {
        "input_ids": pa.ListArray.from_arrays(offsets, pa.array(encoded.tokens)),
        "length": pa.array(np.diff(encoded.indptr).astype(np.int32)),
    }
    if encoded.values is not None:
        columns["expression_values"] = pa.ListArray.from_arrays(offsets, pa.array(encoded.values))
        columns["expression_total"] = pa.array(encoded.totals)
    if encoded.clipped_counts is not None:
        clipped = pa.array(encoded.clipped_counts.astype(np.int64))
        columns["clipped_counts"] = pa.ListArray.from_arrays(
            pa.array(encoded.clipped_indptr.astype(np.int32)), clipped
        )
    return pa.RecordBatch.from_pydict(columns | metadata)


def _parquet_writer(path: str, schema: pa.Schema) -> pq.ParquetWriter:
    """Open a shard; token ids and expression values are stored byte by byte, which compresses better and faster.

    Readers of Parquet know that encoding for whole numbers since its format 2.11 (PyArrow 15, DuckDB 1.2).
    """
    lists = [name for name in ("input_ids", "expression_values") if name in schema.names]
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=[name for name in schema.names if name not in (*lists, "length", "cell_id", "cell_index")],
        write_statistics=[name for name in schema.names if name not in lists],
        column_encoding={f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in lists},
    )


class _ShardWriter:
    """Writes a unit's cells into one Parquet file a split; files get their names when all of them are whole."""

    def __init__(self, folder: Path, unit: int):
        self.folder, self.unit = folder, unit
        self.writers: dict[str, pq.ParquetWriter] = {}
        self.waiting: dict[str, list[pa.RecordBatch]] = {split: [] for split in SPLITS}
        self.cells: dict[str, int] = dict.fromkeys(SPLITS, 0)
        self.tokens: dict[str, int] = dict.fromkeys(SPLITS, 0)
        self.written: list[dict[str, Any]] = []

    def add(self, batch: pa.RecordBatch, splits: np.ndarray) -> None:
        for split in SPLITS:
            mask = splits == split
            if mask.any():
                part = batch if mask.all() else batch.take(pa.array(np.flatnonzero(mask)))
                self.waiting[split].append(part)
                self.cells[split] += len(part)
                self.tokens[split] += int(np.sum(part.column("length").to_numpy()))
                if sum(len(b) for b in self.waiting[split]) >= ROW_GROUP_CELLS:
                    self._flush(split, everything=False)

    def _path(self, split: str) -> Path:
        return self.folder / f"{split}-{self.unit:06d}.parquet"

    def _flush(self, split: str, everything: bool) -> None:
        table = pa.Table.from_batches(self.waiting[split])
        n = len(table) if everything else len(table) // ROW_GROUP_CELLS * ROW_GROUP_CELLS
        if split not in self.writers:
            self.writers[split] = _parquet_writer(str(_unfinished(self._path(split))), table.schema)
        self.writers[split].write_table(table.slice(0, n), row_group_size=ROW_GROUP_CELLS)
        rest = table.slice(n).combine_chunks()
        self.waiting[split] = rest.to_batches() if len(rest) else []

    def __enter__(self) -> "_ShardWriter":
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if error is None:
                self._finish()
        finally:
            for split, writer in self.writers.items():
                writer.close()
                _unfinished(self._path(split)).unlink(missing_ok=True)

    def _finish(self) -> None:
        for split in SPLITS:
            if self.waiting[split]:
                self._flush(split, everything=True)
        for split, writer in self.writers.items():
            writer.close()
            path = self._path(split)
            os.replace(_unfinished(path), path)
            self.written.append(
                {
                    "file": f"data/{path.name}",
                    "split": split,
                    "cells": self.cells[split],
                    "tokens": self.tokens[split],
                    "bytes": path.stat().st_size,
                }
            )


def _unfinished(path: Path) -> Path:
    """Give the name under which this process writes a file that is not whole yet."""
    return path.with_name(f"{path.name}.{os.getpid()}.tmp")


def write_whole(path: Path, text: str) -> None:
    """Write a file under a temporary name first, so that it is whole under its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _unfinished(path)
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


# -------------------------------------------------------------------- processes

_worker: Worker | None = None


def work_on(job: Job, method: str, arguments: tuple[Any, ...]) -> Any:
    """Do a piece of work of a job, whose worker stays for its next pieces."""
    global _worker
    if _worker is None or _worker.job != job:
        _worker = Worker(job)
    function: Callable[..., Any] = getattr(_worker, method)
    return function(*arguments)


__all__ = ["BrokenFileError", "Job", "Worker", "work_on", "write_whole"]
