"""Shuffle the cells of a corpus once, so that reading its shards one after the other is reading cells in any order."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cellglot.inputs import digest_of, read_json
from cellglot.outputs import write_json
from cellglot.tokenization.corpus.plan import SPLITS
from cellglot.tokenization.corpus.shards import ROW_GROUP_CELLS, open_shard


BUCKET_TOKENS = 1 << 25  # of the cells that are in memory at once, about
MOST_BUCKETS = 512  # files that are open at once
SHARD_CELLS = 1 << 14
DONE_FILE = "shuffled.json"


def shuffle_shards(output: Path, work: Path, shards: Sequence[Mapping[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Replace the shards of a corpus by shards with the same cells in an order drawn by the seed.

    The cells are dealt out to temporary files at random, and each of these is shuffled in memory. If it is stopped,
    the same call does the rest: old shards are deleted only when all new ones are complete.

    Parameters
    ----------
    output
        Folder of the corpus.
    work
        Folder for temporary files, about as large as the shards together, and for the new shards.
    shards
        Records of the shards, in order.

    Returns
    -------
    list of dict
        Records of the new shards.
    """
    folder = work / "shuffled"
    done = folder / DONE_FILE
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        made: list[dict[str, Any]] = []
        for split in SPLITS:
            own = [shard for shard in shards if shard["split"] == split]
            made += _shuffle_split(output, folder, split, own, seed) if own else []
        write_json(done, {"old": [shard["file"] for shard in shards], "new": made})
    return _put_in_place(output, folder)


def is_shuffled(work: Path) -> bool:
    """Whether the new shards of an unfinished run are complete; the old ones may be gone."""
    return (work / "shuffled" / DONE_FILE).exists()


def _put_in_place(output: Path, folder: Path) -> list[dict[str, Any]]:
    record = read_json(folder / DONE_FILE)
    new = [shard["file"] for shard in record["new"]]
    for name in new:
        moved = folder / Path(name).name
        if moved.exists():
            os.replace(moved, output / name)
    for name in set(record["old"]) - set(new):
        (output / name).unlink(missing_ok=True)
    return list(record["new"])


def _shuffle_split(
    output: Path, folder: Path, split: str, shards: Sequence[Mapping[str, Any]], seed: int
) -> list[dict[str, Any]]:
    tokens = sum(shard["tokens"] for shard in shards)
    number = min(MOST_BUCKETS, max(1, -(-tokens // BUCKET_TOKENS)))
    buckets = [folder / f"{split}-{n:06d}.arrow" for n in range(number)]
    stream = SPLITS.index(split)
    with ExitStack() as stack:
        writers: dict[int, pa.RecordBatchStreamWriter] = {}
        for n, table in enumerate(_tables(output, shards)):
            drawn = np.random.default_rng([seed, stream, 0, n]).integers(number, size=len(table))
            for bucket in np.unique(drawn).tolist():
                if bucket not in writers:
                    writers[bucket] = stack.enter_context(pa.ipc.new_stream(str(buckets[bucket]), table.schema))
                writers[bucket].write_table(table.take(np.flatnonzero(drawn == bucket)))
    made: list[dict[str, Any]] = []
    for bucket, path in enumerate(buckets):
        if not path.exists():
            continue
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
            table = reader.read_all()
            order = np.random.default_rng([seed, stream, 1, bucket]).permutation(len(table))
            for first in range(0, len(order), SHARD_CELLS):
                part = table.take(order[first : first + SHARD_CELLS])
                made.append(_write(folder / f"{split}-{len(made):06d}.parquet", split, part))
            del table
        path.unlink()
    return made


def _tables(output: Path, shards: Sequence[Mapping[str, Any]]) -> Iterator[pa.Table]:
    """Yield the cells of the shards, so many at once that not each is a piece of its own in a temporary file."""
    waiting: list[pa.Table] = []
    for shard in shards:
        with pq.ParquetFile(output / shard["file"]) as file:
            for group in range(file.num_row_groups):
                waiting.append(file.read_row_group(group))
                if sum(map(len, waiting)) >= SHARD_CELLS:
                    yield pa.concat_tables(waiting)
                    waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _write(path: Path, split: str, table: pa.Table) -> dict[str, Any]:
    with open_shard(str(path), table.schema) as writer:
        writer.write_table(table.combine_chunks(), row_group_size=2 * ROW_GROUP_CELLS)
    return {
        "file": f"data/{path.name}",
        "split": split,
        "cells": len(table),
        "tokens": int(np.sum(table["length"].to_numpy())),
        "bytes": path.stat().st_size,
        "digest": digest_of(path),
    }


__all__ = ["is_shuffled", "shuffle_shards"]
