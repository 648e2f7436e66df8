"""Biology to model inputs: cells from files, gene vocabularies, tokenizers, corpora."""

import importlib
from typing import Any


_PUBLIC = {
    "Candidates": "cell_type_candidates",
    "CellDescriptions": "cell_descriptions",
    "CellFileError": "stored_matrix",
    "CellLabelMatch": "cell_label_resolution",
    "CellLabelReport": "cell_label_report",
    "CellOntology": "cell_ontology",
    "CellOntologyError": "cell_term",
    "CellTerm": "cell_term",
    "CellTypeTables": "cell_ontology",
    "Cells": "cells",
    "Corpus": "corpus",
    "CorpusError": "corpus",
    "CountMatrix": "count_matrix",
    "ExceiverTokenizer": "tokenization_exceiver",
    "GeneCoverageError": "tokenization_gene_expression",
    "GeneMatch": "gene_vocabulary",
    "GeneReport": "gene_report",
    "GeneVocabulary": "gene_vocabulary",
    "describe_cell_types": "cell_descriptions",
    "describe_cells": "cell_descriptions",
    "make_candidates": "cell_type_candidates",
    "read_cells": "cells",
    "LangCellProcessor": "processing_langcell",
    "NotCountsError": "count_audit",
    "RankValueTokenizer": "tokenization_rank_value",
    "tokenize_corpus": "corpus",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__
