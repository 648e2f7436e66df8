"""Check the names of genes in a corpus: refuse numbers, and warn about files that share few genes."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from cellglot.tokenization.gene_names import bare_id, described_columns, listed_names, numbers_among
from cellglot.tokenization.gene_vocabulary import GeneVocabulary, is_usual, name_sources
from cellglot.tokenization.genes.species import is_mouse


MOST_NUMBERS = 0.1  # share of genes that may be named by numbers; these are left out
FEWEST_SHARED = 0.05  # share of a file's genes that others must have, or it is warned about
SAMPLED = 50  # values of a column in which Ensembl ids are searched

GeneTable = tuple[list[str], dict[str, Any]]
CheckNames = Callable[[Sequence[str], Mapping[str, Any] | None], str | None]


def named_columns(table: GeneTable, gene_column: str | None) -> tuple[list[str], dict[str, Any] | None]:
    """Return the index and the columns of a file's gene table in which genes are looked up."""
    index, columns = table
    if gene_column is None:
        return index, columns
    return (list(columns["only"]) if "only" in columns else index), None


def refuse_numbers(accepted: Collection[str] = ()) -> CheckNames:
    """Return a check that explains why names cannot be genes of a new vocabulary: they are numbers.

    `accepted` are names in a gene table, which may be numbers.
    """

    def check(index: Sequence[str], columns: Mapping[str, Any] | None) -> str | None:
        sources = name_sources(index, columns)
        names = sources[0][1]
        numbers = numbers_among(names)
        if numbers.mean() <= MOST_NUMBERS:
            return None
        for _, values in sources[1:]:
            numbers &= numbers_among(values) | (values == "")
        numbers &= np.fromiter((n not in accepted for n in names), bool, len(names))
        if numbers.mean() <= MOST_NUMBERS:
            return None
        listed, examples = described_columns(columns), listed_names([str(n) for n in names[numbers]])
        way_out = f": there are {listed}" if listed else ", or write the names into the file"
        return (
            f"its genes are named by numbers ({examples}), which mean other genes in other files. Name the column of "
            f"var with Ensembl ids or symbols by --gene-column (gene_column=...){way_out}. Gene numbers of NCBI "
            "have to be translated to Ensembl ids first"
        )

    return check


def refuse_mouse(check: CheckNames) -> CheckNames:
    """Return a check of names that also refuses those of mouse, which would become genes of a human vocabulary."""

    def checked(index: Sequence[str], columns: Mapping[str, Any] | None) -> str | None:
        if is_mouse(index, columns):
            return (
                f"its genes are those of mouse ({listed_names([str(n) for n in index[:3]])}). --species mouse "
                "(species='mouse') reads them as their human orthologs; --species other takes them as they are, for a "
                "vocabulary of mouse"
            )
        return check(index, columns)

    return checked


def vocabulary_notes(vocabulary: GeneVocabulary, tokens_of_files: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Describe a vocabulary made from files: genes without an id, and warnings about files that share few genes.

    Parameters
    ----------
    tokens_of_files
        Name of a file -> token ids of its genes, each once.

    Returns
    -------
    dict
        ``genes``, ``without_id`` (numbers of genes), ``examples`` (of genes without an id), ``warnings``.
    """
    nameless = [gene for gene in vocabulary.genes if bare_id(gene) is None]
    files = np.zeros(vocabulary.vocab_size, dtype=np.int64)
    for tokens in tokens_of_files.values():
        files[tokens] += 1
    warnings = []
    for name, tokens in tokens_of_files.items():
        shared = int((files[tokens] > 1).sum())
        if len(tokens_of_files) > 1 and shared < FEWEST_SHARED * len(tokens):
            here = [vocabulary.symbol(vocabulary.tokens[int(t)]) for t in tokens[:3]]
            warnings.append(
                f"{name} shares {shared:,} of its {len(tokens):,} genes ({listed_names(here)}) with the other files: "
                "another species, or other names? A gene table (--gene-table) translates symbols and aliases"
            )
    return {
        "genes": len(vocabulary.genes),
        "without_id": len(nameless),
        "examples": nameless[:4],
        "warnings": warnings,
    }


def unused_ids(name: str, index: Sequence[str], columns: Mapping[str, Any]) -> list[str]:
    """Warn about a column of Ensembl ids that is not used, if no other column has such ids."""
    holding = {}
    for column, values in {"": index, **columns}.items():
        some = [str(v).strip() for v in list(values[:SAMPLED])]
        ids = [v for v in some if bare_id(v) is not None]
        if len(ids) > len(some) / 2:
            holding[column] = ids[0]
    if not holding or any(column == "" or is_usual(column) for column in holding):
        return []
    column, example = next(iter(holding.items()))
    return [
        f"{name}: the column {column!r} of var contains Ensembl ids (e.g. {example!r}) but is not used: name it by "
        "--gene-column (gene_column=...)"
    ]


def described_vocabulary(notes: Mapping[str, Any]) -> list[str]:
    """Return the result of `vocabulary_notes` as lines of text."""
    line = f"vocabulary of these files: {notes['genes']:,} genes"
    if notes["without_id"]:
        line += f", {notes['without_id']:,} of them without an Ensembl id ({listed_names(notes['examples'])})"
    return [line, *(f"warning: {warning}" for warning in notes["warnings"])]


def described_names(report: Mapping[str, Any], own_vocabulary: bool) -> str:
    """Describe which of a file's genes are in the vocabulary; shorter if the vocabulary was made from them."""
    text = f"{report['matched']:,} of {report['genes']:,} genes, {report['coverage']:.1%} of counts"
    if own_vocabulary and report["coverage"] > 0.9995:
        text = f"{report['genes']:,} genes"
    if cleaned := report["matched_by_rule"].get("cleaned_name"):
        examples = ", ".join(f"{name!r} for {gene}" for name, gene in report["cleaned_names"][:2])
        text += f", {cleaned:,} names cleaned ({examples})"
    if left_out := report.get("left_out"):
        text += f", left out {', '.join(f'{n:,} {kind}' for kind, n in left_out.items())}"
    if note := report.get("note"):
        text += f", {note}"
    return text


__all__ = [
    "described_names",
    "described_vocabulary",
    "named_columns",
    "refuse_mouse",
    "refuse_numbers",
    "unused_ids",
    "vocabulary_notes",
]
