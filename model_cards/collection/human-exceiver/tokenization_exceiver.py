"""Exceiver's gene tokens: expressed genes with standardised expression."""

import os
from typing import Any

import numpy as np

from .count_matrix import CountRows
from .gene_encoding import GeneColumns, TokenRows, standardized_tokens
from .gene_vocabulary import GeneVocabulary
from .tokenization_gene_expression import GeneCoverageError, GeneExpressionTokenizer, statistics_by_token


# In a vocabulary's metadata, as "gene_order": the genes of the model's rows are not known.
UNPUBLISHED = "unpublished"


class ExceiverTokenizer(GeneExpressionTokenizer):
    """Tokenizer of Exceiver: the expressed genes of a cell by id, with their standardised expression.

    Counts on genes of the vocabulary are scaled to a total of `target_sum` in each cell. Their log1p is standardised
    with the gene's mean and standard deviation in the training corpus (1 instead of a deviation of 0), clipped above
    at `clip` and shifted by 1, so that average expression is 1. Source: Connell et al. 2022 and the released code;
    that standardises validation cells with their own statistics, our choice are training statistics for all cells.

    Ids: genes 0 to G-1, ``<pad>`` = G, ``<cls>`` (the class query) = G+1.

    Parameters
    ----------
    vocab_file, stats_file, vocabulary
        Genes with means and standard deviations, as files or as a vocabulary.
    target_sum, clip
        See above.
    min_coverage
        Least share of counts on genes of the vocabulary.
    pad_token, cls_token
        Padding and the class query, added after the genes if the vocabulary lacks them.

    Examples
    --------
    >>> batch = ExceiverTokenizer.from_vocabulary(vocabulary)(adata, return_tensors="pt")
    >>> sorted(batch)
    ['attention_mask', 'expression_values', 'input_ids']
    """

    model_input_names = ["input_ids", "expression_values", "attention_mask"]
    required_statistics = ("means", "stds")
    special_tokens_last = ("<pad>", "<cls>")

    def __init__(
        self,
        vocab_file: str | os.PathLike | None = None,
        stats_file: str | os.PathLike | None = None,
        *,
        vocabulary: GeneVocabulary | None = None,
        target_sum: float = 1e4,
        clip: float = 10.0,
        pad_token: str = "<pad>",
        cls_token: str = "<cls>",
        **kwargs: Any,
    ):
        self.target_sum = target_sum
        self.clip = clip
        super().__init__(
            vocab_file,
            stats_file,
            vocabulary=vocabulary,
            target_sum=target_sum,
            clip=clip,
            pad_token=pad_token,
            cls_token=cls_token,
            **kwargs,
        )

    @classmethod
    def number_tokens(cls, vocabulary: GeneVocabulary) -> GeneVocabulary:
        """Return the vocabulary with genes numbered from 0, then ``<pad>`` and ``<cls>``."""
        numbered = vocabulary.with_special_tokens(last=cls.special_tokens_last)
        return vocabulary if vocabulary.token_ids == numbered.token_ids else numbered

    @property
    def background_values(self) -> np.ndarray:
        """Value of each gene with a count of zero, min(-mean / std, clip) + 1, float32, shape (genes,)."""
        assert self.vocabulary.means is not None and self.vocabulary.stds is not None
        stds = np.where(self.vocabulary.stds == 0, 1.0, self.vocabulary.stds)
        return (np.minimum(-self.vocabulary.means / stds, self.clip) + 1.0).astype(np.float32)

    def gene_columns(self, counts: Any, gene_column: str | None = None) -> GeneColumns:
        """Find the genes of an opened matrix in the vocabulary, with their means and standard deviations.

        Raises
        ------
        GeneCoverageError
            If no gene matches, or the genes of a converted checkpoint were not published.
        """
        if self.vocabulary.metadata.get("gene_order") == UNPUBLISHED:
            raise GeneCoverageError(
                "cells cannot be tokenized for this model: the order of its genes, their means and standard "
                "deviations were not published with its checkpoint, so that its rows cannot be tied to genes"
            )
        columns = super().gene_columns(counts, gene_column)
        assert self.vocabulary.means is not None and self.vocabulary.stds is not None
        columns.means = statistics_by_token(self.vocabulary, self.vocabulary.means)
        stds = statistics_by_token(self.vocabulary, self.vocabulary.stds)
        columns.stds = np.where(stds == 0, 1.0, stds)
        return columns

    def _encode_block(self, rows: CountRows, columns: GeneColumns, max_length: int | None) -> TokenRows:
        tokens = standardized_tokens(rows, columns, target_sum=self.target_sum, clip=self.clip)
        longest = int(np.diff(tokens.indptr).max(initial=0))
        if max_length is not None and longest > max_length:
            raise ValueError(
                f"max_length={max_length:,}, and a cell expresses {longest:,} genes: ExceiverTokenizer returns all "
                "expressed genes of a cell and does not cut"
            )
        return tokens


__all__ = ["ExceiverTokenizer"]
