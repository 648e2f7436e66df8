import numpy as np
import pytest
import scipy.sparse as sp
import torch

from cellglot.evaluation.embedding import default_device, embed_cells, run_model
from cellglot.modeling import ExceiverForSequenceClassification, ExceiverModel
from cellglot.tokenization import ExceiverTokenizer, GeneCoverageError, read_cells
from cellglot.tokenization.gene_report import GeneReport


QUIET = {"progress": False, "device": "cpu"}


@pytest.fixture(scope="module")
def model(model_folders):
    return ExceiverModel.from_pretrained(model_folders["model"])


@pytest.fixture(scope="module")
def tokenizer(model_folders):
    return ExceiverTokenizer.from_pretrained(model_folders["model"])


@pytest.fixture(scope="module")
def expected(model, tokenizer, blood):
    """Embeddings of 60 cells, one cell at a time."""
    with torch.no_grad():
        each = [model(**tokenizer(blood[i], return_tensors="pt")).pooler_output for i in range(60)]
    return torch.cat(each).numpy()


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_embeddings_are_in_the_order_of_the_cells(model, tokenizer, blood, expected, batch_size):
    embedding = embed_cells(model, tokenizer, blood[:60], batch_size=batch_size, **QUIET)
    assert embedding.shape == (60, 48) and embedding.dtype == np.float32
    assert np.allclose(embedding, expected, atol=1e-5)
    distances = np.linalg.norm(embedding[:, None] - expected[None], axis=2)
    assert (distances.argmin(axis=1) == np.arange(60)).all()


def test_cells_come_from_files_and_matrices_too(model, tokenizer, blood, blood_file, expected):
    with read_cells(blood_file) as cells:
        embedding = embed_cells(model, tokenizer, cells, **QUIET)
    assert embedding.shape == (700, 48)
    assert np.allclose(embedding[:60], expected, atol=1e-5)
    matrix = blood.X[:60].tocsr()[:, ::-1]
    embedding = embed_cells(model, tokenizer, matrix, genes=list(blood.var_names[::-1]), **QUIET)
    assert np.allclose(embedding, expected, atol=1e-5)


def test_batches_hold_every_cell_once_with_little_padding(tokenizer, blood):
    seen, padding, report = [], 0, GeneReport()
    for numbers, batch in tokenizer.batches(blood, 8, report):
        assert len(numbers) == len(batch["input_ids"]) <= 8
        seen += numbers.tolist()
        padding += int((batch["attention_mask"] == 0).sum())
    assert sorted(seen) == list(range(700))
    assert padding < 0.1 * blood.X.nnz
    assert report.matched == 765 and report.coverage == 1.0


def test_a_field_of_the_output_is_given(model_folders, tokenizer, blood):
    classifier = ExceiverForSequenceClassification.from_pretrained(model_folders["classifier"])
    logits = run_model(classifier, tokenizer, blood[:20], "logits", batch_size=6, **QUIET)
    with torch.no_grad():
        truth = classifier(**tokenizer(blood[:20], return_tensors="pt")).logits.numpy()
    assert logits.shape == (20, 3)
    assert np.allclose(logits, truth, atol=1e-5)


def test_the_model_is_left_as_it_was(model, tokenizer, blood):
    model.train()
    with pytest.raises(KeyError):
        run_model(model, tokenizer, blood[:3], "no such field", **QUIET)
    assert model.training
    assert next(model.parameters()).requires_grad
    model.eval()
    embed_cells(model, tokenizer, blood[:3], **QUIET)
    assert not model.training
    assert default_device().type in ("cpu", "cuda", "mps")


def test_a_cell_without_counts_has_no_embedding_in_its_place(model, tokenizer, blood, expected):
    counts = blood.X[:6].tolil()
    counts[2] = 0
    genes = list(blood.var_names)
    embedding = embed_cells(model, tokenizer, sp.csr_matrix(counts), genes=genes, batch_size=4, **QUIET)
    assert np.isnan(embedding[2]).all()
    others = [0, 1, 3, 4, 5]
    assert np.allclose(embedding[others], expected[others], atol=1e-5)


def test_no_cells_are_an_error(model, tokenizer, blood):
    with pytest.raises(ValueError, match="is empty: 0 cells"):
        embed_cells(model, tokenizer, blood.X[:0], genes=list(blood.var_names), **QUIET)


def test_a_tokenizer_of_more_genes_is_refused(tokenizer, blood, exceiver_config):
    small = ExceiverModel(exceiver_config(num_attention_heads=4))
    with pytest.raises(ValueError, match="tokenizer has 767 ids, but the model's vocab_size is 42"):
        embed_cells(small, tokenizer, blood[:3], **QUIET)


def test_genes_that_do_not_match_are_an_error(model, tokenizer, blood):
    names = [f"other{i}" for i in range(600)] + list(blood.var_names[600:])
    with pytest.raises(GeneCoverageError, match="600 of 765"):
        embed_cells(model, tokenizer, blood.X[:9], genes=names, **QUIET)
