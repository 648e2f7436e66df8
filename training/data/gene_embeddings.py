"""Initial gene embeddings from the co-expression in a corpus."""

from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix, vstack
from scipy.sparse.linalg import LinearOperator, svds

from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.training.data.dataset import cells_with_genes
from cellglot.training.data.expression import CorpusExpression, is_standardized


MOST_CELLS = 20_000
MOST_DEVIATIONS = 10.0  # as Exceiver's tokenizer clips


def co_expression_vectors(
    corpus: Corpus, size: int, seed: int = 0, most_cells: int = MOST_CELLS, keep: np.ndarray | None = None
) -> np.ndarray:
    """Return a vector for each gene by a truncated SVD of standardised expression: co-expressed genes are similar.

    The matrix of cells x genes is that of the tokens, with the background of each gene if it has no counts; it is
    never made dense. The vectors are its right singular vectors times singular values, scaled to a standard deviation
    of 1.

    Parameters
    ----------
    corpus
        Corpus with expression values.
    most_cells
        Maximum number of training cells to use.
    keep
        Whether each training cell may be used, shape (training cells,); by default all.

    Returns
    -------
    numpy.ndarray
        Shape (genes, size), float32, in the order of token ids.
    """
    values = _sample(corpus, seed, most_cells, keep)
    n_cells, n_genes = values.shape
    if min(n_cells, n_genes) <= size:
        raise ValueError(
            f"{corpus.folder}: {n_cells:,} cells and {n_genes:,} genes are too few for gene embeddings of size {size} "
            "from co-expression: choose a smaller size, or set data.initialize_gene_embeddings=false"
        )
    expressed, background = _standardize(values, corpus.tokenizer())
    difference = expressed.copy()
    difference.data -= background[difference.indices]
    operator = LinearOperator(
        shape=(n_cells, n_genes),
        matvec=lambda x: difference @ x.ravel() + background @ x.ravel(),
        rmatvec=lambda y: difference.T @ y.ravel() + background * y.sum(),
        dtype=np.float64,
    )
    _, strengths, vectors = svds(operator, k=size, rng=np.random.default_rng(seed))
    order = np.argsort(-strengths)
    genes = vectors[order].T * strengths[order]
    signs = np.sign(genes[np.abs(genes).argmax(axis=0), np.arange(size)])
    return (genes * signs / genes.std()).astype(np.float32)


def _standardize(values: csr_matrix, tokenizer: Any) -> tuple[csr_matrix, np.ndarray]:
    """Return standardised expression of expressed genes, and that of genes without counts, shape (genes,)."""
    expressed = values.copy()
    if is_standardized(tokenizer):
        expressed.data -= 1.0
        return expressed, tokenizer.background_values.astype(np.float64) - 1.0
    means = np.asarray(values.mean(axis=0)).ravel()
    squares = np.asarray(values.multiply(values).mean(axis=0)).ravel()
    deviations = np.sqrt(np.maximum(squares - means**2, 0))
    deviations[deviations == 0] = 1.0
    scaled = (values.data - means[values.indices]) / deviations[values.indices]
    expressed.data = np.minimum(scaled, MOST_DEVIATIONS)
    return expressed, -means / deviations


def _sample(corpus: Corpus, seed: int, most_cells: int, keep: np.ndarray | None) -> csr_matrix:
    """Read the expression values of a sample of training cells, shape (cells, genes)."""
    n_cells, expressed = corpus.n_cells("train"), cells_with_genes(corpus, ["train"])
    if expressed is not None:
        keep = expressed if keep is None else keep & expressed
    share = min(1.0, most_cells / max(1, n_cells if keep is None else int(keep.sum())))
    drawn = np.random.default_rng([seed, 1]).random(n_cells) < share
    expression = CorpusExpression(
        corpus,
        wanted_for="initial gene embeddings need",
        otherwise=", or set data.initialize_gene_embeddings=false",
    )
    return vstack(list(expression.values(drawn if keep is None else drawn & keep)), format="csr")


def initialize_gene_embeddings(
    embedding: torch.nn.Embedding,
    corpus: Corpus,
    seed: int = 0,
    keep: np.ndarray | None = None,
    deviation: float = 1.0,
) -> None:
    """Set the rows of a gene embedding to `co_expression_vectors`; special tokens are not changed.

    If a model adds embeddings of ranks to those of genes, both need the same standard deviation: with larger gene
    embeddings the ranks have almost no weight after normalisation, and only the ranks carry expression.

    Parameters
    ----------
    embedding
        Gene embedding of a model with the vocabulary of the corpus.
    corpus, seed, keep
        As for `co_expression_vectors`.
    deviation
        Standard deviation of the vectors.
    """
    vectors = deviation * co_expression_vectors(corpus, embedding.embedding_dim, seed, keep=keep)
    ids = torch.from_numpy(corpus.tokenizer().vocabulary.gene_token_ids)
    with torch.no_grad():
        embedding.weight[ids] = torch.from_numpy(vectors).to(embedding.weight)


__all__ = ["co_expression_vectors", "initialize_gene_embeddings"]
