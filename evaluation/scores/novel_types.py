"""Prediction of cell types that no reference cell has, from their similarity to known types in the ontology."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from cellglot.tokenization.ontology.cell_ontology import CellOntology


SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)
CELLS_AT_ONCE = 16_384
FEWEST_KNOWN = 3  # two values have only two orders
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
    """Predict the types of cells whose types no reference cell has, and score the predictions.

    scCello's rule (Yuan et al. 2024): a cell's cosine similarities to the prototypes of the known types (the mean
    embedding of their cells) are compared, by Spearman correlation, with each candidate type's PageRank similarities
    to the known types; the candidate with the best correlation is predicted. For each share of the novel types, that
    number of candidates is drawn at random, and the cells of these types are predicted.

    Our choices. There are at least two candidates. Equal values share their mean rank; similarities that agree to ten
    digits are equal. If several candidates have the best correlation, the prediction is divided equally among them
    (the mean score of guessing), and the cell is counted in ``cells_with_ties``. A cell with equal similarity to all
    known types has no prediction: an error, counted in ``cells_without_name``. A candidate with equal similarity to
    all known types is never predicted.

    Parameters
    ----------
    known_embedding
        Of the reference cells, shape (cells, size).
    known_types
        Cell Ontology id of each reference cell, or None.
    query_embedding
        Of the cells to predict, shape (cells, size).
    query_types
        Cell Ontology id of each of them, or None; cells of known types are excluded and counted.
    ontology
        Similarities of its types are compared.
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
        ``interval`` over draws, both None if all draws are the same. ``accuracy`` and ``macro_f1``: means at the
        largest share, None if undefined; ``undefined``: score -> the reason. ``known_types``, ``novel_types``,
        ``cells`` (predicted), ``known_cells``, ``cells_of_known_types``, ``cells_without_type``,
        ``cells_without_embedding``, ``cells_without_name``, ``cells_with_ties``, ``seed``. Plain types.

    Raises
    ------
    ValueError
        If the numbers of types and cells or the sizes of embeddings differ, no reference cell or no query cell has a
        type and an embedding, a share is not in (0, 1], or `draws` is below 1.
    CellOntologyError
        If an id is not in the ontology.
    """
    if draws < 1 or not len(shares) or not all(0 < s <= 1 for s in shares):
        raise ValueError(f"draws={draws} must be at least 1, shares={list(shares)} must be in (0, 1]")
    known, known_ids, left_out = _cells_with_type(known_embedding, known_types, ontology, "reference cells")
    query, query_ids, query_left_out = _cells_with_type(query_embedding, query_types, ontology, "query cells")
    if known.shape[1] != query.shape[1]:
        raise ValueError(
            f"reference embeddings have size {known.shape[1]}, query embeddings {query.shape[1]}: use the same model"
        )
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
    if len(types) < FEWEST_KNOWN or len(candidates) < FEWEST_NOVEL:
        reason = (
            f"{len(types)} known and {len(candidates)} novel types: at least {FEWEST_KNOWN} known and {FEWEST_NOVEL} "
            "novel types are needed"
        )
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
    """Return the cells with type and embedding, their ids, and the numbers without type and without embedding."""
    x = np.asarray(embedding, dtype=np.float64)
    if x.ndim != 2 or len(x) != len(types):
        raise ValueError(f"embeddings of shape {x.shape} do not match the {len(types):,} types of {what}")
    typed = np.array([isinstance(t, str) and bool(t.strip()) for t in types], dtype=bool)
    finite = np.isfinite(x).all(axis=1)
    kept = np.flatnonzero(typed & finite)
    if not len(kept):
        raise ValueError(f"none of {len(x):,} {what} has a cell type and an embedding")
    given, numbers = np.unique(np.array([str(types[int(i)]) for i in kept]), return_inverse=True)
    ids = np.array(ontology.ids(given.tolist()))[numbers]
    return x[kept], ids, (int((~typed).sum()), int((typed & ~finite).sum()))


def candidate_correlations(
    known_embedding: np.ndarray,
    known_types: Sequence[str] | np.ndarray,
    query_embedding: np.ndarray,
    candidates: Sequence[str],
    ontology: CellOntology,
) -> np.ndarray:
    """Correlate the similarities of cells and of candidate types to the known types.

    Parameters
    ----------
    known_embedding, query_embedding
        Of the reference cells and of the cells to predict, shape (cells, size).
    known_types, candidates
        Ids of the type of each reference cell, and of the candidates.

    Returns
    -------
    numpy.ndarray
        Spearman correlations, rounded to ten digits, NaN if a cell or a candidate has equal similarity to all known
        types; float64, shape (cells, candidates).
    """
    types, numbers, sizes = np.unique(known_types, return_inverse=True, return_counts=True)
    prototypes = np.zeros((len(types), known_embedding.shape[1]))
    np.add.at(prototypes, numbers, known_embedding)
    prototypes = _unit_rows(prototypes / sizes[:, None])
    similarity = ontology.similarity([*candidates, *types.tolist()])[: len(candidates), len(candidates) :]
    # Types with the same relation to a candidate have the same PageRank up to rounding errors.
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
    """Return accuracy and macro F1 of the cells of some candidate types, predicted among these."""
    cells = np.isin(true, candidates)
    parts = predicted_parts(correlation[cells][:, candidates])
    own = true[cells][:, None] == candidates
    right = (parts * own).sum(axis=0)
    f1 = 2 * right / (own.sum(axis=0) + parts.sum(axis=0))
    return float(right.sum() / len(parts)), float(f1.mean())


def predicted_parts(correlation: np.ndarray) -> np.ndarray:
    """Return the prediction of each cell, divided equally among the best candidates; shape (cells, candidates)."""
    values = np.where(np.isnan(correlation), -np.inf, correlation)
    best = values.max(axis=1, keepdims=True)
    named = (values == best) & (best > -np.inf)
    return named / np.maximum(named.sum(axis=1, keepdims=True), 1)


def split_cell_types(
    cell_types: Sequence[str | None] | np.ndarray, novel_share: float = 0.5, seed: int = 0
) -> tuple[list[str], list[str]]:
    """Split the cell types of a data set at random into known and novel ones, at least three and two.

    Parameters
    ----------
    cell_types
        Type of each cell, or None.
    novel_share
        Share of the types to hold out, in (0, 1).
    seed
        Of the split.

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
    if len(types) < FEWEST_KNOWN + FEWEST_NOVEL:
        raise ValueError(_too_few(len(types)))
    if not 0 < novel_share < 1:
        raise ValueError(f"novel_share={novel_share} must be between 0 and 1")
    number = min(max(int(novel_share * len(types) + 0.5), FEWEST_NOVEL), len(types) - FEWEST_KNOWN)
    novel = np.zeros(len(types), dtype=bool)
    novel[np.random.default_rng(seed).choice(len(types), number, replace=False)] = True
    return types[~novel].tolist(), types[novel].tolist()


def _too_few(types: int) -> str:
    return f"{types} cell types: at least {FEWEST_KNOWN + FEWEST_NOVEL} are needed to hold out novel ones"


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
    """Hold out some of the cell types of one data set and predict their cells; see `novel_cell_type_scores`.

    Parameters
    ----------
    embedding
        Shape (cells, size).
    cell_types
        Cell Ontology id of each cell, or None.
    ontology
        Similarities of its types are compared.
    novel_share
        Share of the types to hold out, in (0, 1).
    shares, draws, seed
        As for `novel_cell_type_scores`.

    Returns
    -------
    dict
        As from `novel_cell_type_scores`, with ``novel_share``. With fewer than five types all scores are undefined.
    """
    x, ids, left_out = _cells_with_type(embedding, cell_types, ontology, "cells")
    types = np.unique(ids)
    if len(types) < FEWEST_KNOWN + FEWEST_NOVEL:
        reason = _too_few(len(types))
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


__all__ = [
    "candidate_correlations",
    "evaluate_novel_cell_types",
    "novel_cell_type_scores",
    "predicted_parts",
    "split_cell_types",
]
