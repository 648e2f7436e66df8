"""Label transfer by `cellglot map`: blood of one laboratory, by a reference of others, beside the classifier.

python -m cellglot.model_cards.collection blood-exceiver --data ../shared/data -o collection_build/blood-exceiver
python benchmarks/label_transfer.py --build collection_build/blood-exceiver

The first command keeps a model for each laboratory that is left out, and what it says of these cells. The reference
are labelled cells of the other laboratories, about 3,000, with the coordinates that `cellglot index`
gives them by that model; cells of the left-out laboratory get the label that their 30 nearest cells vote for, as by
`cellglot map`. Beside it: the most frequent label of the 15 nearest by embeddings alone, and a reference of the one
laboratory with most labelled cells, which often lacks types of the others. The classifier is the head of the same
model, trained on all labelled cells of the same laboratories, scored on the same cells. What the models say of the
reference's cells is computed once, and kept in the folder of the build. Target: the mean macro F1 of the mapping is at
most 0.02 below that of the classifier.
"""

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
from measure import DATA, parser, report

from cellglot.evaluation.mapping.coordinates import EMBEDDING, PROBABILITIES, SCORE_WEIGHT, joined
from cellglot.evaluation.mapping.mapped import vote, vote_weights
from cellglot.evaluation.mapping.neighbours import exact_neighbours
from cellglot.model_cards.collection.build import Build, _allowed
from cellglot.model_cards.collection.cells import LABEL, MEANT, PreparedCells
from cellglot.model_cards.collection.folds import Fold, Outputs, _predicted, levels_of
from cellglot.model_cards.collection.recipe import read_recipe
from cellglot.model_cards.collection.scores import groups_of, type_scores
from cellglot.modeling.annotation_calibration import softmax


K, EARLIER_K = 30, 15


def kept(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with np.load(path, allow_pickle=False) as content:
        return content["embedding"], content["logits"], content["rows"]


def reference_of(fold: Fold, prepared: PreparedCells, classes: list[str], seed: int) -> Outputs:
    """Return what the model of a fold says of the training cells whose embeddings the build kept."""
    fitted = fold.folder / "fitted"
    with np.load(fold.folder / f"training-{prepared.data_set.name}.npz", allow_pickle=False) as content:
        limit = int(content["limit"])
    model = fitted if fitted.is_dir() else fold.folder / "model"
    return _predicted(model, prepared, classes, fold.folder, limit, seed, "scored")


def coordinates(embedding: np.ndarray, logits: np.ndarray, weight: float) -> np.ndarray:
    return joined({EMBEDDING: embedding, PROBABILITIES: softmax(logits)}, weight)


def scores_of(build: Build, k: int) -> list[dict[str, Any]]:
    sets = build._prepare()
    levels = levels_of([p for p in sets if p.data_set.training], build.recipe, build.ontology, sets)
    groups = groups_of(build.recipe.groups, levels.classes, build._sets_of(levels))
    found = []
    for fold in build._folds(sets, levels):
        used = [p for p in fold.training if p.labelled]
        parts = [reference_of(fold, p, levels.classes, build.recipe.seed) for p in used]
        allowed = [_allowed(ad.read_h5ad(p.path)[o.rows], levels, LABEL) for p, o in zip(used, parts, strict=True)]
        outputs = np.concatenate([o.embedding for o in parts]), np.concatenate([o.logits for o in parts])
        reference, alone = coordinates(*outputs, SCORE_WEIGHT), coordinates(*outputs, 0.0)
        laboratories = np.repeat([p.data_set.laboratory for p in used], [len(o.rows) for o in parts])
        for prepared in fold.test:
            embedding, logits, rows = kept(fold.folder / f"test-{prepared.data_set.name}.npz")
            of_test = _allowed(ad.read_h5ad(prepared.path)[rows], levels, MEANT)
            for level, group in groups.items():
                codes = np.concatenate([group.truth(a) for a in allowed])
                truth = group.truth(of_test)
                truth[~np.isin(truth, np.unique(codes))] = -1
                classifier = type_scores(truth, group.predicted(softmax(logits)), group.names)
                if not classifier:
                    continue
                row = {"data set": prepared.data_set.name, "level": level, "cells": classifier["cells"]}
                row["classifier"] = classifier["macro_f1"]["value"]
                cells = coordinates(embedding, logits, SCORE_WEIGHT)
                row["mapping"] = mapped(reference, codes, cells, truth, group.names, k)
                only = coordinates(embedding, logits, 0.0)
                row["embedding, most frequent"] = mapped(alone, codes, only, truth, group.names, EARLIER_K, equal=True)
                largest = max(set(laboratories), key=lambda name: (codes[laboratories == name] >= 0).sum())
                one = laboratories == largest
                row["one laboratory"] = mapped(reference[one], codes[one], cells, truth, group.names, k)
                row["which"] = largest
                found.append(row)
    return found


def mapped(
    reference: np.ndarray,
    codes: np.ndarray,
    cells: np.ndarray,
    truth: np.ndarray,
    names: list[str],
    k: int,
    equal: bool = False,
) -> float:
    numbers, distances = exact_neighbours(cells, reference, k)
    voters = codes[numbers]
    weights = vote_weights(voters, distances, np.bincount(codes[codes >= 0], minlength=len(names)))
    chosen, _ = vote(voters, (voters >= 0).astype(float) if equal else weights)
    scored = type_scores(truth, np.where(chosen < 0, len(names), chosen), names)
    return scored["macro_f1"]["value"]


def main() -> None:
    options = parser(__doc__, repeats=1)
    options.add_argument("--build", type=Path, default=Path("collection_build/blood-exceiver"), help="of the model")
    options.add_argument("--recipe", default="blood-exceiver", help="its recipe (default %(default)s)")
    options.add_argument("--k", type=int, default=K, help="nearest cells that vote (default %(default)s)")
    given = options.parse_args()
    if not (given.build / "folds").is_dir():
        raise SystemExit(f"{given.build} is not the folder of a build: make it by the first command of --help")
    rows = scores_of(Build(read_recipe(given.recipe), DATA, given.build), given.k)
    targets = []
    for level in dict.fromkeys(row["level"] for row in rows):
        of_level = [row for row in rows if row["level"] == level]
        below = float(np.mean([row["classifier"] - row["mapping"] for row in of_level]))
        targets.append((f"{level}: mean macro F1 of the classifier minus that of mapping", 0.02, below, below <= 0.02))
    report(given, rows, targets)


if __name__ == "__main__":
    main()
