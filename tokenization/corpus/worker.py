"""Work on a unit of a corpus, in any process: compute the statistics of its cells, or write its token shards."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from cellglot.outputs import check_environment, write_json
from cellglot.tokenization.corpus.concurrency import Behind, ahead
from cellglot.tokenization.corpus.count_cache import KeptCounts, small_rows
from cellglot.tokenization.corpus.gene_statistics import CorpusStatistics
from cellglot.tokenization.corpus.plan import (
    SPLITS,
    FileOptions,
    PlannedFile,
    Split,
    cell_groups,
    conversion_folder,
    open_planned,
)
from cellglot.tokenization.corpus.shards import ShardWriter, record_batch
from cellglot.tokenization.count_matrix import CountRows
from cellglot.tokenization.gene_encoding import GeneColumns
from cellglot.tokenization.gene_report import GeneReport
from cellglot.tokenization.gene_vocabulary import GeneVocabulary
from cellglot.tokenization.reading.cells import Cells
from cellglot.tokenization.reading.labels import carried_texts
from cellglot.tokenization.reading.matrices import READ_ERRORS
from cellglot.tokenization.tokenization_gene_expression import GeneCoverageError, GeneExpressionTokenizer


CHUNK_VALUES = 5 << 17
METADATA_CELLS = 1 << 13  # whose metadata are read at once: small reads are slow
CHUNKS_AHEAD = 3  # the times to read a chunk and to work on it vary
WRITES_BEHIND = 2  # a chunk waits while another is written, so that the thread is never idle


class BrokenFileError(Exception):
    """A file turned out to be broken while its cells were read.

    Parameters
    ----------
    name
        The file's name in the plan.
    more
        Other broken files -> what is wrong with them.
    """

    def __init__(self, name: str, reason: str, more: Mapping[str, str] | None = None):
        super().__init__(name, reason)
        self.name, self.reason, self.more = name, reason, dict(more or {})

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass
class Job:
    """What all units of a pass have in common.

    Parameters
    ----------
    work, output
        Folder of unfinished work, and of the result.
    vocabulary
        Folder of the catalogue of genes (statistics) or of the tokenizer (tokens).
    """

    files: list[PlannedFile]
    options: FileOptions
    split: Split
    columns: dict[str, str]
    work: str
    output: str
    vocabulary: str
    tokenizer_class: type[GeneExpressionTokenizer] | None = None


class _Metadata:
    """Metadata of a range of cells: the split of each cell (cells,), and for each split the columns of its shards."""

    def __init__(self, first: int, splits: np.ndarray, carried: dict[str, pa.Array]):
        self.first, self.stop, self.splits = first, first + len(splits), splits
        self._masks = {split: splits == split for split in SPLITS}
        self._before = {split: np.concatenate([[0], np.cumsum(mask)]) for split, mask in self._masks.items()}
        self._carried = {
            split: {name: column.filter(pa.array(mask)) for name, column in carried.items()}
            for split, mask in self._masks.items()
            if mask.any()
        }

    def of(self, split: str, start: int, stop: int) -> tuple[np.ndarray, dict[str, pa.Array]]:
        """Return which of cells `start` to `stop` belong to a split, and the columns of these."""
        start, stop = start - self.first, stop - self.first
        low, high = (int(self._before[split][place]) for place in (start, stop))
        carried = {name: column.slice(low, high - low) for name, column in self._carried.get(split, {}).items()}
        return self._masks[split][start:stop], carried


@dataclass
class _Cells:
    """Some cells of a file, for statistics: counts, the file's genes, and flags of the cells to count."""

    rows: CountRows
    columns: GeneColumns
    wanted: np.ndarray


@dataclass
class _SplitCells:
    """Some cells of a file, for tokens: the file's genes, and counts and metadata of each split."""

    columns: GeneColumns
    splits: dict[str, tuple[CountRows, dict[str, pa.Array]]]


class Worker:
    """Works on units of a job; keeps the last file open.

    Parameters
    ----------
    genes
        The job's catalogue of genes or its tokenizer; by default it is loaded from the job's folder.
    histogram
        Statistics whose histogram counts the values of all units; by default each unit returns its own histogram.
    units
        All units of this worker in order, if they are known: it then reads the first cells of a unit while it works
        on the last ones of the unit before.
    """

    def __init__(
        self,
        job: Job,
        genes: GeneVocabulary | GeneExpressionTokenizer | None = None,
        histogram: CorpusStatistics | None = None,
        units: Sequence[tuple[int, int, int]] | None = None,
    ):
        self.job = job
        self._prepare = self._to_count if job.tokenizer_class is None else self._to_encode
        self._stream = None if units is None else ahead(self._read_units(units), CHUNKS_AHEAD)
        self._behind, self._beside = Behind(WRITES_BEHIND), Behind(WRITES_BEHIND)
        self._shards: deque[ShardWriter] = deque(maxlen=2)  # of the current unit and the one that is being finished
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
        """Stop reading, wait for writes, delete incomplete shards, and close the open file."""
        if self._stream is not None:
            self._stream.close()
        self._behind.close()
        self._beside.close()
        self._discard()
        self._close_file()

    def _discard(self) -> None:
        """Wait for writes, and delete incomplete shards."""
        self._behind.wait()
        self._beside.wait()
        for shards in self._shards:
            shards.discard()

    def _close_file(self) -> None:
        if self._cells is not None:
            self._cells.close()
        self._cells, self._number = None, -1

    def _open(self, number: int) -> tuple[Cells, GeneColumns]:
        if number != self._number or self._cells is None or self._columns is None:
            self._close_file()
            file = self.job.files[number]
            folder = conversion_folder(Path(self.job.work), file.fingerprint)
            try:
                self._cells = open_planned(file.path, self.job.options, folder)
            except READ_ERRORS as error:
                check_environment(error)
                raise BrokenFileError(file.name, str(error)) from error
            counts = self._cells.counts
            if self.job.tokenizer_class is None:
                match = self.catalogue.resolve(counts.index, counts.columns, self.job.options.gene_column)
                self._columns = GeneColumns(match)
            else:
                from cellglot.tokenization.kernels import encoding as compiled_encoding

                try:
                    self._columns = self.tokenizer.gene_columns(counts, self.job.options.gene_column)
                except GeneCoverageError as error:  # a held-out file without any gene of the training cells
                    raise BrokenFileError(file.name, str(error)) from error
                self._columns.compiled = compiled_encoding
            self._number = number
        return self._cells, self._columns

    def _chunks(self, unit: tuple[int, int, int]) -> Iterator[Any]:
        """Read the cells of a unit in chunks, ahead of the work on them."""
        stream = ahead(self._read_units([unit]), CHUNKS_AHEAD) if self._stream is None else self._stream
        while (chunk := next(stream)) is not None:
            yield chunk

    def _read_units(self, units: Sequence[tuple[int, int, int]]) -> Iterator[Any]:
        """Yield units chunk by chunk, and None after each unit; errors name the file."""
        for number, start, stop in units:
            cells, columns = self._open(number)
            metadata: _Metadata | None = None
            try:
                for low, high in cells.counts.ranges(CHUNK_VALUES, start=start, stop=stop):
                    if metadata is None or high > metadata.stop:
                        metadata = self._metadata(number, low, max(high, min(low + METADATA_CELLS, stop)))
                    yield self._prepare(low, self._rows(number, low, high), metadata, columns)
            except READ_ERRORS as error:
                check_environment(error)
                raise BrokenFileError(self.job.files[number].name, f"cells {start:,} to {stop:,}: {error}") from error
            yield None

    def _rows(self, number: int, start: int, stop: int) -> CountRows:
        """Read the counts of some cells of the open file; the first pass keeps them for the second one."""
        assert self._cells is not None
        name = f"{number:06d}-{start:012d}-{stop:012d}"
        rows = None if self.job.tokenizer_class is None else self._kept.load(name)
        if rows is None:
            rows = small_rows(self._cells.counts, start, stop)
            if self.job.tokenizer_class is None:
                self._behind(self._kept.keep, name, rows)
        return rows

    def _to_count(self, first: int, rows: CountRows, metadata: _Metadata, columns: GeneColumns) -> _Cells:
        return _Cells(columns.sum_duplicates(rows), columns, metadata.of("train", first, first + len(rows))[0])

    def _to_encode(self, first: int, rows: CountRows, metadata: _Metadata, columns: GeneColumns) -> _SplitCells:
        splits = {split: metadata.of(split, first, first + len(rows)) for split in SPLITS}
        return _SplitCells(columns, {s: (_only(rows, mask), own) for s, (mask, own) in splits.items() if mask.any()})

    def _metadata(self, number: int, start: int, stop: int) -> _Metadata:
        """Read the metadata of some cells of the open file; for statistics, only their splits."""
        assert self._cells is not None
        counting, by_cell = self.job.tokenizer_class is None, self.job.split.by == "cell"
        if counting:
            groups_of = [] if by_cell else ["donor_id", "dataset_id"]
            metadata = self._cells.metadata(start, stop, only=groups_of, names=by_cell)
        else:
            metadata = self._cells.metadata(start, stop)
        groups, datasets = cell_groups(metadata, self.job.files[number].name)
        splits = self.job.split.assign(groups, metadata.index.to_numpy(dtype=object))
        carried = {} if counting else self._carried(start, metadata, datasets, splits)
        return _Metadata(start, splits, carried)

    def _carried(
        self, first: int, metadata: pd.DataFrame, datasets: np.ndarray, splits: np.ndarray
    ) -> dict[str, pa.Array]:
        """Return the columns of the shards."""
        assert self._cells is not None
        columns = {
            "cell_index": pa.array(self._cells.row_numbers(first, first + len(splits))),
            "split": pa.array(splits, pa.string()),
        }
        for name, kind in self.job.columns.items():
            if name == "cell_id":
                values = metadata.index.to_numpy(dtype=object)
            elif name == "dataset_id":
                values = datasets
            elif name in metadata:
                values = metadata[name].to_numpy()
            else:
                values = np.full(len(metadata), None, dtype=object)
            columns[name] = pa.array(values, pa.string()) if name == "cell_id" else _to_arrow(values, kind)
        return columns

    # ---------------------------------------------------------------- statistics

    def statistics(self, unit: tuple[int, int, int]) -> dict[str, np.ndarray]:
        """Return the statistics of a unit's training cells."""
        if self._statistics is None:
            self._statistics = CorpusStatistics(len(self.catalogue.genes), self._histogram)
        statistics = self._statistics
        for chunk in self._chunks(unit):
            rows = chunk.rows
            statistics.update(rows.data, rows.indices, rows.indptr, chunk.columns.token_ids, chunk.wanted)
        state = {name: array.copy() for name, array in statistics.state().items()}
        statistics.clear()
        return state

    # ---------------------------------------------------------------- tokens

    def tokens(self, unit: tuple[int, int, int], unit_number: int) -> dict[str, Any]:
        """Write the token shards of a unit and their record."""
        try:
            return self.start_tokens(unit, unit_number).result()
        except BaseException:
            self._discard()
            raise

    def start_tokens(self, unit: tuple[int, int, int], unit_number: int) -> "Future[dict[str, Any]]":
        """Do as `tokens`, but return while the last cells are still being written."""
        shards, writes = ShardWriter(Path(self.job.output) / "data", unit_number), list[Future]()
        self._shards.append(shards)
        record = self._encode(unit, shards, writes)
        return self._behind(self._finish, shards, writes, {"unit": unit_number, **record})

    def _encode(self, unit: tuple[int, int, int], shards: "ShardWriter", writes: list[Future]) -> dict[str, Any]:
        """Encode a unit's cells; two threads write training cells and others, and `writes` collects their futures."""
        lengths: dict[str, np.ndarray] = {split: np.zeros(1, dtype=np.int64) for split in SPLITS}
        report: GeneReport | None = None
        for chunk in self._chunks(unit):
            columns = chunk.columns
            if report is None:
                report = columns.match.report()
                columns.forget()
            for split, (rows, metadata) in chunk.splits.items():
                batches, first = list[pa.RecordBatch](), 0
                for encoded in self.tokenizer.encode_rows(rows, columns):
                    self.tokenizer.count_cells(report, encoded)
                    lengths[split] = _add(lengths[split], np.bincount(np.diff(encoded.indptr)))
                    own = {name: column.slice(first, len(encoded)) for name, column in metadata.items()}
                    batches.append(record_batch(encoded, own))
                    first += len(encoded)
                writer = self._behind if split == "train" else self._beside
                writes.append(writer(shards.add, split, batches))
        assert report is not None  # a unit has cells
        return {
            "file": unit[0],
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

    def _finish(self, shards: "ShardWriter", writes: list[Future], record: dict[str, Any]) -> dict[str, Any]:
        for write in writes:
            write.result()
        record["shards"] = shards.finish()
        write_json(Path(self.job.work) / "units" / f"{record['unit']:06d}.json", record, indent=None)
        return record


def _only(rows: CountRows, kept: np.ndarray) -> CountRows:
    """Keep some cells (at least one); runs of cells are copied at once."""
    if kept.all():
        return rows
    edges = np.flatnonzero(np.diff(kept, prepend=False, append=False))
    runs = [slice(low, high) for low, high in rows.indptr[edges].reshape(-1, 2).tolist()]
    indptr = np.concatenate([[0], np.cumsum(np.diff(rows.indptr)[kept])])
    return CountRows(
        np.concatenate([rows.data[run] for run in runs]), np.concatenate([rows.indices[run] for run in runs]), indptr
    )


def _add(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    longer, shorter = (a, b) if len(a) >= len(b) else (b, a)
    longer = longer.copy()
    longer[: len(shorter)] += shorter
    return longer


def _to_arrow(values: np.ndarray, kind: str) -> pa.Array:
    if kind == "string":
        return pa.array(carried_texts(values), pa.string())
    if kind == "bool":
        known = {"true": True, "false": False, "1": True, "0": False}
        return pa.array([None if v is None else known.get(str(v).lower()) for v in values], pa.bool_())
    return pa.array(values, pa.type_for_alias(kind), from_pandas=True)


# -------------------------------------------------------------------- processes

_of_thread = threading.local()


def work_on(job: Job, method: str, arguments: tuple[Any, ...]) -> Any:
    """Work on a unit of a job; the worker of this thread is kept for the next one."""
    worker: Worker | None = getattr(_of_thread, "worker", None)
    if worker is None or worker.job != job:
        if worker is not None:
            worker.close()
        worker = _of_thread.worker = Worker(job)
    function: Callable[..., Any] = getattr(worker, method)
    return function(*arguments)


__all__ = ["BrokenFileError", "Job", "Worker", "work_on"]
