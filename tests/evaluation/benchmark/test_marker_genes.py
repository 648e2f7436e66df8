import numpy as np
import pytest
import torch

from cellglot.evaluation.benchmark.marker_genes import draw_marker_sample, score_marker_genes
from cellglot.evaluation.benchmark.models import EvaluatedModel
from cellglot.evaluation.labelled_cells import open_labelled_cells
from cellglot.evaluation.scores.marker_table import markers_of
from cellglot.tokenization import CellOntology


TABLE = {"B cell": ["CD79A", "CD74", "MS4A1"], "NK cell": ["GNLY", "NKG7", "PRF1"], "moon cell": ["LYZ"]}


@pytest.fixture(scope="module")
def data(blood):
    return open_labelled_cells(blood)


@pytest.fixture(scope="module")
def sample(data):
    return draw_marker_sample(data, markers_of(data.classes(), TABLE, CellOntology.blood()), 30, seed=2)


def test_the_sample_is_seeded_and_of_types_with_markers(data, sample):
    again = draw_marker_sample(data, sample.markers, 30, seed=2)
    assert np.array_equal(sample.numbers, again.numbers) and len(set(sample.numbers)) == 30
    assert not np.array_equal(sample.numbers, draw_marker_sample(data, sample.markers, 30, seed=3).numbers)
    assert set(sample.labels) == {"CD19+ B", "CD56+ NK"}
    assert sample.labels == data.labels[sample.numbers].tolist() and sample.cells.n_obs == 30
    assert sample.facts()["sampled_cells"] == 30 and "CD34+" in sample.facts()["labels_without_markers"]
    assert len(draw_marker_sample(data, sample.markers, 10_000).numbers) == sample.eligible < 700
    with pytest.raises(ValueError, match="cells=0 must be at least 1"):
        draw_marker_sample(data, sample.markers, 0)


def test_aurocs_are_averaged_over_cells_and_types(sample):
    scores = [np.array([3.0, 2, 1])] * 30
    flags = [np.array([True, False, False]) if t == "CD19+ B" else np.array([0, 0, 1], bool) for t in sample.labels]
    flags[0] = np.zeros(3, dtype=bool)
    found = score_marker_genes(scores, flags, sample, draws=50)
    counted = sample.labels[1:]
    share = counted.count("CD19+ B") / len(counted)
    assert found.metrics["auroc"].value == pytest.approx(share)
    assert found.metrics["auroc_macro"].value == pytest.approx(0.5)
    assert found.metrics["auroc"].low < share < found.metrics["auroc"].high
    assert found.details["auroc_per_type"] == {"CD19+ B": 1.0, "CD56+ NK": 0.0}
    assert found.details["cells"] == 29 and found.details["cells_without_markers"] == 1


def test_no_cell_with_a_marker_is_undefined_and_says_so(sample):
    found = score_marker_genes([np.arange(3.0)] * 30, [np.zeros(3, dtype=bool)] * 30, sample, draws=5)
    assert found.metrics == {}
    assert found.undefined["auroc"] == "none of 30 cells has a marker and another gene"


def test_a_model_that_tells_markers_alone_apart_finds_them(data, sample, vocabulary):
    from cellglot.modeling import ScCelloConfig, ScCelloModel
    from cellglot.tokenization import RankValueTokenizer

    tokenizer = RankValueTokenizer.from_vocabulary(vocabulary)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = ScCelloConfig(vocab_size=tokenizer.vocab_size, num_cell_types=0, pooling="mean", **sizes)
    network = ScCelloModel(config).eval()
    known = [gene for genes in sample.markers.genes.values() for gene in genes]
    tokens = tokenizer.vocabulary.resolve(known).token_ids
    with torch.no_grad():  # all genes are alike, but for the markers
        network.embeddings.position_embeddings.weight.zero_()
        words = network.embeddings.word_embeddings.weight
        words[:] = torch.randn(16) + 0.01 * torch.randn_like(words)
        words[tokens] = torch.randn(16)
    few = draw_marker_sample(data, sample.markers, 10)
    model, seen = EvaluatedModel("tiny", network, tokenizer, device="cpu"), []
    scores, flags = model.gene_scores(few.cells, few.markers, few.labels, lambda: seen.append(1))
    assert len(seen) == 10 and [len(s) for s in scores] == [len(f) for f in flags]
    found = score_marker_genes(scores, flags, few, draws=20)
    assert found.metrics["auroc"].value > 0.8
    assert found.details["genes_scored"] == sum(map(len, scores))
