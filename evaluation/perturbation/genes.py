"""The genes that are perturbed, and control genes matched to each in mean expression."""

import difflib
from collections.abc import Sequence

import numpy as np

from cellglot.evaluation.perturbation.tokens import DELETE, Expression
from cellglot.tokenization.gene_vocabulary import GeneVocabulary


RATIO = 2.0  # most that the mean expression of a control gene differs from that of its gene


def find_genes(
    names: Sequence[str], vocabulary: GeneVocabulary, expression: Expression, kind: str, where: str
) -> np.ndarray:
    """Return the token ids of genes, each once, in the order of their names.

    Parameters
    ----------
    names
        Ensembl ids, symbols or aliases.
    expression
        In the cells to perturb.
    kind
        ``"delete"``: genes have to be expressed in at least one cell.
    where
        The cells, for messages.

    Returns
    -------
    numpy.ndarray
        Shape (genes,).

    Raises
    ------
    ValueError
        If a gene is not in the vocabulary, is ambiguous, was not measured, or is not expressed.
    """
    match = vocabulary.resolve([str(name) for name in names])
    faults = []
    for name, token, ambiguous in zip(names, match.token_ids.tolist(), match.ambiguous, strict=True):
        if ambiguous:
            faults.append(f"{name!r} means several genes: name it by its Ensembl id")
        elif token < 0:
            faults.append(f"{name!r} is not in the vocabulary of the model{_similar(name, vocabulary)}")
        elif not expression.measured[token]:
            faults.append(f"{name!r} is not among the genes of {where}")
        elif kind == DELETE and not expression.cells[token]:
            faults.append(
                f"{name!r} is not expressed in any of the cells to perturb ({where}): there is nothing to delete"
            )
    if faults:
        raise ValueError(f"{len(faults):,} of {len(names):,} genes cannot be perturbed: {'; '.join(faults)}")
    return np.array(list(dict.fromkeys(match.token_ids.tolist())), dtype=np.int64)


def _similar(name: str, vocabulary: GeneVocabulary) -> str:
    """Return the names in a vocabulary that are most like a name, in words."""
    names = {symbol.upper(): symbol for symbol in vocabulary.symbols.values()}
    names |= {gene.upper(): gene for gene in vocabulary.genes}
    near = difflib.get_close_matches(str(name).upper(), list(names), n=3, cutoff=0.7)
    return f" (similar names: {', '.join(names[n] for n in near)})" if near else ""


def all_genes(expression: Expression, where: str) -> np.ndarray:
    """Return the token ids of all genes that the cells express, shape (genes,).

    Raises
    ------
    ValueError
        If they express none.
    """
    found = np.flatnonzero(expression.cells > 0)
    if not len(found):
        raise ValueError(f"{where}: the cells to perturb express no gene of the model")
    return found


def matched_controls(
    genes: np.ndarray, expression: Expression, candidates: np.ndarray, number: int, seed: int = 0
) -> list[np.ndarray]:
    """Draw control genes of the same mean expression for each gene.

    Those of a gene are drawn from the candidates whose mean expression is between half and twice its own; all are
    taken if there are fewer than `number`.

    Parameters
    ----------
    genes
        Token ids, shape (genes,).
    expression
        In the cells to perturb.
    candidates
        Token ids of genes that may be controls; a gene is never its own control.
    number
        Control genes for each gene.
    seed
        Of the drawing; that of one gene does not depend on the others.

    Returns
    -------
    list of numpy.ndarray
        Token ids of the controls of each gene, ascending.
    """
    ordered = candidates[np.argsort(expression.means[candidates], kind="stable")]
    means = expression.means[ordered]
    found = []
    for gene in genes.tolist():
        own = expression.means[gene]
        low, high = np.searchsorted(means, own / RATIO, side="left"), np.searchsorted(means, own * RATIO, side="right")
        pool = ordered[low:high]
        pool = pool[pool != gene]
        if len(pool) > number:
            pool = np.random.default_rng([seed, gene]).choice(pool, number, replace=False)
        found.append(np.sort(pool))
    return found


__all__ = ["all_genes", "find_genes", "matched_controls"]
