"""Exact search from cells to texts and from texts to cells, and its recall."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cellglot.evaluation.embedding import embed_cells
from cellglot.evaluation.text_model import as_processor, embed_texts
from cellglot.modeling.any_model import check_cell_text_model


@dataclass
class Neighbors:
    """Nearest items of each query, in descending order of the score.

    Parameters
    ----------
    numbers
        Rows of the items, int64, shape (queries, k).
    scores
        Dot products (cosines of normalised embeddings), float32, shape (queries, k).
    """

    numbers: np.ndarray
    scores: np.ndarray


def nearest(
    queries: np.ndarray,
    items: np.ndarray,
    k: int,
    *,
    queries_at_once: int = 1024,
    items_at_once: int = 1 << 15,
    device: str | torch.device = "cpu",
) -> Neighbors:
    """Find the items with the largest dot products, exactly.

    Every query is compared with every item, in blocks of ``queries_at_once * items_at_once`` products. The order of
    equal scores is undefined.

    Parameters
    ----------
    queries
        Shape (queries, size).
    items
        Shape (items, size); may be mapped from a file.
    k
        Neighbours of each query, at most all items.
    queries_at_once, items_at_once
        Size of a block, which bounds the memory.

    Raises
    ------
    ValueError
        If there are no items, sizes differ, or `k` is below 1.
    """
    if len(items) == 0 or k < 1:
        raise ValueError(f"the {k} nearest of {len(items):,} items: at least one item and k of at least 1 are needed")
    if queries.shape[1] != items.shape[1]:
        raise ValueError(f"queries have size {queries.shape[1]}, but items have size {items.shape[1]}")
    k = min(k, len(items))
    numbers = np.zeros((len(queries), k), dtype=np.int64)
    scores = np.zeros((len(queries), k), dtype=np.float32)
    for first in range(0, len(queries), queries_at_once):
        block = slice(first, first + queries_at_once)
        asked = _tensor(queries[block], device)
        best, where = None, None
        for start in range(0, len(items), items_at_once):
            products = asked @ _tensor(items[start : start + items_at_once], device).T
            top = products.topk(min(k, products.shape[1]), dim=1)
            values, rows = top.values, top.indices + start
            if best is not None and where is not None:
                values, rows = torch.cat([best, values], dim=1), torch.cat([where, rows], dim=1)
            order = values.topk(min(k, values.shape[1]), dim=1)
            best, where = order.values, rows.gather(1, order.indices)
        assert best is not None and where is not None
        scores[block], numbers[block] = best.cpu().numpy(), where.cpu().numpy()
    return Neighbors(numbers, scores)


def _tensor(rows: np.ndarray, device: str | torch.device) -> torch.Tensor:
    return torch.from_numpy(np.array(rows, dtype=np.float32)).to(device)


def find_cells(
    model: Any, processor: Any, cells: Any, texts: str | Sequence[str], k: int = 10, **options: Any
) -> Neighbors:
    """Find the cells that texts describe.

    Parameters
    ----------
    model
        A LangCellModel.
    processor
        Its LangCellProcessor, or (tokenizer of cells, tokenizer of texts).
    cells
        Embeddings of that model, shape (cells, size), or cells as for the tokenizer.
    texts
        One text, or several.
    k
        Cells for each text.
    **options
        As for `cellglot.evaluation.embedding.embed_cells`.

    Returns
    -------
    Neighbors
        Cells of each text, by cosine.

    Raises
    ------
    ValueError
        If the model does not read texts, or there are no cells or texts.
    """
    embedding = cell_embedding(model, processor, cells, **options)
    return nearest(embed_texts(model, processor, texts, device=options.get("device")), embedding, k)


def find_texts(model: Any, processor: Any, cells: Any, texts: Sequence[str], k: int = 5, **options: Any) -> Neighbors:
    """Find the texts that describe cells; parameters as for `find_cells`, with `k` texts for each cell."""
    embedding = cell_embedding(model, processor, cells, **options)
    return nearest(embedding, embed_texts(model, processor, texts, device=options.get("device")), k)


def cell_embedding(model: Any, processor: Any, cells: Any, **options: Any) -> np.ndarray:
    """Return the given embeddings, or embed the given cells; see `find_cells`."""
    check_cell_text_model(model)
    if not (isinstance(cells, np.ndarray) and "genes" not in options):
        return embed_cells(model, as_processor(processor, model).tokenizer, cells, **options)
    size = model.config.projection_dim
    if cells.ndim != 2 or cells.shape[1] != size:
        raise ValueError(
            f"embeddings have shape {cells.shape}, but this model's have size {size}; for counts pass the names of "
            "their columns: genes=[...]"
        )
    return cells


@dataclass
class Recall:
    """Which cells and texts were found, in both directions.

    Parameters
    ----------
    to_text
        Whether the text of each cell is among the k nearest texts, shape (cells, ks).
    to_cell
        Whether a cell of each text that has cells is among the k nearest cells, shape (texts, ks).
    chance
        Name of a mean, such as ``cell_to_text_recall@1`` -> its value for a random order.
    """

    to_text: np.ndarray
    to_cell: np.ndarray
    chance: dict[str, float]

    @property
    def cells(self) -> int:
        """Number of cells that have a text."""
        return len(self.to_text)


def measure_recall(
    cells: np.ndarray, texts: np.ndarray, text_ids: np.ndarray, ks: Sequence[int] = (1, 5, 10), **options: Any
) -> Recall:
    """Search texts for each cell and cells for each text; parameters as for `recall_at_k`."""
    ids = np.asarray(text_ids)
    if ids.shape != (len(cells),):
        raise ValueError(f"text_ids has shape {ids.shape} for {len(cells):,} cells")
    if len(ids) and ids.max() >= len(texts):
        raise ValueError(f"text_ids has {int(ids.max())}, but there are {len(texts):,} texts, counted from 0")
    known = np.flatnonzero(ids >= 0)
    if not len(known):
        raise ValueError("no cell has a text: text_ids needs at least one id of a text")
    cells, ids = cells[known], ids[known]
    asked, sizes = np.unique(ids, return_counts=True)
    to_text = nearest(cells, texts, max(ks), **options).numbers == ids[:, None]
    to_cell = ids[nearest(texts[asked], cells, max(ks), **options).numbers] == asked[:, None]
    chance = {}
    for k in ks:
        chance[f"cell_to_text_recall@{k}"] = min(k, len(texts)) / len(texts)
        chance[f"text_to_cell_recall@{k}"] = float(np.mean([_chance(len(cells), int(n), k) for n in sizes]))
    within = [np.stack([hits[:, :k].any(axis=1) for k in ks], axis=1) for hits in (to_text, to_cell)]
    return Recall(within[0], within[1], chance)


def recall_at_k(
    cells: np.ndarray, texts: np.ndarray, text_ids: np.ndarray, ks: Sequence[int] = (1, 5, 10), **options: Any
) -> dict[str, float]:
    """Measure retrieval by Recall@k, in both directions.

    Cell to text: share of cells whose text is among the k nearest texts. Text to cell: share of texts with at least
    one of their cells among the k nearest cells (a text has many cells; our choice, as for CLIP-like models).

    Parameters
    ----------
    cells
        Embeddings, shape (cells, size).
    texts
        Embeddings of distinct texts, shape (texts, size).
    text_ids
        Text of each cell, -100 for cells without a text, which are excluded; shape (cells,).
    ks
        Numbers of nearest items.
    **options
        As for `nearest`.

    Returns
    -------
    dict
        ``cell_to_text_recall@1``, ``text_to_cell_recall@1``, ...; the same with the suffix ``_chance`` for a random
        order; numbers of ``cells`` and ``texts``.

    Raises
    ------
    ValueError
        If `text_ids` does not match the cells or texts, or no cell has a text.
    """
    found = measure_recall(cells, texts, text_ids, ks, **options)
    result: dict[str, float] = {}
    for place, k in enumerate(ks):
        for name, hits in (("cell_to_text_recall", found.to_text), ("text_to_cell_recall", found.to_cell)):
            result[f"{name}@{k}"] = float(hits[:, place].mean())
            result[f"{name}@{k}_chance"] = found.chance[f"{name}@{k}"]
    return result | {"cells": float(found.cells), "texts": float(len(found.to_cell))}


def _chance(cells: int, own: int, k: int) -> float:
    """Return the probability that k random cells include one of the text's own cells."""
    drawn = np.arange(min(k, cells))
    return float(1 - np.prod(np.clip((cells - own - drawn) / (cells - drawn), 0, 1)))


__all__ = [
    "Neighbors", "Recall", "cell_embedding", "find_cells", "find_texts", "measure_recall", "nearest", "recall_at_k",
]  # fmt: skip
