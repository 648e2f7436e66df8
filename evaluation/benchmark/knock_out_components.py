"""The baseline beside models: a gene's log count set to zero, seen by principal components."""

import numpy as np

from cellglot.evaluation.benchmark.baselines import COMPONENTS, LogCountsPca
from cellglot.evaluation.perturbation.genes import matched_controls
from cellglot.evaluation.perturbation.knock_outs import CONTROLS, LACKING, PERMUTATIONS, KnockOutCells, Row, verdicts
from cellglot.evaluation.perturbation.measured_genes import MeasuredGenes
from cellglot.evaluation.perturbation.statistics import GeneEffects


GENES_OF_COMPONENT = 4  # at least: as many components as genes would keep each gene by itself


def compare_components(
    measured: MeasuredGenes,
    chosen: KnockOutCells,
    *,
    controls: int = CONTROLS,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> list[Row]:
    """Set the log count of a gene to zero in control cells, and compare where they move with real knock-outs.

    Components are fitted to the log counts of the control cells: those of knocked-out cells would fit the noise of the
    cells that give the direction. Other log counts stay as they are, as for models. The components move by the
    loadings of the gene: towards a knock-out, if genes that vary together with it in control cells change there.

    Parameters
    ----------
    measured
        The genes of the file.
    chosen
        Control cells and knock-outs.
    controls, permutations, seed
        As for `cellglot.evaluation.perturbation.compare.compare_model`.

    Returns
    -------
    list of dict
        As of `compare_model`.
    """
    start = measured.log_counts(chosen.start)
    expression = measured.expression(start)
    expressed = np.flatnonzero(expression.cells > 0)
    components = max(2, min(COMPONENTS, len(expressed) // GENES_OF_COMPONENT))
    directions = LogCountsPca.fit(start, components, seed).pca.components_.astype(np.float64)
    genes = measured.places(list(chosen.genes.values()))
    matched = matched_controls(genes, expression, expressed, controls, seed)
    pairs = start.tocoo()
    place = np.full(start.shape[1], -1)
    place[expressed] = np.arange(len(expressed))
    means = np.asarray(start.mean(axis=0)).ravel()
    rows: list[Row] = []
    for (state, targets), gene, own in zip(chosen.targets.items(), genes.tolist(), matched, strict=True):
        row: Row = {"state": state, "gene": chosen.genes[state]}
        if gene < 0 or not expression.cells[gene]:
            rows.append(row | {"verdict": LACKING})
            continue
        of_target = np.asarray(measured.log_counts(targets).mean(axis=0)).ravel()
        both = []
        for without_own in (False, True):
            change = of_target - means
            if without_own:
                change[gene] = 0.0
            way = directions @ change
            moved = -(directions.T @ way) / max(float(way @ way), 1e-300)  # of one unit of each gene
            both.append(GeneEffects.sort(pairs.row, place[pairs.col], pairs.data * moved[pairs.col], len(expressed)))
        row |= {"cells": int(expression.cells[gene]), "target_cells": len(targets), "controls": len(own)}
        rows.append(row | verdicts(both, int(place[gene]), place[own], permutations, seed))
    return rows


__all__ = ["compare_components"]
