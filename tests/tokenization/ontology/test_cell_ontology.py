import json
from collections import Counter

import networkx
import numpy as np
import pandas as pd
import pytest

from cellglot.tokenization import CellOntology, CellOntologyError, CellTerm
from cellglot.tokenization.ontology.labels import LABEL_RULES
from cellglot.tokenization.ontology.similarity import pagerank_levels, personalised_pagerank


CELL, BLOOD, MYELOID, LYMPHOID, T, B, NEITHER = (f"CL:{n:07d}" for n in range(7))
OLD, OLDER, SPLIT, GONE, OUTSIDE, LOOP = (f"CL:{n:07d}" for n in range(90, 96))


@pytest.fixture
def small():
    """A diamond: T and B cells are lymphoid and, for this test, circulating (BLOOD), too."""
    return CellOntology(
        [
            CellTerm(CELL, "cell"),
            CellTerm(BLOOD, "blood cell", (CELL,), definition="It circulates."),
            CellTerm(MYELOID, "myeloid cell", (BLOOD,), synonyms=(("shared", "EXACT"),)),
            CellTerm(LYMPHOID, "lymphoid cell", (CELL,), synonyms=(("shared", "EXACT"), ("wide", "BROAD"))),
            CellTerm(T, "T cell", (BLOOD, LYMPHOID), synonyms=(("T-lymphocyte", "EXACT"), ("B cell", "RELATED"))),
            CellTerm(B, "B cell", (BLOOD, LYMPHOID), alternate_ids=("CL:0000080",)),
            CellTerm(NEITHER, "alone"),
            CellTerm(OLD, "obsolete thymocyte", obsolete=True, replaced_by=(T,)),
            CellTerm(OLDER, "obsolete thymus cell", obsolete=True, replaced_by=(OLD,)),
            CellTerm(SPLIT, "obsolete lymphocyte", obsolete=True, replaced_by=(B, T)),
            CellTerm(GONE, "obsolete thing", obsolete=True, consider=(B,)),
            CellTerm(OUTSIDE, "obsolete line", obsolete=True, replaced_by=("CLO:0000019",)),
            CellTerm(LOOP, "obsolete loop", obsolete=True, replaced_by=(LOOP,)),
        ],
        release="2000-01-01",
        source="test",
    )


# -------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("label", "cell_type", "rule"),
    [
        (T, T, "id"),
        ("CL_0000004", T, "id"),
        (" cl:0000004 ", T, "id"),
        ("http://purl.obolibrary.org/obo/CL_0000004", T, "id"),
        ("<http://purl.obolibrary.org/obo/CL_0000004>", T, "id"),
        ("t  CELL", T, "name"),
        ("B_cell", B, "name"),  # a name goes before a synonym of another class
        ("t-lymphocyte", T, "exact_synonym"),
        ("T cells", T, "plural"),
        ("T-lymphocytes", T, "plural"),
        ("Wide", LYMPHOID, "other_synonym"),
        (OLD, T, "replaced_by"),
        (OLDER, T, "replaced_by"),
        ("thymocyte", T, "replaced_by"),
        ("obsolete thymus cell", T, "replaced_by"),
        ("CL:0000080", B, "replaced_by"),
        ("http://purl.obolibrary.org/obo/CL_0000080", B, "replaced_by"),
    ],
)
def test_every_rule(small, label, cell_type, rule):
    match = small.resolve([label])
    assert (match.cell_types, match.rules) == ([cell_type], [rule])
    assert match.report.matched_by_rule == dict.fromkeys(LABEL_RULES, 0) | {rule: 1}
    assert match.report.matched == match.report.distinct_matched == 1


@pytest.mark.parametrize(
    ("label", "candidates"), [("shared", [MYELOID, LYMPHOID]), (SPLIT, [T, B]), ("lymphocyte", [T, B])]
)
def test_ambiguous_labels_are_reported_and_get_no_class(small, label, candidates):
    match = small.resolve([label, label])
    assert match.cell_types == [None, None]
    assert match.report.ambiguous == {label: candidates}
    assert match.report.unresolved == {}
    assert small.name(candidates[0]) in str(match.report)


@pytest.mark.parametrize(
    ("label", "consider"), [(GONE, [B]), ("thing", [B]), (OUTSIDE, ["CLO:0000019"]), (LOOP, [LOOP])]
)
def test_consider_is_mentioned_and_not_followed(small, label, consider):
    match = small.resolve([label])
    assert match.cell_types == [None]
    assert match.report.consider == {label: consider}
    assert match.report.unresolved == {label: 1}


@pytest.mark.parametrize("label", ["tumour", "CL:9999999", "UBERON:0000178", "s", "CL:", "cells and cells", "4"])
def test_labels_that_are_no_class(small, label):
    match = small.resolve([label])
    assert match.cell_types == [None]
    assert match.report.unresolved == {label: 1}
    assert repr(label) in str(match.report)


def test_the_report_counts_labels_and_names_the_largest_losses(small):
    labels = ["T cell"] * 4 + [None, float("nan"), " ", pd.NA] + ["x"] * 2 + ["y"] * 3 + [OLD, "shared", "wide"]
    match = small.resolve(pd.Series(labels, index=[3] * len(labels)))
    report = match.report
    assert (report.labels, report.distinct, report.missing, report.matched, report.lost) == (16, 6, 4, 6, 10)
    assert report.coverage == 6 / 16
    assert report.largest_losses == [("y", 3), ("x", 2)]
    assert (report.replaced, report.not_exact) == ({OLD: T}, {"wide": LYMPHOID})
    assert match.found_types == [LYMPHOID, T]
    assert match.rows([T, B]).tolist() == [0] * 4 + [-100] * 9 + [0, -100, -100]
    json.dumps(report.to_dict())
    assert str(report).splitlines()[0] == (
        "6 of 16 labels (3 of 6 distinct) have a cell type: 4 by name, 1 by other synonym, 1 by replaced by"
    )
    assert f"{OLD!r} -> {T} T cell" in str(report)
    assert "'y' (3), 'x' (2)" in str(report)


def test_categories_are_labels(small):
    assert small.resolve(pd.Categorical(["T cell", None, "B cell"])).cell_types == [T, None, B]


def test_no_labels(small):
    match = small.resolve([])
    assert (match.cell_types, match.report.coverage, match.rows([T]).shape) == ([], 0.0, (0,))
    assert "0 of 0 labels" in str(match.report)


def test_one_text_is_no_list_of_labels(small):
    with pytest.raises(TypeError, match="pass a list"):
        small.resolve("T cell")
    with pytest.raises(TypeError, match="pass a list"):
        small.similarity(T)


def test_added_synonyms_are_told_apart_and_go_before_synonyms(small):
    more = small.with_synonyms({"CD3+": T, "Shared": "CL_0000002", "T cell": B})
    match = more.resolve(["cd3+", "CD3+s", "shared", "T cell"])
    assert match.cell_types == [T, T, MYELOID, T]  # a name stays what it is
    assert match.rules == ["added_synonym"] * 3 + ["name"]
    assert match.report.not_exact == {"cd3+": T, "CD3+s": T, "shared": MYELOID}
    assert small.resolve(["CD3+"]).cell_types == [None]
    assert more.synonyms(T) == small.synonyms(T)


def test_added_synonyms_need_live_classes(small):
    with pytest.raises(CellOntologyError, match=r"CL:0000090.*replaced by CL:0000004 T cell"):
        small.with_synonyms({"x": OLD})
    with pytest.raises(CellOntologyError, match="two classes"):
        small.with_synonyms({"x": T, "X": B})


# -------------------------------------------------------------------- ids and hierarchy


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("CL:0000044", "'CL:0000044' is not a known cell type: similar are CL:0000004 T cell"),
        ("T cell", "it is a label of CL:0000004 T cell: pass the id"),
        ("T cel", "similar are .*CL:0000004 T cell"),
        (OLD, "obsolete, replaced by CL:0000004 T cell"),
        (GONE, "obsolete without replacement; the ontology suggests CL:0000005"),
        ("zzz", "none of 7 cell types of test is similar"),
        (None, "ids are texts"),
    ],
)
def test_unknown_ids_are_named_with_what_comes_close(small, given, message):
    for method in (small.similarity, small.similarity_levels, small.ancestor_mask, small.restrict):
        with pytest.raises(CellOntologyError, match=message):
            method([T, given])
    with pytest.raises(CellOntologyError, match=message):
        small.ancestors(given)


def test_no_types(small):
    for method in (small.similarity, small.similarity_levels, small.ancestor_mask, small.restrict):
        with pytest.raises(CellOntologyError, match="the list of cell types is empty"):
            method([])


def test_hierarchy(small):
    assert small.ancestors(T) == {CELL, BLOOD, LYMPHOID}
    assert small.descendants("CL_0000001") == {MYELOID, T, B}
    assert small.descendants(T) == set()
    assert small.parents(T) == [BLOOD, LYMPHOID]
    assert (small.name(T), small.definition(BLOOD), small.definition(T)) == ("T cell", "It circulates.", "")
    assert small.synonyms(T) == ["T-lymphocyte", "B cell"]
    assert small.synonyms(T, "exact") == ["T-lymphocyte"]
    assert len(small) == 7
    assert T in small
    assert OLD not in small


def test_of_several_lowest_common_ancestors_the_one_with_fewest_descendants_is_taken(small):
    assert small.lowest_common_ancestors(T, B) == [LYMPHOID, BLOOD]
    assert small.lowest_common_ancestor(T, B) == LYMPHOID
    assert small.lowest_common_ancestor(T, BLOOD) == BLOOD
    assert small.lowest_common_ancestor(T, T) == T
    assert small.lowest_common_ancestor(MYELOID, LYMPHOID) == CELL
    assert small.lowest_common_ancestor(T, NEITHER) is None


def test_arrays_are_in_the_order_of_the_types(small):
    types = [B, CELL, T, B]
    assert small.ancestor_mask(types).tolist() == [
        [True, True, False, True],
        [False, True, False, False],
        [False, True, True, False],
        [True, True, False, True],
    ]
    whole = small.similarity(small.cell_types)
    rows = [small.cell_types.index(t) for t in types]
    np.testing.assert_allclose(small.similarity(types), whole[np.ix_(rows, rows)], rtol=1e-12)


def test_restrict_gives_the_tables_of_a_corpus(small):
    tables = small.restrict(small.resolve(["T cell", "alone", "T cell", None, "x"]).found_types)
    assert (tables.cell_types, tables.names) == ([T, NEITHER], ["T cell", "alone"])
    np.testing.assert_array_equal(tables.similarity, small.similarity([T, NEITHER]))
    np.testing.assert_array_equal(tables.levels, small.similarity_levels([T, NEITHER]))
    np.testing.assert_array_equal(tables.ancestor_mask, np.eye(2, dtype=bool))
    assert tables.similarity[1].tolist() == pytest.approx([0, 1])


# -------------------------------------------------------------------- geometry


@pytest.mark.parametrize("seed", range(6))
def test_pagerank_is_what_networkx_converges_to(seed):
    random = np.random.default_rng(seed)
    n = int(random.integers(1, 40))
    edges = random.integers(0, n, (int(random.integers(0, 60)), 2))
    edges = edges[edges[:, 0] != edges[:, 1]]  # a repeated edge, either way round, counts once
    graph = networkx.Graph()
    graph.add_nodes_from(range(n))
    graph.add_edges_from(edges.tolist())
    starts = random.integers(0, n, 20)
    ranks = personalised_pagerank(n, edges, starts, alpha=0.9)
    for start, row in zip(starts.tolist(), ranks, strict=True):
        wanted = networkx.pagerank(graph, alpha=0.9, personalization={start: 1}, max_iter=5000, tol=1e-15)
        np.testing.assert_allclose(row, [wanted[i] for i in range(n)], rtol=1e-8, atol=1e-12)


def test_pagerank_on_a_pair_by_hand():
    # x0 = 0.9 x1 + 0.1, x1 = 0.9 x0: x0 = 0.1 / (1 - 0.81)
    np.testing.assert_allclose(personalised_pagerank(2, np.array([[0, 1]]), [0]), [[0.1 / 0.19, 0.09 / 0.19]])


@pytest.mark.parametrize("alpha", [-0.1, 1.0, float("nan")])
def test_alpha_is_a_share(alpha):
    with pytest.raises(ValueError, match="alpha"):
        personalised_pagerank(2, np.array([[0, 1]]), [0], alpha)


def test_levels_by_hand():
    values = [0.0, 9.9e-5, 1e-4, 2.9e-4, 3.1e-4, 0.1, 1.0]
    assert pagerank_levels(np.array(values)).tolist() == [1, 1, 1, 1, 2, 9, 13]
    assert pagerank_levels(np.array(values)).dtype == np.int64


# -------------------------------------------------------------------- the table that comes with the package


def test_the_blood_table_knows_how_data_sets_write_blood_cells(blood):
    ontology = CellOntology.blood()
    match = ontology.resolve(blood.obs["cell_type"])
    assert match.report.coverage == 1.0
    wanted = {
        "CD14+ Monocyte": "CD14-positive monocyte",
        "CD19+ B": "B cell",
        "CD34+": "hematopoietic precursor cell",
        "CD4+/CD25 T Reg": "CD4-positive, CD25-positive, alpha-beta regulatory T cell",
        "CD4+/CD45RA+/CD25- Naive T": "naive thymus-derived CD4-positive, alpha-beta T cell",
        "CD4+/CD45RO+ Memory": "CD4-positive, alpha-beta memory T cell",
        "CD56+ NK": "natural killer cell",
        "CD8+ Cytotoxic T": "CD8-positive, alpha-beta cytotoxic T cell",
        "CD8+/CD45RA+ Naive Cytotoxic": "naive thymus-derived CD8-positive, alpha-beta T cell",
        "Dendritic": "dendritic cell",
    }
    assert {label: ontology.name(t) for label, t in match.report.not_exact.items()} == wanted


def test_the_blood_table_is_whole():
    ontology = CellOntology.blood()
    assert {a for t in ontology.cell_types for a in ontology.ancestors(t)} <= set(ontology.cell_types)
    assert [t for t in ontology.cell_types if not ontology.parents(t)] == ["CL:0000000"]
    assert all(ontology.definition(t) for t in ontology.cell_types)
    assert ontology.lowest_common_ancestor("CL:0000236", "CL:0000084") == "CL:0000542"
    assert (ontology.similarity_levels(ontology.cell_types).diagonal() > 5).all()
    assert set(ontology.metadata) == {"source", "release", "sha256", "cell_types", "is_a_edges"}
    assert len(ontology.checksum) == 64


def test_counted_labels_give_the_report_of_all_of_them():
    labels = ["B cell"] * 3 + ["CL:0000084", "nonsense", "nonsense", ""]
    ontology = CellOntology.blood()
    counted = ontology.resolve(Counter(labels))
    assert counted.report == ontology.resolve(labels).report
    assert dict(zip(counted.labels, counted.cell_types, strict=True)) == {
        "B cell": "CL:0000236",
        "CL:0000084": "CL:0000084",
        "nonsense": None,
    }
