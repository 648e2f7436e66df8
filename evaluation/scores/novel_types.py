"""Cell types that no reference cell has: named by where cells lie among known types, as the ontology sees it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from cellglot.tokenization.ontology.cell_ontology import CellOntology


SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)
CELLS_AT_ONCE = 16_384
FEWEST_KNOWN = 3  # two values have but two orders
FEWEST_NOVEL = 2


def novel_cell_type_scores(
    known_embedding: np.ndarray,
    known_types: Sequence[str | None] | np.ndarray,
    query_embedding: np.ndarray,
    query_types: Sequence[str | None] | np.ndarray,
    ontology: CellOntology,
    *,
    shares: Sequence[float] = SHARES,
    draws: int = 20,
    seed: int = 0,
) -> dict[str, Any]:
    """Name cells of types that are not among the reference cells, and score the names.

    scCello's rule (Yuan et al. 2024): a cell's cosine similarities to the prototypes of the known types (the mean
    embedding of their cells) are compared, by Spearman correlation, with each candidate type's PageRank similarities
    to the known types; the best correlation names the cell. For each share of the novel types, as many candidates are
    drawn at random, and the cells of these types are named.

    Our choices. There are at least two candidates: with one there is nothing to decide. Equal values share their mean
    rank; similarities that agree to ten digits are equal. Where several candidates have the best correlation, each is
    a name in equal parts (what guessing among them scores on average), and the cell is counted in
    ``cells_with_ties``: the fewer known types, the more candidates lie alike to them. A cell equally near to all known
    types has no correlation and no name: an error, counted in ``cells_without_name``. A candidate equally near to all
    known types has no correlation either, and is never a name.

    Parameters
    ----------
    known_embedding
        Of the reference cells, shape (cells, size).
    known_types
        Cell Ontology id of each reference cell, None where there is none.
    query_embedding
        Of the cells to be named, shape (cells, size).
    query_types
        Cell Ontology id of each of them, None where there is none; cells of known types are left out and counted.
    ontology
        Where types lie.
    shares
        Shares of the novel types that are candidates, in (0, 1].
    draws
        Random draws of candidates for each share.
    seed
        Of the draws.

    Returns
    -------
    dict
        ``results``, for each share: ``share``, ``candidates`` (their number), ``draws``, ``distinct_draws``,
        ``chance`` (accuracy of guessing), ``accuracy`` and ``macro_f1``, each with ``mean``, ``sd`` and the 95%
        ``interval`` over draws, these None where all draws are the same. ``accuracy`` and ``macro_f1``: means at the
        largest share, None where undefined; ``undefined``: score -> the reason. ``known_types``, ``novel_types``,
        ``cells`` (named), ``known_cells``, ``cells_of_known_types``, ``cells_without_type``,
        ``cells_without_embedding``, ``cells_without_name``, ``cells_with_ties``, ``seed``. Plain types.

    Raises
    ------
    ValueError
        If types are not one for each cell, sizes of embeddings differ, no reference cell or no other cell has a type
        and an embedding, a share is not in (0, 1], or `draws` is below 1.
    CellOntologyError
        If an id is not in the ontology.
    """
    if draws < 1 or not len(shares) or not all(0 < s <= 1 for s in shares):
        raise ValueError(f"{draws} draws of the shares {list(shares)}: shares lie in (0, 1], and one draw is needed")
    known, known_ids, left_out = _cells_with_type(known_embedding, known_types, ontology, "reference cells")
    query, query_ids, query_left_out = _cells_with_type(query_embedding, query_types, ontology, "cells to be named")
    if known.shape[1] != query.shape[1]:
        raise ValueError(f"embeddings of size {known.shape[1]} and {query.shape[1]} cannot be compared")
    types = np.unique(known_ids)
    is_novel = ~np.isin(query_ids, types)
    query, query_ids = query[is_novel], query_ids[is_novel]
    candidates = np.unique(query_ids)
    result: dict[str, Any] = {
        "results": [],
        "accuracy": None,
        "macro_f1": None,
        "undefined": {},
        "known_types": types.tolist(),
        "novel_types": candidates.tolist(),
        "cells": len(query),
        "known_cells": len(known),
        "cells_of_known_types": int((~is_novel).sum()),
        "cells_without_type": left_out[0] + query_left_out[0],
        "cells_without_embedding": left_out[1] + query_left_out[1],
        "cells_without_name": 0,
        "cells_with_ties": 0,
        "seed": seed,
    }
    reason = _undefined(len(types), len(candidates))
    if reason is not None:
        return result | {"undefined": {"accuracy": reason, "macro_f1": reason}}
    correlation = candidate_correlations(known, known_ids, query, candidates.tolist(), ontology)
    true = np.searchsorted(candidates, query_ids)
    random = np.random.default_rng(seed)
    rows = [_scores_of_draws(correlation, true, share, draws, random) for share in sorted(shares)]
    defined = ~np.isnan(correlation)
    best = np.max(np.where(defined, correlation, -np.inf), axis=1, keepdims=True)
    return result | {
        "results": rows,
        "accuracy": rows[-1]["accuracy"]["mean"],
        "macro_f1": rows[-1]["macro_f1"]["mean"],
        "cells_without_name": int((~defined.any(axis=1)).sum()),
        "cells_with_ties": int(((correlation == best).sum(axis=1) > 1).sum()),
    }


def _cells_with_type(
    embedding: np.ndarray, types: Sequence[str | None] | np.ndarray, ontology: CellOntology, what: str
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Return the cells with type and embedding, their ids, and how many were without type and without embedding."""
    x = np.asarray(embedding, dtype=np.float64)
    if x.ndim != 2 or len(x) != len(types):
        raise ValueError(f"embeddings of shape {x.shape} and types of {len(types):,} {what} do not belong together")
    typed = np.array([isinstance(t, str) and bool(t.strip()) for t in types], dtype=bool)
    finite = np.isfinite(x).all(axis=1)
    kept = np.flatnonzero(typed & finite)
    if not len(kept):
        raise ValueError(f"none of {len(x):,} {what} has a cell type and an embedding")
    given, numbers = np.unique(np.array([str(types[int(i)]) for i in kept]), return_inverse=True)
    ids = np.array(ontology.ids(given.tolist()))[numbers]
    return x[kept], ids, (int((~typed).sum()), int((typed & ~finite).sum()))


def _undefined(known: int, novel: int) -> str | None:
    if known < FEWEST_KNOWN:
        return f"there are {known} known types: an order of similarities takes at least {FEWEST_KNOWN}"
    if novel < FEWEST_NOVEL:
        return f"there are {novel} novel types: choosing between candidates takes at least {FEWEST_NOVEL}"
    return None


def candidate_correlations(
    known_embedding: np.ndarray,
    known_types: Sequence[str] | np.ndarray,
    query_embedding: np.ndarray,
    candidates: Sequence[str],
    ontology: CellOntology,
) -> np.ndarray:
    """Correlate cells' similarities to the known types with those of candidate types.

    Parameters
    ----------
    known_embedding
        Of the reference cells, shape (cells, size).
    known_types
        Id of each reference cell.
    query_embedding
        Of the cells to be named, shape (cells, size).
    candidates
        Ids of the types to choose from.

    Returns
    -------
    numpy.ndarray
        Spearman correlations, rounded to ten digits, NaN where a cell or a candidate is equally near to all known
        types; float64, shape (cells, candidates).
    """
    types, numbers, sizes = np.unique(known_types, return_inverse=True, return_counts=True)
    prototypes = np.zeros((len(types), known_embedding.shape[1]))
    np.add.at(prototypes, numbers, known_embedding)
    prototypes = _unit_rows(prototypes / sizes[:, None])
    similarity = ontology.similarity([*candidates, *types.tolist()])[: len(candidates), len(candidates) :]
    # Types that lie alike to a candidate have the same PageRank up to rounding errors.
    with np.errstate(divide="ignore"):
        of_candidates = _standard_ranks(np.round(np.log(similarity), 10))
    blocks = []
    for first in range(0, len(query_embedding), CELLS_AT_ONCE):
        cosines = _unit_rows(query_embedding[first : first + CELLS_AT_ONCE]) @ prototypes.T
        blocks.append(np.round(_standard_ranks(cosines) @ of_candidates.T, 10))
    return np.concatenate(blocks)


def _unit_rows(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-300)


def _standard_ranks(values: np.ndarray) -> np.ndarray:
    """Rank each row, centred and of unit length: products of two are Spearman correlations; NaN in constant rows."""
    ranks = rankdata(values, axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(ranks, axis=1, keepdims=True)
    return ranks / np.where(lengths > 0, lengths, np.nan)


def _scores_of_draws(
    correlation: np.ndarray, true: np.ndarray, share: float, draws: int, random: np.random.Generator
) -> dict[str, Any]:
    n_types = correlation.shape[1]
    number = min(n_types, max(FEWEST_NOVEL, int(share * n_types + 0.5)))
    drawn = [tuple(sorted(random.choice(n_types, number, replace=False).tolist())) for _ in range(draws)]
    distinct = {c: _scores_among(correlation, true, np.array(c)) for c in sorted(set(drawn))}
    scores = np.array([distinct[c] for c in drawn])
    spread = len(distinct) > 1
    row: dict[str, Any] = {
        "share": float(share),
        "candidates": number,
        "draws": draws,
        "distinct_draws": len(distinct),
        "chance": 1 / number,
    }
    for name, values in zip(("accuracy", "macro_f1"), scores.T, strict=True):
        row[name] = {
            "mean": float(values.mean()),
            "sd": float(values.std(ddof=1)) if spread else None,
            "interval": np.quantile(values, [0.025, 0.975]).tolist() if spread else None,
        }
    return row


def _scores_among(correlation: np.ndarray, true: np.ndarray, candidates: np.ndarray) -> tuple[float, float]:
    """Return accuracy and macro F1 of the cells of some candidate types, named among these."""
    cells = np.isin(true, candidates)
    values = correlation[cells][:, candidates]
    values = np.where(np.isnan(values), -np.inf, values)
    best = values.max(axis=1, keepdims=True)
    named = (values == best) & (best > -np.inf)
    parts = named / np.maximum(named.sum(axis=1, keepdims=True), 1)
    own = true[cells][:, None] == candidates
    right = (parts * own).sum(axis=0)
    f1 = 2 * right / (own.sum(axis=0) + parts.sum(axis=0))
    return float(right.sum() / len(parts)), float(f1.mean())


def split_cell_types(
    cell_types: Sequence[str | None] | np.ndarray, novel_share: float = 0.5, seed: int = 0
) -> tuple[list[str], list[str]]:
    """Draw which cell types of a data set are known and which are held out, whole types at a time.

    At least three types stay known and two are held out.

    Parameters
    ----------
    cell_types
        Type of each cell, None where there is none.
    novel_share
        Share of the types to hold out, in (0, 1).
    seed
        Of the draw.

    Returns
    -------
    tuple of list of str
        Known and novel types, sorted.

    Raises
    ------
    ValueError
        If there are fewer than five types, or the share is not between 0 and 1.
    """
    types = np.array(sorted({t for t in cell_types if isinstance(t, str) and t.strip()}))
    needed = FEWEST_KNOWN + FEWEST_NOVEL
    if len(types) < needed:
        raise ValueError(f"{len(types)} cell types: holding out novel ones takes at least {needed}")
    if not 0 < novel_share < 1:
        raise ValueError(f"a share of {novel_share} of the types to hold out does not lie between 0 and 1")
    number = min(max(int(novel_share * len(types) + 0.5), FEWEST_NOVEL), len(types) - FEWEST_KNOWN)
    novel = np.zeros(len(types), dtype=bool)
    novel[np.random.default_rng(seed).choice(len(types), number, replace=False)] = True
    return types[~novel].tolist(), types[novel].tolist()


def evaluate_novel_cell_types(
    embedding: np.ndarray,
    cell_types: Sequence[str | None] | np.ndarray,
    ontology: CellOntology,
    *,
    novel_share: float = 0.5,
    shares: Sequence[float] = SHARES,
    draws: int = 20,
    seed: int = 0,
) -> dict[str, Any]:
    """Hold out some of the cell types of one data set and name their cells; see `novel_cell_type_scores`.

    Parameters
    ----------
    embedding
        Shape (cells, size).
    cell_types
        Cell Ontology id of each cell, None where there is none.
    ontology
        Where types lie.
    novel_share
        Share of the types to hold out.
    shares, draws
        As for `novel_cell_type_scores`.
    seed
        Of the split and the draws.

    Returns
    -------
    dict
        As `novel_cell_type_scores` gives, and ``novel_share``. With fewer than five types all scores are undefined.

    Raises
    ------
    ValueError
        As `novel_cell_type_scores` and `split_cell_types` do.
    CellOntologyError
        If an id is not in the ontology.
    """
    x, ids, left_out = _cells_with_type(embedding, cell_types, ontology, "cells")
    types = np.unique(ids)
    if len(types) < FEWEST_KNOWN + FEWEST_NOVEL:
        reason = f"{len(types)} cell types: holding out novel ones takes at least {FEWEST_KNOWN + FEWEST_NOVEL}"
        scores: dict[str, Any] = {"results": [], "accuracy": None, "macro_f1": None, "cells": 0}
        scores |= {"undefined": {"accuracy": reason, "macro_f1": reason}, "known_types": types.tolist()}
        scores |= {"novel_types": [], "seed": seed}
    else:
        known = np.isin(ids, split_cell_types(ids.tolist(), novel_share, seed)[0])
        scores = novel_cell_type_scores(
            x[known], ids[known], x[~known], ids[~known], ontology, shares=shares, draws=draws, seed=seed
        )
    return scores | {
        "novel_share": novel_share,
        "cells_without_type": left_out[0],
        "cells_without_embedding": left_out[1],
    }


__all__ = ["candidate_correlations", "evaluate_novel_cell_types", "novel_cell_type_scores", "split_cell_types"]
