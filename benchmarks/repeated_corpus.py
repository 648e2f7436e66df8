"""Large corpora of real tokens: the cells of a small corpus, repeated; for `streaming.py`."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from measure import DATA

from cellglot.tokenization import Corpus, tokenize_corpus


SOURCE = DATA / "labelled" / "pbmc_9samples_fine.h5ad"
SHARD_CELLS = 1 << 14  # as of a file that is tokenized


def small_corpus(folder: Path, source: Path = SOURCE, expression: bool = False) -> Path:
    """Tokenize the cells of a labelled file for scCello, all for training but a few; with expression values or not."""
    options = {"add_cls_token": True, "return_expression_values": expression}
    tokenize_corpus(
        [source], folder, tokenizer="rank-value", tokenizer_options=options, validation_fraction=0.02, progress=False
    )
    return folder


def repeat(
    small: Path, folder: Path, n_cells: int, order: str, group_cells: int = 1 << 9, different: int = 64
) -> Path:
    """Write a corpus of the training cells of a small one, repeated.

    Parameters
    ----------
    order
        ``"types"``: all cells of a type one after the other, the worst order for a reader; ``"shuffled"``: any order.
    group_cells
        Rows of a row group.
    different
        Number of shards that are written; others are links to them, which take no space.
    """
    corpus = Corpus.open(small)
    cells = pa.concat_tables([pq.read_table(shard) for shard in corpus.shards("train")])
    labels = np.array(cells["cell_type"].to_pylist())
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(small, folder)
    for shard in (folder / "data").glob("train-*"):
        shard.unlink()
    random = np.random.default_rng(0)
    rows = np.arange(n_cells) % len(cells)
    if order == "types":
        rows = rows[np.argsort(labels[rows], kind="stable")]
    manifest = json.loads((folder / "manifest.json").read_text())
    shards = [shard for shard in manifest["shards"] if shard["split"] != "train"]
    lengths = cells["length"].to_numpy()
    for number, first in enumerate(range(0, n_cells, SHARD_CELLS)):
        path = folder / "data" / f"train-{number:06d}.parquet"
        if number < different or n_cells - first < SHARD_CELLS:
            own = rows[first : first + SHARD_CELLS]
            own = random.permutation(own) if order == "shuffled" else own
            written = cells.take(own)
            pq.write_table(
                written,
                path,
                row_group_size=group_cells,
                compression="zstd",
                compression_level=1,
                use_dictionary=[c for c in written.column_names if c not in ("input_ids", "length", "cell_index")],
                column_encoding={"input_ids.list.element": "BYTE_STREAM_SPLIT"},
            )
            tokens = int(lengths[own].sum())
        else:
            os.link(folder / "data" / f"train-{number % different:06d}.parquet", path)
            own, tokens = rows[:SHARD_CELLS], shards[-different]["tokens"]
        shards.append({"file": f"data/{path.name}", "split": "train", "cells": len(own), "tokens": tokens,
                       "bytes": path.stat().st_size})  # fmt: skip
    manifest["shards"] = shards
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def drop_from_cache(folder: Path) -> None:
    """Drop the shards of a corpus from the page cache of the system."""
    for path in (folder / "data").glob("*.parquet"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
