"""Cells with real knock-outs, and verdicts: whether deleting the gene moves control cells there, more than others."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cellglot.evaluation.perturbation.measured_genes import MeasuredGenes
from cellglot.evaluation.perturbation.states import choose_cells, draw_cells, states_of
from cellglot.evaluation.perturbation.statistics import GeneEffects, permutation_p, rank_among


CONTROL = "control"  # the usual value of cells without a perturbation
CELLS, FEWEST, MOST = 150, 10, 50  # cells of a state, at most and at least; knock-outs at most
CONTROLS, PERMUTATIONS, ENOUGH, LEVEL = 50, 1000, 19, 0.05  # fewer control genes than `ENOUGH` cannot reach `LEVEL`
LACKING = "not in the model or not expressed"

Row = dict[str, Any]


@dataclass(frozen=True)
class KnockOutCells:
    """Control cells, and those of each knock-out.

    Parameters
    ----------
    start
        Numbers of the control cells, ascending, shape (cells,).
    targets
        State -> numbers of its cells, ascending.
    genes
        State -> Ensembl id, symbol or alias of the gene whose deletion should lead to it.
    left_out
        State -> why it is not used.
    """

    start: np.ndarray
    targets: dict[str, np.ndarray]
    genes: dict[str, str]
    left_out: dict[str, str] = field(default_factory=dict)


def choose_knock_outs(
    measured: MeasuredGenes, column: str, control: str = CONTROL, most_cells: int = CELLS, seed: int = 0
) -> KnockOutCells:
    """Choose control cells and the cells of knock-outs by a column of obs, whose values are names of genes.

    Parameters
    ----------
    measured
        The genes of the file.
    column
        Column with the gene that is knocked out in each cell.
    control
        Its value in cells without a knock-out.
    most_cells
        Cells of a state; more are drawn by `seed`, as are more than 50 knock-outs.

    Raises
    ------
    ValueError
        If there is no such column, no control cell, or no knock-out of a gene that control cells express.
    """
    cells = measured.cells
    if most_cells < FEWEST:
        raise ValueError(f"{most_cells} cells of a perturbation: at least {FEWEST} are needed")
    start = choose_cells(cells, column=column, cell_type=control, max_cells=most_cells, seed=seed).start
    if len(start) < FEWEST:
        raise ValueError(f"{cells.name}: {len(start)} cells of {control!r} in {column!r}: {FEWEST} are needed")
    labels = states_of(cells, column)
    names = sorted({str(label) for label in labels if label is not None} - {control})
    expressed = np.asarray((measured.log_counts(start) > 0).sum(axis=0)).ravel()
    left_out: dict[str, str] = {}
    targets: dict[str, np.ndarray] = {}
    for name, place in zip(names, measured.places(names).tolist(), strict=True):
        numbers = np.flatnonzero(labels == name)
        if place < 0:
            left_out[name] = "not the name of one gene of the file"
        elif not expressed[place]:
            left_out[name] = "expressed in no control cell"
        elif len(numbers) < FEWEST:
            left_out[name] = f"below {FEWEST} cells"
        else:
            targets[name] = draw_cells(numbers, most_cells, seed)
    if not targets:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:10])
        raise ValueError(
            f"{cells.name}: no perturbation in {column!r} can be compared with a deletion ({why or 'only controls'}). "
            "Values of the column are names of genes"
        )
    kept = draw_cells(np.arange(len(targets)), MOST, seed)
    every = list(targets)
    left_out |= {name: "not drawn" for place, name in enumerate(every) if place not in kept}
    targets = {every[place]: targets[every[place]] for place in kept.tolist()}
    return KnockOutCells(start, targets, {name: name for name in targets}, left_out)


def verdict(
    effects: GeneEffects, gene: int, controls: np.ndarray, permutations: int = PERMUTATIONS, seed: int = 0
) -> Row:
    """Compare the movement of a gene's deletion with that of its controls.

    Parameters
    ----------
    effects
        Progress of the deletion of each tested gene, as by `cellglot.evaluation.perturbation.states.Direction`.
    gene, controls
        Places of the gene and of its controls among the tested genes.
    permutations, seed
        As for `permutation_p`.

    Returns
    -------
    dict
        ``progress`` of the gene, ``control_progress``, ``rank`` among gene and controls, ``rank_among_all`` tested
        genes, ``less``: the share of controls that move less, ``p_value``, ``verdict``: ``"yes"`` if the deletion
        moves towards the state, further than 95% of at least 19 controls; with fewer controls ``"of N controls"`` if
        further than all; else ``"no"``. None where there are no controls.
    """
    means = effects.means()
    known = means[controls]
    known = known[~np.isnan(known)]
    rank, every = rank_among(means[gene], known), rank_among(means[gene], np.delete(means, gene))
    if not means[gene] > 0:
        said = "no"
    elif len(known) >= ENOUGH:
        said = "yes" if rank <= LEVEL else "no"
    else:
        said = f"of {len(known)} controls" if (known < means[gene]).all() and len(known) else "no"
    return {
        "progress": float(means[gene]),
        "control_progress": float(known.mean()) if len(known) else None,
        "rank": rank if len(known) else None,
        "rank_among_all": every,
        "less": float((known < means[gene]).mean()) if len(known) else None,
        "p_value": permutation_p(effects, gene, controls, permutations, seed),
        "verdict": said,
    }


def verdicts(
    effects: Sequence[GeneEffects], gene: int, controls: np.ndarray, permutations: int = PERMUTATIONS, seed: int = 0
) -> Row:
    """Return `verdict` along two directions: of all genes, and, as ``without_own_...``, without the gene itself."""
    found = [verdict(own, gene, controls, permutations, seed) for own in effects]
    return found[0] | {f"without_own_{name}": value for name, value in found[1].items()}


__all__ = ["CONTROL", "LACKING", "KnockOutCells", "Row", "choose_knock_outs", "verdict", "verdicts"]
