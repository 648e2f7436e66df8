"""Objectives over cells and their texts, independent of the models, and hard negatives for matching them.

Functions return `cell_losses.LossTerms`, which `cell_losses.join_losses` joins over processes. Everything is computed
in float32, outside autocast.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from .cell_losses import (
    IGNORED,
    LossTerms,
    cross_entropy_terms,
    full_precision,
    gather_cells,
    number_of_processes,
)


class HardNegatives(NamedTuple):
    """Drawn pairs of a cell and a text that do not belong together.

    Parameters
    ----------
    texts
        For every cell the number of a text, -1 if all texts are its own; shape (cells,).
    cells
        For every text the number of a cell, -1 if it is the text of all cells; shape (texts,).
    """

    texts: torch.Tensor
    cells: torch.Tensor


class GatheredTexts(NamedTuple):
    """Texts of all processes.

    Parameters
    ----------
    tokens
        Tokens, -1 for padding, shape (all texts, tokens). Processes with fewer texts are padded by rows of -1, as in
        `cell_losses.gather_cells`.
    first
        Row of this process's first text.
    """

    tokens: torch.Tensor
    first: int


@torch.compiler.disable
def gather_texts(input_ids: torch.Tensor, key_mask: torch.Tensor, joined: bool = True) -> GatheredTexts:
    """Gather the tokens of all processes' texts; every process has to call it.

    Parameters
    ----------
    input_ids, key_mask
        Tokens, and True for those that are not padding, shape (texts, tokens); processes may differ in both.
    joined
        Whether to join processes; otherwise texts are those of this process only.
    """
    rows = input_ids.masked_fill(~key_mask, -1)
    if not joined or number_of_processes() == 1:
        return GatheredTexts(rows, 0)
    longest = torch.tensor(rows.shape[1], device=rows.device)
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    # Ids + 1, so that padding by zeros means no token.
    padded = nn.functional.pad(rows + 1, (0, int(longest) - rows.shape[1]))
    together = gather_cells(padded, padded.new_zeros(len(padded)))
    return GatheredTexts(together.cells - 1, together.first)


@torch.compiler.disable
def number_texts(rows: torch.Tensor) -> torch.Tensor:
    """Return a number for each text, shape (texts,): equal for identical texts, -100 for those without a token.

    Parameters
    ----------
    rows
        Tokens, -1 for padding, shape (texts, tokens).
    """
    numbers = torch.unique(rows, dim=0, return_inverse=True)[1]
    return numbers.masked_fill((rows < 0).all(dim=1), IGNORED)


@full_precision
def cell_cell_loss(
    cells: torch.Tensor,
    takes_part: torch.Tensor,
    tau: float,
    others: torch.Tensor,
    others_take_part: torch.Tensor | None = None,
    first: int = 0,
) -> LossTerms:
    """Cross entropy of cells against the second passes of all cells; the target is a cell's own.

    Parameters
    ----------
    cells
        Normalised embeddings, shape (cells, size).
    takes_part
        False for padding rows, shape (cells,).
    tau
        Temperature (not published; ours is that of zero-shot annotation).
    others
        Normalised embeddings of all cells to compare with, including the second passes of `cells`, which have other
        dropout noise; shape (all cells, size).
    others_take_part
        False for padding rows among them, by default `takes_part`; shape (all cells,).
    first
        Row of the first second pass of `cells` in `others`.

    Notes
    -----
    Zhao et al. 2024: two dropout passes of a cell are positives, other cells of the batch negatives. One direction, as
    in SimCSE, is our choice. A cell that is twice in a batch is a negative of itself.
    """
    others_take_part = takes_part if others_take_part is None else others_take_part
    logits = cells @ others.T / tau
    logits = logits.masked_fill(~others_take_part, torch.finfo(logits.dtype).min)
    target = first + torch.arange(len(cells), device=cells.device)
    return cross_entropy_terms(logits, target.where(takes_part, IGNORED))


@full_precision
def cell_text_loss(
    cells: torch.Tensor,
    texts: torch.Tensor,
    text_ids: torch.Tensor,
    tau: float,
    all_cells: torch.Tensor | None = None,
    all_texts: torch.Tensor | None = None,
    all_text_ids: torch.Tensor | None = None,
) -> LossTerms:
    """Cross entropy of cells against texts and of texts against cells; text i is that of cell i.

    A text that several cells share is a positive of all of them: the target is uniform over positives. With one cell
    for each text it is the loss of CLIP.

    Parameters
    ----------
    cells, texts
        Normalised embeddings, shape (cells, size).
    text_ids
        The same number for the same text, -100 for cells without one; shape (cells,).
    all_cells, all_texts, all_text_ids
        Cells and texts to compare with; by default `cells` and `texts`.

    Returns
    -------
    LossTerms
        One term for each cell with a text: half the sum of both directions.

    Notes
    -----
    Zhao et al. 2024: symmetric, shared texts are positives. Uniform targets are our choice.
    """
    all_cells = cells if all_cells is None else all_cells
    all_texts = texts if all_texts is None else all_texts
    all_text_ids = text_ids if all_text_ids is None else all_text_ids
    known, candidates = text_ids != IGNORED, all_text_ids != IGNORED
    positives = (text_ids[:, None] == all_text_ids) & known[:, None] & candidates
    to_texts = _multi_positive(cells @ all_texts.T / tau, positives, candidates)
    to_cells = _multi_positive(texts @ all_cells.T / tau, positives, candidates)
    return LossTerms((to_texts + to_cells).sum() / 2, known.sum())


def _multi_positive(logits: torch.Tensor, positives: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """Cross entropy with uniform targets over positives, 0 for rows without positives."""
    logs = logits.masked_fill(~candidates, torch.finfo(logits.dtype).min).log_softmax(dim=1)
    return -logs.where(positives, 0.0).sum(dim=1) / positives.sum(dim=1).clamp(min=1)


@full_precision
def matching_loss(logits: torch.Tensor, matches: torch.Tensor) -> LossTerms:
    """Cross entropy of the matching head over pairs of a cell and a text.

    Parameters
    ----------
    logits
        Shape (pairs, 2); the second column is that of a match.
    matches
        1 for a pair that belongs together, 0 for a hard negative; shape (pairs,).

    Notes
    -----
    Zhao et al. 2024 (cell-text matching). The common mean over positives and negatives is our choice, as in BLIP.
    """
    total = nn.functional.cross_entropy(logits, matches, reduction="sum")
    return LossTerms(total, matches.new_tensor(len(matches)))


@torch.compiler.disable
@torch.no_grad()
@full_precision
def draw_hard_negatives(
    cells: torch.Tensor, texts: torch.Tensor, text_ids: torch.Tensor, tau: float, joined: bool = False
) -> HardNegatives:
    """Draw a text for every cell and a cell for every text, never a pair that shares the same text.

    Probabilities are the softmax of cosines over `tau` over the candidates: our reading of "in proportion to
    similarity", as in BLIP.

    Parameters
    ----------
    cells, texts
        Normalised embeddings of all cells and their texts, shape (cells, size).
    text_ids
        The same number for the same text, -100 for cells without one; shape (cells,).
    joined
        Whether several processes draw for the same cells: all of them use the random numbers of the first.

    Notes
    -----
    Random numbers come from PyTorch's generator for the CPU: with `torch.manual_seed` all devices draw the same.
    """
    known = text_ids != IGNORED
    drawn = torch.rand(2, int(known.sum())).to(cells.device)
    if joined and number_of_processes() > 1:
        dist.broadcast(drawn, src=0)
    numbers = drawn.new_zeros(2, len(cells))
    numbers[:, known] = drawn
    allowed = (text_ids[:, None] != text_ids) & known[:, None] & known
    logits = cells @ texts.T / tau
    return HardNegatives(_draw(logits, allowed, numbers[0]), _draw(logits.T, allowed, numbers[1]))


def _draw(logits: torch.Tensor, allowed: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Draw a column for every row by a number in [0, 1); -1 if none is allowed."""
    weights = logits.masked_fill(~allowed, torch.finfo(logits.dtype).min).softmax(dim=1).where(allowed, 0.0)
    steps = weights.double().cumsum(dim=1)
    drawn = torch.searchsorted(steps, numbers[:, None].double() * steps[:, -1:], right=True)[:, 0]
    # By rounding, the draw may be after the last allowed column.
    last = torch.where(weights > 0, torch.arange(len(weights), device=weights.device), -1).amax(dim=1)
    return torch.minimum(drawn, last)


class MatchedPairs(NamedTuple):
    """Pairs of a cell of this process and a text of any.

    Parameters
    ----------
    cells
        Numbers of this process's cells, shape (pairs,).
    texts
        Numbers of all processes' texts, shape (pairs,).
    matches
        1 for true pairs, 0 for hard negatives; shape (pairs,).
    """

    cells: torch.Tensor
    texts: torch.Tensor
    matches: torch.Tensor


@torch.compiler.disable
def pairs_to_match(negatives: HardNegatives, text_ids: torch.Tensor, first: int) -> MatchedPairs:
    """Return the pairs that a process matches for its cells: true pairs, then hard negatives.

    Hard negatives are the texts drawn for its cells, and its cells drawn for texts of any process. Every pair belongs
    to one process, so hidden states of cells need not be gathered.

    Parameters
    ----------
    negatives
        Drawn for the cells and texts of all processes.
    text_ids
        Of this process's cells, -100 for cells without a text; shape (cells,).
    first
        Number of this process's first cell among all.
    """
    number, device = len(text_ids), text_ids.device
    of_cells = negatives.texts[first : first + number]
    owned = (negatives.cells >= first) & (negatives.cells < first + number)
    true, has_text = (text_ids != IGNORED).nonzero()[:, 0], (of_cells >= 0).nonzero()[:, 0]
    cells = torch.cat([true, has_text, negatives.cells[owned] - first])
    texts = torch.cat([true + first, of_cells[has_text], owned.nonzero()[:, 0]])
    return MatchedPairs(cells, texts, (torch.arange(len(cells), device=device) < len(true)).long())


__all__ = [
    "GatheredTexts",
    "HardNegatives",
    "MatchedPairs",
    "cell_cell_loss",
    "cell_text_loss",
    "draw_hard_negatives",
    "gather_texts",
    "matching_loss",
    "number_texts",
    "pairs_to_match",
]
