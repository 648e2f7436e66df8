"""What the card of a base says, and what `cellglot models` lists of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cellglot.model_cards.card.details import CardDetails
from cellglot.model_cards.collection.card import collection_facts, data_table
from cellglot.model_cards.collection.cells import PreparedCells
from cellglot.model_cards.collection.recipe import Recipe
from cellglot.training.data.label_levels import LabelLevels


MODEL, COMPONENTS = "this model", "principal components"
BESIDE = ("random weights", COMPONENTS, "logistic regression")
FEW = "10"  # labels of a class, for the scores that are listed


def base_details(
    recipe: Recipe, sets: Sequence[PreparedCells], scores: Sequence[Mapping[str, Any]], ontology_release: str
) -> CardDetails:
    """Return the details of the card.

    Parameters
    ----------
    sets
        Training sets.
    scores
        Of data sets that the model, or one made in the same way, did not see.
    """
    used = [p for p in sets if p.labelled]
    return CardDetails(
        license=recipe.license,
        title=recipe.title,
        summary=recipe.summary,
        training_data=data_table(used),
        training_data_license="; ".join(sorted({p.data_set.license for p in used})),
        ontology_release=ontology_release or None,
        results=_results(scores, recipe),
        limits=[
            *recipe.limits,
            "most of the training cells are blood: for the tissues marked as never seen, principal components of the "
            "cells themselves can be as good or better",
        ],
        uses=list(recipe.uses),
        tags=["cellglot-collection"],
    )


def _results(scores: Sequence[Mapping[str, Any]], recipe: Recipe) -> str:
    then = "" if recipe.ships == "tested" else "; this model was then trained on all of them"
    lines = [
        "Embeddings of cells of laboratories that were not seen. Tissues that were seen are scored by a model "
        f"that was trained without the laboratory{then}. AvgBIO (mean of NMI, "
        "ARI and silhouette) says how well clusters fit cell types; macro F1 is that of logistic regression on the "
        "embedding, trained on some labelled cells of each type of the data set, mean of five draws. Beside it the "
        "same network with random weights, 50 principal components of the cells themselves, and logistic regression "
        "on all genes.",
        "",
        "| data set | tissue | cells | types | embedding | NMI | AvgBIO | 5 labels | 10 | 20 | 50 |",
        "| --- | --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in scores:
        tissue = row["tissue"] + ("" if row["tissue_seen"] else ", never seen")
        for name in (MODEL, *BESIDE):
            found = row["scores"][name]
            bio = found.get("clustering")
            cells = [row["data_set"], tissue, f"{row['cells']:,}", str(row["types"]), name]
            cells += ["", ""] if bio is None else [f"{bio['nmi']:.3f}", f"{bio['avg_bio']:.3f}"]
            cells += [f"{few['mean']:.3f}" for few in found["few_labels"].values()]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def mean_scores(scores: Sequence[Mapping[str, Any]], seen: bool) -> dict[str, dict[str, float]]:
    """Return the means over data sets: embedding -> ``avg_bio`` (where it is defined) and ``few_labels``.

    Parameters
    ----------
    seen
        Whether to take the tissues of the training cells, or those that were never seen.
    """
    rows = [row["scores"] for row in scores if row["tissue_seen"] == seen]
    made: dict[str, dict[str, float]] = {}
    for name in (MODEL, *BESIDE) if rows else ():
        made[name] = {"few_labels": float(np.mean([row[name]["few_labels"][FEW]["mean"] for row in rows]))}
        if "clustering" in rows[0][name]:
            made[name]["avg_bio"] = float(np.mean([row[name]["clustering"]["avg_bio"] for row in rows]))
    return made


def beats_components(scores: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a base is better than principal components on unseen laboratories, by clustering and by few labels."""
    means = mean_scores(scores, True)
    own, others = means[MODEL], means[COMPONENTS]
    return all(own[name] > others[name] for name in ("avg_bio", "few_labels"))


def base_facts(
    recipe: Recipe,
    model: Path,
    sets: Sequence[PreparedCells],
    levels: LabelLevels,
    scores: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return what `cellglot.modeling.collection.CollectionModel` says of a base; parameters as for `base_details`."""
    listed = []
    for seen, where in ((True, "laboratories never seen"), (False, "tissues never seen")):
        number = sum(row["tissue_seen"] == seen for row in scores)
        means = mean_scores(scores, seen)
        for key, title in (("avg_bio", "clustering AvgBIO"), ("few_labels", "ten labels a type, macro F1")):
            beside = {name: round(means[name][key], 4) for name in BESIDE if key in means.get(name, {})}
            if MODEL in means:
                value = round(means[MODEL][key], 4)
                listed.append({"name": f"{title}, {number} data sets of {where}", "value": value, "baselines": beside})
    facts = collection_facts(recipe, model, [p for p in sets if p.labelled], levels, [])
    return facts | {"purpose": "embedding", "scores": listed}


__all__ = ["base_details", "base_facts", "beats_components", "mean_scores"]
