import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cellglot.training.data.gene_embeddings import co_expression_vectors, initialize_gene_embeddings


@pytest.fixture(scope="module")
def expression(corpus):
    """Standardised expression of the training cells, dense, shape (cells, genes)."""
    background = corpus.tokenizer().background_values
    rows = []
    for shard in corpus.shards("train"):
        for cell in pq.read_table(shard, columns=["input_ids", "expression_values"]).to_pylist():
            row = background.astype(np.float64).copy()
            row[cell["input_ids"]] = cell["expression_values"]
            rows.append(row - 1)
    return np.array(rows)


def test_vectors_are_the_singular_vectors_of_the_dense_matrix(corpus, expression):
    vectors = co_expression_vectors(corpus, 6)
    assert vectors.shape == (corpus.manifest["vocab_size"] - 2, 6) and vectors.dtype == np.float32
    assert vectors.std() == pytest.approx(1, rel=0.01)
    _, values, right = np.linalg.svd(expression, full_matrices=False)
    expected = right[:6].T * values[:6]
    expected *= np.sign((expected * vectors).sum(axis=0))
    assert np.allclose(vectors / np.linalg.norm(vectors), expected / np.linalg.norm(expected), atol=1e-5)


def test_genes_expressed_together_are_alike(corpus, expression):
    vectors = co_expression_vectors(corpus, 20)
    cosine = vectors @ vectors.T / np.outer(*[np.linalg.norm(vectors, axis=1)] * 2)
    upper = np.triu_indices(len(cosine), 1)
    correlation = np.corrcoef(expression.T)
    assert np.corrcoef(cosine[upper], correlation[upper])[0, 1] > 0.7


def test_vectors_depend_on_the_seed_of_the_sample_alone(corpus):
    few = [co_expression_vectors(corpus, 4, seed=seed, most_cells=200) for seed in (0, 0, 1)]
    assert np.array_equal(few[0], few[1])
    assert not np.allclose(few[0], few[2], atol=1e-3)


def test_more_entries_than_cells_are_refused(corpus):
    with pytest.raises(ValueError, match="too few for gene embeddings of size 600 .* choose a smaller size"):
        co_expression_vectors(corpus, 600)


def test_special_tokens_stay_as_they_are(corpus):
    size = corpus.manifest["vocab_size"]
    torch.manual_seed(0)
    embedding = torch.nn.Embedding(size, 4, padding_idx=size - 2)
    before = embedding.weight.detach().clone()
    initialize_gene_embeddings(embedding, corpus, seed=1)
    vectors = torch.from_numpy(co_expression_vectors(corpus, 4, seed=1))
    assert torch.equal(embedding.weight[: size - 2], vectors)
    assert torch.equal(embedding.weight[size - 2 :], before[size - 2 :])
    assert embedding.weight.requires_grad
    initialize_gene_embeddings(embedding, corpus, seed=1, deviation=0.02)
    assert torch.allclose(embedding.weight[: size - 2], 0.02 * vectors)
