"""Pretraining of other objectives on the cells of a fold of a base's build, for `pretraining_study`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad

from cellglot.model_cards.collection.cells import LABEL
from cellglot.model_cards.collection.folds import new_corpus
from cellglot.model_cards.collection.recipe import Recipe
from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.ontology.cell_ontology import CellOntology
from cellglot.training.config import TrainingConfig, load_config
from cellglot.training.data.cell_types import open_ontology
from cellglot.training.data.label_levels import ALTERNATIVES
from cellglot.training.pretraining.pretrain import pretrain


NO_TYPES = {"coherence_weight": 0.0, "regularization_weight": 0.0, "relational_alignment_weight": 0.0}
# Family of a base -> name of a line -> shipped configuration, and changes of its section model.
OBJECTIVES: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "exceiver": {"exceiver, masked expression": ("exceiver_small.yaml", {})},
    "sccello": {
        "sccello, masked genes": ("sccello_small.yaml", NO_TYPES),
        "sccello, masked genes and ontology": ("sccello_small.yaml", {}),
        "langcell, masked genes and two views of a cell": ("langcell_small.yaml", {"stage": 1}),
        "langcell, texts as well": ("langcell_small.yaml", {"stage": 2}),
    },
}


def pretrained(build: Path, fold: Path, recipe: Recipe, output: Path, steps: int) -> Iterator[tuple[str, Path]]:
    """Pretrain networks of a base's size by each objective, and yield name and folder; finished ones are kept.

    Parameters
    ----------
    build, fold
        Folder of a finished build, and of one of its folds, whose training cells are taken.
    recipe
        Of the build.
    output
        Folder for trainings, and for the corpus with types.
    steps
        Of each training.
    """
    family = str(recipe.config().model["type"])
    for name, (config_name, changes) in OBJECTIVES[family].items():
        folder = output / fold.name / name.replace(", ", " - ")
        config = objective_config(config_name, changes, recipe, steps)
        corpus = fold / "corpus"
        if "ontology" in config.data:
            config.data["label_columns"] = [LABEL]
            corpus = typed_corpus(build, fold, recipe, output / fold.name)
        pretrain(config, Corpus.open(corpus), folder)
        yield name, folder


def objective_config(name: str, changes: dict[str, Any], recipe: Recipe, steps: int) -> TrainingConfig:
    """Return a shipped configuration with the size of a recipe's network, its thinning, and a number of steps."""
    config, given = load_config(name), recipe.config()
    size = {key: value for key, value in given.model.items() if key != "type"}
    if "encoder_tokens" in size:  # of classifiers; a network that reads no further tokens is the same
        size["max_position_embeddings"] = size.pop("encoder_tokens")
    config.model.update(changes)
    config.model.get("cell_config", config.model).update(size)
    for key in ("thin_to_median", "drop_tokens"):
        config.data[key] = given.data[key]
    config.trainer.update(
        max_steps=steps, eval_strategy="no", save_strategy="no", warmup_steps=0.1, seed=recipe.seed,
        per_device_train_batch_size=64,
    )  # fmt: skip
    return config


def typed_corpus(build: Path, fold: Path, recipe: Recipe, output: Path) -> Path:
    """Tokenize the labelled training cells of a fold with one type of the ontology each, and return the corpus.

    A label that leaves types open is their lowest common ancestor (our choice); other labels are no type.
    """
    ontology, out, files = open_ontology("shipped"), set(fold.name.split(" and ")), []
    for data_set in recipe.sets:
        if not data_set.training or data_set.laboratory in out:
            continue
        adata, path = ad.read_h5ad(build / "cells" / f"{data_set.name}.h5ad"), output / f"{data_set.name}.h5ad"
        labels = adata.obs[LABEL].astype(object)
        types = {label: common_type(label, ontology) for label in labels.dropna().unique()}
        if not any(types.values()):
            continue
        if not path.is_file():
            adata.obs[LABEL] = labels.map(types).astype(object)
            output.mkdir(parents=True, exist_ok=True)
            adata.write_h5ad(path)
        files.append(path)
    new_corpus(recipe, files, output / "corpus", recipe.config())
    return output / "corpus"


def common_type(label: str, ontology: CellOntology) -> str | None:
    """Return the type of a prepared data set's label, the lowest common ancestor of several; None without one."""
    found: str | None = None
    for part in map(str.strip, label.split(ALTERNATIVES)):
        if not part.startswith("CL:"):
            return None
        found = part if found is None else ontology.lowest_common_ancestors(found, part)[0]
    return found


__all__ = ["OBJECTIVES", "common_type", "objective_config", "pretrained", "typed_corpus"]
