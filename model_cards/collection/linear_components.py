"""Principal components of training cells, as weights of a base's linear latent."""

from collections.abc import Sequence
from typing import Any

import anndata as ad
import numpy as np
import torch
from scipy.sparse import csr_matrix
from sklearn.decomposition import PCA

from cellglot.evaluation.embedding import embed_cells
from cellglot.model_cards.collection.cells import PreparedCells
from cellglot.model_cards.collection.embedding_scores import log_counts
from cellglot.modeling.modeling_exceiver import ExceiverModel
from cellglot.tokenization.reading.cells import read_cells


CELLS = 700  # of each data set
SCALED = 150  # of each data set, to find the scale


def with_linear_latent(
    network: ExceiverModel, tokenizer: Any, sets: Sequence[PreparedCells], genes: int, seed: int, share: float = 1.5
) -> ExceiverModel:
    """Return an encoder with a linear latent: principal components of log counts of training cells.

    Components are those of the cells around the mean of their data set, of the genes that vary most among those that
    all of the data sets have.

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
    """
    random = np.random.default_rng(seed)
    parts = [ad.read_h5ad(p.path) for p in sets]
    known = set(tokenizer.vocabulary.genes)
    names = sorted(known.intersection(*(part.var_names for part in parts)))
    chosen = [np.sort(random.permutation(part.n_obs)[:CELLS]) for part in parts]
    logs = [_logs(part[rows], names) for part, rows in zip(parts, chosen, strict=True)]
    within = np.mean([_variances(values) for values in logs], axis=0)
    used = np.sort(np.argsort(-within, kind="stable")[:genes])
    centred = np.concatenate([_dense(values[:, used]) for values in logs])
    size = network.config.hidden_size
    number = min(size, min(centred.shape) - 1)
    loadings = np.zeros((len(used), size))
    loadings[:, :number] = PCA(number, svd_solver="arpack", random_state=seed).fit(centred).components_.T
    raw = [values[:, used] @ loadings for values in logs]
    some = [part[rows[:SCALED]].copy() for part, rows in zip(parts, chosen, strict=True)]
    scale = share * _deviation([_embedded(network, tokenizer, cells) for cells in some]) / _deviation(raw)
    shift = np.mean([values.mean(axis=0) for values in raw], axis=0)
    return _put(network, tokenizer, [names[i] for i in used], scale * loadings, scale * shift)


def _put(
    network: ExceiverModel, tokenizer: Any, names: Sequence[str], loadings: np.ndarray, shift: np.ndarray
) -> ExceiverModel:
    """Copy an encoder, with weights of log counts: values of the model are in units of the gene's deviation."""
    vocabulary = tokenizer.vocabulary
    row_of = {gene: row for row, gene in enumerate(vocabulary.genes)}
    rows = np.array([row_of[name] for name in names])
    ids = vocabulary.gene_token_ids[rows]
    config = type(network.config).from_dict(network.config.to_dict() | {"linear_genes": len(names)})
    made = ExceiverModel(config)
    made.load_state_dict(network.state_dict(), strict=False)
    assert made.linear_latent is not None
    weights = loadings * vocabulary.stds[rows][:, None]
    zeros = tokenizer.background_values[rows]
    made.linear_latent.set_weights(
        torch.from_numpy(ids), torch.from_numpy(weights).float(), torch.from_numpy(zeros).float(),
        torch.from_numpy(shift).float(),
    )  # fmt: skip
    return made.eval()


def _logs(cells: ad.AnnData, names: Sequence[str]) -> csr_matrix:
    logs = log_counts(cells.X.tocsr())
    return logs[:, cells.var_names.get_indexer(list(names))].tocsr()


def _variances(logs: csr_matrix) -> np.ndarray:
    means = np.asarray(logs.mean(axis=0)).ravel()
    return np.asarray(logs.multiply(logs).mean(axis=0)).ravel() - means**2


def _dense(logs: csr_matrix) -> np.ndarray:
    values = logs.toarray()
    return values - values.mean(axis=0)


def _embedded(network: ExceiverModel, tokenizer: Any, cells: ad.AnnData) -> np.ndarray:
    with read_cells(cells) as opened:
        return embed_cells(network, tokenizer, opened, progress=False, min_coverage=0.0)


def _deviation(parts: Sequence[np.ndarray]) -> float:
    """Return the root of the summed variances within data sets."""
    return float(np.sqrt(np.mean([np.nanvar(part, axis=0).sum() for part in parts])))


__all__ = ["with_linear_latent"]
