"""Rank-value gene tokens: the genes of a cell, ordered by expression relative to the corpus."""

import os
from typing import Any

from .count_matrix import CountRows
from .gene_encoding import GeneColumns, TokenRows, rank_tokens
from .gene_vocabulary import GeneVocabulary
from .tokenization_gene_expression import GeneExpressionTokenizer, check_choice, column_statistics


class RankValueTokenizer(GeneExpressionTokenizer):
    """Tokenizer of Geneformer, scCello and LangCell: the genes of a cell in the order of relative expression.

    Counts are divided by the cell's total and by the gene's non-zero median over the corpus. Genes are in descending
    order; ties have the smaller token id first (the released tokenizers use an unstable sort).

    Parameters
    ----------
    vocab_file, stats_file, vocabulary
        Genes with medians, as files or as a vocabulary.
    add_cls_token
        Put ``<cls>`` before the genes, as scCello's tokenizer does (LangCell's release does it in the collator).
    total
        The total of a cell: of ``"all"`` counts in the matrix (Geneformer, LangCell), or of those on genes of the
        ``"vocabulary"`` (scCello). It changes the values, but not the order of tokens.
    return_expression_values
        Return also ``expression_values``: log1p of counts scaled to `target_sum`, as scCello does; 0 for ``<cls>``.
    target_sum
        Total to which a cell's counts are scaled for these values.
    min_coverage
        Least share of counts on genes of the vocabulary.
    model_max_length
        Most tokens of a cell, including ``<cls>``; `last_report` counts the cells that are cut.
    pad_token, mask_token, cls_token
        Padding and mask, added before the genes, and ``<cls>``, added after them, if the vocabulary lacks them.

    Examples
    --------
    >>> tokenizer = RankValueTokenizer.from_vocabulary(vocabulary, total="vocabulary")
    >>> tokenizer(adata, return_tensors="pt")["input_ids"].shape
    torch.Size([700, 322])
    """

    required_statistics = ("medians",)
    order_matters = True
    special_tokens_first = ("<pad>", "<mask>")
    special_tokens_last = ("<cls>",)

    def __init__(
        self,
        vocab_file: str | os.PathLike | None = None,
        stats_file: str | os.PathLike | None = None,
        *,
        vocabulary: GeneVocabulary | None = None,
        add_cls_token: bool = True,
        total: str = "all",
        return_expression_values: bool = False,
        target_sum: float = 1e4,
        model_max_length: int = 2048,
        pad_token: str = "<pad>",
        mask_token: str = "<mask>",
        cls_token: str = "<cls>",
        **kwargs: Any,
    ):
        check_choice("total", total, ("all", "vocabulary"))
        self.add_cls_token = add_cls_token
        self.total = total
        self.return_expression_values = return_expression_values
        self.target_sum = target_sum
        super().__init__(
            vocab_file,
            stats_file,
            vocabulary=vocabulary,
            add_cls_token=add_cls_token,
            total=total,
            return_expression_values=return_expression_values,
            target_sum=target_sum,
            model_max_length=model_max_length,
            pad_token=pad_token,
            mask_token=mask_token,
            cls_token=cls_token,
            **kwargs,
        )

    def _first_token_id(self) -> int | None:
        return self.cls_token_id if self.add_cls_token else None

    def gene_columns(self, counts: Any, gene_column: str | None = None) -> GeneColumns:
        """Find the genes of an opened matrix in the vocabulary, and one over their medians."""
        columns = super().gene_columns(counts, gene_column)
        assert self.vocabulary.medians is not None
        columns.weights = column_statistics(columns, self.vocabulary, 1.0 / self.vocabulary.medians)
        return columns

    def _encode_block(self, rows: CountRows, columns: GeneColumns, max_length: int | None) -> TokenRows:
        length = self.model_max_length if max_length is None else max_length
        first = self._first_token_id()
        if length < (2 if first is not None else 1):
            raise ValueError(f"max_length={length} leaves no room for a gene")
        return rank_tokens(
            rows,
            columns,
            max_genes=length - (first is not None),
            cls_token_id=first,
            target_sum=self.target_sum if self.return_expression_values else None,
            total=self.total,
        )


__all__ = ["RankValueTokenizer"]
