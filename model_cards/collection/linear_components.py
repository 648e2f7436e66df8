"""Principal components of training cells, and directions of their labels, as weights of a base's linear latent.

Directions in which laboratories differ can be shrunk.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import anndata as ad
import numpy as np
import torch
from scipy.sparse import csr_matrix
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from cellglot.evaluation.embedding import embed_cells
from cellglot.model_cards.collection.cells import LABEL, PreparedCells
from cellglot.model_cards.collection.embedding_scores import log_counts
from cellglot.modeling.gene_sums import set_medians
from cellglot.modeling.linear_latent import LinearLatent, RankedLinearLatent
from cellglot.tokenization.reading.cells import read_cells


CELLS = 700  # of each data set
SCALED = 150  # of each data set, to find the scale
LABELLED = 1500  # of each data set, to find directions of labels
FEWEST_LABELLED = 20  # of a label
LABEL_SHARE = 1.0  # deviation of directions of labels, relative to that of the components
STRENGTH = 0.01  # C of the logistic regression
COMPARED = 400  # of each data set, to compare laboratories
FEWEST_COMPARED = 8  # of a type in a data set

Encoder = TypeVar("Encoder", bound=Any)


def with_linear_latent(
    network: Encoder,
    tokenizer: Any,
    sets: Sequence[PreparedCells],
    genes: int,
    seed: int,
    share: float = 1.5,
    labels: int = 0,
    labelled: Sequence[PreparedCells] = (),
    shrinkage: float = 0.0,
    types: Callable[[ad.AnnData], np.ndarray] | None = None,
) -> Encoder:
    """Return an encoder with a linear latent: principal components of log counts of training cells.

    Components are those of the cells around the mean of their data set, of the genes that vary most among those that
    all of the data sets have. Rank-value tokens give the latent the counts that they imply; components are of the
    measured ones, which was better than components of implied counts.

    Parameters
    ----------
    network, tokenizer
        The encoder, without a linear latent.
    sets
        Data sets for the components: of similar depth, with most genes measured.
    genes
        Number of genes with weights; fewer where fewer are in all data sets.
    seed
        Of the draw of cells.
    share
        Deviation of the linear latent, relative to that of the embedding without it; both within data sets.
    labels
        Directions of labels in place of the last components, see `label_directions`.
    labelled
        Data sets that the labels are of; those of `sets` by default.
    shrinkage
        How far directions in which cells of one type differ between data sets are shrunk, see `shrinking`; 0 for not.
    types
        With `shrinkage`: returns the type of each cell of a data set with labels, ``""`` for none, shape (cells,).
    """
    random = np.random.default_rng(seed)
    cells = {path: ad.read_h5ad(path) for path in dict.fromkeys(p.path for p in (*sets, *labelled))}
    parts, of = ([cells[p.path] for p in some] for some in (sets, labelled or sets))
    known = set(tokenizer.vocabulary.genes)
    names = sorted(known.intersection(*(part.var_names for part in parts)))
    chosen = [np.sort(random.permutation(part.n_obs)[:CELLS]) for part in parts]
    logs = [_logs(part[rows], names) for part, rows in zip(parts, chosen, strict=True)]
    within = np.mean([_variances(values) for values in logs], axis=0)
    used = np.sort(np.argsort(-within, kind="stable")[:genes])
    centred = np.concatenate([_dense(values[:, used]) for values in logs])
    size = network.config.hidden_size
    number = min(size - labels, min(centred.shape) - 1)
    loadings = np.zeros((len(used), size))
    loadings[:, :number] = PCA(number, svd_solver="arpack", random_state=seed).fit(centred).components_.T
    if labels:
        directions = label_directions(of, [names[i] for i in used], labels, seed)
        of_labels, others = (_deviation([v[:, used] @ w for v in logs]) for w in (directions, loadings))
        loadings[:, size - labels :] = directions * (LABEL_SHARE * others / of_labels)
    if shrinkage and types is not None:
        found = _put(network, tokenizer, [names[i] for i in used], loadings, np.zeros(size))
        means = _means_of_types(found, tokenizer, of, [types(part) for part in of], seed)
        loadings = loadings @ shrinking(means, shrinkage)
    raw = [values[:, used] @ loadings for values in logs]
    some = [part[rows[:SCALED]].copy() for part, rows in zip(parts, chosen, strict=True)]
    scale = share * _deviation([_embedded(network, tokenizer, part) for part in some]) / _deviation(raw)
    shift = np.mean([values.mean(axis=0) for values in raw], axis=0)
    return _put(network, tokenizer, [names[i] for i in used], scale * loadings, scale * shift)


def without_linear_latent(network: Encoder) -> Encoder:
    """Return an encoder without its linear latent; one that has none is returned as it is."""
    if not network.config.linear_genes:
        return network
    made = type(network)(type(network.config).from_dict(network.config.to_dict() | {"linear_genes": 0}))
    made.load_state_dict(network.state_dict(), strict=False)
    return made.eval()


def label_directions(parts: Sequence[ad.AnnData], genes: Sequence[str], number: int, seed: int) -> np.ndarray:
    """Return the directions that tell labels apart, shape (genes, number).

    They are the first singular vectors, times their values, of the weights of logistic regression on the log counts of
    labelled cells of all data sets together. Each label is a class, also one that leaves types open: labels at several
    levels give directions at several levels. Our choice.

    Parameters
    ----------
    parts
        Data sets with labels to train on; genes that one lacks count as not expressed.
    genes
        The genes with weights.
    number
        Of directions; those that are more than labels are zero.
    seed
        Of the draw of cells.
    """
    random, logs, given = np.random.default_rng(seed), [], []
    for part in parts:
        rows = np.flatnonzero(part.obs[LABEL].notna())
        rows = np.sort(random.permutation(rows)[:LABELLED])
        if len(rows):
            logs.append(_logs(part[rows], genes).toarray())
            given.append(part.obs[LABEL].astype(str).to_numpy()[rows])
    labels, features = np.concatenate(given), np.concatenate(logs)
    found, counts = np.unique(labels, return_counts=True)
    kept = np.isin(labels, found[counts >= FEWEST_LABELLED])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=STRENGTH, max_iter=100, class_weight="balanced").fit(features[kept], labels[kept])
    vectors, values, _ = np.linalg.svd(model.coef_.T, full_matrices=False)
    made = np.zeros((len(genes), number))
    few = min(number, len(values))
    made[:, :few] = (vectors * values)[:, :few]
    return made


def shrinking(means: Mapping[str, np.ndarray], strength: float) -> np.ndarray:
    """Return the matrix that shrinks directions in which laboratories differ, shape (size, size).

    It is (1 + strength N / n)^(-1/2): N is the covariance of the data sets' means of a type around the mean of these
    means, over all types, and n the mean of its eigenvalues. It is within-class covariance normalization of speaker
    recognition (Hatch et al., 2006), which compares recordings as this does data sets.

    Parameters
    ----------
    means
        Type -> means of the data sets that have it, shape (data sets, size).
    strength
        0 changes nothing.

    Raises
    ------
    ValueError
        If no type is in two data sets.
    """
    of_several = [values for values in means.values() if len(values) > 1]
    if not of_several:
        raise ValueError("linear_shrinkage compares data sets of one type, and no type is in two data sets of labels")
    differences = np.concatenate([values - values.mean(axis=0) for values in of_several])
    covariance = differences.T @ differences / sum(len(values) - 1 for values in of_several)
    values, vectors = np.linalg.eigh(covariance)
    relative = np.maximum(values, 0.0) / max(float(values.mean()), 1e-12)
    return (vectors / np.sqrt(1.0 + strength * relative)) @ vectors.T


def _means_of_types(
    network: Any, tokenizer: Any, parts: Sequence[ad.AnnData], types: Sequence[np.ndarray], seed: int
) -> dict[str, np.ndarray]:
    """Return type -> the means of the linear latent in each data set that has it, shape (data sets, size)."""
    random, size = np.random.default_rng(seed), network.config.hidden_size
    found: dict[str, list[np.ndarray]] = {}
    for part, given in zip(parts, types, strict=True):
        rows = np.flatnonzero(given != "")
        rows = np.sort(random.permutation(rows)[:COMPARED])
        if len(rows) < FEWEST_COMPARED:
            continue
        latents = _embedded(network, tokenizer, part[rows].copy())[:, -size:]
        embedded = np.isfinite(latents).all(axis=1)
        for name in np.unique(given[rows].astype(str)):
            chosen = embedded & (given[rows] == name)
            if chosen.sum() >= FEWEST_COMPARED:
                found.setdefault(name, []).append(latents[chosen].mean(axis=0))
    return {name: np.stack(means) for name, means in found.items()}


def _put(network: Encoder, tokenizer: Any, names: Sequence[str], loadings: np.ndarray, shift: np.ndarray) -> Encoder:
    """Copy an encoder, with weights of log counts, in units of the values that the model reads."""
    vocabulary = tokenizer.vocabulary
    row_of = {gene: row for row, gene in enumerate(vocabulary.genes)}
    rows = np.array([row_of[name] for name in names])
    config = type(network.config).from_dict(network.config.to_dict() | {"linear_genes": len(names)})
    made = type(network)(config)
    made.load_state_dict(network.state_dict(), strict=False)
    latent: LinearLatent = made.linear_latent
    weights, zeros = loadings, np.zeros(len(rows))
    if isinstance(latent, RankedLinearLatent):
        set_medians(latent.medians, tokenizer)
    else:  # values are in units of the gene's deviation
        weights, zeros = loadings * vocabulary.stds[rows][:, None], tokenizer.background_values[rows]
    latent.set_weights(
        torch.from_numpy(vocabulary.gene_token_ids[rows]), torch.from_numpy(weights).float(),
        torch.from_numpy(zeros).float(), torch.from_numpy(shift).float(),
    )  # fmt: skip
    return made.eval()


def _logs(cells: ad.AnnData, names: Sequence[str]) -> csr_matrix:
    """Return log counts of some genes, zero for those that the cells lack, shape (cells, names)."""
    places = cells.var_names.get_indexer(list(names))
    present = np.flatnonzero(places >= 0)
    to_names = csr_matrix(
        (np.ones(len(present), dtype=np.float32), (places[present], present)), shape=(cells.n_vars, len(names))
    )
    return (log_counts(cells.X.tocsr()) @ to_names).tocsr()


def _variances(logs: csr_matrix) -> np.ndarray:
    means = np.asarray(logs.mean(axis=0)).ravel()
    return np.asarray(logs.multiply(logs).mean(axis=0)).ravel() - means**2


def _dense(logs: csr_matrix) -> np.ndarray:
    values = logs.toarray()
    return values - values.mean(axis=0)


def _embedded(network: Any, tokenizer: Any, cells: ad.AnnData) -> np.ndarray:
    with read_cells(cells) as opened:
        return embed_cells(network, tokenizer, opened, progress=False, min_coverage=0.0)


def _deviation(parts: Sequence[np.ndarray]) -> float:
    """Return the root of the summed variances within data sets."""
    return float(np.sqrt(np.mean([np.nanvar(part, axis=0).sum() for part in parts])))


__all__ = ["label_directions", "shrinking", "with_linear_latent", "without_linear_latent"]
