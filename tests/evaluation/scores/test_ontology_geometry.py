import numpy as np
import pytest

from cellglot.evaluation import plots
from cellglot.evaluation.scores.ontology_agreement import ontology_geometry
from cellglot.tokenization import CellOntology


NAMES = [
    "B cell",
    "CD8-positive, alpha-beta T cell",
    "CD4-positive, alpha-beta T cell",
    "monocyte",
    "natural killer cell",
]


@pytest.fixture(scope="module")
def ontology():
    return CellOntology.blood()


@pytest.fixture(scope="module")
def types(ontology):
    return [t for t in ontology.resolve(NAMES).cell_types if t is not None]


def cells_of(similarity, n_each=12, noise=0.0):
    """Cells whose centroids have cosines that grow with the similarity."""
    values, vectors = np.linalg.eigh(similarity)
    centroids = vectors * np.sqrt(np.maximum(values, 0))
    random = np.random.default_rng(0)
    cells = np.repeat(centroids, n_each, axis=0)
    return cells + noise * random.normal(size=cells.shape)


def test_embeddings_made_from_the_ontology_agree_with_it(ontology, types):
    assert len(types) == 5
    similarity = ontology.similarity(types)
    both = (similarity + similarity.T) / 2
    scale = 1 / np.sqrt(np.diag(both))
    ranks = both * scale[:, None] * scale[None, :]
    embedding = cells_of(both)
    geometry = ontology_geometry(embedding, np.repeat(types, 12).tolist(), ontology)
    pairs = np.triu_indices(5, k=1)
    assert geometry.cell_types == sorted(types) and geometry.n_cells == [12] * 5
    order = [types.index(t) for t in geometry.cell_types]
    assert np.allclose(geometry.cosine, ranks[np.ix_(order, order)][pairs], atol=1e-9)
    assert np.allclose(geometry.ontology_similarity, both[np.ix_(order, order)][pairs])
    assert geometry.spearman > 0.8 and geometry.interval == pytest.approx((geometry.spearman, geometry.spearman))


def test_random_embeddings_do_not(ontology, types):
    random = np.random.default_rng(1)
    geometry = ontology_geometry(random.normal(size=(60, 8)), np.repeat(types, 12).tolist(), ontology)
    assert geometry.interval[0] <= geometry.spearman <= geometry.interval[1] or geometry.interval[0] < 0.3
    assert geometry.interval[1] - geometry.interval[0] > 0.2


def test_cells_without_type_are_counted_and_left_out(ontology, types):
    labels = [*np.repeat(types, 3).tolist(), None, None]
    random = np.random.default_rng(2)
    embedding = random.normal(size=(17, 4))
    geometry = ontology_geometry(embedding, labels, ontology)
    assert geometry.cells_without_type == 2
    assert np.allclose(geometry.cosine, ontology_geometry(embedding[:15], labels[:15], ontology).cosine)


def test_two_types_cannot_be_ranked(ontology, types):
    with pytest.raises(ValueError, match="at least three are needed"):
        ontology_geometry(np.ones((4, 2)), [types[0], types[0], types[1], None], ontology)


def test_picture(ontology, types, tmp_path):
    embedding = cells_of(np.eye(5) + 0.1, noise=0.05)
    geometry = ontology_geometry(embedding, np.repeat(types, 12).tolist(), ontology)
    plots.save_figure(plots.geometry_plot({"a": geometry, "b": geometry}, "Pairs"), str(tmp_path / "pairs.png"))
    assert (tmp_path / "pairs.png").read_bytes().startswith(b"\x89PNG")
