"""Cells of token Parquet by number, and epochs in an order that depends only on the seed."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
from torch.utils.data import Dataset, Sampler

from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.corpus.sources import read_parquet
from cellglot.training.data.cell_values import TOKEN_COLUMNS, DamagedCellError, column_values, find_damage


def special_tokens(corpus: Corpus) -> int:
    """Return the number of tokens of each cell that are not genes."""
    path = corpus.tokenizer_folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return int(bool(settings.get("add_cls_token")))


def cells_with_genes(corpus: Corpus, splits: Sequence[str]) -> np.ndarray | None:
    """Return whether each cell of some splits expresses a gene of the vocabulary, shape (cells,); None if all do."""
    if not any(file["report"]["cells_without_genes"] for file in corpus.manifest["files"]):
        return None
    shards = [shard for split in splits for shard in corpus.shards(split)]
    lengths = [read_parquet(shard, ["length"])["length"].to_numpy() for shard in shards]
    expressed = np.concatenate(lengths) > special_tokens(corpus) if lengths else np.empty(0, dtype=bool)
    return None if expressed.all() else expressed


def median_length(corpus: Corpus) -> float:
    """Return the median number of tokens of the training cells that express a gene, 0 if none does."""
    if (expressed := cells_with_genes(corpus, ["train"])) is None:
        return float(corpus.manifest["median_length"])
    lengths = [read_parquet(shard, ["length"])["length"].to_numpy() for shard in corpus.shards("train")]
    return float(np.median(np.concatenate(lengths)[expressed])) if expressed.any() else 0.0


class CellDataset(Dataset):
    """Cells of one or more splits of a corpus, read from disk on access.

    Cells that express no gene of the vocabulary are left out; `without_genes` is their number. Tokens and values are
    checked when they are read (`DamagedCellError`).

    Keys are (epoch, cell) pairs from `EpochSampler`, or numbers of cells (epoch -1). The cell -1 is padding for the
    last batch; it has no tokens and no label.

    Parameters
    ----------
    corpus
        The corpus, from `cellglot.tokenize`.
    split
        ``"train"``, ``"validation"`` or ``"test"``, or a list of them.
    columns
        Columns to read in addition to the tokens.
    least_tokens
        Cells with fewer tokens are left out; `left_out` is their number, with those without genes.
    keep
        Whether to keep each cell of the splits, shape (cells,); `chosen` is the number of cells to keep.
    without_genes
        Number of cells without genes that `keep` already leaves out; added to `chosen`.

    Raises
    ------
    ValueError
        If there are no such cells, or none with enough tokens.
    """

    def __init__(
        self,
        corpus: Corpus,
        split: str | Sequence[str],
        columns: Sequence[str] = (),
        least_tokens: int = 0,
        keep: np.ndarray | None = None,
        without_genes: int = 0,
    ):
        splits = [split] if isinstance(split, str) else list(split)
        name = "_".join(splits)
        shards = [shard for part in splits for shard in corpus.shards(part)]
        if not shards:
            raise ValueError(f"{corpus.folder} has no {' and '.join(splits)} cells")
        self.shards, self.vocab_size = shards, int(corpus.manifest["vocab_size"])
        table = _read_shards(shards, name)
        lengths = table.with_format("numpy", columns=["length"])[:]["length"]
        kept = np.ones(len(lengths), dtype=bool) if keep is None else keep
        with_genes = lengths > special_tokens(corpus)
        long_enough = (lengths >= least_tokens) & with_genes
        self.chosen = int(kept.sum()) + without_genes
        self.without_genes = int((kept & ~with_genes).sum()) + without_genes
        self.left_out = int((kept & ~long_enough).sum()) + without_genes
        self.rows = np.flatnonzero(kept & long_enough)
        self.lengths = lengths[self.rows].astype(np.int64)
        tokens = [c for c in TOKEN_COLUMNS if c in table.column_names]
        self.columns = list(columns)
        self.table = table.select_columns(tokens + self.columns).with_format("arrow")
        self.token_columns = tokens
        if not len(self.rows):
            wanted = f"has {least_tokens:,} tokens or more" if least_tokens > 1 else "expresses a gene"
            empty = f"; {self.without_genes:,} of {self.chosen:,} express no gene of the vocabulary"
            raise ValueError(
                f"no {' or '.join(splits)} cell of {corpus.folder} {wanted}{empty if self.without_genes else ''}"
            )

    def __len__(self) -> int:
        """Return the number of cells."""
        return len(self.rows)

    def __getitem__(self, key: Any) -> dict[str, Any]:
        """Read one cell."""
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Any]) -> list[dict[str, Any]]:
        """Read some cells at once."""
        pairs = [key if isinstance(key, tuple) else (-1, key) for key in keys]
        cells = np.array([cell for _, cell in pairs])
        present = cells >= 0
        examples: list[dict[str, Any]] = [
            {"epoch": epoch, "cell": int(cell), **{c: np.empty(0) for c in self.token_columns}}
            for epoch, cell in pairs
        ]
        if present.any():
            numbers = self.rows[cells[present]]
            rows = self.table[numbers.tolist()]
            read = [column_values(rows.column(c)) for c in self.token_columns + self.columns]
            self._check(dict(zip(self.token_columns, read, strict=False)), numbers)
            for at, *values in zip(np.flatnonzero(present), *read, strict=True):
                examples[at].update(zip(self.token_columns + self.columns, values, strict=True))
        return examples

    def _check(self, tokens: dict[str, list[Any]], rows: np.ndarray) -> None:
        """Refuse token ids beyond the vocabulary, and values that are not finite or do not match the tokens."""
        found = find_damage(tokens, self.vocab_size)
        if found is None:
            return
        row = int(rows[found[0]])
        for shard in self.shards:
            cells = pq.read_metadata(shard).num_rows
            if row < cells:
                raise DamagedCellError(
                    f"{shard}, row {row:,}: {found[1]}. The corpus is damaged: run cellglot tokenize --overwrite"
                )
            row -= cells

    def count_longer(self, most_tokens: int) -> int:
        """Count the cells with more tokens."""
        return int((self.lengths > most_tokens).sum())

    def column(self, name: str) -> list[Any]:
        """Read a column of all cells."""
        values = self.table.select_columns([name]).with_format(None)[name]
        return [values[int(row)] for row in self.rows]


def _read_shards(shards: Sequence[str], split: str) -> datasets.Dataset:
    """Open Parquet shards with `datasets`, without its progress bars."""
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset("parquet", data_files={split: list(shards)}, split=split)
    finally:
        if shown:
            datasets.enable_progress_bars()


class EpochSampler(Sampler):
    """Yields each cell once an epoch, in batches of similar length that do not depend on the number of processes.

    A batch is all cells of one step, over all processes. The last one is padded with the cell -1: all processes have
    the same number of batches, and no cell is seen twice.

    Parameters
    ----------
    lengths
        Number of tokens of each cell.
    batch_size
        Number of cells in one step, over all processes.
    seed
        Seed of the order.
    shuffle
        Draw a new order in each epoch.
    pool
        Number of batches whose cells are sorted by length; 1 keeps the drawn order.
    weights
        Chance of each cell to be drawn, up to a factor, shape (cells,): an epoch has the same number of cells, drawn
        with replacement. By default each cell is seen once.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        pool: int = 50,
        weights: np.ndarray | None = None,
    ):
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.shuffle, self.pool, self.weights = shuffle, pool, weights
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next order."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of cells, including padding."""
        return -(-len(self.lengths) // self.batch_size) * self.batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield (epoch, cell) pairs."""
        order = np.arange(len(self.lengths))
        if self.shuffle:
            random = np.random.default_rng([self.seed, self.epoch])
            if self.weights is None:
                order = random.permutation(order)
            else:
                order = random.choice(len(order), len(order), p=self.weights / self.weights.sum())
            size = self.batch_size * self.pool
            pools = [order[i : i + size] for i in range(0, len(order), size)]
            order = np.concatenate([p[np.argsort(-self.lengths[p], kind="stable")] for p in pools])
            batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
            full = [b for b in batches if len(b) == self.batch_size]
            rest = [b for b in batches if len(b) < self.batch_size]
            order = np.concatenate([*(full[i] for i in random.permutation(len(full))), *rest])
        for cell in order.tolist():
            yield self.epoch, cell
        for _ in range(len(self) - len(order)):
            yield self.epoch, -1


__all__ = ["CellDataset", "DamagedCellError", "EpochSampler", "cells_with_genes", "median_length", "special_tokens"]
