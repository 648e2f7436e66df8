"""The task "perturbation": deletions by models and by principal components, beside real knock-outs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cellglot.evaluation.benchmark.knock_out_components import compare_components
from cellglot.evaluation.benchmark.models import EvaluatedModel
from cellglot.evaluation.benchmark.results import TaskResult
from cellglot.evaluation.benchmark.tasks import PERTURBATION
from cellglot.evaluation.labelled_cells import LabelledCells
from cellglot.evaluation.perturbation.compare import compare_model
from cellglot.evaluation.perturbation.knock_outs import (
    CELLS,
    CONTROL,
    CONTROLS,
    ENOUGH,
    LEVEL,
    PERMUTATIONS,
    KnockOutCells,
    Row,
    choose_knock_outs,
)
from cellglot.evaluation.perturbation.measured_genes import MeasuredGenes
from cellglot.evaluation.scores.bootstrap import DRAWS, Score, bootstrap_scores, weighted_mean


RIGHT, PASSED, LESS = "right_direction", "beyond_controls", "controls_that_move_less"


@dataclass
class PerturbationJobs:
    """Scores models and baselines on real knock-outs.

    Parameters
    ----------
    data
        The cells.
    measured
        Their genes.
    chosen
        Control cells and knock-outs, the same for all models.
    given
        What they were chosen by.
    seed, draws
        As for `cellglot.evaluation.benchmark.jobs.Settings`.
    """

    data: LabelledCells
    measured: MeasuredGenes
    chosen: KnockOutCells
    given: dict[str, Any]
    seed: int = 0
    draws: int = DRAWS

    @classmethod
    def open(
        cls,
        data: LabelledCells,
        column: str,
        control: str = CONTROL,
        cells: int = CELLS,
        seed: int = 0,
        draws: int = DRAWS,
    ) -> "PerturbationJobs":
        """Choose the cells.

        Parameters
        ----------
        column
            Column of obs with the gene that is knocked out in each cell.
        control
            Its value in cells without a knock-out.
        cells
            Cells of a state; more are drawn.

        Raises
        ------
        ValueError
            If the column does not exist, or nothing in it can be compared.
        """
        measured = MeasuredGenes.of(data.cells, data.options.get("gene_column"))
        chosen = choose_knock_outs(measured, column, control, cells, seed)
        given = {"perturbations": column, "control": control, "perturbation_cells": cells}
        return cls(data, measured, chosen, given, seed, draws)

    def settings(self) -> dict[str, Any]:
        """Return what results depend on."""
        cells = {state: len(numbers) for state, numbers in self.chosen.targets.items()}
        return self.given | {"knock_outs": cells, "control_genes": CONTROLS, "permutations": PERMUTATIONS}

    def of_model(self, model: EvaluatedModel, progress: bool = True) -> dict[str, TaskResult]:
        """Score the deletions of a model."""
        options = self.data.options | {"batch_size": model.batch_size, "device": model.device, "progress": progress}
        rows = compare_model(model, self.data.cells, self.chosen, seed=self.seed, **options)
        return {PERTURBATION: self._result(rows)}

    def of_components(self) -> dict[str, TaskResult]:
        """Score log counts that are set to zero, in principal components."""
        return {PERTURBATION: self._result(compare_components(self.measured, self.chosen, seed=self.seed))}

    def _result(self, rows: Sequence[Row]) -> TaskResult:
        return knock_out_scores(rows, len(self.chosen.start), self.chosen.left_out, self.draws, self.seed)


def knock_out_scores(
    rows: Sequence[Row], control_cells: int, left_out: Mapping[str, str], draws: int = DRAWS, seed: int = 0
) -> TaskResult:
    """Score the comparison of deletions with real knock-outs.

    A deletion that a model cannot compute moves no cell: less than any control.

    Parameters
    ----------
    rows
        One for each knock-out, as by `cellglot.evaluation.perturbation.knock_outs.verdicts`.
    control_cells
        Number of cells in which the genes were deleted.
    left_out
        Knock-out -> why it is not compared.
    draws, seed
        As for `cellglot.evaluation.benchmark.jobs.Settings`.
    """
    right = [row.get("without_own_progress", 0.0) > 0 for row in rows]
    passed = [row.get("without_own_verdict") == "yes" for row in rows if row.get("controls", ENOUGH) >= ENOUGH]
    less = [row.get("without_own_less", 0.0) for row in rows if row.get("controls") != 0]
    scores: dict[str, Score] = {}
    undefined: dict[str, str] = {}
    given = ((RIGHT, right, weighted_mean), (PASSED, passed, weighted_mean), (LESS, less, _median))
    for name, values, score in given:
        if values:
            own = _score(name, np.array(values, dtype=np.float64), score)
            scores |= bootstrap_scores(own, len(values), draws, seed)
        else:
            least = ENOUGH if name == PASSED else 1
            undefined[name] = f"no knocked-out gene has {least} other genes of like expression"
    details = {
        "knock_outs": len(rows),
        "knock_outs_with_enough_controls": len(passed),
        "control_cells": control_cells,
        "left_out": dict(left_out),
        "chance_of_beyond_controls": LEVEL,
        "rows": list(rows),
    }
    return TaskResult(scores, undefined, details)


def _score(name: str, values: np.ndarray, score: Callable[[np.ndarray, np.ndarray], float]) -> Any:
    """Return a function of the weights of knock-outs, for `bootstrap_scores`."""
    return lambda weights: {name: score(values, weights)}


def _median(values: np.ndarray, weights: np.ndarray) -> float:
    return float(np.median(np.repeat(values, weights.astype(np.int64))))


__all__ = ["PerturbationJobs", "knock_out_scores"]
