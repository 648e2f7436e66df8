"""The names of a model's genes for the page: what a name means, without the package's tables."""

from typing import Any

from cellglot.tokenization.gene_vocabulary import _RELEASED, GeneVocabulary
from cellglot.tokenization.genes.tables import HumanGenes


AMBIGUOUS, ELSEWHERE = -1, -2  # a name of several genes; a name of a gene that the vocabulary does not have


def gene_names(vocabulary: GeneVocabulary, human: HumanGenes) -> dict[str, Any]:
    """Return everything that `GeneVocabulary.resolve` knows of names, as plain types.

    Parameters
    ----------
    vocabulary
        The model's.
    human
        The table of human genes, which knows more names and retired ids.

    Returns
    -------
    dict
        ``genes`` (Ensembl ids or others), ``tokens`` and ``symbols`` in the same order, ``aliases`` (pairs of a place
        in it and its other names), ``other_names`` and ``other_ids`` (pairs of a name or id of the human table that
        the vocabulary does not have, and a token, `AMBIGUOUS` or `ELSEWHERE`).
    """
    place = {gene: number for number, gene in enumerate(vocabulary.genes)}
    others: list[tuple[str, int]] = []
    ids: list[tuple[str, int]] = []
    if next((gene for gene in vocabulary.genes if gene.startswith("ENS")), "ENSG").startswith("ENSG"):
        others, ids = _of_human(vocabulary, human)
    return {
        "vocab_size": vocabulary.vocab_size,
        "genes": vocabulary.genes,
        "tokens": vocabulary.gene_token_ids.tolist(),
        "symbols": [vocabulary.symbols.get(gene, "") for gene in vocabulary.genes],
        "aliases": [(place[gene], names) for gene, names in vocabulary.aliases.items() if names],
        "other_names": others,
        "other_ids": ids,
    }


def _of_human(vocabulary: GeneVocabulary, human: HumanGenes) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    known = set(vocabulary.symbols.values()).union(vocabulary.genes, *vocabulary.aliases.values())
    tokens = vocabulary._tokens_by_gene(human)
    others = []
    for name in human.names():
        if name not in known:
            genes = human.find(name)
            others.append((name, AMBIGUOUS if len(genes) > 1 else tokens.get(genes[0], ELSEWHERE)))
    ids = [(gene, token) for gene, token in tokens.items() if gene not in vocabulary.token_ids]
    if vocabulary.metadata.get("source") != _RELEASED:  # whose models never saw counts of retired ids
        ids += [(old, tokens[new]) for old, new in human.retired_ids().items() if new in tokens and old not in tokens]
    return others, ids


__all__ = ["AMBIGUOUS", "ELSEWHERE", "gene_names"]
