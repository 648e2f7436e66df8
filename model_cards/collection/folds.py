"""One model of a recipe: trained on some laboratories, and what it says of cells of others."""

import dataclasses
import functools
import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np

from cellglot.evaluation.annotation.by_classifier import classify_cells, load_classifier
from cellglot.inputs import read_json
from cellglot.model_cards.collection.cells import LABEL, MEANT, PreparedCells
from cellglot.model_cards.collection.genes import make_vocabulary
from cellglot.model_cards.collection.recipe import Recipe
from cellglot.modeling.model_names import resolve_model
from cellglot.outputs import atomic, write_json
from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.corpus.tokenize import tokenize_corpus
from cellglot.tokenization.families import FAMILIES as INPUTS
from cellglot.tokenization.ontology.cell_ontology import CellOntology
from cellglot.tokenization.reading.cells import read_cells
from cellglot.training.config import TrainingConfig
from cellglot.training.data.label_levels import LabelLevels, label_levels
from cellglot.training.finetuning.finetune import corpus_for, finetune
from cellglot.training.finetuning.gene_sum_fit import fit_gene_sums
from cellglot.training.pretraining.pretrain import pretrain


TEST_CELLS = 3000  # of a data set at the most
TRAINING_CELLS = 4000  # whose embeddings are kept
GENE_SUMS_FILE = "gene_sums.json"  # beside a model whose gene sums were fitted


@dataclass
class Outputs:
    """What a model says of the cells of a data set.

    Parameters
    ----------
    data_set
        Its name.
    logits
        Log probabilities, in the order of the classes of the recipe; minus infinity for a class that the model was
        not trained on. Shape (cells, classes).
    embedding
        Shape (cells, size).
    rows
        Cells of the data set that they are of; those without known genes are missing. Shape (cells,).
    """

    data_set: str
    logits: np.ndarray
    embedding: np.ndarray
    rows: np.ndarray


@dataclass
class Fold:
    """A model that was trained without some data sets.

    Parameters
    ----------
    folder
        Of the model.
    laboratory
        The one that is tested.
    training, test
        Data sets.
    outputs
        Of the test sets.
    training_embedding
        Embeddings of training cells, shape (cells, size).
    """

    folder: Path
    laboratory: str
    training: list[PreparedCells]
    test: list[PreparedCells]
    outputs: list[Outputs] = field(default_factory=list)
    training_embedding: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), dtype=np.float32))


def levels_of(
    sets: Sequence[PreparedCells], recipe: Recipe, ontology: CellOntology, others: Sequence[PreparedCells] = ()
) -> LabelLevels:
    """Return the classes of training sets, and what the labels of these and other sets mean in terms of them."""
    counts: dict[str, int] = {}
    for prepared in sets:
        for label, number in prepared.notes["meant"].items():
            if label:
                counts[label] = counts.get(label, 0) + number
    foreign = [] if recipe.foreign is None else [recipe.foreign]
    return label_levels(
        counts,
        ontology,
        fewest=recipe.fewest_cells,
        classes=None if recipe.classes is None else [*recipe.classes, *foreign],
        others=[label for p in others for label in (*p.notes["meant"], *p.notes["own"]) if label],
        every_class=False,
    )


def train(
    recipe: Recipe,
    sets: Sequence[PreparedCells],
    folder: Path,
    ontology_name: str,
    levels: LabelLevels,
    quick: bool,
) -> Path:
    """Train a model on data sets, and return its folder; a finished one is not trained again.

    Parameters
    ----------
    sets
        Training sets; those without a label are left out.
    folder
        For corpus and model.
    ontology_name
        As fine-tuning takes it.
    levels
        Classes of these sets.
    quick
        Train a few steps.
    """
    config = recipe.config(quick)
    files = [prepared.path for prepared in sets if prepared.labelled]
    base = None if recipe.base is None else resolve_model(recipe.base)
    if recipe.pretraining:
        before = recipe.config(quick, "pretraining")
        every = new_corpus(recipe, [p.path for p in sets], folder / "pretraining" / "corpus", before)
        pretrain(before, every, folder / "pretraining" / "model")
        base = str(folder / "pretraining" / "model")
    if base is not None:
        corpus = corpus_for(base, files, folder, LABEL, validation_fraction=0.0, processes=1)
    else:
        corpus = new_corpus(recipe, files, folder / "corpus", config)
    classes = [levels.ids.get(name, name) for name in levels.classes]
    config.finetuning.update(levels=True, classes=classes, ontology=ontology_name, unlikely_labels="keep")
    finetune(config, base, corpus, folder / "model", method=recipe.method, label_column=LABEL)
    return folder / "model" if recipe.gene_sums is None else _with_gene_sums(recipe, folder, corpus, config, quick)


def _with_gene_sums(recipe: Recipe, folder: Path, corpus: Corpus, config: TrainingConfig, quick: bool) -> Path:
    """Fit the gene sums of a copy of the trained model, and return its folder; a finished one is not fitted again."""
    settings = dataclasses.replace(recipe.gene_sums, cells=1000, iterations=5) if quick else recipe.gene_sums
    fitted, made_of = folder / "fitted", {"of": _weights_of(folder / "model"), **dataclasses.asdict(settings)}
    if (fitted / GENE_SUMS_FILE).is_file() and read_json(fitted / GENE_SUMS_FILE) == made_of:
        return fitted
    shutil.rmtree(fitted, ignore_errors=True)
    shutil.copytree(folder / "model", fitted, ignore=shutil.ignore_patterns("checkpoint-*", ".*"))
    fit_gene_sums(fitted, corpus, config, LABEL, settings)
    write_json(fitted / GENE_SUMS_FILE, made_of)
    return fitted


def new_corpus(recipe: Recipe, files: Sequence[Path], folder: Path, config: TrainingConfig) -> Corpus:
    """Tokenize cells for a new network, with the vocabulary of the recipe and the statistics of these cells."""
    inputs = INPUTS[str(config.model.get("type"))]
    parts = [ad.read_h5ad(path) for path in files]
    return tokenize_corpus(
        files,
        folder,
        tokenizer=inputs.kind,
        tokenizer_options=inputs.corpus_options,
        vocabulary=make_vocabulary(parts, recipe.genes.protein_coding, recipe.genes.fewest_cells),
        obs_columns=[LABEL],
        validation_fraction=0.0,
        processes=1,
        seed=recipe.seed,
    )


def run_fold(
    recipe: Recipe,
    fold: Fold,
    ontology: CellOntology,
    ontology_name: str,
    classes: Sequence[str],
    quick: bool = False,
) -> Fold:
    """Train the model of a fold and let it predict the data sets that it did not see; finished steps are kept.

    Parameters
    ----------
    ontology, ontology_name
        The ontology, and its name as fine-tuning takes it.
    classes
        Classes of the whole recipe.

    Returns
    -------
    Fold
        With `outputs` and `training_embedding`.
    """
    started = time.perf_counter()
    levels = levels_of(fold.training, recipe, ontology)
    model = train(recipe, fold.training, fold.folder, ontology_name, levels, quick)
    print(f"{fold.laboratory}: trained in {time.perf_counter() - started:,.0f} s", flush=True)
    limit = 200 if quick else TEST_CELLS
    for prepared in fold.test:
        fold.outputs.append(_predicted(model, prepared, classes, fold.folder, limit, recipe.seed))
    fold.training_embedding = training_embedding(model, fold.training, fold.folder, limit, recipe.seed, recipe.foreign)
    print(f"{fold.laboratory}: done in {time.perf_counter() - started:,.0f} s", flush=True)
    return fold


def training_embedding(
    model: Path,
    sets: Sequence[PreparedCells],
    folder: Path,
    limit: int = TRAINING_CELLS,
    seed: int = 0,
    foreign: str | None = None,
) -> np.ndarray:
    """Embed some labelled cells of training sets, as many of each set; float32, shape (cells, size).

    Cells of the class `foreign` are left out: cells like them are to be novel.
    """
    used = [prepared for prepared in sets if prepared.labelled]
    each = max(limit // max(len(used), 1), 20)
    classes: list[str] = []
    found = []
    for prepared in used:
        outputs = _predicted(model, prepared, classes, folder, each, seed, "training")
        labels = ad.read_h5ad(prepared.path, backed="r").obs[LABEL].astype(str).to_numpy()[outputs.rows]
        found.append(outputs.embedding[labels != foreign])
    return np.concatenate(found).astype(np.float32)


def _predicted(
    model: Path,
    prepared: PreparedCells,
    classes: Sequence[str],
    folder: Path,
    limit: int,
    seed: int,
    name: str = "test",
) -> Outputs:
    """Predict some labelled cells of a data set; what was predicted before is read."""
    path = folder / f"{name}-{prepared.data_set.name}.npz"
    weights = _weights_of(model)
    if path.is_file():
        with np.load(path, allow_pickle=False) as kept:
            if str(kept["weights"]) == weights and int(kept["limit"]) == limit:
                return Outputs(prepared.data_set.name, kept["logits"], kept["embedding"], kept["rows"])
    adata = ad.read_h5ad(prepared.path)
    rows = np.flatnonzero(adata.obs[MEANT if name == "test" else LABEL].notna())
    if len(rows) > limit:
        rows = np.sort(np.random.default_rng(seed).choice(rows, limit, replace=False))
    network, tokenizer = _loaded(model, weights)
    with read_cells(adata[rows].copy()) as cells:
        # panels that cover few of the counts are scored as well: that is what the scores are to say
        found = classify_cells(network, tokenizer, cells, min_coverage=0.0)
    kept = np.isfinite(found.scores).all(axis=1)
    logits = np.full((int(kept.sum()), len(classes)), -np.inf, dtype=np.float32)
    for column, label in enumerate(found.classes):
        if label in classes:
            logits[:, list(classes).index(label)] = np.log(np.maximum(found.scores[kept][:, column], 1e-30))
    made = Outputs(prepared.data_set.name, logits, found.embedding[kept].astype(np.float32), rows[kept])
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez(
            file, logits=made.logits, embedding=made.embedding, rows=made.rows, weights=np.array(weights),
            limit=np.array(limit),
        )  # fmt: skip
    return made


@functools.lru_cache(maxsize=1)
def _loaded(model: Path, weights: str) -> tuple[Any, Any]:
    """Load a model once for all its data sets."""
    return load_classifier(model)


def _weights_of(model: Path) -> str:
    record: dict[str, Any] = json.loads((model / "training_run.json").read_text(encoding="utf-8"))
    facts = [record.get(key) for key in ("config", "corpus", "label_cl_ids", "metrics")]
    if (model / GENE_SUMS_FILE).is_file():
        facts.append(read_json(model / GENE_SUMS_FILE))
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


__all__ = ["Fold", "Outputs", "levels_of", "new_corpus", "run_fold", "train", "training_embedding"]
