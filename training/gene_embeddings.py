"""Gene embeddings that start from the co-expression of a corpus."""

import numpy as np
import pyarrow.parquet as pq
import torch
from scipy.sparse import csr_matrix, vstack
from scipy.sparse.linalg import LinearOperator, svds

from cellglot.tokenization.corpus import Corpus


MOST_CELLS = 20_000


def co_expression_vectors(corpus: Corpus, size: int, seed: int = 0, most_cells: int = MOST_CELLS) -> np.ndarray:
    """Give genes that are expressed together similar vectors, by a truncated SVD of standardised expression.

    The matrix of cells x genes is that of the tokens, with each gene's background where it has no counts; it is never
    made dense. Genes are its right singular vectors times singular values, scaled to a standard deviation of 1.

    Parameters
    ----------
    corpus
        Token Parquet with expression values.
    size
        Entries of a vector.
    seed
        Of the sample of cells and of the decomposition's start.
    most_cells
        Training cells to use at the most.

    Returns
    -------
    numpy.ndarray
        Shape (genes, size), float32, in the order of token ids.

    Raises
    ------
    ValueError
        If there are fewer cells or genes than entries.
    """
    tokenizer = corpus.tokenizer()
    background = tokenizer.background_values.astype(np.float64) - 1.0
    expressed = _sample(corpus, len(background), seed, most_cells)
    n_cells, n_genes = expressed.shape
    if min(n_cells, n_genes) <= size:
        raise ValueError(
            f"co-expression of {n_cells:,} cells and {n_genes:,} genes gives no vectors of {size}: choose smaller ones"
        )
    difference = expressed.copy()
    difference.data -= 1.0 + background[difference.indices]
    operator = LinearOperator(
        shape=(n_cells, n_genes),
        matvec=lambda x: difference @ x.ravel() + background @ x.ravel(),
        rmatvec=lambda y: difference.T @ y.ravel() + background * y.sum(),
        dtype=np.float64,
    )
    _, values, vectors = svds(operator, k=size, rng=np.random.default_rng(seed))
    order = np.argsort(-values)
    genes = vectors[order].T * values[order]
    signs = np.sign(genes[np.abs(genes).argmax(axis=0), np.arange(size)])
    return (genes * signs / genes.std()).astype(np.float32)


def _sample(corpus: Corpus, n_genes: int, seed: int, most_cells: int) -> csr_matrix:
    """Read standardised expression (+1) of some training cells, expressed genes alone."""
    share = min(1.0, most_cells / corpus.n_cells("train"))
    random = np.random.default_rng([seed, 1])
    parts = []
    for shard in corpus.shards("train"):
        file = pq.ParquetFile(shard)
        for batch in file.iter_batches(batch_size=2048, columns=["input_ids", "expression_values"]):
            chosen = np.flatnonzero(random.random(len(batch)) < share)
            if len(chosen):
                ids, values = (batch.column(c).take(chosen) for c in (0, 1))
                indptr = ids.offsets.to_numpy()
                part = slice(indptr[0], indptr[-1])
                data = values.values.to_numpy()[part].astype(np.float64)
                matrix = (data, ids.values.to_numpy()[part], indptr - indptr[0])
                parts.append(csr_matrix(matrix, shape=(len(chosen), n_genes)))
    return vstack(parts, format="csr")


def initialize_gene_embeddings(embedding: torch.nn.Embedding, corpus: Corpus, seed: int = 0) -> None:
    """Start the rows of an embedding from `co_expression_vectors`; special tokens stay as they are.

    Parameters
    ----------
    embedding
        Gene embedding of a model for the corpus's vocabulary.
    corpus
        The corpus.
    seed
        As for `co_expression_vectors`.
    """
    vectors = co_expression_vectors(corpus, embedding.embedding_dim, seed)
    ids = torch.from_numpy(corpus.tokenizer().vocabulary.gene_token_ids)
    with torch.no_grad():
        embedding.weight[ids] = torch.from_numpy(vectors).to(embedding.weight)


__all__ = ["co_expression_vectors", "initialize_gene_embeddings"]
