"""The task "drug-response": scores of features of cell lines, and of baselines, on all splits."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from cellglot.evaluation.drug_response import baselines
from cellglot.evaluation.drug_response.fingerprints import morgan_fingerprints, tanimoto_similarity
from cellglot.evaluation.drug_response.folder import DrugResponse
from cellglot.evaluation.drug_response.grid import Grid
from cellglot.evaluation.drug_response.regressor import predict_pairs
from cellglot.evaluation.drug_response.scores import score_pairs
from cellglot.evaluation.drug_response.splits import SPLITS, PairSplit, split_pairs
from cellglot.evaluation.scores.bootstrap import DRAWS, Score


Scored = tuple[dict[str, Score], dict[str, str], dict[str, Any]]  # scores, undefined, details


@dataclass
class ResponseTask:
    """Scores features of lines on the splits of a folder; what is shared is computed once.

    Parameters
    ----------
    data
        The folder.
    seed, draws
        Of splits and bootstrap.
    """

    data: DrugResponse
    seed: int = 0
    draws: int = DRAWS
    _splits: dict[str, PairSplit | str] = field(default_factory=dict)

    @cached_property
    def fingerprints(self) -> np.ndarray:
        """Morgan fingerprints of the drugs, shape (drugs, 2048)."""
        return morgan_fingerprints(self.data.structures)

    @cached_property
    def similarity(self) -> np.ndarray:
        """Tanimoto similarity of the drugs, shape (drugs, drugs)."""
        return tanimoto_similarity(self.fingerprints)

    def of_features(self, features: np.ndarray) -> dict[str, Scored]:
        """Score features of the lines, shape (lines, features) in the order of ``data.lines``, on every split."""
        if features.shape[0] != len(self.data.lines) or not np.isfinite(features).all():
            lost = ~np.isfinite(features).reshape(len(features), -1).all(axis=1)
            why = f"{int(lost.sum()):,} lines have no embedding" if lost.any() else f"shape {features.shape}"
            raise ValueError(f"features of {len(self.data.lines):,} lines are needed, in their order: {why}")
        return self._scored(lambda grid, new: predict_pairs(grid, features, self.similarity, lines_are_new=new))

    def of_baseline(self, name: str) -> dict[str, Scored]:
        """Score a baseline, one of ``baselines.BASELINES``, on every split."""
        given = self.data.expression, self.fingerprints, self.similarity
        return self._scored(lambda grid, new: baselines.predict_baseline(name, grid, *given, lines_are_new=new))

    def _scored(self, predict: Any) -> dict[str, Scored]:
        found: dict[str, Scored] = {}
        for name in SPLITS:
            split = self._split(name)
            if isinstance(split, str):
                found[name] = ({}, dict.fromkeys(("pearson",), split), {})
                continue
            data, train = self.data, split.train
            shape = len(data.drugs), len(data.lines)
            grid = Grid.of(data.drug[train], data.line[train], data.ln_ic50[train], shape)
            predicted = predict(grid, split.lines_are_new)
            found[name] = score_pairs(data, split, predicted, seed=self.seed, draws=self.draws)
        return found

    def _split(self, name: str) -> PairSplit | str:
        """Return a split, or why there is none."""
        if name not in self._splits:
            try:
                self._splits[name] = split_pairs(self.data, name, self.seed)
            except ValueError as error:
                self._splits[name] = str(error)
        return self._splits[name]


def score_drug_response(
    features: "pd.DataFrame", data: DrugResponse, *, seed: int = 0, draws: int = DRAWS
) -> dict[str, Scored]:
    """Score any features of cell lines, such as embeddings computed elsewhere.

    Parameters
    ----------
    features
        A row for each line, its name as index; matched by name, in any order.
    data
        As `read_drug_response` returns it.
    seed, draws
        Of splits and bootstrap.

    Returns
    -------
    dict
        Split -> scores, undefined scores with the reason, details.

    Raises
    ------
    ValueError
        If a line has no row or two, or a value is missing.
    """
    names = features.index.astype(str)
    if names.has_duplicates:
        raise ValueError(f"line {names[names.duplicated()][0]!r} has two rows of features")
    lost = [name for name in data.lines if name not in set(names)]
    if lost:
        raise ValueError(f"{len(lost):,} of {len(data.lines):,} lines have no features, such as {lost[0]!r}")
    values = features.set_axis(names).loc[data.lines].to_numpy(dtype=np.float64)
    return ResponseTask(data, seed, draws).of_features(values)


__all__ = ["ResponseTask", "Scored", "score_drug_response"]
