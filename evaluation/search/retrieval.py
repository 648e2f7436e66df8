"""Cells to texts and texts to cells: exact search in batches, and how often it finds what belongs together."""

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
    """What lies nearest to each query, the nearest first.

    Parameters
    ----------
    numbers
        Rows of the items, int64, shape (queries, k).
    scores
        Dot products, cosines of normalised embeddings, float32, shape (queries, k).
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

    Every query is compared with every item, block by block; no more than ``queries_at_once * items_at_once`` products
    are held at once. The order among equal scores is not defined.

    Parameters
    ----------
    queries
        Shape (queries, size).
    items
        Shape (items, size); may be mapped from a file.
    k
        Neighbours of each query, all items where there are fewer.
    queries_at_once, items_at_once
        Sizes of the blocks.
    device
        Where to compute.

    Raises
    ------
    ValueError
        If there are no items, sizes differ, or `k` is below 1.
    """
    if len(items) == 0 or k < 1:
        raise ValueError(f"the {k} nearest of {len(items):,} items: there is nothing to find")
    if queries.shape[1] != items.shape[1]:
        raise ValueError(f"queries of size {queries.shape[1]} and items of size {items.shape[1]} cannot be compared")
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
    """Find the cells that texts describe: text -> cells.

    Parameters
    ----------
    model
        A LangCellModel.
    processor
        Its LangCellProcessor, or (tokenizer of cells, tokenizer of texts).
    cells
        Embeddings of that model, shape (cells, size), or whatever the tokenizer takes.
    texts
        A text, or several.
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
        If the model does not read texts; as `nearest` and `embed_texts` do.
    """
    embedding = cell_embedding(model, processor, cells, **options)
    return nearest(embed_texts(model, processor, texts, device=options.get("device")), embedding, k)


def find_texts(model: Any, processor: Any, cells: Any, texts: Sequence[str], k: int = 5, **options: Any) -> Neighbors:
    """Find the texts that describe cells: cell -> texts. Parameters are those of `find_cells`."""
    embedding = cell_embedding(model, processor, cells, **options)
    return nearest(embedding, embed_texts(model, processor, texts, device=options.get("device")), k)


def cell_embedding(model: Any, processor: Any, cells: Any, **options: Any) -> np.ndarray:
    """Return cell embeddings: those that are passed, or of the cells that are; see `find_cells`."""
    check_cell_text_model(model)
    if not (isinstance(cells, np.ndarray) and "genes" not in options):
        return embed_cells(model, as_processor(processor, model).tokenizer, cells, **options)
    size = model.config.projection_dim
    if cells.ndim != 2 or cells.shape[1] != size:
        raise ValueError(
            f"embeddings of shape {cells.shape}, but this model's have size {size}; counts need the names of their "
            "columns: genes=[...]"
        )
    return cells


def recall_at_k(
    cells: np.ndarray, texts: np.ndarray, text_ids: np.ndarray, ks: Sequence[int] = (1, 5, 10), **options: Any
) -> dict[str, float]:
    """Measure retrieval by Recall@k, in both directions.

    Cell -> text: share of cells whose own text is among the k nearest texts. Text -> cell: share of texts of which at
    least one own cell is among the k nearest cells (a text has many cells; our choice, as CLIP-like models do).

    Parameters
    ----------
    cells
        Embeddings, shape (cells, size).
    texts
        Embeddings of different texts, shape (texts, size).
    text_ids
        Text of each cell, -100 for cells without one, which are left out of both directions; shape (cells,).
    ks
        How many may be looked at.
    **options
        As for `nearest`.

    Returns
    -------
    dict
        ``cell_to_text_recall@1``, ``text_to_cell_recall@1``, ...; the same with ``_chance`` behind, what a random
        order gives; ``cells`` and ``texts`` that were asked.

    Raises
    ------
    ValueError
        If there is not a text for each cell, a text id is out of bounds, or no cell has a text.
    """
    ids = np.asarray(text_ids)
    if ids.shape != (len(cells),):
        raise ValueError(f"text_ids has shape {ids.shape} for {len(cells):,} cells")
    if len(ids) and ids.max() >= len(texts):
        raise ValueError(f"text_ids has {int(ids.max())}, but there are {len(texts):,} texts, counted from 0")
    known = np.flatnonzero(ids >= 0)
    if not len(known):
        raise ValueError("no cell has a text: there is nothing to find")
    cells, ids = cells[known], ids[known]
    asked, sizes = np.unique(ids, return_counts=True)
    to_text = nearest(cells, texts, max(ks), **options).numbers == ids[:, None]
    to_cell = ids[nearest(texts[asked], cells, max(ks), **options).numbers] == asked[:, None]
    result: dict[str, float] = {}
    for k in ks:
        result[f"cell_to_text_recall@{k}"] = float(to_text[:, :k].any(axis=1).mean())
        result[f"cell_to_text_recall@{k}_chance"] = min(k, len(texts)) / len(texts)
        result[f"text_to_cell_recall@{k}"] = float(to_cell[:, :k].any(axis=1).mean())
        result[f"text_to_cell_recall@{k}_chance"] = float(np.mean([_chance(len(cells), int(n), k) for n in sizes]))
    return result | {"cells": float(len(cells)), "texts": float(len(asked))}


def _chance(cells: int, own: int, k: int) -> float:
    """Return how likely one of k cells drawn without replacement is an own one."""
    drawn = np.arange(min(k, cells))
    return float(1 - np.prod(np.clip((cells - own - drawn) / (cells - drawn), 0, 1)))


__all__ = ["Neighbors", "cell_embedding", "find_cells", "find_texts", "nearest", "recall_at_k"]
