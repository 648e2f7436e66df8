"""Builds a LangCell on the encoder of cells of a base: its texts are trained, and scored without labels of cells."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import torch

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
from cellglot.modeling.any_model import load_any_model
from cellglot.modeling.modeling_langcell import LangCellModel
from cellglot.outputs import lock
from cellglot.tokenization.processing_langcell import LangCellProcessor
from cellglot.training.data.label_levels import LabelLevels
from cellglot.training.data.texts import wordpiece_tokenizer


QUICK_STEPS = 5
CELLS_AT_ONCE = 64


@dataclass
class TextBuild(BaseBuild):
    """A build of a LangCell: encoder of cells from a base, text encoder trained on the types of training cells.

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
            groups = list(groups_of(self.recipe.groups, levels.classes, self._sets_of(levels)).values())
            tested = [p for p in fold.test if p.data_set.training]
            final = self.folder / "final"
            encoder, processor, cells = self._start(fold.training, levels)
            found = {}
            for name, left_out in (("all types", set()), ("types left out", self._left_out())):
                self.say(f"texts: {name}")
                model = langcell_of(encoder, len(processor.text_tokenizer), self.recipe.texts)
                centre(model, encoder, cells)
                cells.embed(model.cell_model)
                learn_texts(
                    model, processor.text_tokenizer, cells, self.ontology, self._settings(), self.recipe.seed, left_out
                )
                if not left_out:
                    model.save_pretrained(final / self.recipe.name)
                found[name] = [self._by_texts(model, processor, p, levels, groups[-1], left_out) for p in tested]
            processor.save_pretrained(final / self.recipe.name)
            in_half_precision(final / self.recipe.name)
            of_tests = [self._row(final / self.recipe.name, p, levels, groups[-1], final) for p in tested]
            unseen = [p for p in sets if not p.data_set.training]
            rows = [*of_tests, *(self._row(final / self.recipe.name, p, levels, None, final) for p in unseen)]
            rows = [row for row in rows if row["scores"]]
            return self._finish_texts(final / self.recipe.name, fold.training, sets, levels, rows, found)

    def _settings(self) -> Any:
        settings = self.recipe.texts
        return dataclasses.replace(settings, steps=QUICK_STEPS) if self.quick else settings

    def _left_out(self) -> set[str]:
        asked = self.recipe.texts.leave_out
        named = [t for t in self.ontology.resolve(asked).cell_types if t is not None]
        if len(named) < len(asked):
            raise RecipeError(f"{self.recipe.file}: texts.leave_out names types that are not in the ontology")
        return {t for name in named for t in (name, *self.ontology.descendants(name))}

    def _start(self, sets: Sequence[PreparedCells], levels: LabelLevels) -> tuple[Any, LangCellProcessor, TypedCells]:
        """Return the encoder of cells, the processor with a vocabulary of the ontology's texts, and typed cells."""
        loaded = load_any_model(str(self.recipe.base))
        settings = self.recipe.texts
        texts = [text for t in self.ontology.cell_types for text in texts_of_type(t, self.ontology)]
        words = wordpiece_tokenizer(texts, settings.words, settings.longest)
        types = [t for t in (levels.ids.get(name) for name in levels.classes) if t is not None]
        cells = TypedCells.of(sets, loaded.tokenizer, types, settings.cells, self.recipe.seed)
        self.say(f"{len(cells.tokens):,} cells of {len(np.unique(cells.types))} types to learn texts from")
        return loaded.encoder, LangCellProcessor(loaded.tokenizer, words), cells

    def _by_texts(
        self,
        model: LangCellModel,
        processor: LangCellProcessor,
        prepared: PreparedCells,
        levels: LabelLevels,
        group: Group,
        left_out: set[str],
    ) -> dict[str, Any]:
        """Annotate cells of a data set by the texts of types alone, and score the types."""
        adata = ad.read_h5ad(prepared.path)
        types = types_of(adata, levels, group)
        rows = np.flatnonzero(types != "")
        if len(rows) > SCORED_CELLS:
            rows = np.sort(np.random.default_rng(self.recipe.seed).choice(rows, SCORED_CELLS, replace=False))
        truth = np.array([group.names.index(t) for t in types[rows]])
        texts, classes, novel = self._candidates(levels, group, left_out)
        scores = text_scores(model, processor, adata[rows].copy(), texts, classes)
        if left_out:
            asked = np.isin(truth, novel)
            truth = np.where(asked, truth, -1)
        chance = np.random.default_rng(self.recipe.seed).integers(len(group.names), size=len(truth))
        names = [group.names[i] for i in novel] if left_out else list(group.names)
        row: dict[str, Any] = {
            "data_set": prepared.data_set.name,
            "types": names,
            "model": type_scores(truth, scores.argmax(axis=1), group.names, self.recipe.seed),
            "chance": type_scores(truth, chance, group.names, self.recipe.seed),
        }
        if row["model"]:
            own, other = (row[name]["accuracy"]["value"] for name in ("model", "chance"))
            self.say(f"{prepared.data_set.name}, {', '.join(names)}: accuracy {own:.3f}, chance {other:.3f}")
        return row

    def _candidates(
        self, levels: LabelLevels, group: Group, left_out: set[str]
    ) -> tuple[list[str], np.ndarray, list[int]]:
        """Return texts, the type of the group that each belongs to, and the types of the group that are left out."""
        texts, classes, novel = [], [], []
        for number, members in enumerate(group.members):
            ids = [levels.ids[name] for name, own in zip(levels.classes, members, strict=True) if own]
            texts += [texts_of_type(t, self.ontology)[0] for t in ids]
            classes += [number] * len(ids)
            novel += [number] if set(ids) <= left_out else []
        return texts, np.array(classes), novel

    def _finish_texts(
        self,
        model: Path,
        known: Sequence[PreparedCells],
        sets: Sequence[PreparedCells],
        levels: LabelLevels,
        rows: Sequence[Mapping[str, Any]],
        found: Mapping[str, list[dict[str, Any]]],
    ) -> Path:
        better = beats_components(rows)
        self.say("its embedding is better than principal components" if better else "it LOSES to components")
        details = base_details(self.recipe, known, rows, self.ontology.release)
        details = dataclasses.replace(details, results=f"{text_results(found)}\n\n{details.results}")
        facts = text_facts(base_facts(self.recipe, model, known, levels, rows), found)
        record = {
            "data_sets": [{"name": p.data_set.name, **p.notes} for p in sets],
            "trained_on": [p.data_set.name for p in known],
            "classes": levels.classes,
            "scores": list(rows),
            "by_texts": found,
            "better_than_principal_components": better,
        }
        return self._publish(model, details, facts, self._examples(known, levels), record)


@torch.no_grad()
def text_scores(
    model: LangCellModel, processor: LangCellProcessor, cells: ad.AnnData, texts: Sequence[str], classes: np.ndarray
) -> np.ndarray:
    """Return the scores of classes that texts describe, shape (cells, classes).

    Parameters
    ----------
    texts, classes
        Texts, and the class of each, shape (texts,).
    """
    given = processor(text=list(texts), return_tensors="pt")
    made = []
    for start in range(0, cells.n_obs, CELLS_AT_ONCE):
        part = processor.tokenizer(cells[start : start + CELLS_AT_ONCE].copy(), return_tensors="pt", min_coverage=0.0)
        found = model.annotate(
            part["input_ids"], part["attention_mask"], given["text_input_ids"], given["text_attention_mask"],
            text_class_ids=torch.from_numpy(classes),
        )  # fmt: skip
        made.append(found.scores.numpy())
    return np.concatenate(made)


__all__ = ["TextBuild", "text_scores"]
