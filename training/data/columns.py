"""Columns of a corpus: what is known of each cell beside its tokens."""

from collections.abc import Sequence
from typing import Any

from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.corpus.sources import read_columns, read_parquet


NOT_LABELS = ("input_ids", "expression_values", "expression_total", "clipped_counts", "length", "split")


def read_column(corpus: Corpus, splits: Sequence[str], column: str) -> list[Any]:
    """Read a column of the cells of some splits, one after the other."""
    values: list[Any] = []
    for shard in (shard for split in splits for shard in corpus.shards(split)):
        names = read_columns(shard)
        if column not in names:
            others = [n for n in names if n not in NOT_LABELS]
            raise ValueError(f"no column {column!r} in {corpus.folder}; there are {', '.join(others)}")
        values += read_parquet(shard, [column])[column].to_pylist()
    return values


__all__ = ["read_column"]
