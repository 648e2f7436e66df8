"""Builds a LangCell on the encoder of cells of a base: its texts are trained, and scored without labels of cells."""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np

from cellglot.evaluation.annotation.by_texts import annotate_cells
from cellglot.model_cards.collection.base_build import SCORED_CELLS, BaseBuild, types_of
from cellglot.model_cards.collection.base_card import base_details, base_facts, beats_components
from cellglot.model_cards.collection.build import in_half_precision
from cellglot.model_cards.collection.cells import PreparedCells
from cellglot.model_cards.collection.folds import levels_of
from cellglot.model_cards.collection.recipe import RecipeError
from cellglot.model_cards.collection.scores import Group, groups_of, type_scores
from cellglot.model_cards.collection.text_card import text_facts, text_results
from cellglot.model_cards.collection.text_learning import (
    TypedCells,
    centre,
    langcell_of,
    learn_texts,
    texts_of_type,
)
from cellglot.model_cards.collection.text_settings import TextSettings
from cellglot.modeling.any_model import load_any_model
from cellglot.modeling.modeling_langcell import LangCellModel
from cellglot.outputs import lock
from cellglot.tokenization.processing_langcell import LangCellProcessor
from cellglot.training.data.label_levels import LabelLevels
from cellglot.training.data.texts import word_tokenizer


QUICK_STEPS = 5
TEXTS = {"names": 1, "names and definitions": 0}  # place among the texts of a type


@dataclass
class TextBuild(BaseBuild):
    """A build of a LangCell: encoder of cells from a base, text encoder trained on labels of training cells.

    The base has not seen the laboratories of ``held_out``; its cells are annotated by texts alone. A second model
    learns nothing of the types of ``texts.leave_out``, to be tested on cells of them.
    """

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
            (fold,) = self._folds(sets, levels_of(known, self.recipe, self.ontology))
            levels = levels_of(fold.training, self.recipe, self.ontology, sets)
            group = list(groups_of(self.recipe.groups, levels.classes, self._sets_of(levels)).values())[-1]
            tested = [p for p in fold.test if p.data_set.training]
            encoder, processor, cells = self._start(fold.training, levels)
            model_folder, by_texts = self.folder / "final" / self.recipe.name, []
            shutil.rmtree(model_folder, ignore_errors=True)
            for left_out in (set(), self._left_out()):
                self.say(f"texts without {', '.join(self.recipe.texts.leave_out)}" if left_out else "all texts")
                model = langcell_of(encoder, len(processor.text_tokenizer), self.recipe.texts)
                centre(model, encoder, cells)
                cells.embed(model.cell_model)
                learn_texts(
                    model, processor.text_tokenizer, cells, self.ontology, self._settings(), self.recipe.seed, left_out
                )
                if not left_out:
                    model.save_pretrained(model_folder)
                for prepared in tested:
                    by_texts += self._by_texts(model, processor, prepared, levels, group, left_out)
            processor.save_pretrained(model_folder)
            in_half_precision(model_folder)
            rows = [self._row(model_folder, p, levels, group, model_folder.parent) for p in tested]
            rows += [
                self._row(model_folder, p, levels, None, model_folder.parent) for p in sets if not p.data_set.training
            ]
            return self._finish_texts(model_folder, fold.training, sets, levels, rows, by_texts)

    def _settings(self) -> TextSettings:
        settings = self.recipe.texts
        return dataclasses.replace(settings, steps=QUICK_STEPS) if self.quick else settings

    def _left_out(self) -> set[str]:
        """Return the types that the second model learns nothing of, and those below them."""
        asked = self.recipe.texts.leave_out
        named = [t for t in self.ontology.resolve(asked).cell_types if t is not None]
        if len(named) < len(asked):
            raise RecipeError(f"{self.recipe.file}: texts.leave_out names types that are not in the ontology")
        return {t for name in named for t in (name, *self.ontology.descendants(name))}

    def _start(self, sets: Sequence[PreparedCells], levels: LabelLevels) -> tuple[Any, LangCellProcessor, TypedCells]:
        """Return the encoder of cells, the processor with a vocabulary of the ontology's texts, and training cells."""
        loaded = load_any_model(str(self.recipe.base))
        settings = self.recipe.texts
        texts = [text for t in self.ontology.cell_types for text in texts_of_type(t, self.ontology)]
        words = word_tokenizer(texts, settings.longest, settings.words)
        cells = TypedCells.of(sets, loaded.tokenizer, levels, settings.cells, self.recipe.seed)
        self.say(f"{len(cells.tokens):,} cells of {len(cells.types)} types to learn texts from")
        return loaded.encoder, LangCellProcessor(loaded.tokenizer, words), cells

    # ---------------------------------------------------------------- scores

    def _by_texts(
        self,
        model: LangCellModel,
        processor: LangCellProcessor,
        prepared: PreparedCells,
        levels: LabelLevels,
        group: Group,
        left_out: set[str],
    ) -> list[dict[str, Any]]:
        """Annotate cells of a data set by the texts of types alone, and score the types of the group.

        With types that are left out, only their cells are scored: among all types, and among those left out.
        """
        adata = ad.read_h5ad(prepared.path)
        types = types_of(adata, levels, group)
        rows = np.flatnonzero(types != "")
        if len(rows) > SCORED_CELLS:
            rows = np.sort(np.random.default_rng(self.recipe.seed).choice(rows, SCORED_CELLS, replace=False))
        truth = np.array([group.names.index(t) for t in types[rows]])
        ids = {name: levels.ids[name] for name in levels.classes if name in levels.ids}
        of_class = {name: row for name, row in zip(levels.classes, group.members.T, strict=True) if name in ids}
        new = {name for name, cell_type in ids.items() if cell_type in left_out}
        if left_out:
            below = [{name for name, row in of_class.items() if row[i]} for i in range(len(group.names))]
            novel = [i for i, names in enumerate(below) if names and names <= new]
            rows, truth = rows[np.isin(truth, novel)], truth[np.isin(truth, novel)]
        found = []
        for among in (list(ids), list(new)) if left_out else (list(ids),):
            meant = np.array([int(row.argmax()) if (row := of_class[n]).any() else len(group.names) for n in among])
            guessed = np.random.default_rng(self.recipe.seed).integers(len(among), size=len(truth))
            for kind, place in TEXTS.items():
                texts = {name: texts_of_type(ids[name], self.ontology)[place] for name in among}
                made = annotate_cells(model, processor, adata[rows].copy(), texts, progress=False, min_coverage=0.0)
                predicted = np.where(made.best < 0, len(group.names), meant[made.best])
                row = {
                    "data_set": prepared.data_set.name,
                    "texts": kind,
                    "candidates": len(among),
                    "left_out": sorted(new),
                    "types": [group.names[t] for t in np.unique(truth)],
                    "model": type_scores(truth, predicted, group.names, self.recipe.seed),
                    "chance": type_scores(truth, meant[guessed], group.names, self.recipe.seed),
                }
                if row["model"]:
                    self._say_scores(row)
                    found.append(row)
        return found

    def _say_scores(self, row: Mapping[str, Any]) -> None:
        values = [row[name][m]["value"] for m in ("accuracy", "macro_f1") for name in ("model", "chance")]
        self.say(
            f"{row['data_set']}, {', '.join(row['types'])}, {row['texts']} of {row['candidates']} types: "
            "accuracy {:.3f} (chance {:.3f}), macro F1 {:.3f} ({:.3f})".format(*values)
        )

    # ---------------------------------------------------------------- result

    def _finish_texts(
        self,
        model: Path,
        known: Sequence[PreparedCells],
        sets: Sequence[PreparedCells],
        levels: LabelLevels,
        rows: Sequence[Mapping[str, Any]],
        by_texts: Sequence[Mapping[str, Any]],
    ) -> Path:
        rows = [row for row in rows if row["scores"]]
        if not by_texts or not any(row["tissue_seen"] for row in rows):
            raise RecipeError(f"{self.recipe.file}: no data set of a laboratory of held_out has two types to score")
        better = beats_components(rows)
        self.say("its embedding is better than principal components" if better else "it LOSES to components")
        details = base_details(self.recipe, known, rows, self.ontology.release)
        details = dataclasses.replace(details, results=f"{text_results(by_texts)}\n\n{details.results}")
        facts = text_facts(base_facts(self.recipe, model, known, levels, rows), by_texts)
        record = {
            "data_sets": [{"name": p.data_set.name, **p.notes} for p in sets],
            "trained_on": [p.data_set.name for p in known],
            "classes": levels.classes,
            "scores": list(rows),
            "by_texts": list(by_texts),
            "better_than_principal_components": better,
        }
        return self._publish(model, details, facts, self._examples(known, levels), record)


__all__ = ["TextBuild"]
