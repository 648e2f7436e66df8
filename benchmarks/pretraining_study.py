"""Does pretraining help? Few labels on bases of the collection beside plain methods: ``python -m pretraining_study``.

This script writes the tables of docs/studies/pretraining.md. It reads finished builds of bases:
``python -m cellglot.model_cards.collection human-exceiver --data DATA -o BUILD``.
"""

import argparse
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
from evaluation_records import write_between
from pretraining_objectives import pretrained
from scipy.sparse import csr_matrix, vstack

from cellglot.evaluation.benchmark.baselines import LogCountsPca
from cellglot.model_cards.collection.base_build import embeddings_of, types_of
from cellglot.model_cards.collection.embedding_scores import (
    NUMBERS,
    clustering_scores,
    few_label_scores,
    frequent,
    log_counts,
    transfer_scores,
)
from cellglot.model_cards.collection.folds import levels_of
from cellglot.model_cards.collection.recipe import Recipe, read_recipe
from cellglot.model_cards.collection.scores import Group
from cellglot.modeling.any_model import load_any_model
from cellglot.outputs import write_json
from cellglot.training.data.cell_types import open_ontology


RESULTS_FILE = "pretraining_study.json"
RECORDS, STUDY = "tables", "study"  # names of the marks of the page
MOST_CELLS = 2000  # of a data set
COMPONENTS, REGRESSION, RANDOM = "PCA", "logistic regression on all genes", "random weights"


def study(builds: Sequence[Path], output: Path, steps: int) -> dict[str, Any]:
    """Score the bases of builds; what was scored before is read from `output`.

    Parameters
    ----------
    builds
        Folders of finished builds of bases with the same data sets.
    output
        Folder for trainings of other objectives, and for the results.
    steps
        Of the training of other objectives; 0 leaves them out.
    """
    file = output / RESULTS_FILE
    done: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for build in builds:
        recipe = read_recipe(json.loads((build / "collection_build.json").read_text())["recipe"])
        for fold in folds_of(build, recipe):
            cells = dict(_test_cells(build, fold, recipe))
            for name, encoder, random in _encoders(build, fold, recipe, output, steps):
                key = f"{name} / {fold.name}"
                if key not in done:
                    print(key, flush=True)
                    done[key] = _scored(encoder, cells, recipe.seed, random)
                    write_json(file, done)
            if all(f"{name} / {fold.name}" in done for name in (COMPONENTS, REGRESSION)):
                continue
            for name, features in _plain(cells).items():
                key = f"{name} / {fold.name}"
                if key not in done:
                    print(key, flush=True)
                    done[key] = _scores(cells, *features, recipe.seed)
                    write_json(file, done)
    return done


def folds_of(build: Path, recipe: Recipe) -> list[Path]:
    """Return the folders of the folds of a build; a LangCell has none, its one fold is named by what it left out."""
    if recipe.kind == "texts":
        (out,) = recipe.held_out or []
        return [build / "final" / (out if isinstance(out, str) else " and ".join(out))]
    return sorted(path for path in (build / "folds").iterdir() if path.is_dir())


def _encoders(build: Path, fold: Path, recipe: Recipe, output: Path, steps: int) -> Iterator[tuple[str, Path, bool]]:
    """Yield what was trained without the laboratories of a fold.

    Yields
    ------
    tuple
        Name of the line, folder of the model, and whether the same network with random weights is scored as well.
    """
    if recipe.kind == "texts":
        yield recipe.name, build / "final" / recipe.name, True
        return
    yield recipe.name, fold / recipe.name, True
    for name, folder in pretrained(build, fold, recipe, output, steps) if steps else ():
        yield name, folder, False


def _test_cells(build: Path, fold: Path, recipe: Recipe) -> Iterator[tuple[str, ad.AnnData]]:
    """Yield the cells of the laboratories that a fold left out; their types are the column ``type`` of obs."""
    ontology = open_ontology("shipped")
    out = set(fold.name.split(" and "))
    for data_set in recipe.sets:
        path = build / "cells" / f"{data_set.name}.h5ad"
        if data_set.laboratory not in out or not data_set.training:
            continue
        adata = ad.read_h5ad(path)
        notes = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        prepared = _Prepared(notes)
        levels = levels_of([prepared], recipe, ontology)  # type: ignore[list-item]
        types = types_of(adata, levels, _group(recipe, levels, ontology))
        rows = np.flatnonzero(frequent(types))
        if len(rows) > MOST_CELLS:
            rows = np.sort(np.random.default_rng(recipe.seed).choice(rows, MOST_CELLS, replace=False))
        cells = adata[rows].copy()
        cells.obs["type"] = types[rows]
        yield data_set.name, cells


class _Prepared:
    """The notes of a prepared data set, as `levels_of` reads them."""

    def __init__(self, notes: Mapping[str, Any]):
        own = {label: n for label, n in notes["own"].items() if label}
        self.notes = {"meant": own, "own": own}


def _group(recipe: Recipe, levels: Any, ontology: Any) -> Group:
    types = list(recipe.groups.values())[-1]
    ids = [levels.ids.get(name, name) for name in levels.classes]
    members = [
        [c in listed or any(t in ontology.ancestors(c) for t in listed) if c.startswith("CL:") else False for c in ids]
        for listed in types.values()
    ]
    return Group(list(types), np.array(members))


def _scored(encoder: Path, cells: Mapping[str, ad.AnnData], seed: int, random: bool) -> dict[str, Any]:
    """Score an encoder, and where `random` is true the same network with random weights."""
    config = load_any_model(encoder).encoder.config
    found = {name: embeddings_of(encoder, part, seed, random) for name, part in cells.items()}
    if getattr(config, "linear_genes", 0):
        for of_set in found.values():
            whole, size = of_set["this model"], config.hidden_size
            of_set |= {"without its linear latent": whole[:, :-size], "its linear latent": whole[:, -size:]}
    return {
        which: _scores(cells, {name: of_set[which] for name, of_set in found.items()}, None, seed)
        for which in next(iter(found.values()))
    }


def _plain(cells: Mapping[str, ad.AnnData]) -> dict[str, tuple[Any, Any]]:
    """Return features of plain methods: those of each data set, and those of each pair on the genes of both."""
    logs = {name: log_counts(part.X.tocsr()) for name, part in cells.items()}
    alone = {name: LogCountsPca.fit(values).embed(values) for name, values in logs.items()}
    pairs: dict[tuple[str, str], tuple[csr_matrix, csr_matrix]] = {}
    components = {}
    for one, other in itertools.permutations(cells, 2):
        genes = cells[one].var_names.intersection(cells[other].var_names)
        pairs[one, other] = tuple(log_counts(cells[n][:, genes].X.tocsr()) for n in (one, other))  # type: ignore[assignment]
        both = LogCountsPca.fit(vstack(pairs[one, other], format="csr"))
        components[one, other] = tuple(both.embed(values) for values in pairs[one, other])
    return {COMPONENTS: (alone, components), REGRESSION: (logs, pairs)}


def _scores(cells: Mapping[str, ad.AnnData], features: Mapping[str, Any], pairs: Any, seed: int) -> dict[str, Any]:
    """Score features: each data set by itself, and each pair, labels of the one and cells of the other."""
    made: dict[str, Any] = {}
    types = {name: part.obs["type"].to_numpy().astype(str) for name, part in cells.items()}
    for name, values in features.items():
        made[name] = {"few_labels": few_label_scores(values, types[name], seed=seed)}
        if isinstance(values, np.ndarray):
            made[name]["clustering"] = clustering_scores(values, types[name], seed)
    for one, other in itertools.permutations(cells, 2):
        first, second = pairs[one, other] if pairs is not None else (features[one], features[other])
        shared = np.intersect1d(types[one], types[other])
        if len(shared) > 1:
            a, b = np.isin(types[one], shared), np.isin(types[other], shared)
            made[f"{one} to {other}"] = {
                "few_labels": transfer_scores(first[a], types[one][a], second[b], types[other][b], seed=seed)
            }
    return made


# -------------------------------------------------------------------- the page


def tables(done: Mapping[str, Any]) -> str:
    """Return the results as Markdown: a table of clusterings, and one of few labels."""
    flat: dict[tuple[str, str], Mapping[str, Any]] = {}
    for key, found in done.items():
        name, _ = key.split(" / ", 1)
        for which, scores in found.items() if "this model" in found else (("", found),):
            for data, row in scores.items():
                flat[_line(name, which), data] = row
    names = list(dict.fromkeys(name for name, _ in flat))
    data = list(dict.fromkeys(place for _, place in flat))
    lines = ["| cells | embedding | NMI | ARI | silhouette | AvgBIO |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    for place, name in itertools.product(data, names):
        if bio := flat.get((name, place), {}).get("clustering"):
            cells = [f"{bio[key]:.3f}" for key in ("nmi", "ari", "asw_label", "avg_bio")]
            lines.append(f"| {place} | {name} | {' | '.join(cells)} |")
    head = " | ".join(f"{number} labels" for number in NUMBERS)
    lines += ["", f"| labels of, cells of | learned on | {head} |", f"| --- | --- |{' ---: |' * len(NUMBERS)}"]
    for place, name in itertools.product(data, names):
        if few := flat.get((name, place), {}).get("few_labels"):
            cells = [f"{few[str(n)]['mean']:.3f} ± {few[str(n)]['std']:.3f}" for n in NUMBERS]
            lines.append(f"| {place} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def record_tables(models: Sequence[Path]) -> str:
    """Return what the records of bases say, as the two tables of `tables`."""
    done: dict[str, Any] = {}
    for folder in models:
        record = json.loads((folder / "collection_run.json").read_text(encoding="utf-8"))
        for row in record["scores"]:
            for name, scores in row["scores"].items():
                line = folder.name if name == "this model" else name
                line = f"{folder.name}, {RANDOM}" if name == RANDOM else line
                place = row["data_set"] + ("" if row["tissue_seen"] else " (tissue never seen)")
                done.setdefault(f"{line} / {folder.name}", {})[place] = scores
    return tables(done)


def _line(name: str, which: str) -> str:
    """Return the name of a line: that of the method, with the part of the embedding or the control."""
    if which == RANDOM:
        return f"{name.split(',')[0]}, {RANDOM}"
    return name if which in ("", "this model") else f"{name}: {which}"


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--records", type=Path, nargs="+", help="folders of bases, whose records are shown as they are"
    )
    parser.add_argument("--builds", type=Path, nargs="+", help="folders of finished builds of bases, to be scored")
    parser.add_argument("--output", type=Path, help="folder for trainings and results, with --builds")
    parser.add_argument("--steps", type=int, default=1200, help="steps of the other objectives, 0 for none")
    parser.add_argument("--page", type=Path, help="page to write the tables to, between its marks")
    given = parser.parse_args()
    if (given.records is None) == (given.builds is None) or (given.builds and given.output is None):
        parser.error("pass --records, or --builds with --output")
    if given.records is not None:
        made = record_tables(given.records)
    else:
        given.output.mkdir(parents=True, exist_ok=True)
        made = tables(study(given.builds, given.output, given.steps))
    print(made)
    if given.page is not None:
        write_between(given.page, RECORDS if given.records is not None else STUDY, made)


if __name__ == "__main__":
    main()
