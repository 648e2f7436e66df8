"""Expression of the cells of a corpus as sparse matrices, read from the tokens batch by batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy.sparse import csr_matrix

from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.corpus.sources import open_parquet, read_columns
from cellglot.tokenization.tokenization_gene_expression import GeneExpressionTokenizer


CELLS_AT_ONCE = 2048


@dataclass
class CorpusExpression:
    """The expression values of a corpus, genes in the order of token ids.

    Parameters
    ----------
    splits
        Splits of the corpus to read, in this order.
    wanted_for, otherwise
        For the error if there are no values: what needs them, and what else to do.
    """

    corpus: Corpus
    splits: Sequence[str] = ("train",)
    wanted_for: str = "this needs"
    otherwise: str = ""

    def __post_init__(self) -> None:
        self.tokenizer = self.corpus.tokenizer()
        vocabulary = self.tokenizer.vocabulary
        self.n_genes = len(vocabulary.genes)
        self._columns = np.full(vocabulary.vocab_size, -1, dtype=np.int64)
        self._columns[vocabulary.gene_token_ids] = np.arange(self.n_genes)

    @staticmethod
    def held_by(corpus: Corpus) -> bool:
        """Whether a corpus has expression values."""
        return "expression_values" in read_columns(corpus.shards("train")[0])

    def values(self, keep: np.ndarray | None = None) -> Iterator[csr_matrix]:
        """Yield the values as a model reads them, shape (cells, genes) each; genes without counts are not stored.

        Parameters
        ----------
        keep
            Whether to read each cell of the splits, shape (cells,); by default all.
        """
        first = 0
        for shard in (shard for split in self.splits for shard in self.corpus.shards(split)):
            file = open_parquet(shard)
            if "expression_values" not in file.schema_arrow.names:
                raise ValueError(
                    f"{self.corpus.folder} has no expression values, which {self.wanted_for}: tokenize with "
                    f"--option return_expression_values=true{self.otherwise}"
                )
            for batch in file.iter_batches(batch_size=CELLS_AT_ONCE, columns=["input_ids", "expression_values"]):
                ids, values = batch.column(0), batch.column(1)
                if keep is not None:
                    chosen = np.flatnonzero(keep[first : first + len(batch)])
                    ids, values = ids.take(chosen), values.take(chosen)
                first += len(batch)
                if len(ids):
                    yield self._matrix(ids, values)

    def logs(self, keep: np.ndarray | None = None) -> Iterator[csr_matrix]:
        """Yield log1p of scaled counts for any tokenizer; clipped values stay clipped. `keep` is as for `values`."""
        vocabulary = self.tokenizer.vocabulary
        for values in self.values(keep):
            if is_standardized(self.tokenizer):
                assert vocabulary.stds is not None and vocabulary.means is not None
                stds = np.where(vocabulary.stds == 0, 1.0, vocabulary.stds)
                values.data = (values.data - 1.0) * stds[values.indices] + vocabulary.means[values.indices]
            yield values

    def _matrix(self, ids: pa.ListArray, values: pa.ListArray) -> csr_matrix:
        """Return a matrix of some cells; special tokens have no column."""
        indptr = ids.offsets.to_numpy()
        part = slice(indptr[0], indptr[-1])
        genes = self._columns[ids.values.to_numpy()[part]]
        kept = genes >= 0
        ends = np.concatenate([[0], np.cumsum(kept)])[indptr - indptr[0]]
        data = values.values.to_numpy()[part].astype(np.float64)[kept]
        return csr_matrix((data, genes[kept], ends), shape=(len(ids), self.n_genes))


def is_standardized(tokenizer: GeneExpressionTokenizer) -> bool:
    """Whether expression values are standardised by each gene's mean and deviation, plus 1; else log1p of counts."""
    return "means" in tokenizer.required_statistics


__all__ = ["CorpusExpression", "is_standardized"]
