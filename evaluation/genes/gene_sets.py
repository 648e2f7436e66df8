"""Agreement of vectors of genes with sets of genes, such as pathways, beside random genes of the same expression."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp

from cellglot.evaluation.genes.vectors import Vectors, selection
from cellglot.evaluation.perturbation.statistics import false_discovery_rate
from cellglot.tokenization.gene_vocabulary import GeneVocabulary


BINS = 20  # of genes by their expression
LEAST, MOST = 10, 500  # genes of a set
SETS_AT_ONCE = 128
VALUES_AT_ONCE = 1 << 25  # of summed vectors of random sets


@dataclass(frozen=True)
class MatchedSets:
    """Sets of genes among the genes that are scored.

    Parameters
    ----------
    names
        Of the sets.
    members
        Places of the genes of each set among the scored genes, ascending.
    sizes
        Number of genes of each set in the file.
    genes
        The scored genes: those of any set, as places among the given genes, shape (scored,).
    left_out
        Number of sets with too few or too many scored genes.
    """

    names: list[str]
    members: list[np.ndarray]
    sizes: list[int]
    genes: np.ndarray
    left_out: int


def match_sets(
    sets: Mapping[str, Sequence[str]],
    vocabulary: GeneVocabulary,
    place_of_token: np.ndarray,
    least: int = LEAST,
    most: int = MOST,
) -> MatchedSets:
    """Find the genes of sets among those to be scored.

    Parameters
    ----------
    sets
        Name -> genes, Ensembl ids or symbols.
    place_of_token
        Place of each token's gene among the given genes, -1 for tokens that are not scored, shape (vocabulary,).
    least, most
        Sets with fewer or more scored genes are left out.

    Raises
    ------
    ValueError
        If no set is left.
    """
    names = sorted({gene for genes in sets.values() for gene in genes})
    match = vocabulary.resolve(names)
    place = dict(zip(names, np.where(match.known, place_of_token[match.token_ids], -1).tolist(), strict=True))
    found = {name: np.unique([place[gene] for gene in genes if place[gene] >= 0]) for name, genes in sets.items()}
    every = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *found.values()])).astype(np.int64)
    kept = [name for name, genes in found.items() if least <= len(genes) <= most]
    if not kept:
        largest = max((len(genes) for genes in found.values()), default=0)
        raise ValueError(
            f"none of {len(sets):,} gene sets has {least:,} to {most:,} genes to score (the largest has {largest:,}): "
            "name sets of the genes of these cells, or change the bounds (--set-genes, set_genes)"
        )
    members = [np.searchsorted(every, found[name]) for name in kept]
    return MatchedSets(kept, members, [len(sets[name]) for name in kept], every, len(sets) - len(kept))


def expression_bins(expression: np.ndarray | None, genes: int, bins: int = BINS) -> np.ndarray:
    """Return the bin of each gene: as many genes in each, ordered by expression, shape (genes,).

    Without expression all genes are in one bin.
    """
    if expression is None:
        return np.zeros(genes, dtype=np.int64)
    rank = np.empty(genes, dtype=np.int64)
    rank[np.argsort(expression, kind="stable")] = np.arange(genes)
    return rank * min(bins, max(genes, 1)) // max(genes, 1)


class RandomSets:
    """Random sets of genes, in the bins of expression of given sets.

    Parameters
    ----------
    bins
        Bin of each gene, shape (genes,).
    number
        Random sets for each set.
    seed
        Of the drawing. Sets with the same number of genes in each bin get the same random sets.
    """

    def __init__(self, bins: np.ndarray, number: int, seed: int = 0):
        self.bins, self.number = bins, number
        random = np.random.default_rng(seed)
        order = np.argsort(bins, kind="stable")
        self.starts = np.searchsorted(bins[order], np.arange(bins.max(initial=0) + 2))
        self.orders = [
            random.permuted(np.tile(order[start:stop].astype(np.int32), (number, 1)), axis=1)
            for start, stop in zip(self.starts, self.starts[1:], strict=False)
        ]

    def like(self, genes: np.ndarray) -> np.ndarray:
        """Return random sets like a set of genes, shape (number, genes of the set); a gene is in each at most once."""
        numbers = np.bincount(self.bins[genes], minlength=len(self.orders))
        return np.concatenate(
            [order[:, :n] for order, n in zip(self.orders, numbers.tolist(), strict=True) if n], axis=1
        )


def score_sets(
    vectors: Vectors, sets: MatchedSets, bins: np.ndarray, permutations: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Score how similar the genes of each set are.

    Parameters
    ----------
    vectors
        Of the scored genes. Genes without a vector are similar to none: 0.
    bins
        Bin of expression of the scored genes.
    permutations
        Random sets for each set; 0 for none.

    Returns
    -------
    pandas.DataFrame
        One row for each set: ``set``; ``genes_in_set``; ``genes``, those that are scored; ``with_vector``;
        ``similarity``, mean over pairs of different genes of the set; ``random_similarity``, the mean of the random
        sets of as many genes of the same expression; ``p_value``, (1 + random sets that reach it) / (1 + random
        sets), and ``fdr`` (Benjamini and Hochberg); ``auroc``, of the mean similarity to the other genes of the set,
        for the genes of the set against all others that are scored; ``auroc_matched``, the same with the others
        weighted to the expression of the set; ``auprc``, average precision without weights, and ``auprc_chance``, the
        share of scored genes in the set.
    """
    random = RandomSets(bins, permutations, seed)
    rows = []
    for start in range(0, len(sets.members), SETS_AT_ONCE):
        members = sets.members[start : start + SETS_AT_ONCE]
        sums = vectors.sums(selection(members, len(sets.genes)))
        squares, products = vectors.squares(sums), vectors.products(sums)
        for own, square, product in zip(members, squares.tolist(), products.T, strict=True):
            rows.append(_score(vectors, own, square, product, bins) | _against_random(vectors, own, square, random))
    table = pd.DataFrame(rows)
    table.insert(0, "set", sets.names)
    table.insert(1, "genes_in_set", sets.sizes)
    table["fdr"] = false_discovery_rate(table["p_value"].to_numpy())
    order = [
        "set", "genes_in_set", "genes", "with_vector", "similarity", "random_similarity", "p_value", "fdr", "auroc",
        "auroc_matched", "auprc", "auprc_chance",
    ]  # fmt: skip
    return table[order]


def _mean_of_pairs(square: np.ndarray, lengths: np.ndarray, genes: int) -> np.ndarray:
    return (square - lengths) / (genes * (genes - 1))


def _score(
    vectors: Vectors, own: np.ndarray, square: float, product: np.ndarray, bins: np.ndarray
) -> dict[str, float]:
    number, lengths = len(own), vectors.lengths[own]
    similarity = product / number
    similarity[own] = (product[own] - lengths) / (number - 1)
    inside = np.zeros(len(product), dtype=bool)
    inside[own] = True
    of_set, of_all = np.bincount(bins[own], minlength=bins.max() + 1), np.bincount(bins)
    weights = np.where(inside, 0.0, (of_set / np.maximum(of_all - of_set, 1))[bins])
    return {
        "genes": number,
        "with_vector": int(lengths.sum()),
        "similarity": float(_mean_of_pairs(np.array(square), lengths.sum(), number)),
        "auroc": weighted_auroc(similarity, inside, (~inside).astype(np.float64)),
        "auroc_matched": weighted_auroc(similarity, inside, weights),
        "auprc": average_precision(similarity, inside),
        "auprc_chance": number / len(product),
    }


def _against_random(vectors: Vectors, own: np.ndarray, square: float, random: RandomSets) -> dict[str, float]:
    if not random.number:
        return {"random_similarity": float("nan"), "p_value": float("nan")}
    drawn, genes = random.like(own), len(own)
    observed = float(_mean_of_pairs(np.array(square), vectors.lengths[own].sum(), genes))
    found = []
    width = vectors.sums(sp.csr_matrix((1, len(vectors.lengths)), dtype=np.float32)).shape[1]
    at_once = max(1, VALUES_AT_ONCE // max(width, 1))
    for start in range(0, len(drawn), at_once):
        part = drawn[start : start + at_once]
        squares = vectors.squares(vectors.sums(selection(list(part), len(vectors.lengths))))
        found.append(_mean_of_pairs(squares, vectors.lengths[part].sum(axis=1), genes))
    values = np.concatenate(found)
    reached = int((values >= observed - 1e-6 * abs(observed)).sum())
    return {"random_similarity": float(values.mean()), "p_value": (1 + reached) / (1 + len(values))}


def weighted_auroc(scores: np.ndarray, inside: np.ndarray, weights: np.ndarray) -> float:
    """Return the probability that a gene inside scores higher than one outside, which is drawn by weights.

    Ties count one half; NaN without weights.
    """
    total = weights.sum()
    if not total > 0:
        return float("nan")
    _, places = np.unique(scores, return_inverse=True)
    at = np.bincount(places, weights=weights)
    below = np.cumsum(at) - at / 2
    return float(below[places[inside]].mean() / total)


def average_precision(scores: np.ndarray, inside: np.ndarray) -> float:
    """Return the average precision of the genes inside, ties together, as scikit-learn's."""
    values, places = np.unique(-scores, return_inverse=True)
    found, every = np.bincount(places, weights=inside), np.bincount(places)
    precision = np.cumsum(found) / np.cumsum(every)
    return float((precision * found).sum() / max(found.sum(), 1)) if len(values) else float("nan")


__all__ = [
    "MatchedSets", "RandomSets", "average_precision", "expression_bins", "match_sets", "score_sets", "weighted_auroc",
]  # fmt: skip
