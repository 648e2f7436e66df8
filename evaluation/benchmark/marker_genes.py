"""The task "markers": whether the genes whose masking moves a cell most are known markers of its type."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from anndata import AnnData

from cellglot.evaluation.benchmark.results import TaskResult
from cellglot.evaluation.labelled_cells import LabelledCells
from cellglot.evaluation.metrics.marker_gene_auroc.marker_gene_auroc import marker_auroc
from cellglot.evaluation.scores.bootstrap import DRAWS, bootstrap_scores, weighted_mean
from cellglot.evaluation.scores.marker_table import MarkerGenes


CELLS = 50


@dataclass
class MarkerSample:
    """The cells whose genes are masked one at a time, the same for every model.

    Parameters
    ----------
    numbers
        Of the cells, ascending, shape (sample,).
    eligible
        Number of cells whose label has markers, from which the sample was drawn.
    """

    numbers: np.ndarray
    labels: list[str]
    cells: AnnData
    markers: MarkerGenes
    eligible: int

    def facts(self) -> dict[str, Any]:
        """Return a description as plain types."""
        return {
            "sampled_cells": len(self.numbers),
            "cells_with_markers_in_table": self.eligible,
            "markers_found_as": self.markers.found_as,
            "labels_without_markers": self.markers.without,
            "markers_in_table": {label: len(genes) for label, genes in self.markers.genes.items()},
        }


def draw_marker_sample(data: LabelledCells, markers: MarkerGenes, cells: int = CELLS, seed: int = 0) -> MarkerSample:
    """Draw cells whose types have markers uniformly, all if there are at most `cells`."""
    if cells < 1:
        raise ValueError(f"cells={cells} must be at least 1")
    assert data.labels is not None
    eligible = np.flatnonzero([label in markers.genes for label in data.labels])
    numbers = np.sort(np.random.default_rng(seed).permutation(eligible)[:cells])
    labels = [str(label) for label in data.labels[numbers]]
    return MarkerSample(numbers, labels, data.subset(numbers), markers, len(eligible))


def score_marker_genes(
    scores: list[np.ndarray], is_marker: list[np.ndarray], sample: MarkerSample, draws: int = DRAWS, seed: int = 0
) -> TaskResult:
    """Return AUROC per cell, averaged over the cells that have a marker and another gene, and over cell types.

    `scores` and `is_marker` have one array per cell of the sample, with one value per gene.
    """
    found = marker_auroc(scores, is_marker, sample.labels)
    kept = [i for i, value in enumerate(found["auroc_per_cell"]) if value is not None]
    values = np.array([found["auroc_per_cell"][i] for i in kept])
    types = np.array([sample.labels[i] for i in kept])
    masks = [types == name for name in np.unique(types)]

    def means(weights: np.ndarray) -> dict[str, float]:
        by_type = [weighted_mean(values[m], weights[m]) for m in masks if weights[m].any()]
        return {
            "auroc": weighted_mean(values, weights),
            "auroc_macro": float(np.mean(by_type)) if by_type else float("nan"),
        }

    details = {name: value for name, value in found.items() if name not in ("auroc", "auroc_macro", "undefined")}
    details["genes_scored"] = int(sum(map(len, scores)))
    details["cell_numbers"] = sample.numbers.tolist()
    return TaskResult(bootstrap_scores(means, len(kept), draws, seed), found["undefined"], sample.facts() | details)


__all__ = ["CELLS", "MarkerSample", "draw_marker_sample", "score_marker_genes"]
