"""Tokens of some cells of a file, read in bounded memory, and the mean expression of genes in them."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from cellglot.evaluation.chosen_counts import ChosenCounts
from cellglot.modeling.perturbed_genes import DELETE, OVEREXPRESS, Change
from cellglot.tokenization.count_matrix import CountMatrix, CountRows
from cellglot.tokenization.gene_encoding import GeneColumns, TokenRows, row_sums
from cellglot.tokenization.gene_report import GeneReport
from cellglot.tokenization.tokenization_gene_expression import VALUES_READ_AHEAD, GeneExpressionTokenizer


TARGET_SUM = 1e4  # to which counts are scaled before their mean over cells
HIGH = 0.99  # quantile of the values of a gene that its overexpression sets in Exceiver


@dataclass
class CellTokens:
    """Reads the tokens of cells for a model.

    Parameters
    ----------
    tokenizer
        That of the model.
    counts
        The opened counts.
    columns
        The file's genes in the vocabulary, from the tokenizer.
    encoder_tokens
        Tokens that the encoder reads, if fewer than those of the tokenizer.
    """

    tokenizer: GeneExpressionTokenizer
    counts: CountMatrix
    columns: GeneColumns
    encoder_tokens: int | None = None

    @classmethod
    def open(
        cls,
        tokenizer: GeneExpressionTokenizer,
        counts: CountMatrix,
        gene_column: str | None,
        encoder_tokens: int | None = None,
    ) -> "CellTokens":
        """Find the genes of opened counts in the vocabulary of a tokenizer."""
        return cls(tokenizer, counts, tokenizer.gene_columns(counts, gene_column), encoder_tokens)

    @property
    def ranked(self) -> bool:
        """Whether tokens are in the order of expression."""
        return bool(self.tokenizer.order_matters)

    @property
    def first(self) -> int:
        """Number of special tokens before a cell's genes."""
        return int(self.tokenizer._first_token_id() is not None)

    def change(self, kind: str, values: Mapping[int, float] | None = None) -> Change:
        """Return what is done to genes, for `cellglot.modeling.perturbed_genes`."""
        return Change(kind, self.limit, values, self.first)

    @property
    def limit(self) -> int | None:
        """Most tokens of a cell that the encoder reads; None for tokens without an order."""
        if not self.ranked:
            return None
        return min(int(self.tokenizer.model_max_length), self.encoder_tokens or int(self.tokenizer.model_max_length))

    def rows(self, numbers: np.ndarray) -> Iterator[CountRows]:
        """Read the counts of some cells in chunks, in ascending order of their numbers."""
        for _, rows in ChosenCounts(self.counts, numbers).chunks(VALUES_READ_AHEAD):
            yield rows

    def cells(self, numbers: np.ndarray) -> Iterator[dict[str, torch.Tensor]]:
        """Tokenize some cells, one after the other: ``input_ids`` and, for Exceiver, ``expression_values``.

        Rank tokens have one gene more than the model reads, if the cell has it.
        """
        for encoded in self._encoded(numbers):
            bounds = encoded.indptr.tolist()
            for low, stop in zip(bounds, bounds[1:], strict=False):
                cell = {"input_ids": torch.from_numpy(encoded.tokens[low:stop].astype(np.int64))}
                if not self.ranked:
                    assert encoded.values is not None
                    cell["expression_values"] = torch.from_numpy(encoded.values[low:stop].copy())
                yield cell

    def _encoded(self, numbers: np.ndarray) -> Iterator[TokenRows]:
        length = None if self.limit is None else self.limit + 1
        for rows in self.rows(numbers):
            yield from self.tokenizer.encode_rows(rows, self.columns, length)


@dataclass
class Expression:
    """Expression of the vocabulary's genes in some cells, by token id.

    Parameters
    ----------
    means
        Mean of the counts scaled to a total of 10,000 in each cell, shape (vocabulary,).
    cells
        Number of cells that express the gene, shape (vocabulary,).
    measured
        Whether the file has the gene, shape (vocabulary,).
    """

    means: np.ndarray
    cells: np.ndarray
    measured: np.ndarray


def measure_expression(tokens: CellTokens, numbers: np.ndarray) -> Expression:
    """Compute mean expression in some cells."""
    size = tokens.tokenizer.vocab_size
    means, cells, measured = np.zeros(size), np.zeros(size, dtype=np.int64), np.zeros(size, dtype=bool)
    columns = tokens.columns
    measured[columns.token_ids[columns.known]] = True
    for chunk in tokens.rows(numbers):
        rows = columns.sum_duplicates(chunk)
        totals = row_sums(rows.data, rows.indptr)
        scaled = rows.data * np.repeat(TARGET_SUM / np.where(totals > 0, totals, 1.0), np.diff(rows.indptr))
        ids = columns.token_ids[rows.indices]
        kept = (ids >= 0) & (rows.data > 0)
        means += np.bincount(ids[kept], weights=scaled[kept], minlength=size)
        cells += np.bincount(ids[kept], minlength=size)
    return Expression(means / max(len(numbers), 1), cells, measured)


@dataclass
class Reading:
    """What a first pass over the tokens of the chosen cells found.

    Parameters
    ----------
    digest
        Of all tokens and values, so that an unfinished run is only resumed on the same cells.
    cells_without_genes
        Places, in the order of the cells, of those that express no gene of the model.
    copies
        Number of perturbed cells that there will be.
    values
        Token id -> high value of each gene, for the overexpression in Exceiver.
    report
        Of matched and lost genes.
    """

    digest: str
    cells_without_genes: np.ndarray
    copies: int
    values: dict[int, float] = field(default_factory=dict)
    report: GeneReport = field(default_factory=GeneReport)


def read_once(
    tokens: CellTokens, numbers: np.ndarray, genes: np.ndarray, kind: str, min_coverage: float | None
) -> Reading:
    """Read the tokens of the cells to perturb once: check that enough genes match, count the work.

    Parameters
    ----------
    numbers
        Of the cells.
    genes
        Token ids of the genes to perturb.

    Raises
    ------
    GeneCoverageError
        If too few counts are on genes of the model.
    """
    tokens.columns.forget()
    report, digest = tokens.columns.match.report(), hashlib.blake2b(digest_size=16)
    limit, wanted = tokens.change(kind).limit, np.zeros(tokens.tokenizer.vocab_size, dtype=bool)
    wanted[genes] = True
    empty, copies, first = [], 0, 0
    for encoded in tokens._encoded(numbers):
        tokens.tokenizer.count_cells(report, encoded)
        lengths = np.diff(encoded.indptr)
        if limit is not None:  # they have a token more than the model reads
            report.cells_cut += int(((lengths > limit) & (encoded.tokens_cut == 0)).sum())
            report.tokens_cut += int((lengths > limit).sum())
        for array in (encoded.tokens, encoded.indptr, encoded.values):
            digest.update(b"" if array is None else np.ascontiguousarray(array).data)
        empty.append(first + np.flatnonzero(lengths <= tokens.first))
        read = np.arange(len(encoded.tokens)) - np.repeat(encoded.indptr[:-1], lengths) < (
            limit or len(encoded.tokens)
        )
        alone = np.repeat(lengths <= tokens.first + 1, lengths)
        copies += int((wanted[encoded.tokens] & read & ~alone).sum())
        first += len(encoded)
    columns = tokens.columns
    report.counts, report.counts_covered = columns.counts_seen, columns.counts_seen - float(columns.counts_lost.sum())
    report.largest_losses = columns.largest_losses()
    report.counts_in, report.note = tokens.counts.described_location, tokens.counts.note
    report.left_out = dict(tokens.counts.left_out)
    tokens.tokenizer.check_coverage(report, min_coverage, tokens.counts)
    nothing = np.concatenate(empty) if empty else np.empty(0, dtype=np.int64)
    if kind == OVEREXPRESS:
        copies = (len(numbers) - len(nothing)) * len(genes)
    return Reading(digest.hexdigest(), nothing, copies, report=report)


def high_values(tokens: CellTokens, numbers: np.ndarray, genes: np.ndarray) -> dict[int, float]:
    """Return the 99% quantile of each gene's value over the cells that express it, for genes with such cells."""
    wanted = np.zeros(tokens.tokenizer.vocab_size, dtype=bool)
    wanted[genes] = True
    ids, values = [], []
    for encoded in tokens._encoded(numbers):
        assert encoded.values is not None
        kept = wanted[encoded.tokens]
        ids.append(encoded.tokens[kept])
        values.append(encoded.values[kept])
    every = np.concatenate(ids) if ids else np.empty(0, dtype=np.int32)
    order = np.argsort(every, kind="stable")
    found, starts = np.unique(every[order], return_index=True)
    pieces: list[Any] = np.split(np.concatenate(values)[order], starts[1:]) if len(found) else []
    return {int(gene): float(np.quantile(piece, HIGH)) for gene, piece in zip(found, pieces, strict=True)}


__all__ = [
    "DELETE", "OVEREXPRESS", "CellTokens", "Expression", "Reading", "high_values", "measure_expression", "read_once",
]  # fmt: skip
