import json

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import f1_score

from cellglot.evaluation.scores.novel_types import (
    candidate_correlations,
    evaluate_novel_cell_types,
    novel_cell_type_scores,
    split_cell_types,
)
from cellglot.tokenization import CellOntology, CellOntologyError


B, PLASMA, NK, MONOCYTE, DENDRITIC, CD4, CD8, PROGENITOR, FIBROBLAST = (
    "CL:0000236", "CL:0000786", "CL:0000623", "CL:0000576", "CL:0000451", "CL:0000624", "CL:0000625", "CL:0008001",
    "CL:0000057",
)  # fmt: skip


@pytest.fixture(scope="module")
def ontology():
    return CellOntology.blood()


@pytest.fixture(scope="module")
def cells(ontology):
    """Reference cells of six types and cells of three others, in random places."""
    random = np.random.default_rng(5)
    known = random.choice([NK, MONOCYTE, CD4, PROGENITOR, PLASMA, FIBROBLAST], 40)
    query = random.choice([B, DENDRITIC, CD8], 30)
    return random.normal(size=(40, 6)), known, random.normal(size=(30, 6)), query


def by_hand(cells, ontology, candidates):
    """Names by scipy, one cell at a time; PageRanks that differ by rounding errors alone made equal."""
    known, known_types, query, _ = cells
    types = sorted(set(known_types))
    profiles = [[float(f"{v:.10e}") for v in ontology.similarity([c, *types])[0, 1:]] for c in candidates]
    prototypes = [known[known_types == t].mean(axis=0) for t in types]
    named, correlations = [], []
    for cell in query:
        cosines = [cell @ p / np.linalg.norm(cell) / np.linalg.norm(p) for p in prototypes]
        of_cell = [spearmanr(cosines, profile).statistic for profile in profiles]
        correlations.append(of_cell)
        named.append(candidates[int(np.argmax(of_cell))])
    return np.array(named), np.array(correlations)


def test_correlations_and_scores_are_those_of_scipy(cells, ontology):
    candidates = [DENDRITIC, B, CD8]
    named, correlations = by_hand(cells, ontology, candidates)
    known, known_types, query, query_types = cells
    found = candidate_correlations(known, known_types, query, candidates, ontology)
    np.testing.assert_allclose(found, correlations, atol=1e-9)
    scores = novel_cell_type_scores(known, known_types, query, query_types, ontology, shares=[1.0], draws=3)
    # No cell has ties here: the names are those of the best correlation.
    assert scores["cells_with_ties"] == 0
    assert scores["accuracy"] == pytest.approx((named == query_types).mean())
    assert scores["macro_f1"] == pytest.approx(f1_score(query_types, named, average="macro"))


def test_a_small_case_by_hand(ontology):
    known, types = np.eye(3), [MONOCYTE, NK, PROGENITOR]
    near = ontology.similarity([CD8, *types])[0, 1:]
    cell = near.argsort().argsort() + 1.0  # in the order in which a CD8 T cell is near to the three
    other = ontology.similarity([DENDRITIC, *types])[0, 1:].argsort().argsort() + 1.0
    assert cell.tolist() != other.tolist()
    scores = novel_cell_type_scores(
        known, types, np.stack([cell, other, cell]), [CD8, DENDRITIC, DENDRITIC], ontology, draws=2
    )
    assert scores["accuracy"] == pytest.approx(2 / 3) and scores["macro_f1"] == pytest.approx(2 / 3)
    assert [r["candidates"] for r in scores["results"]] == [2] * 5
    assert scores["known_types"] == sorted(types) and scores["novel_types"] == [DENDRITIC, CD8]


def test_candidates_that_lie_alike_share_a_cell(ontology):
    types = [MONOCYTE, DENDRITIC, PROGENITOR]
    profile = ontology.similarity([B, CD8, NK, *types])[:3, 3:]
    # B, T and NK cells are lymphocytes: from all of them the same way leads to the three known types.
    assert np.ptp(profile.argsort(axis=1), axis=0).max() == 0
    random = np.random.default_rng(0)
    query = random.normal(size=(12, 4))
    scores = novel_cell_type_scores(random.normal(size=(3, 4)), types, query, [B, CD8, NK] * 4, ontology)
    assert scores["cells_with_ties"] == 12
    for row in scores["results"]:
        assert row["accuracy"]["mean"] == pytest.approx(row["chance"])
        assert row["macro_f1"]["mean"] == pytest.approx(row["chance"])


def test_cells_and_candidates_equally_near_to_all_are_errors(cells, ontology):
    known, known_types, query, query_types = cells
    query = query.copy()
    query[0] = 0
    scores = novel_cell_type_scores(known, known_types, query, query_types, ontology)
    assert scores["cells_without_name"] == 1 and scores["cells"] == 30
    rest = novel_cell_type_scores(known, known_types, query[1:], query_types[1:], ontology)
    assert scores["accuracy"] * 30 == pytest.approx(rest["accuracy"] * 29)


def test_shares_and_draws(cells, ontology):
    known, known_types, _, _ = cells
    random = np.random.default_rng(0)
    novel = [t for t in ontology.cell_types if t not in set(known_types)][:20]
    query_types = np.repeat(novel, 10)
    query = random.normal(size=(200, 6))
    scores = novel_cell_type_scores(known, known_types, query, query_types, ontology, seed=4)
    rows = scores["results"]
    assert [r["share"] for r in rows] == [0.1, 0.25, 0.5, 0.75, 1.0]
    assert [r["candidates"] for r in rows] == [2, 5, 10, 15, 20]
    assert [r["distinct_draws"] > 15 for r in rows] == [True, True, True, True, False]
    for row in rows[:4]:
        low, high = row["accuracy"]["interval"]
        assert row["draws"] == 20 and low <= row["accuracy"]["mean"] <= high and row["accuracy"]["sd"] > 0
        assert abs(row["accuracy"]["mean"] - row["chance"]) < 0.15
    assert rows[4]["accuracy"]["sd"] is None and rows[4]["accuracy"]["interval"] is None
    again = novel_cell_type_scores(known, known_types, query, query_types, ontology, seed=4)
    assert again == scores and json.loads(json.dumps(scores)) == scores
    assert novel_cell_type_scores(known, known_types, query, query_types, ontology, seed=5) != scores


def test_left_out_cells_are_counted(cells, ontology):
    known, known_types, query, query_types = cells
    base = novel_cell_type_scores(known, known_types, query, query_types, ontology)
    more = np.concatenate([query, np.zeros((3, 6)), np.full((1, 6), np.nan)])
    scores = novel_cell_type_scores(
        np.concatenate([known, np.full((2, 6), np.nan)]),
        [*known_types, NK, None],
        more,
        [*query_types, NK, None, "", B],
        ontology,
    )
    counts = ("cells_of_known_types", "cells_without_type", "cells_without_embedding")
    assert [scores[n] for n in counts] == [1, 3, 2]
    assert {k: v for k, v in scores.items() if k not in counts} == {k: v for k, v in base.items() if k not in counts}


def test_undefined_scores_say_why(ontology):
    x = np.eye(6)
    few = novel_cell_type_scores(x[:4], [NK, NK, B, B], x[4:], [CD4, CD8], ontology)
    assert few["accuracy"] is None and few["results"] == []
    assert few["undefined"]["macro_f1"] == "2 known and 2 novel types: at least 3 known and 2 novel types are needed"
    one = novel_cell_type_scores(x[:4], [NK, B, CD4, CD4], x[4:], [CD8, CD4], ontology)
    assert one["accuracy"] is None and "and 1 novel types: at least" in one["undefined"]["accuracy"]
    single = evaluate_novel_cell_types(x, [NK] * 6, ontology)
    assert single["macro_f1"] is None and single["undefined"]["accuracy"].startswith("1 cell types: at least 5")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"draws": 0}, "draws=0 must be"),
        ({"shares": [0.0, 1.0]}, r"must be in \(0, 1\]"),
        ({"known_types": [NK, B]}, r"shape \(3, 3\) do not match the 2 types of reference cells"),
        ({"query_types": [None, None]}, "none of 2 query cells has a cell type and an embedding"),
        ({"query_embedding": np.eye(2)}, "reference embeddings have size 3, query embeddings 2"),
        ({"query_types": [CD4, "T cell"]}, "'T cell' is not a known cell type: it is a label of CL:0000084"),
    ],
)
def test_input_that_does_not_fit(ontology, changes, message):
    given = {
        "known_embedding": np.eye(3),
        "known_types": [NK, B, MONOCYTE],
        "query_embedding": np.eye(3)[:2],
        "query_types": [CD4, CD8],
    }
    with pytest.raises((ValueError, CellOntologyError), match=message):
        novel_cell_type_scores(**(given | changes), ontology=ontology)


def test_whole_types_are_held_out():
    types = [f"t{i}" for i in range(10)]
    known, novel = split_cell_types([*types * 3, None, ""], 0.3, seed=1)
    assert sorted(known + novel) == types and len(novel) == 3
    assert split_cell_types(types, 0.3, seed=1) == (known, novel)
    assert len({tuple(split_cell_types(types, 0.3, seed=s)[1]) for s in range(10)}) > 5
    assert [len(split_cell_types(types[:5], share)[1]) for share in (0.1, 0.9)] == [2, 2]
    with pytest.raises(ValueError, match="4 cell types: at least 5 are needed to hold out novel ones"):
        split_cell_types(types[:4])
    with pytest.raises(ValueError, match="novel_share=1"):
        split_cell_types(types, 1)


def test_real_blood_cells_are_named_as_scipy_names_them(blood_log, ontology):
    types = np.array(ontology.resolve(blood_log.obs["bulk_labels"]).cell_types)
    x = np.asarray(blood_log.obsm["X_pca"], dtype=np.float64)
    known, novel = split_cell_types(types, 0.4, seed=3)
    scores = evaluate_novel_cell_types(x, types, ontology, novel_share=0.4, seed=3)
    assert (scores["known_types"], scores["novel_types"]) == (known, novel) and len(known) == 6
    held_out = np.isin(types, novel)
    assert scores["cells"] == held_out.sum() and scores["known_cells"] == (~held_out).sum()
    _, correlations = by_hand((x[~held_out], types[~held_out], x[held_out], None), ontology, novel)
    best = np.isclose(correlations, correlations.max(axis=1, keepdims=True), atol=1e-9)
    right = best[np.arange(len(best)), np.searchsorted(novel, types[held_out])] / best.sum(axis=1)
    assert scores["accuracy"] == pytest.approx(right.mean())
    assert scores["cells_with_ties"] == (best.sum(axis=1) > 1).sum()


def test_an_embedding_that_follows_the_ontology_names_novel_types(ontology):
    random = np.random.default_rng(0)
    types = random.permutation([t for t in ontology.cell_types if not ontology.descendants(t)])
    values, vectors = np.linalg.eigh(ontology.similarity(types) + ontology.similarity(types).T)
    of_types = vectors * np.sqrt(np.maximum(values, 0))
    cells = np.tile(np.arange(len(types)), 8)
    embedding = of_types[cells] + 0.01 * random.normal(size=(len(cells), len(types)))
    scores = evaluate_novel_cell_types(embedding, types[cells], ontology)
    assert all(row["accuracy"]["mean"] > 3 * row["chance"] for row in scores["results"][2:])
    shuffled = evaluate_novel_cell_types(random.permutation(embedding), types[cells], ontology)
    assert shuffled["accuracy"] < 0.3 * scores["accuracy"]
