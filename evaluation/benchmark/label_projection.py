"""Label projection as openproblems asks for it: files of training and test cells to a file of predicted labels."""

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from cellglot.evaluation.benchmark.annotation import fit_probe
from cellglot.evaluation.embedding import embed_cells
from cellglot.inputs import InputError
from cellglot.modeling.any_model import load_any_model
from cellglot.modeling.model_names import resolve_model
from cellglot.outputs import atomic, check_file, remove_leftovers
from cellglot.tokenization.reading.cells import Cells, read_cells
from cellglot.tokenization.reading.labels import read_labels


COUNTS, LABEL, PREDICTED = "counts", "label", "label_pred"
CARRIED = ("dataset_id", "normalization_id")


def project_labels(
    train: str | os.PathLike,
    test: str | os.PathLike,
    model: str | os.PathLike,
    output: str | os.PathLike,
    *,
    method_id: str,
    batch_size: int = 64,
    **options: Any,
) -> str:
    """Predict the labels of test cells by logistic regression on embeddings of labelled cells.

    The files are those of openproblems' task label projection: raw counts in ``layers["counts"]``, labels in
    ``obs["label"]`` of the training cells, ``uns["dataset_id"]`` and ``uns["normalization_id"]``. The output has
    ``obs["label_pred"]``, and in ``uns`` these two and ``method_id``.

    Parameters
    ----------
    train, test
        ``.h5ad`` files.
    model
        Name in the collection, folder or repository of a model.
    output
        ``.h5ad``. An existing file is replaced, as viash expects; never an input.
    method_id
        Name of the method in the benchmark.
    **options
        As for `cellglot.evaluation.embed_cells`.

    Returns
    -------
    str
        What was read and written.

    Raises
    ------
    InputError
        If a training cell has no label, or ``uns`` lacks a name.
    ValueError
        If there are fewer than two labels.
    """
    train, test, written = Path(train), Path(test), Path(output)
    check_file(written, [train, test, model], overwrite=True)
    facts = _facts(test)
    loaded = load_any_model(resolve_model(model))
    options = {"batch_size": batch_size} | options
    with read_cells(train, layer=COUNTS) as known, read_cells(test, layer=COUNTS) as asked:
        labels = _labels(known, train)
        parts = [embed_cells(loaded.encoder, loaded.tokenizer, cells, **options) for cells in (known, asked)]
        embedding = np.concatenate(parts)
        numbers = np.arange(len(embedding))
        classes, scores = fit_probe(embedding, labels, numbers[: len(known)], numbers[len(known) :])
        predicted = np.array(classes, dtype=object)[np.nan_to_num(scores).argmax(axis=1)]
        without = np.isnan(scores[:, 0])
        predicted[without] = _most_frequent(labels)
        names = asked.names()
    from anndata import AnnData

    table = pd.DataFrame({PREDICTED: predicted.astype(str)}, index=[str(name) for name in names])
    remove_leftovers(written)
    with atomic(os.path.realpath(written)) as temporary:
        AnnData(obs=table, uns=facts | {"method_id": method_id}).write_h5ad(temporary, compression="gzip")
    lines = [f"{len(labels):,} training cells of {len(classes)} labels; {len(predicted):,} test cells: {written}"]
    if without.any():
        lines.append(
            f"{int(without.sum()):,} test cells express no gene of the model: they get the most frequent label"
        )
    return "\n".join(lines)


def _labels(cells: Cells, path: Path) -> np.ndarray:
    if LABEL not in cells.obs.names:
        raise InputError(f"{path}: no column {LABEL!r} in obs: name the file of training cells of label projection")
    labels = read_labels(cells.obs.column(LABEL, 0, len(cells))).texts
    missing = sum(label is None for label in labels)
    if missing:
        raise InputError(f"{path}: {missing:,} of {len(labels):,} training cells have no {LABEL}: leave them out")
    if len(set(labels)) < 2:
        raise InputError(f"{path}: all training cells have the label {labels[0]!r}: two or more are needed")
    return labels


def _most_frequent(labels: np.ndarray) -> str:
    names, counts = np.unique(labels.astype(str), return_counts=True)
    return str(names[counts.argmax()])


def _facts(path: Path) -> dict[str, str]:
    """Read what the output has to repeat."""
    if not path.exists():
        raise InputError(f"{path} does not exist: name the file of test cells")
    if not h5py.is_hdf5(path):
        raise InputError(f"{path} is not an .h5ad file: name the file of test cells")
    with h5py.File(path, "r") as file:
        missing = [name for name in CARRIED if f"uns/{name}" not in file]
        if missing:
            raise InputError(f"{path}: no {' and '.join(missing)} in uns: name the file of test cells of openproblems")
        return {name: str(file[f"uns/{name}"].asstr()[()]) for name in CARRIED}


__all__ = ["project_labels"]
