"""The two parts of a blood classifier, network and gene sums, on laboratories that were left out.

python -m cellglot.model_cards.collection blood-exceiver --data ../shared/data -o collection_build/blood-exceiver
python benchmarks/gene_sums.py blood-exceiver

The first command keeps a model for each laboratory that is left out. Here the shares of its parts are changed: the
network alone, the sums alone, and both as they ship; and both where genes that a file lacks are not imputed, but count
as genes without expression. `measured` is the share of the imputed genes that a file has. Beside them is logistic
regression on the genes that the test set and most training cells have, with the 95% interval of the difference over
cells drawn with replacement. Target: the model is not below regression on any set.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
from measure import DATA, parser, report

from cellglot.evaluation.annotation.by_classifier import classify_cells, load_classifier
from cellglot.evaluation.scores.bootstrap import bootstrap_scores
from cellglot.model_cards.collection.build import Build, _allowed, _without_unknown
from cellglot.model_cards.collection.cells import MEANT
from cellglot.model_cards.collection.folds import Fold, levels_of
from cellglot.model_cards.collection.recipe import read_recipe
from cellglot.model_cards.collection.scores import FEWEST, Group, baseline_predictions, groups_of
from cellglot.tokenization.reading.cells import read_cells


REGRESSION = "logistic regression"
DRAWS = 1000


def macro_f1(truth: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> float:
    """Return the mean F1 of the types of the truth; cells count by their weights."""
    types, codes = np.unique(truth, return_inverse=True)
    hits = np.bincount(codes, weights * (truth == predicted))
    given = np.array([weights[predicted == t].sum() for t in types])
    return float(np.mean(2 * hits / (np.bincount(codes, weights) + given)))


def predictions(
    fold: Fold, name: str, shares: Sequence[tuple[float, bool]], classes: Sequence[str]
) -> tuple[list[np.ndarray], float]:
    """Return the probabilities of classes of a fold's test cells, and the share of imputed genes that they have.

    Parameters
    ----------
    shares
        Of the gene sums, and whether genes are imputed.
    """
    prepared = next(p for p in fold.test if p.data_set.name == name)
    with np.load(fold.folder / f"test-{name}.npz", allow_pickle=False) as content:
        rows = content["rows"]
    network, tokenizer = load_classifier(fold.folder / "fitted")
    made, imputation = [], network.gene_sums.imputation
    for share, imputed in shares:
        network.config.gene_sum_weight = share
        network.gene_sums.imputation = imputation if imputed else None
        with read_cells(ad.read_h5ad(prepared.path)[rows].copy()) as cells:
            found = classify_cells(network, tokenizer, cells, progress=False, min_coverage=0.0)
            measured = tokenizer.measured_genes(cells)[imputation.token_ids.numpy()].mean()
        probabilities = np.zeros((len(rows), len(classes)))
        for column, label in enumerate(found.classes):
            if label in classes:
                probabilities[:, list(classes).index(label)] = found.scores[:, column]
        made.append(probabilities)
    return made, round(float(measured), 3)


def row_of(
    truth: np.ndarray, group: Group, parts: Sequence[np.ndarray], regression: np.ndarray
) -> dict[str, Any] | None:
    """Score the parts, and regression, on cells of types with enough of them; None where there are too few types."""
    scored = np.flatnonzero(np.bincount(truth[truth >= 0], minlength=len(group.names)) >= FEWEST)
    kept = np.isin(truth, scored)
    if len(scored) < 2:
        return None
    of_parts = [group.predicted(probabilities)[kept] for probabilities in parts]
    true, others = truth[kept], regression[kept]

    def scores(weights: np.ndarray) -> dict[str, float]:
        both = macro_f1(true, of_parts[2], weights), macro_f1(true, others, weights)
        return {"model": both[0], REGRESSION: both[1], "difference": both[0] - both[1]}

    found, one = bootstrap_scores(scores, len(true), DRAWS), np.ones(len(true))
    return {
        "cells": len(true),
        "network": round(macro_f1(true, of_parts[0], one), 4),
        "gene sums": round(macro_f1(true, of_parts[1], one), 4),
        "both": round(found["model"].value, 4),
        "not imputed": round(macro_f1(true, of_parts[3], one), 4),
        REGRESSION: round(found[REGRESSION].value, 4),
        "difference": round(found["difference"].value, 4),
        "low": round(found["difference"].low, 4),
        "high": round(found["difference"].high, 4),
    }


def scores_of(build: Build) -> list[dict[str, Any]]:
    """Score every data set of the folds that a build keeps."""
    sets = build._prepare()
    levels = levels_of([p for p in sets if p.data_set.training], build.recipe, build.ontology, sets)
    groups = groups_of(build.recipe.groups, levels.classes, build._sets_of(levels))
    both = float(build.recipe.gene_sums.share)
    shares = [(0.0, True), (1.0, True), (both, True), (both, False)]
    rows = []
    for fold in build._folds(sets, levels):
        training = [ad.read_h5ad(p.path) for p in fold.training if p.labelled]
        for prepared in fold.test:
            name, parts, measured = prepared.data_set.name, None, 0.0
            with np.load(fold.folder / f"test-{name}.npz", allow_pickle=False) as content:
                test = ad.read_h5ad(prepared.path)[content["rows"]].copy()
            for level, group in groups.items():
                of_training = [group.truth(_allowed(part, levels)) for part in training]
                truth, _ = _without_unknown(group.truth(_allowed(test, levels, MEANT)), of_training, group.names)
                if len(np.unique(truth[truth >= 0])) < 2:
                    continue
                others = baseline_predictions(training, of_training, test, truth, build.recipe.seed)
                if parts is None:
                    parts, measured = predictions(fold, name, shares, levels.classes)
                if REGRESSION in others and (row := row_of(truth, group, parts, others[REGRESSION])):
                    rows.append({"data set": name, "level": level, "measured": measured, **row})
    return rows


def main() -> None:
    options = parser(__doc__, repeats=1)
    options.add_argument("model", help="a recipe with gene sums, such as blood-exceiver")
    options.add_argument("--build", type=Path, help="folder of its build (default collection_build/MODEL)")
    given = options.parse_args()
    folder = given.build or Path("collection_build", given.model)
    if not (folder / "folds").is_dir():
        raise SystemExit(f"{folder} is not the folder of a build: make it by the first command of --help")
    given.output = given.output.with_name(f"{given.output.stem}_{given.model}.json")
    rows = scores_of(Build(read_recipe(given.model), DATA, folder))
    targets = []
    for level in dict.fromkeys(row["level"] for row in rows):
        of_level = [row for row in rows if row["level"] == level]
        scores = ("network", "gene sums", "both", "not imputed", REGRESSION, "difference")
        means = {name: round(float(np.mean([row[name] for row in of_level])), 4) for name in scores}
        cells = sum(row["cells"] for row in of_level)
        facts = {"data set": "mean", "level": level, "measured": "", "cells": cells}
        rows.append({**facts, **means, "low": "", "high": ""})
        worst = min(row["difference"] for row in of_level)
        targets.append((f"{level}: smallest difference from logistic regression", 0.0, worst, worst >= 0))
    report(given, rows, targets)


if __name__ == "__main__":
    main()
