"""The task "gene-sets": agreement of embeddings of genes with pathways, on the same genes for all columns."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_matrix

from cellglot.evaluation.benchmark.models import EvaluatedModel
from cellglot.evaluation.benchmark.results import TaskResult
from cellglot.evaluation.benchmark.tasks import GENE_SETS
from cellglot.evaluation.embedding import stream_batches
from cellglot.evaluation.genes.gene_sets import MatchedSets, expression_bins, match_sets, score_sets
from cellglot.evaluation.genes.state_sums import StateSums
from cellglot.evaluation.genes.vectors import Coexpressed, Embedded, Vectors
from cellglot.evaluation.labelled_cells import LabelledCells
from cellglot.evaluation.scores.bootstrap import DRAWS, bootstrap_scores, weighted_mean
from cellglot.modeling.gene_states import gene_states, states_come_from, static_embeddings
from cellglot.tokenization.gene_vocabulary import GeneVocabulary
from cellglot.tokenization.genes.gene_catalogue import gene_catalogue
from cellglot.tokenization.genes.tables import human_genes


STATIC, IN_CELLS = f"{GENE_SETS}: static", f"{GENE_SETS}: in cells"
METRICS = ("auroc_matched", "average_precision", "coherent_sets")
COEXPRESSION, RANDOM = "coexpression", "random embeddings"
BASELINES = (COEXPRESSION, RANDOM)
MIN_CELLS, PERMUTATIONS, RANDOM_SIZE = 10, 200, 64
LEVEL = 0.05  # of significance, and so the share of random sets that reach it


@dataclass
class ScoredGenes:
    """The genes on which all models and baselines are scored.

    Parameters
    ----------
    columns
        Column of each gene in the file, shape (genes,).
    sets
        The gene sets; ``sets.genes`` are all scored genes.
    bins
        Bin of mean log expression of each, shape (genes,).
    """

    columns: np.ndarray
    sets: MatchedSets
    bins: np.ndarray


@dataclass
class GeneSetJobs:
    """Scores models and baselines on gene sets.

    Parameters
    ----------
    data
        The cells.
    log_counts
        Returns log counts of all cells, shape (cells, genes of the file).
    gene_sets
        Name -> genes.
    seed, draws
        As for `cellglot.evaluation.benchmark.jobs.Settings`.
    """

    data: LabelledCells
    log_counts: Callable[[], csr_matrix]
    gene_sets: Mapping[str, Sequence[str]]
    seed: int = 0
    draws: int = DRAWS

    def settings(self) -> dict[str, Any]:
        """Return what results depend on."""
        content = json.dumps({name: list(genes) for name, genes in self.gene_sets.items()}, sort_keys=True)
        return {"gene_sets_sha256": hashlib.sha256(content.encode()).hexdigest(), "permutations": PERMUTATIONS}

    @cached_property
    def scored(self) -> ScoredGenes | str:
        """The scored genes: those of any set that at least ten cells express; or the reason why there are none."""
        counts = self.data.cells.counts
        catalogue = gene_catalogue([(counts.index, counts.columns)], human=human_genes())
        match = catalogue.resolve(counts.index, counts.columns, self.data.options.get("gene_column"))
        logs = self.log_counts()
        cells = logs.getnnz(axis=0)
        place = np.full(catalogue.vocab_size, -1, dtype=np.int64)
        columns: list[int] = []
        for column in np.argsort(-cells, kind="stable").tolist():  # of several columns of a gene the fullest
            token = int(match.token_ids[column])
            if cells[column] >= MIN_CELLS and token >= 0 and place[token] < 0:
                place[token] = len(columns)
                columns.append(column)
        try:
            sets = match_sets(self.gene_sets, catalogue, place)
        except ValueError as error:
            return str(error)
        own = np.array(columns)[sets.genes]
        means = np.asarray(logs.mean(axis=0)).ravel()[own]
        return ScoredGenes(own, sets, expression_bins(means, len(own)))

    # ---------------------------------------------------------------- models

    def of_model(self, model: EvaluatedModel, progress: bool = True) -> dict[str, TaskResult]:
        """Score the static embeddings of a model, and those in these cells."""
        scored = self.scored
        if isinstance(scored, str):
            return self._undefined(scored)
        counts = self.data.cells.counts
        vocabulary: GeneVocabulary = model.tokenizer.vocabulary
        match = vocabulary.resolve(counts.index, counts.columns, self.data.options.get("gene_column"))
        tokens = match.token_ids[scored.columns]
        static = static_embeddings(model.network, torch.from_numpy(np.maximum(tokens, 0))).numpy()
        sums = StateSums({}, vocabulary.vocab_size)

        def compute(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            sums.add(*gene_states(model.network, batch))
            return {}

        options = self.data.options | {"batch_size": model.batch_size, "device": model.device, "progress": progress}
        for _ in stream_batches(model.network, model.tokenizer, self.data.cells, compute, word="genes", **options):
            pass
        facts = {"states_from": states_come_from(model.network)}
        found = {STATIC: static} if sums.sums is None else {STATIC: static, IN_CELLS: sums.means()[tokens]}
        return {
            row: self._result(Embedded.centred(np.where(tokens[:, None] >= 0, values, np.nan)), scored, facts)
            for row, values in found.items()
        }

    # ---------------------------------------------------------------- baselines

    def of_baseline(self, name: str) -> dict[str, TaskResult]:
        """Score coexpression or random embeddings, beside both kinds of embeddings of models."""
        if isinstance(self.scored, str):
            return self._undefined(self.scored)
        if name == COEXPRESSION:
            return self._in_both(Coexpressed.of(self.log_counts()[:, self.scored.columns]))
        random = np.random.default_rng(self.seed)
        return self._in_both(Embedded.centred(random.normal(size=(len(self.scored.columns), RANDOM_SIZE))))

    def of_loadings(self, loadings: np.ndarray) -> dict[str, TaskResult]:
        """Score the loadings of principal components, shape (genes of the file, components)."""
        if isinstance(self.scored, str):
            return self._undefined(self.scored)
        return self._in_both(Embedded.centred(loadings[self.scored.columns]))

    def _in_both(self, vectors: Vectors) -> dict[str, TaskResult]:
        assert isinstance(self.scored, ScoredGenes)
        found = self._result(vectors, self.scored, {})
        return {STATIC: found, IN_CELLS: found}

    # ---------------------------------------------------------------- scores

    def _undefined(self, why: str) -> dict[str, TaskResult]:
        return {row: TaskResult({}, dict.fromkeys(METRICS, why)) for row in (STATIC, IN_CELLS)}

    def _result(self, vectors: Vectors, scored: ScoredGenes, facts: dict[str, Any]) -> TaskResult:
        table = score_sets(vectors, scored.sets, scored.bins, PERMUTATIONS, self.seed)
        return TaskResult(
            bootstrap_scores(lambda weights: _means(table, weights), len(table), self.draws, self.seed),
            {},
            facts
            | {
                "gene_sets": len(table),
                "gene_sets_left_out": scored.sets.left_out,
                "genes": len(scored.columns),
                "genes_with_embedding": int(vectors.lengths.sum()),
                "auroc_without_matching": float(table["auroc"].mean()),
                "chance_of_average_precision": float(table["auprc_chance"].mean()),
                "best_sets": table.nlargest(10, "auroc_matched")[["set", "genes", "auroc_matched"]].to_dict("records"),
            },
        )


def _means(table: pd.DataFrame, weights: np.ndarray) -> dict[str, float]:
    values = (table["auroc_matched"], table["auprc"], table["p_value"] < LEVEL)
    pairs = zip(METRICS, values, strict=True)
    return {name: weighted_mean(column.to_numpy(dtype=np.float64), weights) for name, column in pairs}


__all__ = ["BASELINES", "COEXPRESSION", "IN_CELLS", "RANDOM", "STATIC", "GeneSetJobs"]
