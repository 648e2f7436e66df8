"""Builds a model of the collection: data sets, tests on laboratories that were left out, the final model, its card."""

import dataclasses
import hashlib
import json
import platform
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import safetensors.torch
import torch
import transformers
import yaml

import cellglot
from cellglot.evaluation.annotation.calibration import HeldOutCells, fit_calibration
from cellglot.inputs import read_json
from cellglot.model_cards.card.details import CARD_FILE, CardDetails
from cellglot.model_cards.collection.card import card_details, collection_facts
from cellglot.model_cards.collection.cells import LABEL, MEANT, PreparedCells, prepare
from cellglot.model_cards.collection.folds import GENE_SUMS_FILE, Fold, levels_of, run_fold, train, training_embedding
from cellglot.model_cards.collection.recipe import Recipe, RecipeError
from cellglot.model_cards.collection.scores import Group, baseline_scores, groups_of, type_scores
from cellglot.model_cards.publishing import publish
from cellglot.modeling.annotation_calibration import softmax
from cellglot.modeling.collection import FACTS_FILE
from cellglot.modeling.model_names import resolve_model
from cellglot.outputs import atomic, check_folder, lock, write_json
from cellglot.tokenization.genes.tables import human_genes
from cellglot.tokenization.ontology.cell_ontology import CellOntology
from cellglot.training.data.cell_types import open_ontology
from cellglot.training.data.label_levels import ALTERNATIVES, LabelLevels, label_levels
from cellglot.training.runs.output import RUN_FILE


RECORD_FILE = "collection_run.json"
BUILD_FILE = "collection_build.json"  # marks the folder of a build
ONTOLOGY_FILE = "cell_ontology/cl.owl.gz"
MOST_BYTES = 8_000_000
SCORING = 2  # counted up when scores are computed in another way: kept ones are then computed again
FEWEST_TESTED = 20  # labelled cells of a laboratory that is left out


@dataclass
class Build:
    """A build in a folder; every finished step is kept there, and is not repeated.

    Parameters
    ----------
    recipe
        What to build.
    data
        Folder that the paths of data sets begin at.
    folder
        Folder of the build.
    quick
        Few steps and few cells: to try out everything else.
    """

    recipe: Recipe
    data: Path
    folder: Path
    quick: bool = False

    def __post_init__(self) -> None:
        self.started, self._earlier = time.perf_counter(), 0.0
        place = self.data / ONTOLOGY_FILE
        self.ontology_name = str(place) if place.is_file() else "shipped"
        self.ontology: CellOntology = open_ontology(self.ontology_name)

    def run(self) -> Path:
        """Build the model, and return its finished folder.

        Raises
        ------
        RecipeError
            If a data set is missing or another one than the recipe's, or nothing can be tested.
        ValueError
            If the finished folder is larger than models of the collection may be.
        """
        self._claim()
        with lock(self.folder):
            sets = self._prepare()
            known = [p for p in sets if p.data_set.training]
            levels = levels_of(known, self.recipe, self.ontology, sets)
            self.say(f"{len(levels.classes)} classes: {', '.join(levels.classes)}")
            groups = groups_of(self.recipe.groups, levels.classes, self._sets_of(levels))
            folds, scores = [], []
            for fold in self._folds(sets, levels):
                folds.append(self._fold(fold, levels))
                self._keep_time()
                scores += self._scores(folds[-1], levels, groups)
            model = self._final(known, levels, folds)
            return self._finish(model, known, levels, folds, scores)

    def _claim(self) -> None:
        """Take a folder that is new, empty, or an earlier build; files of others are never among what is replaced."""
        check_folder(self.folder, [self.data])
        marker = self.folder / BUILD_FILE
        if self.folder.is_dir() and any(self.folder.iterdir()) and not marker.is_file():
            raise RecipeError(
                f"{self.folder} is not empty, and not the folder of an earlier build (it has no {BUILD_FILE}): choose "
                "another one by --output"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        if marker.is_file():
            self._earlier = float(read_json(marker).get("seconds", 0.0))
        else:
            write_json(marker, {"recipe": self.recipe.name, "seconds": 0})

    def say(self, text: str) -> None:
        """Print a line with the time since the start."""
        print(f"[{time.perf_counter() - self.started:6.0f} s] {text}", flush=True)

    # ---------------------------------------------------------------- data sets

    def _prepare(self) -> list[PreparedCells]:
        made = []
        for data_set in self.recipe.sets:
            if self.quick:
                data_set = dataclasses.replace(data_set, most_cells=300)
            target = self.folder / "cells"
            prepared = prepare(data_set, self.data, target, self.ontology, self.recipe.seed)
            notes = prepared.notes
            self.say(
                f"{data_set.name}: {notes['cells']:,} cells, {prepared.labelled:,} with a label; "
                f"{notes['genes']:,} genes, {notes['genes_not_found']:,} names not found"
            )
            made.append(prepared)
        return made

    def _folds(self, sets: Sequence[PreparedCells], levels: LabelLevels) -> list[Fold]:
        """Return one fold for each laboratory to leave out; laboratories of foreign cells are spread over them."""
        cells = {name: [0, 0] for name in self.recipe.laboratories}
        for prepared in sets:
            for label, number in prepared.notes["meant"].items():
                if label:
                    cells[prepared.data_set.laboratory][label == self.recipe.foreign] += number
        known = [name for name, (n, _) in cells.items() if n >= FEWEST_TESTED]
        at_once = [[one] if isinstance(one, str) else one for one in self.recipe.held_out or known]
        if self.quick:
            at_once = at_once[:2]
        if not at_once or not set(self.recipe.laboratories) - set(at_once[0]):
            raise RecipeError(f"{self.recipe.file}: no laboratory can be left out, the data sets are all of one")
        out = {" and ".join(names): list(names) for names in at_once}
        tested = list(out)
        foreign = [name for name, (n, others) in cells.items() if others and not n]
        for i, name in enumerate(foreign):
            out[tested[i % len(tested)]].append(name)
        return [
            Fold(
                folder=self.folder / "folds" / name,
                laboratory=name,
                training=[p for p in sets if p.data_set.laboratory not in left_out and p.data_set.training],
                test=[p for p in sets if p.data_set.laboratory in left_out and p.tested],
            )
            for name, left_out in out.items()
        ]

    def _fold(self, fold: Fold, levels: LabelLevels) -> Fold:
        self.say(f"without {fold.laboratory}: {len(fold.training)} data sets for training, {len(fold.test)} to test")
        return run_fold(self.recipe, fold, self.ontology, self.ontology_name, levels.classes, self.quick)

    # ---------------------------------------------------------------- scores

    def _sets_of(self, levels: LabelLevels) -> Any:
        counts = {levels.ids.get(name, name): 1 for name in levels.classes}

        def sets_of(ids: Any) -> np.ndarray:
            label = f" {ALTERNATIVES} ".join([ids] if isinstance(ids, str) else ids)
            found = label_levels(counts, self.ontology, fewest=1, classes=list(counts), others=[label])
            return found.sets[label]

        return sets_of

    def _scores(self, fold: Fold, levels: LabelLevels, groups: dict[str, Group]) -> list[dict[str, Any]]:
        """Score the data sets that were left out, beside baselines; the scores are kept beside the fold."""
        file, made_of = fold.folder / "scores.json", _digest(fold, self.recipe)
        if file.is_file() and (kept := json.loads(file.read_text(encoding="utf-8")))["made_of"] == made_of:
            return kept["rows"]
        found = self._fold_scores(fold, levels, groups)
        with atomic(file) as temporary:
            temporary.write_text(json.dumps({"made_of": made_of, "rows": found}, indent=1), encoding="utf-8")
        return found

    def _fold_scores(self, fold: Fold, levels: LabelLevels, groups: dict[str, Group]) -> list[dict[str, Any]]:
        rows = []
        training = [ad.read_h5ad(p.path) for p in fold.training if p.labelled]
        for prepared, outputs in zip(fold.test, fold.outputs, strict=True):
            test = ad.read_h5ad(prepared.path)[outputs.rows].copy()
            allowed = _allowed(test, levels, MEANT)
            for level, group in groups.items():
                of_training = [group.truth(_allowed(part, levels)) for part in training]
                truth, unknown = _without_unknown(group.truth(allowed), of_training, group.names)
                own = type_scores(truth, group.predicted(softmax(outputs.logits)), group.names, self.recipe.seed)
                if not own:
                    continue
                others = baseline_scores(training, of_training, test, truth, group.names, self.recipe.seed)
                rows.append(
                    {"laboratory": fold.laboratory, "data_set": prepared.data_set.name, "level": level, "model": own,
                     "baselines": others, "cells_of_types_without_training": unknown}
                )  # fmt: skip
                beside = ", ".join(f"{n} {s['macro_f1']['value']:.3f}" for n, s in others.items() if s)
                self.say(f"{prepared.data_set.name}, {level}: macro F1 {own['macro_f1']['value']:.3f}; {beside}")
        return rows

    # ---------------------------------------------------------------- the model itself

    def _final(self, sets: Sequence[PreparedCells], levels: LabelLevels, folds: Sequence[Fold]) -> Path:
        """Train on all data sets, in half precision on disk, with a calibration from the cells that were left out."""
        self.say("all data sets")
        trained = train(self.recipe, sets, self.folder / "final", self.ontology_name, levels, self.quick)
        model = self.folder / "final" / self.recipe.name
        shutil.rmtree(model, ignore_errors=True)
        shutil.copytree(trained, model, ignore=shutil.ignore_patterns("checkpoint-*", ".*", GENE_SUMS_FILE))
        self._as_shipped(model)
        held_out = []
        for fold in folds:
            parts = [
                (outputs, _allowed(ad.read_h5ad(prepared.path)[outputs.rows], levels, MEANT))
                for prepared, outputs in zip(fold.test, fold.outputs, strict=True)
            ]
            if self.recipe.foreign is not None:
                column = levels.classes.index(self.recipe.foreign)
                for _, allowed in parts:
                    allowed[allowed[:, column]] = False  # no type is right for them
            held_out.append(
                HeldOutCells(
                    logits=np.concatenate([outputs.logits for outputs, _ in parts]),
                    embedding=np.concatenate([outputs.embedding for outputs, _ in parts]),
                    allowed=np.concatenate([allowed for _, allowed in parts]),
                    data_sets=[outputs.data_set for outputs, _ in parts for _ in outputs.rows],
                    training_embedding=fold.training_embedding,
                )
            )
        calibration = fit_calibration(
            held_out,
            training_embedding(model, sets, self.folder / "final", seed=self.recipe.seed, foreign=self.recipe.foreign),
            levels.classes,
            [levels.ids.get(name) for name in levels.classes],
            self.ontology,
            foreign=[] if self.recipe.foreign is None else [self.recipe.foreign],
            seed=self.recipe.seed,
        )
        calibration.save(model)
        self.calibration = dict(calibration.facts)
        return model

    def _as_shipped(self, model: Path) -> None:
        """Store weights in half precision, and the command of the build in the record of the training."""
        in_half_precision(model)
        path = model / RUN_FILE
        record = read_json(path) | {
            "command": f"python -m cellglot.model_cards.collection {self.recipe.name} --data DATA"
        }
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    def _finish(
        self,
        model: Path,
        sets: Sequence[PreparedCells],
        levels: LabelLevels,
        folds: Sequence[Fold],
        scores: list[dict[str, Any]],
    ) -> Path:
        """Write the finished folder of a classifier."""
        used = [p for p in sets if p.labelled]
        details = card_details(self.recipe, used, scores, self.calibration, self.ontology.release)
        facts = collection_facts(self.recipe, model, used, levels, scores)
        tested = [
            {"laboratory": f.laboratory, "training": [p.data_set.name for p in f.training],
             "test": [p.data_set.name for p in f.test]}
            for f in folds
        ]  # fmt: skip
        return self._publish(
            model, details, facts, self._examples(used, levels),
            {"data_sets": [{"name": p.data_set.name, **p.notes} for p in sets], "folds": tested, "scores": scores,
             "calibration": self.calibration},
        )  # fmt: skip

    def _publish(
        self, model: Path, details: CardDetails, facts: dict[str, Any], examples: Path, record: dict[str, Any]
    ) -> Path:
        """Write the finished folder: model, code, card, facts, record.

        Parameters
        ----------
        examples
            Cells for the examples of the card.
        record
            What the record has beside recipe, seconds and software.
        """
        finished = self.folder / self.recipe.name
        base = None if self.recipe.method == "full" or self.recipe.base is None else resolve_model(self.recipe.base)
        publish(model, output=finished, details=details, cells=examples, base=base, overwrite=True)
        given = {name: value for name, value in dataclasses.asdict(details).items() if value}
        (finished / CARD_FILE).write_text(yaml.safe_dump(given, sort_keys=False, allow_unicode=True), encoding="utf-8")
        (finished / FACTS_FILE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        software = {
            "cellglot": cellglot.__version__, "torch": torch.__version__, "transformers": transformers.__version__,
            "python": platform.python_version(),
        }  # fmt: skip
        whole = {
            "recipe": dataclasses.asdict(self.recipe) | {"file": Path(self.recipe.file).name},
            "quick": self.quick,
            "seconds": self._seconds(),
            **record,
            "software": software,
        }
        for place in (self.folder, finished):
            write_json(place / RECORD_FILE, whole, indent=None, default=str)  # a third of its size is indentation
        self._keep_time()
        size = sum(path.stat().st_size for path in finished.rglob("*") if path.is_file())
        self.say(f"{finished}: {size / 1e6:.1f} MB")
        if size > MOST_BYTES:
            raise ValueError(
                f"{finished} has {size:,} bytes: a model of the collection has {MOST_BYTES:,} at the most"
            )
        return finished

    def _seconds(self) -> int:
        """Return the seconds of this call and of earlier ones, which may have been interrupted."""
        return round(time.perf_counter() - self.started + self._earlier)

    def _keep_time(self) -> None:
        write_json(self.folder / BUILD_FILE, {"recipe": self.recipe.name, "seconds": self._seconds()})

    def _examples(self, used: Sequence[PreparedCells], levels: LabelLevels) -> Path:
        """Write cells of different types for the examples of the card; their labels are the names of the classes."""
        parts: list[ad.AnnData] = []
        for prepared in used:
            adata = ad.read_h5ad(prepared.path)
            allowed = _allowed(adata, levels)
            one = allowed.sum(axis=1) == 1
            column = allowed.argmax(axis=1)
            for c in np.unique(column[one]).tolist():
                if levels.classes[c] in {p.obs["cell_type"].iloc[0] for p in parts}:
                    continue
                row = adata[int(np.flatnonzero(one & (column == c))[0])].copy()
                row.obs = row.obs[[]].assign(cell_type=levels.classes[c])
                parts.append(row)
        path = self.folder / "example_cells.h5ad"
        example = ad.concat(parts, join="outer", fill_value=0)
        names = [human_genes().symbol(gene) or gene for gene in example.var_names]
        often = Counter(names)
        example.var_names = [n if often[n] == 1 else g for n, g in zip(names, example.var_names, strict=True)]
        example.write_h5ad(path)
        return path


def in_half_precision(model: Path) -> None:
    """Store the weights of a model as float16; it is loaded, and computes, in float32 all the same.

    Raises
    ------
    ValueError
        If a weight is beyond the range of float16.
    """
    path = model / "model.safetensors"
    if not path.is_file():  # an adapter
        path = model / "adapter_model.safetensors"
    weights = safetensors.torch.load_file(path)
    halved = {n: w.half() if w.dtype == torch.float32 else w for n, w in weights.items()}
    wrong = [n for n, w in halved.items() if w.is_floating_point() and not w.isfinite().all()]
    if wrong:
        raise ValueError(f"{path}: {', '.join(wrong[:3])} does not fit into float16")
    with atomic(path) as temporary:
        safetensors.torch.save_file(halved, temporary, metadata={"format": "pt"})
    config_file = model / "config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    with atomic(config_file) as temporary:
        temporary.write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n", encoding="utf-8")


def _allowed(adata: ad.AnnData, levels: LabelLevels, column: str = LABEL) -> np.ndarray:
    """Return whether each class may be right for each cell, none where it has no label; shape (cells, classes)."""
    nothing = np.zeros(len(levels.classes), dtype=bool)
    return np.stack(
        [levels.sets.get(label, nothing) if isinstance(label, str) else nothing for label in adata.obs[column]]
    )


def _without_unknown(
    truth: np.ndarray, of_training: Sequence[np.ndarray], names: Sequence[str]
) -> tuple[np.ndarray, dict[str, int]]:
    """Leave out cells of types that no training cell of a fold has; return the types, and how many cells they had."""
    known = np.unique(np.concatenate(of_training))
    unknown = (truth >= 0) & ~np.isin(truth, known)
    counts = {names[t]: int((truth == t).sum()) for t in np.unique(truth[unknown])}
    return np.where(unknown, -1, truth), counts


def _digest(fold: Fold, recipe: Recipe) -> str:
    """Return what the scores of a fold depend on."""
    digest = hashlib.sha256(json.dumps([SCORING, recipe.groups, recipe.seed], sort_keys=True).encode())
    for prepared in (*fold.training, *fold.test):
        digest.update(str(prepared.notes["made_of"]).encode())
    for outputs in fold.outputs:
        digest.update(outputs.logits.tobytes())
    return digest.hexdigest()


__all__ = ["Build", "in_half_precision"]
