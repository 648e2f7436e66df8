"""The whole Cell Ontology, release 2024-04-05."""

from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest

from cellglot.tokenization import CellOntology
from cellglot.tokenization.ontology.shorthand import SHORTHAND_FILE, read_shorthand
from cellglot.tokenization.ontology.similarity import pagerank_levels


pytestmark = [pytest.mark.reference, pytest.mark.long]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(reference_data, cache):
    return CellOntology.from_file(reference_data / "cell_ontology" / "cl.owl.gz", cache_folder=cache)


@pytest.fixture(scope="module")
def table(golden):
    return pd.read_csv(golden / "cell_ontology" / "similarity.tsv", sep="\t")


def square(table, column):
    types = list(dict.fromkeys(table["cell_type"]))
    return types, table.pivot(index="cell_type", columns="other", values=column).loc[types, types].to_numpy()


def test_the_whole_ontology_parses(whole):
    assert (len(whole), len(whole._edges), whole.release) == (2746, 3820, "2024-04-05")
    assert len(np.unique(whole._edges)) == 2738
    assert sum(t.obsolete for t in whole._terms.values()) == 252
    assert whole.left_out == {"is_a another ontology": 92, "is_a an obsolete class": 0}
    assert whole.synonyms("CL:0000236", "EXACT") == ["B lymphocyte", "B-cell", "B-lymphocyte"]
    assert whole.definition("CL:0000236").startswith("A lymphocyte of B lineage")


def test_it_is_read_from_the_cache(whole, reference_data, cache, monkeypatch):
    monkeypatch.setattr("cellglot.tokenization.ontology.parsing._parse", None)
    again = CellOntology.from_file(reference_data / "cell_ontology" / "cl.owl.gz", cache_folder=cache)
    assert again._terms == whole._terms
    assert again.metadata == whole.metadata


def test_as_obo_it_is_the_same(whole, tmp_path, cache):
    lines = ["format-version: 1.2", "data-version: releases/2024-04-05"]
    for t in whole._terms.values():
        lines += ["", "[Term]", f"id: {t.id}", f"name: {_escape(t.name)}"]
        lines += [f"alt_id: {a}" for a in t.alternate_ids]
        lines += [f'def: "{_escape(t.definition)}" []'] if t.definition else []
        lines += [f'synonym: "{_escape(text)}" {scope} []' for text, scope in t.synonyms]
        lines += [f"is_a: {p}" for p in t.parents]
        lines += ["is_obsolete: true"] if t.obsolete else []
        lines += [f"replaced_by: {i}" for i in t.replaced_by] + [f"consider: {i}" for i in t.consider]
    (tmp_path / "cl.obo").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert CellOntology.from_file(tmp_path / "cl.obo", cache_folder=cache)._terms == whole._terms


def _escape(text):
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("{", "\\{").replace("!", "\\!")


def test_converged_pagerank_levels_and_ancestors_are_golden(whole, table):
    types, similarity = square(table, "pagerank")
    np.testing.assert_allclose(whole.similarity(types), similarity, rtol=1e-4, atol=0)
    np.testing.assert_array_equal(whole.similarity_levels(types), square(table, "level")[1])
    np.testing.assert_array_equal(whole.ancestor_mask(types), square(table, "other_is_ancestor_or_self")[1])
    assert [whole.name(t) for t in types] == list(dict.fromkeys(table["name"]))


def test_tables_of_a_corpus_are_rows_and_columns_of_the_whole(whole, table):
    types = sorted(set(table["cell_type"]))
    everything = whole.similarity(whole.cell_types)
    np.testing.assert_allclose(everything.sum(axis=1), 1, rtol=1e-9)
    rows = [whole.cell_types.index(t) for t in types]
    tables = whole.restrict(reversed(types))
    assert tables.cell_types == types
    np.testing.assert_allclose(tables.similarity, everything[np.ix_(rows, rows)], rtol=1e-9)
    np.testing.assert_array_equal(tables.levels, pagerank_levels(everything)[np.ix_(rows, rows)])


def test_every_name_and_id_resolves_to_its_class(whole):
    for labels in (whole.cell_types, [whole.name(t).upper() for t in whole.cell_types]):
        assert whole.resolve(labels).cell_types == whole.cell_types


def test_obsolete_ids(whole):
    match = whole.resolve(["CL:0000003", "native cell", "CL:0000002", "CL:0000004"])
    assert match.cell_types == ["CL:0000000", "CL:0000000", None, None]
    assert match.report.consider["CL:0000002"] == ["CLO:0000019"]
    assert "CL:0001034 cell in vitro" in str(match.report)


# -------------------------------------------------------------------- what ships against the whole


def test_the_shipped_ontology_is_the_release_without_definitions(whole):
    shipped = CellOntology.shipped(definitions={})
    assert shipped.release == whole.release
    assert shipped._terms == {i: replace(term, definition="") for i, term in whole._terms.items()}


def test_the_blood_table_states_facts(whole):
    ontology = CellOntology.blood()
    assert ontology.release == whole.release
    for own in ontology._terms.values():
        fact = whole.term(own.id)
        assert (own.name, own.parents) == (fact.name, fact.parents)
        assert [s for s, _ in own.synonyms] == whole.synonyms(own.id, "EXACT")


def test_its_descriptions_are_not_the_ontologys(whole):
    for term in CellOntology.blood()._terms.values():
        assert term.definition.casefold().strip(".") not in whole.definition(term.id).casefold()


def test_the_shorthand_states_facts_and_contradicts_no_name(whole):
    table = read_shorthand()
    rows = [line.split("\t") for line in SHORTHAND_FILE.read_text(encoding="utf-8").splitlines() if line[:2] == "CL"]
    assert {cell_type: name for cell_type, name, _ in rows} == {t: whole.name(t) for t in table.labels}
    for cell_type, labels in table.labels.items():
        assert whole.resolve(labels).found_types == [cell_type]


@pytest.mark.parametrize(
    ("file", "columns"),
    [
        ("pbmc68k_reduced_counts", ["cell_type"]),
        ("pbmc_facs", ["celltype", "subpop"]),
        ("pbmc_3tech", ["cell_type"]),
        ("pbmc_sorted_all_genes", ["cell_type"]),
        ("cellxgene_heart", ["cell_type_ontology_term_id"]),
        ("cellxgene_perturbation", ["suspension_enriched_cell_types"]),
    ],
)
def test_it_covers_the_labels_of_real_files(whole, reference_data, file, columns):
    cells = anndata.read_h5ad(reference_data / "cells" / f"{file}.h5ad", backed="r").obs
    blood = CellOntology.blood()
    for column in columns:
        match = blood.resolve(cells[column])
        assert match.report.coverage == 1.0
        assert match.cell_types == whole.resolve(cells[column]).cell_types


def test_cell_lines_are_no_cell_types(whole, reference_data):
    lines = anndata.read_h5ad(reference_data / "cells" / "lung_cell_lines.h5ad", backed="r").obs["cell_line"]
    report = whole.resolve(lines).report
    assert report.coverage == 0.0
    assert report.largest_losses[0] == ("A549", 103)
