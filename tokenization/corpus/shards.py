"""Write token shards: Parquet files of the cells of a unit, which are renamed when they are complete."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cellglot.inputs import digest_of
from cellglot.outputs.writing import temporary_name
from cellglot.tokenization.corpus.plan import SPLITS
from cellglot.tokenization.gene_encoding import TokenRows


ROW_GROUP_CELLS = 1 << 9  # at least, except at the end of a shard


def record_batch(encoded: TokenRows, metadata: dict[str, pa.Array]) -> pa.RecordBatch:
    """Return the rows of a shard: tokens of some cells and their metadata."""
    offsets = pa.array(encoded.indptr.astype(np.int32))
    columns = {
        "input_ids": pa.ListArray.from_arrays(offsets, pa.array(encoded.tokens)),
        "length": pa.array(np.diff(encoded.indptr).astype(np.int32)),
    }
    if encoded.values is not None:
        columns["expression_values"] = pa.ListArray.from_arrays(offsets, pa.array(encoded.values))
        columns["expression_total"] = pa.array(encoded.totals)
    if encoded.clipped_counts is not None and encoded.clipped_indptr is not None:
        clipped = pa.array(encoded.clipped_counts.astype(np.int64))
        columns["clipped_counts"] = pa.ListArray.from_arrays(
            pa.array(encoded.clipped_indptr.astype(np.int32)), clipped
        )
    return pa.RecordBatch.from_pydict(columns | metadata)


def open_shard(path: str, schema: pa.Schema) -> pq.ParquetWriter:
    """Open a shard; token ids and expression values are stored by byte streams, which compress better and faster.

    Readers of Parquet support that encoding for integers since format 2.11 (PyArrow 15, DuckDB 1.2). Expression
    values hardly compress, so they and their ids use LZ4, which is faster than zstd.
    """
    lists = [name for name in ("input_ids", "expression_values") if name in schema.names]
    plain = [*lists, "length", "cell_id", "cell_index"]
    leaves = {field.name: field.name + ".list.element" * pa.types.is_list(field.type) for field in schema}
    fast = lists if len(lists) == 2 else []
    zstd = [leaf for name, leaf in leaves.items() if name not in fast]
    return pq.ParquetWriter(
        path,
        schema,
        compression={leaf: "zstd" if leaf in zstd else "lz4" for leaf in leaves.values()},
        compression_level=dict.fromkeys(zstd, 1),
        use_dictionary=[name for name in schema.names if name not in plain],
        write_statistics=[name for name in schema.names if name not in lists],
        column_encoding={leaves[name]: "BYTE_STREAM_SPLIT" for name in lists},
        write_batch_size=1 << 16,
        data_page_size=1 << 18,  # stays in the processor's cache
    )


class ShardWriter:
    """Writes the cells of a unit into a Parquet file for each split; files are renamed when all are complete.

    Splits may be written by different threads.
    """

    def __init__(self, folder: Path, unit: int):
        self.folder, self.unit = folder, unit
        self.writers: dict[str, pq.ParquetWriter] = {}
        self._unfinished = {split: temporary_name(self._path(split)) for split in SPLITS}
        self.waiting: dict[str, list[pa.RecordBatch]] = {split: [] for split in SPLITS}
        self.cells: dict[str, int] = dict.fromkeys(SPLITS, 0)
        self.tokens: dict[str, int] = dict.fromkeys(SPLITS, 0)

    def add(self, split: str, batches: list[pa.RecordBatch]) -> None:
        """Add cells of a split."""
        self.waiting[split] += batches
        self.cells[split] += sum(len(batch) for batch in batches)
        self.tokens[split] += sum(int(np.sum(batch.column("length").to_numpy())) for batch in batches)
        if sum(len(b) for b in self.waiting[split]) >= ROW_GROUP_CELLS:
            self._flush(split)

    def _path(self, split: str) -> Path:
        return self.folder / f"{split}-{self.unit:06d}.parquet"

    def _flush(self, split: str) -> None:
        table = pa.Table.from_batches(self.waiting[split])
        if split not in self.writers:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.writers[split] = open_shard(str(self._unfinished[split]), table.schema)
        self.writers[split].write_table(table, row_group_size=4 * ROW_GROUP_CELLS)
        self.waiting[split] = []

    def finish(self) -> list[dict[str, Any]]:
        """Write the rest and rename the files; return a record of each."""
        written = []
        try:
            for split in SPLITS:
                if self.waiting[split]:
                    self._flush(split)
            for split in (s for s in SPLITS if s in self.writers):
                self.writers[split].close()
                path = self._path(split)
                digest = digest_of(self._unfinished[split])
                os.replace(self._unfinished[split], path)
                written.append(
                    {
                        "file": f"data/{path.name}",
                        "split": split,
                        "cells": self.cells[split],
                        "tokens": self.tokens[split],
                        "bytes": path.stat().st_size,
                        "digest": digest,
                    }
                )
        finally:
            self.discard()
        return written

    def discard(self) -> None:
        """Delete incomplete files."""
        for split, writer in self.writers.items():
            try:
                writer.close()
            finally:
                self._unfinished[split].unlink(missing_ok=True)


__all__ = ["ROW_GROUP_CELLS", "ShardWriter", "open_shard", "record_batch"]
