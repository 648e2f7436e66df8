"""From files of cells to inputs of models: readers, gene vocabularies, tokenizers, corpora."""

import importlib
from typing import Any


_PUBLIC = {
    "Candidates": "ontology.candidates",
    "CellDescriptions": "ontology.descriptions",
    "CellFileError": "reading.matrices",
    "CellLabelMatch": "ontology.labels",
    "CellLabelReport": "ontology.labels",
    "CellOntology": "ontology.cell_ontology",
    "CellOntologyError": "ontology.terms",
    "CellTerm": "ontology.terms",
    "CellTypeTables": "ontology.cell_ontology",
    "Cells": "reading.cells",
    "Corpus": "corpus.corpus",
    "CorpusError": "corpus.corpus",
    "CountMatrix": "count_matrix",
    "ExceiverTokenizer": "tokenization_exceiver",
    "GeneCoverageError": "tokenization_gene_expression",
    "GeneMatch": "gene_vocabulary",
    "GeneReport": "gene_report",
    "GeneVocabulary": "gene_vocabulary",
    "describe_cell_types": "ontology.descriptions",
    "describe_cells": "ontology.descriptions",
    "make_candidates": "ontology.candidates",
    "read_cells": "reading.cells",
    "LangCellProcessor": "processing_langcell",
    "NotCountsError": "count_audit",
    "RankValueTokenizer": "tokenization_rank_value",
    "tokenize_corpus": "corpus.tokenize",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__
