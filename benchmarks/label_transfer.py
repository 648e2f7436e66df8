"""Label transfer by `cellglot map`: blood of one laboratory, by a reference of others, beside the classifier.

python -m cellglot.model_cards.collection blood-exceiver --data ../shared/data -o collection_build/blood-exceiver
python benchmarks/label_transfer.py --build collection_build/blood-exceiver

The first command keeps a model for each laboratory that is left out, and what it says of these cells. The reference
are labelled cells of the other laboratories, about 3,000, embedded by that model; cells of the left-out laboratory
get the label of most of their 15 nearest cells, as `cellglot map` gives it. Beside it: a reference of the one
laboratory with most labelled cells, which often lacks types of the others. The classifier is the head of the same
model, trained on all labelled cells of the same laboratories, scored on the same cells. Target: the mean macro F1 of
the mapping is at most 0.02 below that of the classifier.
"""

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
from measure import DATA, parser, report

from cellglot.evaluation.mapping.mapped import vote
from cellglot.evaluation.mapping.neighbours import exact_neighbours, unit_rows
from cellglot.model_cards.collection.build import Build, _allowed
from cellglot.model_cards.collection.cells import LABEL, MEANT
from cellglot.model_cards.collection.folds import levels_of
from cellglot.model_cards.collection.recipe import read_recipe
from cellglot.model_cards.collection.scores import groups_of, type_scores
from cellglot.modeling.annotation_calibration import softmax


K = 15


def kept(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with np.load(path, allow_pickle=False) as content:
        return content["embedding"], content["logits"], content["rows"]


def scores_of(build: Build, k: int) -> list[dict[str, Any]]:
    sets = build._prepare()
    levels = levels_of([p for p in sets if p.data_set.training], build.recipe, build.ontology, sets)
    groups = groups_of(build.recipe.groups, levels.classes, build._sets_of(levels))
    found = []
    for fold in build._folds(sets, levels):
        parts = [(p, *kept(fold.folder / f"training-{p.data_set.name}.npz")) for p in fold.training if p.labelled]
        allowed = [_allowed(ad.read_h5ad(p.path)[rows], levels, LABEL) for p, _, _, rows in parts]
        reference = unit_rows(np.concatenate([embedding for _, embedding, _, _ in parts]))
        laboratories = np.concatenate([[p.data_set.laboratory] * len(rows) for p, _, _, rows in parts])
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
                row["mapping"] = mapped(reference, codes, embedding, truth, group.names, k)
                largest = max(set(laboratories), key=lambda name: (codes[laboratories == name] >= 0).sum())
                one = laboratories == largest
                row["one laboratory"] = mapped(reference[one], codes[one], embedding, truth, group.names, k)
                row["which"] = largest
                found.append(row)
    return found


def mapped(
    reference: np.ndarray, codes: np.ndarray, embedding: np.ndarray, truth: np.ndarray, names: list[str], k: int
) -> float:
    numbers, _ = exact_neighbours(unit_rows(embedding), reference, k)
    chosen, _ = vote(codes[numbers])
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
