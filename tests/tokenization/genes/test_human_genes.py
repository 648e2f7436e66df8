"""The table of human genes that ships with the package."""

import numpy as np
import pytest

from cellglot.tokenization import ExceiverTokenizer, GeneVocabulary
from cellglot.tokenization.genes.gene_catalogue import gene_catalogue
from cellglot.tokenization.genes.tables import HUMAN_FILE, MOUSE_FILE, human_genes, mouse_genes


CD3D, SEPTIN2, TP53, MS4A1 = "ENSG00000167286", "ENSG00000168385", "ENSG00000141510", "ENSG00000156738"


def test_the_tables_are_small_and_whole():
    table = human_genes()
    assert HUMAN_FILE.stat().st_size + MOUSE_FILE.stat().st_size < 1_500_000
    assert len(table) > 50_000 and len(table.coding_ids()) == 20_097
    assert table.ids == sorted(set(table.ids)) and len(table.symbols) == len(table.ids)
    assert len(mouse_genes().by_id) > 16_000 and mouse_genes().by_id["ENSMUSG00000032094"] == CD3D


@pytest.mark.parametrize(
    ("name", "gene"),
    [("CD3D", CD3D), ("SEPTIN2", SEPTIN2), ("SEPT2", SEPTIN2), ("TP53", TP53), ("CD20", MS4A1), ("P53", TP53)],
)
def test_symbols_earlier_symbols_and_aliases(name, gene):
    assert human_genes().find(name) == (gene,)


def test_a_symbol_wins_over_names_of_other_genes():
    table = human_genes()
    by_symbol = {s: g for g, s in zip(table.ids, table.symbols, strict=True) if s}
    taken = [s for s in by_symbol if len(table.find(s)) == 1 and table.find(s) != (by_symbol[s],)]
    assert taken == []
    others = {name for cell in (*table._earlier, *table._aliases) if cell for name in cell.split("|")}
    assert others.isdisjoint(by_symbol)


@pytest.mark.parametrize("name", ["Y_RNA", "QARS"])
def test_names_of_several_genes_are_ambiguous(name):
    assert len(human_genes().find(name)) > 1
    match = GeneVocabulary.from_statistics([CD3D], symbols={}).resolve([name, "CD3D"])
    assert (match.ambiguous.tolist(), match.token_ids.tolist()) == ([True, False], [-1, 0])
    assert match.report().ambiguous == 1


@pytest.mark.parametrize("name", ["", "Cd3d", "cd3d", "NOT_A_GENE", "ENSG00000167286"])
def test_names_that_are_no_human_symbols(name):
    assert human_genes().find(name) == ()


def test_a_vocabulary_of_ids_alone_reads_symbols_and_retired_ids():
    vocabulary = GeneVocabulary.from_statistics([CD3D, SEPTIN2, TP53, "ENSG00000278311"])
    match = vocabulary.resolve(["CD3D", "SEPT2", "P53", "ENSG00000005955", "NOT_A_GENE", "MS4A1"])
    assert match.token_ids.tolist() == [0, 1, 2, 3, -1, -1]
    assert match.report().matched_by_rule == {
        "ensembl_id": 0, "versioned_id": 0, "symbol": 1, "alias": 3, "cleaned_name": 0,
    }  # fmt: skip


def test_a_released_vocabulary_reads_symbols_but_no_retired_ids():
    released = GeneVocabulary.from_released({"<pad>": 0, CD3D: 1, "ENSG00000278311": 2})
    for vocabulary in (released, released.with_special_tokens(["<pad>"])):
        assert vocabulary.resolve(["CD3D", "ENSG00000005955"]).token_ids.tolist() == [1, -1]


def test_a_vocabulary_of_symbols_reads_ids_and_other_symbols():
    vocabulary = GeneVocabulary.from_statistics(["SEPT2", "CD3D"])
    assert vocabulary.resolve([CD3D, "SEPTIN2", SEPTIN2, "ENSG00000141510"]).token_ids.tolist() == [1, 0, 0, -1]


def test_names_of_the_vocabulary_go_before_the_table(monkeypatch):
    vocabulary = GeneVocabulary.from_statistics([CD3D, TP53], symbols={CD3D: "TP53", TP53: "X"})
    assert vocabulary.resolve(["TP53"]).token_ids.tolist() == [0]
    monkeypatch.setattr(GeneVocabulary, "load_human_genes", None)  # as in copies that travel with models
    assert GeneVocabulary.from_statistics([CD3D]).resolve(["CD3D"]).token_ids.tolist() == [-1]


def test_files_of_symbols_and_of_ids_make_one_catalogue():
    tables = [(["CD3D", "SEPT2", "own name", "Y_RNA"], None), ([CD3D, TP53], {"gene_symbol": ["CD3D", "TP53"]})]
    catalogue = gene_catalogue(tables, human=human_genes())
    assert catalogue.genes == sorted([CD3D, SEPTIN2, TP53, "own name"])
    assert catalogue.symbols[SEPTIN2] == "SEPTIN2" and "SEPT2" in catalogue.aliases[SEPTIN2]
    assert np.array_equal(catalogue.resolve(["CD3D", "own name"]).known, [True, True])
    assert catalogue.resolve(["Y_RNA"]).ambiguous.tolist() == [True]


def test_mouse_names_make_no_human_genes():
    tables = [(["Cd3d", "Sept2", "Trp53", "H19"], None)]
    assert gene_catalogue(tables, human=human_genes()).genes == ["Cd3d", "H19", "Sept2", "Trp53"]


# -------------------------------------------------------------------- retired ids beside present ones


GGNBP2, MYH16 = "ENSG00000278311", "ENSG00000293560"
RETIRED = {"ENSG00000005955": GGNBP2, "ENSG00000002079": MYH16}
BOTH = [*RETIRED, GGNBP2, CD3D]
BOTH_COUNTS = np.array([[3, 2, 4, 1], [0, 5, 6, 0], [7, 0, 0, 2]], dtype=np.float32)


def tokenized(vocabulary, genes, counts):
    """Return gene -> value of each cell, and the report."""
    tokenizer = ExceiverTokenizer.from_vocabulary(vocabulary)
    found = tokenizer(counts, genes=genes)
    cells = [
        {tokenizer.vocabulary.tokens[t]: round(v, 5) for t, v in zip(*cell, strict=True)}
        for cell in zip(found["input_ids"], found["expression_values"], strict=True)
    ]
    return cells, tokenizer.last_report


@pytest.mark.parametrize("table", [True, False], ids=["cellglot", "on the Hub"])
def test_columns_of_retired_and_present_ids_are_summed(monkeypatch, table):
    catalogue = gene_catalogue([(BOTH, {"symbol": ["GGNBP2", "MYH16", "GGNBP2", "CD3D"]})], human=human_genes())
    assert catalogue.genes == sorted([GGNBP2, MYH16, CD3D])
    vocabulary = GeneVocabulary.from_statistics(
        catalogue.genes, symbols=catalogue.symbols, aliases=catalogue.aliases, means=np.zeros(3), stds=np.ones(3)
    )
    if not table:  # as in copies that travel with models: aliases of the vocabulary know retired ids
        monkeypatch.setattr(GeneVocabulary, "load_human_genes", None)
    cells, report = tokenized(vocabulary, BOTH, BOTH_COUNTS)
    summed = np.stack([BOTH_COUNTS[:, [0, 2]].sum(axis=1), BOTH_COUNTS[:, 1], BOTH_COUNTS[:, 3]], axis=1)
    assert cells == tokenized(vocabulary, [GGNBP2, MYH16, CD3D], summed)[0]
    assert (report.retired, report.summed, report.unknown, report.coverage) == (2, 1, 0, 1.0)
    assert "2 genes were matched by a retired Ensembl id" in report.summary() and report.to_dict()["retired"] == 2


def test_a_vocabulary_of_a_retired_id_reads_the_present_one():
    old = next(iter(RETIRED))
    match = GeneVocabulary.from_statistics([old, CD3D]).resolve([GGNBP2, old, CD3D])
    assert match.token_ids.tolist() == [0, 0, 1] and match.duplicated().tolist() == [True, True, False]
    assert match.report().retired == 1
    both = GeneVocabulary.from_statistics([old, GGNBP2])  # a model that was trained with both keeps both
    assert both.resolve([GGNBP2, old]).token_ids.tolist() == [1, 0]
    released = GeneVocabulary.from_released({"<pad>": 0, old: 1})
    assert released.resolve([GGNBP2]).token_ids.tolist() == [-1]


def test_files_of_retired_and_of_present_ids_make_one_catalogue():
    tables = [([f"{old}.4" for old in RETIRED], None), ([GGNBP2, "ENSG00000005955"], None)]
    assert gene_catalogue(tables, human=human_genes()).genes == sorted([GGNBP2, MYH16])
    assert gene_catalogue(tables).genes == sorted([*RETIRED, GGNBP2])
