"""Builds a base: an encoder that is scored by its embedding of cells of laboratories that it did not see."""

import functools
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import torch
from safetensors import safe_open

from cellglot.evaluation.embedding import embed_cells
from cellglot.inputs import read_json
from cellglot.model_cards.collection.base_card import base_details, base_facts, beats_components
from cellglot.model_cards.collection.build import Build
from cellglot.model_cards.collection.cells import GIVEN, LABEL, MEANT, PreparedCells
from cellglot.model_cards.collection.embedding_scores import embedding_scores
from cellglot.model_cards.collection.folds import levels_of, train
from cellglot.model_cards.collection.linear_components import with_linear_latent, without_linear_latent
from cellglot.model_cards.collection.recipe import RecipeError
from cellglot.model_cards.collection.scores import Group, groups_of
from cellglot.modeling.any_model import load_any_model
from cellglot.outputs import atomic, check_folder, lock, write_json
from cellglot.tokenization.reading.cells import read_cells
from cellglot.training.data.label_levels import LabelLevels
from cellglot.training.runs.output import RUN_FILE


SCORED_CELLS = 2000  # of a data set at the most
SCORING = 1  # counted up when scores are computed in another way: kept ones are then computed again


@dataclass
class BaseBuild(Build):
    """A build of a base: trained on labels at several levels, shipped without the head for them.

    Laboratories of ``held_out`` are left out in turn, and their cells scored by the embedding of a model that did not
    see them. Data sets with ``training: false`` are never seen; they are scored by the model that ships, by the labels
    of their files.

    Parameters
    ----------
    recipe, data, folder, quick
        As for `Build`.
    network
        Folder of an earlier model of the recipe, whose network is taken as it is; only the linear latent, which is
        not trained by gradients, and the scores are made again. None to train the network.
    """

    network: Path | None = None

    def run(self) -> Path:
        """Build the base, and return its finished folder.

        Raises
        ------
        RecipeError
            If a data set is missing or another one than the recipe's, nothing can be tested, or a network is given
            for a recipe that trains several.
        ValueError
            If the finished folder is larger than models of the collection may be.
        """
        self._check_network()
        self._claim()
        with lock(self.folder):
            sets = self._prepare()
            known = [p for p in sets if p.data_set.training]
            levels = levels_of(known, self.recipe, self.ontology, sets)
            self.say(f"{len(levels.classes)} classes: {', '.join(levels.classes)}")
            types = self._types(levels)
            rows = []
            for fold in self._folds(sets, levels):
                self.say(f"without {fold.laboratory}: {len(fold.training)} data sets for training")
                encoder = self._encoder(fold.training, fold.folder)
                tested = [p for p in fold.test if p.data_set.training]
                rows += [self._row(encoder, p, levels, types, fold.folder) for p in tested]
            final = self.folder / "final"
            final.mkdir(exist_ok=True)
            if self.recipe.ships == "tested":
                known = fold.training
                levels = levels_of(known, self.recipe, self.ontology, sets)
            else:
                self.say("all data sets")
                encoder = self._encoder(known, final)
            self._as_shipped(encoder)
            unseen = [p for p in sets if not p.data_set.training]
            rows += [self._row(encoder, p, levels, None, final) for p in unseen]
            scores = [row for row in rows if row["scores"]]
            if not any(row["tissue_seen"] for row in scores):
                raise RecipeError(
                    f"{self.recipe.file}: no data set of a laboratory of held_out has two types to score"
                )
            return self._finish_base(encoder, known, sets, levels, scores)

    def _check_network(self) -> None:
        """Refuse a network that the recipe does not have; the build never writes where it reads one."""
        if self.network is None:
            return
        if self.recipe.ships != "tested":
            raise RecipeError(
                f"{self.recipe.file}: --network is for a recipe with ships: tested, which trains one network; this "
                "one trains several"
            )
        check_folder(self.folder, [self.network])
        wanted = f"pass the folder of a finished model of {self.recipe.name} by --network"
        for name in ("config.json", RUN_FILE):
            if not (self.network / name).is_file():
                raise RecipeError(f"{self.network} has no {name}: {wanted}")
        given, family = (
            read_json(self.network / "config.json").get("model_type"),
            self.recipe.config().model.get("type"),
        )
        if given != family:
            raise RecipeError(f"{self.network} is a model of {given}, not of {family}: {wanted}")

    def _encoder(self, sets: Sequence[PreparedCells], folder: Path) -> Path:
        """Train on data sets, and return the folder of the encoder without its head."""
        levels = levels_of(sets, self.recipe, self.ontology)
        if self.network is None:
            trained = train(self.recipe, sets, folder, self.ontology_name, levels, self.quick)
        else:
            trained = self.network
        target = folder / self.recipe.name
        shutil.rmtree(target, ignore_errors=True)
        loaded = load_any_model(trained)
        network = without_linear_latent(loaded.encoder)
        if self.recipe.linear_genes:
            recipe = self.recipe
            network = with_linear_latent(
                network,
                loaded.tokenizer,
                [p for p in sets if p.data_set.name in recipe.linear_data],
                recipe.linear_genes,
                recipe.seed,
                recipe.linear_share,
                recipe.linear_labels,
                [p for p in sets if p.data_set.name in recipe.linear_label_data],
                recipe.linear_shrinkage,
                functools.partial(types_of, levels=levels, group=self._types(levels), column=LABEL),
            )
        network.save_pretrained(target)
        loaded.tokenizer.save_pretrained(target)
        shutil.copyfile(trained / RUN_FILE, target / RUN_FILE)
        return target

    def _types(self, levels: LabelLevels) -> Group:
        """Return the types that cells are scored by, in terms of some classes; those of the last level."""
        return list(groups_of(self.recipe.groups, levels.classes, self._sets_of(levels)).values())[-1]

    # ---------------------------------------------------------------- scores

    def _row(
        self, encoder: Path, prepared: PreparedCells, levels: LabelLevels, group: Group | None, folder: Path
    ) -> dict[str, Any]:
        """Score the embedding of a data set; the scores are kept in `folder`."""
        name = prepared.data_set.name
        file, made_of = folder / f"scores-{name}.json", self._made_of(encoder, prepared)
        if file.is_file() and (kept := json.loads(file.read_text(encoding="utf-8")))["made_of"] == made_of:
            return kept["row"]
        adata = ad.read_h5ad(prepared.path)
        types = types_of(adata, levels, group)
        rows = np.flatnonzero(types != "")
        if len(rows) > SCORED_CELLS:
            rows = np.sort(np.random.default_rng(self.recipe.seed).choice(rows, SCORED_CELLS, replace=False))
        cells, types = adata[rows].copy(), types[rows]
        embeddings = embeddings_of(encoder, cells, self.recipe.seed)
        embedded = np.isfinite(embeddings["this model"]).all(axis=1)
        found = embedding_scores(
            {n: values[embedded] for n, values in embeddings.items()},
            cells.X.tocsr()[embedded],
            types[embedded],
            self.recipe.seed,
        )
        row = {
            "data_set": name,
            "laboratory": prepared.data_set.laboratory,
            "tissue": prepared.data_set.tissue,
            "tissue_seen": group is not None,
            **found,
        }
        if row["scores"]:
            self.say(f"{name}: {_summary(row['scores'])}")
        with atomic(file) as temporary:
            write_json(temporary, {"made_of": made_of, "row": row})
        return row

    def _made_of(self, encoder: Path, prepared: PreparedCells) -> str:
        digest = hashlib.sha256(json.dumps([SCORING, self.recipe.groups, self.recipe.seed]).encode())
        digest.update(str(prepared.notes["made_of"]).encode())
        with safe_open(encoder / "model.safetensors", "pt") as weights:
            for name in sorted(weights.keys()):
                digest.update(weights.get_tensor(name).float().numpy().tobytes())
        return digest.hexdigest()

    # ---------------------------------------------------------------- result

    def _finish_base(
        self,
        encoder: Path,
        known: Sequence[PreparedCells],
        sets: Sequence[PreparedCells],
        levels: LabelLevels,
        scores: Sequence[Mapping[str, Any]],
    ) -> Path:
        better = beats_components(scores)
        self.say("it is better than principal components" if better else "it LOSES to principal components")
        details = base_details(self.recipe, known, scores, self.ontology.release)
        facts = base_facts(self.recipe, encoder, known, levels, scores)
        record = {
            "data_sets": [{"name": p.data_set.name, **p.notes} for p in sets],
            "trained_on": [p.data_set.name for p in known],
            "classes": levels.classes,
            "scores": list(scores),
            "better_than_principal_components": better,
        }
        if self.network is not None:
            record["network"] = "of an earlier build, described by training_run.json: not trained again"
            details.limits.append(
                "its network is that of an earlier build of the recipe: the command above trains another one like it, "
                "whose scores can differ by more than the deviations of draws"
            )
        return self._publish(encoder, details, facts, self._examples(known, levels), record)


def types_of(adata: ad.AnnData, levels: LabelLevels, group: Group | None, column: str = MEANT) -> np.ndarray:
    """Return the type of each cell, by which embeddings are scored, ``""`` for none; object, shape (cells,).

    Parameters
    ----------
    group
        Types that labels are put in terms of; None to take labels as the file gives them.
    column
        Column of the labels that are put in terms of types.
    """
    if group is None:
        given = adata.obs[GIVEN]
        return np.where(given.notna(), given.astype(str), "").astype(object)
    nothing = np.zeros(len(levels.classes), dtype=bool)
    allowed = np.stack([levels.sets.get(label, nothing) if isinstance(label, str) else nothing
                        for label in adata.obs[column]])  # fmt: skip
    return np.array([*group.names, ""], dtype=object)[group.truth(allowed)]


def embeddings_of(encoder: Path, cells: ad.AnnData, seed: int, random: bool = True) -> dict[str, np.ndarray]:
    """Embed cells by a model, and by the same network with random weights; NaN for cells without a known gene.

    Parameters
    ----------
    seed
        Of the random weights.
    random
        False to leave the network with random weights out.

    Returns
    -------
    dict
        ``this model`` and ``random weights``, float32, shape (cells, size).
    """
    loaded = load_any_model(encoder)
    networks = {"this model": loaded.encoder}
    if random:
        torch.manual_seed(seed)
        fresh = type(loaded.encoder)(loaded.encoder.config)
        buffers = dict(fresh.named_buffers())
        for name, values in loaded.encoder.named_buffers():
            buffers[name].copy_(values)
        networks["random weights"] = fresh.eval()
    found = {}
    for name, network in networks.items():
        with read_cells(cells) as opened:
            found[name] = embed_cells(network, loaded.tokenizer, opened, progress=False, min_coverage=0.0)
    return found


def _summary(scores: Mapping[str, Any]) -> str:
    parts = []
    for name, found in scores.items():
        bio = f"AvgBIO {found['clustering']['avg_bio']:.3f}, " if "clustering" in found else ""
        parts.append(f"{name} {bio}ten labels {found['few_labels']['10']['mean']:.3f}")
    return "; ".join(parts)


__all__ = ["BaseBuild", "embeddings_of", "types_of"]
