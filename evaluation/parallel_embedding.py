"""Embedding of the cells of a file by several processes: each embeds blocks of cells, the first writes the result.

Blocks are consecutive cells, whose number depends on the batch size only: the result does not depend on the number of
processes. Finished blocks are kept in ``OUTPUT.unfinished`` until the result is written, so that the same command
resumes a run that was stopped.
"""

import copy
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from cellglot.evaluation.embedding import default_device, stream_batches
from cellglot.evaluation.unfinished import UnfinishedRun
from cellglot.outputs import OutputError, atomic
from cellglot.progress import progress_bars
from cellglot.tokenization.count_matrix import CountMatrix, open_counts
from cellglot.tokenization.gene_encoding import GeneColumns
from cellglot.tokenization.gene_report import GeneReport
from cellglot.tokenization.token_batches import BATCHES_AHEAD


BLOCK_RUNS = 4  # runs of cells that are sorted by length together
LONGEST_WAIT = timedelta(days=7)  # of a process that is done for one that is not
SUMMED = ("cells", "cells_without_genes", "cells_cut", "tokens_cut")


class ProcessLostError(ValueError):
    """Another process of the run ended before its work was done."""


def number_of_processes() -> int:
    """Return the number of processes that a launcher (``torchrun``, ``accelerate launch``) started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


class _Blocks(UnfinishedRun):
    """Folder of the finished blocks, which the first process opens."""

    kind, record, parts = "embed", "embedding.json", "embeddings"


class SharedEmbedding:
    """Work of one process of several on the embedding of a file, as a context.

    Parameters
    ----------
    output
        File of the result; blocks are kept in ``OUTPUT.unfinished``.
    run
        What the embeddings depend on. Blocks of another run are refused.
    overwrite
        Delete blocks of another run.

    Attributes
    ----------
    is_first
        Whether this process writes the result.
    resumed_cells
        Number of cells that an earlier run embedded.

    Raises
    ------
    OutputError
        On entering, if there are blocks of another run, or the folder must not be written to.
    ProcessLostError
        If another process ended early.
    """

    def __init__(self, output: Path, run: Mapping[str, Any], overwrite: bool = False):
        self.output, self.folder = output, output.with_name(f"{output.name}.unfinished")
        self.rank, self.processes = int(os.environ.get("RANK", "0")), number_of_processes()
        self.is_first, self.resumed_cells = self.rank == 0, 0
        self._kept = _Blocks(run, self.folder, overwrite)
        self._entered = False

    def __enter__(self) -> "SharedEmbedding":
        dist.init_process_group("gloo", timeout=LONGEST_WAIT)
        failure: Exception | None = None
        if self.is_first:
            try:
                self._kept.__enter__()
                self._entered = True
            except Exception as error:  # noqa: BLE001 (the others wait for an answer)
                failure = error
        answer = [None if failure is None else str(failure)]
        self._with_others(lambda: dist.broadcast_object_list(answer))
        if answer[0] is not None:
            refused = failure if failure is not None else OutputError(answer[0])
            self.__exit__(type(refused), refused, None)
            raise refused
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self._entered:
            self._entered = False
            if error is None:
                self._kept.remove()
            self._kept.__exit__(kind, error, trace)
            if error is None:
                self._kept.remove_folder()
        if dist.is_initialized():
            dist.destroy_process_group()

    def _with_others(self, call: Any) -> None:
        try:
            call()
        except RuntimeError as error:
            raise ProcessLostError(
                f"another of the {self.processes} processes ended before its cells were embedded (its own message, if "
                f"there is one, says why), so {self.output} was not written. Finished blocks are kept in "
                f"{self.folder}: the same command resumes"
            ) from error

    # ---------------------------------------------------------------- the work

    def embed(
        self,
        model: Any,
        tokenizer: Any,
        cells: Any,
        report: GeneReport,
        *,
        batch_size: int = 64,
        device: str | torch.device | None = None,
        gene_column: str | None = None,
        min_coverage: float | None = None,
        progress: bool = True,
    ) -> np.ndarray | None:
        """Embed this process's share of the cells, and wait for the others.

        Parameters
        ----------
        model, tokenizer, cells, batch_size, device, gene_column, min_coverage, progress
            As for `cellglot.evaluation.embedding.run_batches`; by default process i of a machine takes GPU i.
        report
            Filled for all cells, in the first process.

        Returns
        -------
        numpy.ndarray or None
            Embeddings of all cells in their order, shape (cells, size), in the first process; else None.
        """
        counts = open_counts(cells)
        columns = tokenizer.gene_columns(counts, gene_column)
        blocks = list(_blocks(counts.n_cells, BLOCK_RUNS * BATCHES_AHEAD * batch_size))
        left = [number for number in range(len(blocks)) if self._load(number, blocks[number], columns) is None]
        self.resumed_cells = counts.n_cells - sum(stop - start for start, stop in (blocks[i] for i in left))
        self._with_others(dist.barrier)  # before a process adds blocks that another would find
        place = _own_device() if device is None else device
        own = np.array_split(np.array(left, dtype=np.int64), self.processes)[self.rank].tolist()
        bars = progress_bars(shown=progress and self.is_first)
        with bars:
            task = bars.add_task(
                f"process 1 of {self.processes}", total=sum(blocks[number][1] - blocks[number][0] for number in own)
            )
            for number in own:
                self._embed_block(model, tokenizer, counts, columns, number, blocks[number], batch_size, place)
                bars.advance(task, blocks[number][1] - blocks[number][0])
        self._with_others(dist.barrier)
        if not self.is_first:
            return None
        columns.forget()
        report.__dict__.update(columns.match.report().__dict__)
        embedding = self._together(blocks, columns, report)
        _finish(report, columns, counts)
        tokenizer.last_report = report
        tokenizer.check_coverage(report, min_coverage, counts)
        return embedding

    def _embed_block(
        self,
        model: Any,
        tokenizer: Any,
        counts: CountMatrix,
        columns: GeneColumns,
        number: int,
        cells: tuple[int, int],
        batch_size: int,
        place: str | torch.device,
    ) -> None:
        columns.forget()
        part, report, view = _with_columns(tokenizer, columns), GeneReport(), _view(counts, *cells)
        found: np.ndarray | None = None
        for _, rows, values in stream_batches(
            model, part, view, lambda batch: {"embedding": model(**batch)["pooler_output"]}, batch_size=batch_size,
            device=place, progress=False, report=report, min_coverage=0.0,
        ):  # fmt: skip
            if found is None:
                found = np.zeros((cells[1] - cells[0], values["embedding"].shape[1]), dtype=np.float32)
            found[rows] = values["embedding"]
        assert found is not None
        sums = np.array([asdict(report)[name] for name in SUMMED], dtype=np.int64)
        with atomic(self._path(number)) as temporary, open(temporary, "wb") as file:
            np.savez(
                file, embedding=found, counts_seen=np.float64(columns.counts_seen), counts_lost=columns.counts_lost,
                sums=sums,
            )  # fmt: skip

    def _together(self, blocks: list[tuple[int, int]], columns: GeneColumns, report: GeneReport) -> np.ndarray:
        """Join the blocks, and add their numbers to the report."""
        embedding: np.ndarray | None = None
        for number, (start, stop) in enumerate(blocks):
            block = self._load(number, (start, stop), columns)
            if block is None:
                raise ProcessLostError(f"{self._path(number)} is missing or damaged: run the same command again")
            if embedding is None:
                embedding = np.empty((blocks[-1][1], block["embedding"].shape[1]), dtype=np.float32)
            embedding[start:stop] = block["embedding"]
            columns.counts_seen += float(block["counts_seen"])
            columns.counts_lost += block["counts_lost"]
            for name, value in zip(SUMMED, block["sums"].tolist(), strict=True):
                setattr(report, name, getattr(report, name) + value)
        assert embedding is not None
        return embedding

    def _path(self, number: int) -> Path:
        return self.folder / f"block-{number:06d}.npz"

    def _load(self, number: int, cells: tuple[int, int], columns: GeneColumns) -> dict[str, np.ndarray] | None:
        """Read a finished block; None if there is none, or it is damaged."""
        try:
            with np.load(self._path(number), allow_pickle=False) as file:
                block = {name: file[name] for name in ("embedding", "counts_seen", "counts_lost", "sums")}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        whole = len(block["embedding"]) == cells[1] - cells[0] and block["counts_lost"].shape == columns.known.shape
        return block if whole else None


def _with_columns(tokenizer: Any, columns: GeneColumns) -> Any:
    """Return a tokenizer of one block, with the columns of the file, which are searched once."""
    own = copy.copy(tokenizer)
    own.gene_columns = lambda *_: columns
    return own


def _view(counts: CountMatrix, start: int, stop: int) -> CountMatrix:
    """Return the counts of some cells, as a matrix that is read in chunks."""
    view: Any = copy.copy(counts)

    def chunks(max_values: int = 1 << 22, max_cells: int = 1 << 14) -> Iterator[tuple[int, Any]]:
        for first, end in counts.ranges(max_values, max_cells, start, stop):
            yield first - start, counts.rows(first, end)

    view.chunks = chunks
    return view


def _finish(report: GeneReport, columns: GeneColumns, counts: CountMatrix) -> None:
    """Fill the entries of a report that are sums over all cells."""
    report.counts = columns.counts_seen
    report.counts_covered = columns.counts_seen - float(columns.counts_lost.sum())
    report.largest_losses = columns.largest_losses()
    report.counts_in = counts.described_location
    report.left_out, report.note = dict(counts.left_out), counts.note


def _blocks(n_cells: int, size: int) -> Iterator[tuple[int, int]]:
    yield from ((start, min(start + size, n_cells)) for start in range(0, n_cells, size))


def _own_device() -> torch.device:
    """Return the GPU of this process's number on its machine, or the default device."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return default_device()


__all__ = ["ProcessLostError", "SharedEmbedding", "number_of_processes"]
