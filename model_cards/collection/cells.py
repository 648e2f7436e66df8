"""Data sets of a recipe to files of one form: counts by Ensembl id, labels in terms of the Cell Ontology."""

import dataclasses
import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, vstack

from cellglot.model_cards.collection.genes import find_genes
from cellglot.model_cards.collection.marker_labels import marker_labels, rules_text
from cellglot.model_cards.collection.recipe import DataSet, RecipeError
from cellglot.outputs import atomic
from cellglot.tokenization.genes.tables import human_genes
from cellglot.tokenization.ontology.cell_ontology import CellOntology
from cellglot.tokenization.reading.cells import Cells, read_cells
from cellglot.tokenization.reading.labels import read_labels
from cellglot.training.data.label_levels import ALTERNATIVES


LABEL = "collection_label"  # what models are trained on
MEANT = "label_as_meant"  # the data set's own label, by which models are tested
GIVEN = "label_as_given"


@dataclass(frozen=True)
class PreparedCells:
    """A file that `prepare` wrote.

    Parameters
    ----------
    path
        ``.h5ad``: counts by Ensembl id, labels in obs.
    data_set
        What it was made of.
    notes
        ``cells``, ``left_out``, ``genes``, ``genes_not_found``, ``labels`` (as given -> meant and number of cells).
    """

    path: Path
    data_set: DataSet
    notes: dict[str, Any]

    @property
    def labelled(self) -> int:
        """Number of cells to train on."""
        return sum(n for meant, n in self.notes["meant"].items() if meant)

    @property
    def tested(self) -> int:
        """Number of cells with a label of the data set's own."""
        return sum(n for meant, n in self.notes["own"].items() if meant)


def prepare(data_set: DataSet, data: Path, target: Path, ontology: CellOntology, seed: int) -> PreparedCells:
    """Read a data set, check it, and write it in the form of the collection; again only where something changed.

    Parameters
    ----------
    data
        Folder that the paths of data sets begin at.
    target
        Folder for the file.
    ontology
        Where labels are found.
    seed
        Of the draw of cells.

    Raises
    ------
    RecipeError
        If the file is missing, another one than the recipe's, or lacks a column; names it and says what to do.
    """
    source, path = data / data_set.file, target / f"{data_set.name}.h5ad"
    if not source.is_file():
        raise RecipeError(f"{source} does not exist: {data_set.name} is {data_set.source}; pass its folder by --data")
    checksum = hashlib.sha256(source.read_bytes()).hexdigest()
    if checksum != data_set.sha256:
        raise RecipeError(
            f"{source} has the checksum {checksum[:12]}..., {data_set.name} of the recipe {data_set.sha256[:12]}...: "
            "it is another file"
        )
    settings = {name: value for name, value in dataclasses.asdict(data_set).items() if name != "where" or value}
    facts = {"data_set": settings, "seed": seed, "ontology": ontology.checksum}
    if data_set.marker_labels:
        facts["rules"] = rules_text()
    made_of = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    notes_file = path.with_suffix(".json")
    if path.is_file() and notes_file.is_file():
        notes = json.loads(notes_file.read_text(encoding="utf-8"))
        if notes["made_of"] == made_of:
            return PreparedCells(path, data_set, notes)
    target.mkdir(parents=True, exist_ok=True)
    with read_cells(source) as cells:
        adata, notes = _read(cells, data_set, ontology, np.random.default_rng(seed))
    with atomic(path) as temporary:
        adata.write_h5ad(temporary, compression="gzip")
    with atomic(notes_file) as temporary:
        temporary.write_text(json.dumps({"made_of": made_of, **notes}, indent=1), encoding="utf-8")
    return PreparedCells(path, data_set, {"made_of": made_of, **notes})


def _read(
    cells: Cells, data_set: DataSet, ontology: CellOntology, random: np.random.Generator
) -> tuple[ad.AnnData, dict[str, Any]]:
    found = find_genes(cells.counts.index, cells.counts.columns)
    ids, columns = np.unique(found, return_inverse=True)
    known = ids != ""
    sums = csr_matrix((np.ones(len(found)), (np.arange(len(found)), columns)), shape=(len(found), len(ids)))[:, known]
    counts = vstack([csr_matrix(chunk @ sums) for chunk in cells.chunks()], format="csr")
    counts.sum_duplicates()
    counts.eliminate_zeros()
    names = [str(n) for n in cells.names()]
    kept = np.asarray(counts.sum(axis=1)).ravel() >= max(data_set.fewest_counts, 1)
    kept &= np.diff(counts.indptr) >= data_set.fewest_genes
    for column, values in data_set.where.items():
        kept &= _has_value(cells, data_set, column, values)
    rows = np.flatnonzero(kept)
    if data_set.most_cells is not None and len(rows) > data_set.most_cells:
        rows = np.sort(random.choice(rows, data_set.most_cells, replace=False))
    given, meant = _labels(cells, data_set, ontology)
    obs = pd.DataFrame(
        {GIVEN: given, MEANT: meant, LABEL: meant, "dataset_id": data_set.name, "laboratory": data_set.laboratory,
         "tissue": data_set.tissue},
        index=pd.Index([f"{data_set.name}-{n}" for n in names]),
    )  # fmt: skip
    human = human_genes()
    symbols = [human.symbol(gene) or gene for gene in ids[known]]
    var = pd.DataFrame({"symbol": symbols}, index=pd.Index(ids[known].astype(str)))
    adata = ad.AnnData(counts[rows].astype(np.float32), obs=obs.iloc[rows].copy(), var=var)
    adata.obs_names_make_unique()
    if data_set.marker_labels:
        _narrow(adata)
    for gate in data_set.gates:
        chosen = _gated(adata, gate)
        adata.obs.loc[chosen, GIVEN] = "by marker genes"
        adata.obs.loc[chosen, LABEL] = _meant(gate.label, ontology, data_set)
    pairs = Counter(zip(adata.obs[GIVEN].fillna(""), adata.obs[LABEL].fillna(""), strict=True))
    notes = {
        "cells": adata.n_obs,
        "left_out": len(names) - adata.n_obs,
        "genes": adata.n_vars,
        "genes_not_found": int((found == "").sum()),
        "labels": [{"given": g, "meant": m, "cells": n} for (g, m), n in pairs.most_common()],
        "meant": dict(Counter(adata.obs[LABEL].fillna("")).most_common()),
        "own": dict(Counter(adata.obs[MEANT].fillna("")).most_common()),
    }
    one = [label if isinstance(label, str) and _is_one_type(label) else None for label in adata.obs[LABEL]]
    adata.obs["cell_type_ontology_term_id"] = one
    for column in (GIVEN, MEANT, LABEL, "cell_type_ontology_term_id"):
        adata.obs[column] = pd.Categorical(adata.obs[column])
    return adata, notes


def _has_value(cells: Cells, data_set: DataSet, column: str, values: list[str]) -> np.ndarray:
    """Return which cells have one of some values in a column of obs, bool, shape (cells,)."""
    given = _texts(cells, data_set, column)
    missing = sorted(set(values) - {text for text in given if text is not None})
    if missing:
        raise RecipeError(f"{data_set.name}: where names values of {column!r} that no cell has: {', '.join(missing)}")
    return np.array([text in values for text in given])


def _texts(cells: Cells, data_set: DataSet, column: str) -> list[Any]:
    """Return the values of a column of obs as texts, None where there is none."""
    if column not in cells.obs.names:
        raise RecipeError(
            f"{data_set.name}: {data_set.file} has no column {column!r} in obs; it has "
            f"{', '.join(cells.obs.names) or 'none'}"
        )
    return list(read_labels(cells.obs.column(column, 0, len(cells))).texts.tolist())


def _labels(cells: Cells, data_set: DataSet, ontology: CellOntology) -> tuple[list[Any], list[Any]]:
    """Return the label of each cell as it is given and as it is meant, None for none."""
    if data_set.every is not None:
        return ["all cells"] * len(cells), [_meant(data_set.every, ontology, data_set)] * len(cells)
    if data_set.column is None:
        return [None] * len(cells), [None] * len(cells)
    given = _texts(cells, data_set, data_set.column)
    different = sorted({label for label in given if label is not None})
    missing = sorted(set(data_set.types) - set(different))
    if missing:
        raise RecipeError(f"{data_set.name}: types names labels that no cell has: {', '.join(missing)}")
    others = ontology.resolve(label for label in different if label not in data_set.types)
    meant = dict(zip(others.labels, others.cell_types, strict=True))
    for label, types in data_set.types.items():
        meant[label] = None if types is None else _meant(types, ontology, data_set)
    return given, [None if label is None else meant[label] for label in given]


def _meant(types: Any, ontology: CellOntology, data_set: DataSet) -> str:
    """Write types of a label as ids between ``|``; what the ontology does not know is a text of its own."""
    several = [types] if isinstance(types, str) else list(types)
    found = ontology.resolve(several).cell_types
    wrong = [t for t, i in zip(several, found, strict=True) if i is None and t.startswith("CL:")]
    if wrong:
        raise RecipeError(f"{data_set.name}: {', '.join(wrong)} is not in the ontology ({ontology.source})")
    return f" {ALTERNATIVES} ".join(sorted({i or t for t, i in zip(several, found, strict=True)}))


def _is_one_type(label: str) -> bool:
    """Whether a label is one type of the ontology."""
    return label.startswith("CL:") and ALTERNATIVES not in label


def _narrow(adata: ad.AnnData) -> None:
    """Narrow the labels to train on by marker genes."""
    given = [label if isinstance(label, str) else None for label in adata.obs[LABEL]]
    allowed = [None if label is None else frozenset(label.split(f" {ALTERNATIVES} ")) for label in given]
    narrowed, changed = marker_labels(allowed, lambda symbols: _mean_logs(adata, symbols))
    for i in np.flatnonzero(changed):
        label = narrowed[i]
        adata.obs.iloc[i, adata.obs.columns.get_loc(LABEL)] = (
            None if label is None else f" {ALTERNATIVES} ".join(sorted(label))
        )
    adata.obs.loc[changed, GIVEN] = [f"{label or 'no label'}, by marker genes" for label in adata.obs[GIVEN][changed]]


def _gated(adata: ad.AnnData, gate: Any) -> np.ndarray:
    def mean(names: list[str]) -> np.ndarray:
        found = _mean_logs(adata, names)
        if found is None:
            raise RecipeError(
                f"{gate.label}: fewer than half of the markers {', '.join(names)} are in the file: name others in the "
                "gate of the data set, or leave the gate out"
            )
        return found

    if gate.share:
        of_markers = np.asarray(adata.X[:, _columns(adata, gate.genes)].sum(axis=1)).ravel()
        chosen = of_markers / _totals(adata) > gate.above
    else:
        chosen = mean(gate.genes) > gate.above
    return chosen & (mean(gate.without) < gate.below) if gate.without else chosen


def _mean_logs(adata: ad.AnnData, symbols: list[str]) -> np.ndarray | None:
    """Return the mean of log1p of counts per 10,000 over some genes; None if fewer than half of them were measured."""
    columns = _columns(adata, symbols)
    if 2 * len(columns) < len(symbols):
        return None
    logs = csr_matrix(adata.X[:, columns])
    logs.data = np.log1p(logs.data * np.repeat(1e4 / _totals(adata), np.diff(logs.indptr)))
    return np.asarray(logs.mean(axis=1)).ravel()


def _totals(adata: ad.AnnData) -> np.ndarray:
    return np.maximum(np.asarray(adata.X.sum(axis=1)).ravel(), 1)


def _columns(adata: ad.AnnData, names: list[str]) -> np.ndarray:
    return np.flatnonzero(np.isin(adata.var_names, find_genes(names)))


__all__ = ["GIVEN", "LABEL", "MEANT", "PreparedCells", "prepare"]
