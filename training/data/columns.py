"""Columns of a corpus: what is known of each cell beside its tokens."""

from collections.abc import Sequence
from typing import Any

import pyarrow.parquet as pq

from cellglot.tokenization.corpus.corpus import Corpus


NOT_LABELS = ("input_ids", "expression_values", "expression_total", "clipped_counts", "length", "split")


def read_column(corpus: Corpus, splits: Sequence[str], column: str) -> list[Any]:
    """Read a column of the cells of some splits, one after the other."""
    values: list[Any] = []
    for shard in (shard for split in splits for shard in corpus.shards(split)):
        names = pq.read_schema(shard).names
        if column not in names:
            others = [n for n in names if n not in NOT_LABELS]
            raise ValueError(f"no column {column!r} in {corpus.folder}; there are {', '.join(others)}")
        values += pq.read_table(shard, columns=[column])[column].to_pylist()
    return values


__all__ = ["read_column"]
