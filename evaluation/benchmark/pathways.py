"""The task "pathways": which pathways are active in a cell, from genes that do not decide it.

LangCell's paper has such a task; its labelled cells are not part of the released code, and ours is our choice: half of
the genes of all sets decide which pathways are active, and are then removed from the cells; models read the others. So
no model can compute the label from the genes that made it.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

from cellglot.evaluation.benchmark.baselines import LogCountsPca
from cellglot.evaluation.benchmark.gene_sets import GeneSetJobs, ScoredGenes
from cellglot.evaluation.benchmark.models import EvaluatedModel
from cellglot.evaluation.benchmark.results import TaskResult
from cellglot.evaluation.benchmark.tasks import PATHWAYS
from cellglot.evaluation.embedding import evaluated_on
from cellglot.evaluation.genes.vectors import selection
from cellglot.evaluation.scores.bootstrap import bootstrap_scores, weighted_mean
from cellglot.evaluation.text_model import as_processor, encode_texts


PROBE, BY_TEXTS = f"{PATHWAYS}: probe", f"{PATHWAYS}: by texts"
METRICS = ("average_precision", "auroc")
MOST, LEAST_GENES, ACTIVE = 40, 5, 0.25  # pathways; deciding genes of each; share of cells in which one is active
AT_ONCE = 64  # pathways whose activity in all cells is in memory
OVERLAP = 0.5  # of the deciding genes of two pathways (Jaccard), above which only one is scored


@dataclass
class PathwayCells:
    """Cells with their active pathways.

    Parameters
    ----------
    names
        Of the pathways.
    active
        Whether each is active in each cell, bool, shape (cells, pathways).
    kept
        Columns of the file that models may read: those that decide no pathway.
    test
        Whether each cell is held out, shape (cells,).
    """

    names: list[str]
    active: np.ndarray
    kept: np.ndarray
    test: np.ndarray


def active_pathways(
    logs: sp.csr_matrix, scored: ScoredGenes, seed: int = 0, test_fraction: float = 0.25
) -> PathwayCells | str:
    """Say which pathways are active in which cells, or why that cannot be said.

    The activity of a pathway is the mean of its deciding genes' log counts, each divided by its standard deviation,
    less that of all deciding genes. A pathway is active in the quarter of the cells with the highest activity. Of all
    pathways those are scored whose activity varies most, for their number of genes.

    Parameters
    ----------
    logs
        Log counts, shape (cells, genes of the file).
    scored
        Genes and sets, of `GeneSetJobs`.
    seed
        Of the halves of genes, and of the held-out cells.
    test_fraction
        Share of held-out cells.
    """
    random = np.random.default_rng(seed)
    number = len(scored.columns)
    decides = np.zeros(number, dtype=bool)
    decides[random.permutation(number)[: number // 2]] = True
    own = [genes[decides[genes]] for genes in scored.sets.members]
    usable = [place for place, genes in enumerate(own) if len(genes) >= LEAST_GENES]
    if len(usable) < 2:
        return f"fewer than two gene sets have {LEAST_GENES} genes that decide"
    values = logs[:, scored.columns]
    means = np.asarray(values.mean(axis=0)).ravel()
    squares = np.asarray(values.multiply(values).mean(axis=0)).ravel() - means**2
    scaled = values @ sp.diags(1 / np.sqrt(np.maximum(squares, 1e-6)))
    sizes = np.array([len(own[place]) for place in usable])
    of_all = np.asarray(scaled[:, decides].mean(axis=1)).reshape(-1, 1)

    def activity_of(places: Sequence[int]) -> np.ndarray:
        members = [own[usable[place]] for place in places]
        return (scaled @ selection(members, number).T).toarray() / sizes[list(places)] - of_all

    parts = [range(start, min(start + AT_ONCE, len(usable))) for start in range(0, len(usable), AT_ONCE)]
    variances = np.concatenate([activity_of(part).var(axis=0) for part in parts])
    order = np.argsort(-(variances * sizes), kind="stable")
    chosen: list[int] = []
    for place in order.tolist():
        genes = set(own[usable[place]].tolist())
        others = (set(own[usable[other]].tolist()) for other in chosen)
        if len(chosen) < MOST and all(len(genes & o) <= OVERLAP * len(genes | o) for o in others):
            chosen.append(place)
    kept = np.ones(logs.shape[1], dtype=bool)
    kept[scored.columns[decides]] = False
    n_cells = logs.shape[0]
    test = np.zeros(n_cells, dtype=bool)
    test[random.permutation(n_cells)[: max(1, round(test_fraction * n_cells))]] = True
    activity = activity_of(chosen)
    active = activity > np.quantile(activity, 1 - ACTIVE, axis=0)
    return PathwayCells([scored.sets.names[usable[place]] for place in chosen], active, np.flatnonzero(kept), test)


def text_of(name: str) -> str:
    """Return the name of a gene set as a text: without its collection, in small letters.

    Examples
    --------
    >>> text_of("REACTOME_INTERFERON_GAMMA_SIGNALING")
    'a cell with active pathway: interferon gamma signaling'
    """
    words = re.sub(r"^(REACTOME|KEGG(_MEDICUS)?|HALLMARK|GOBP|GOCC|GOMF|WP|BIOCARTA|PID)_", "", name)
    return f"a cell with active pathway: {words.replace('_', ' ').lower()}"


@dataclass
class PathwayJobs:
    """Scores models and baselines on the active pathways of cells.

    Parameters
    ----------
    genes
        Gene sets and the genes of the file.
    test_fraction
        Share of held-out cells.
    """

    genes: GeneSetJobs
    test_fraction: float = 0.25

    @cached_property
    def cells(self) -> PathwayCells | str:
        """The cells with their active pathways, or the reason why there are none."""
        scored = self.genes.scored
        if isinstance(scored, str):
            return scored
        return active_pathways(self.genes.log_counts(), scored, self.genes.seed, self.test_fraction)

    @cached_property
    def without_deciding_genes(self) -> AnnData:
        """The cells that models read."""
        assert isinstance(self.cells, PathwayCells)
        data = self.genes.data
        return data.subset(np.arange(len(data)))[:, self.cells.kept].copy()

    def of_model(self, model: EvaluatedModel, progress: bool = True) -> dict[str, TaskResult]:
        """Score a probe on the embeddings of a model, and for a model of texts the similarity to those of pathways."""
        if isinstance(self.cells, str):
            return self._undefined(self.cells, [PROBE])
        embedding = model.embed_cells(self.without_deciding_genes, progress, **self.genes.data.options)
        lost = ~np.isfinite(embedding).all(axis=1)
        embedding = np.where(lost[:, None], 0.0, embedding)
        found = {PROBE: self._probe(embedding, {"cells_without_embedding": int(lost.sum())})}
        if model.processor is not None:
            texts = [text_of(name) for name in self.cells.names]
            with evaluated_on(model.network, model.device):
                processor = as_processor(model.processor, model.network)
                features = encode_texts(model.network, processor, [[text] for text in texts]).features
            scores = embedding @ features.float().cpu().numpy().T
            found[BY_TEXTS] = self._result(scores[self.cells.test], {"texts": texts})
        return found

    def of_components(self) -> dict[str, TaskResult]:
        """Score a probe on principal components of the same genes, fitted to the training cells."""
        if isinstance(self.cells, str):
            return self._undefined(self.cells, [PROBE])
        logs = self.genes.log_counts()[:, self.cells.kept]
        pca = LogCountsPca.fit(logs[~self.cells.test], seed=self.genes.seed)
        return {PROBE: self._probe(pca.embed(logs), {})}

    def _probe(self, embedding: np.ndarray, facts: dict[str, Any]) -> TaskResult:
        assert isinstance(self.cells, PathwayCells)
        test, active = self.cells.test, self.cells.active
        scaler = StandardScaler().fit(embedding[~test])
        train, held_out = scaler.transform(embedding[~test]), scaler.transform(embedding[test])
        scores = np.zeros((int(test.sum()), active.shape[1]))
        for place, own in enumerate(active[~test].T):
            if own.any() and not own.all():
                scores[:, place] = LogisticRegression(max_iter=1000).fit(train, own).decision_function(held_out)
        return self._result(scores, facts)

    def _result(self, scores: np.ndarray, facts: dict[str, Any]) -> TaskResult:
        assert isinstance(self.cells, PathwayCells)
        truth = self.cells.active[self.cells.test]
        scored = np.flatnonzero(truth.any(axis=0) & ~truth.all(axis=0))
        judges: tuple[Callable[..., float], ...] = (average_precision_score, roc_auc_score)
        values = [np.array([judge(truth[:, p], scores[:, p]) for p in scored]) for judge in judges]

        def means(weights: np.ndarray) -> dict[str, float]:
            return {name: weighted_mean(own, weights) for name, own in zip(METRICS, values, strict=True)}

        details = {
            "pathways": [self.cells.names[place] for place in scored],
            "average_precision_of_each": values[0].tolist(),
            "chance_of_average_precision": float(truth[:, scored].mean()),
            "training_cells": int((~self.cells.test).sum()),
            "test_cells": len(truth),
            "genes_read": len(self.cells.kept),
        }
        return TaskResult(bootstrap_scores(means, len(scored), self.genes.draws, self.genes.seed), {}, facts | details)

    @staticmethod
    def _undefined(why: str, rows: list[str]) -> dict[str, TaskResult]:
        return {row: TaskResult({}, dict.fromkeys(METRICS, why)) for row in rows}


__all__ = ["BY_TEXTS", "PROBE", "PathwayCells", "PathwayJobs", "active_pathways", "text_of"]
