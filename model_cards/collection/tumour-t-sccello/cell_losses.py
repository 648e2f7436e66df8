"""Objectives over cells and genes, independent of the models, for one process or for the cells of all processes.

Every function returns the sum and the number of its terms as `LossTerms`; the loss is their mean. Sums are float32
(float64 for float64), computed outside autocast: at tau = 0.01 a product of two representations is up to 100, and
there the values of bfloat16 are 0.5 apart.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd.function import once_differentiable


IGNORED = -100  # label of items without one
SCORES_AT_ONCE = 2**23  # scores of genes in memory: 32 MiB in float32


class LossTerms(NamedTuple):
    """Terms of a loss.

    Parameters
    ----------
    total
        Their sum, shape (), part of the graph even if there are no terms.
    count
        Their number, shape ().
    """

    total: torch.Tensor
    count: torch.Tensor

    def mean(self) -> torch.Tensor:
        """Return the loss, 0 if there are no terms."""
        return self.total / self.count.clamp(min=1)


def full_precision(function: Callable) -> Callable:
    """Run a function outside autocast, with half-precision arguments converted to float32."""

    def widened(value: Any) -> Any:
        half = isinstance(value, torch.Tensor) and value.dtype in (torch.float16, torch.bfloat16)
        return value.float() if half else value

    @wraps(function)
    def run(first: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            return function(widened(first), *map(widened, args), **{k: widened(v) for k, v in kwargs.items()})

    return run


@full_precision
def scale_representations(states: torch.Tensor, tau: float) -> torch.Tensor:
    """Normalise states and divide them by the square root of tau: the product of two is their cosine over tau."""
    return nn.functional.normalize(states, dim=-1) * tau**-0.5


# -------------------------------------------------------------------- masked genes


class _ScoredCrossEntropy(torch.autograd.Function):
    """Sum of cross entropies of scores that are computed in pieces and never kept.

    The gradient of a piece follows from its probabilities, so the forward pass computes both: three matrix products in
    total, the same number as with all scores in memory.
    """

    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, genes: torch.Tensor, labels: torch.Tensor, with_gradients: bool
    ) -> torch.Tensor:
        total = states.new_zeros(())
        if with_gradients:
            state_gradients, gene_gradients = torch.empty_like(states), torch.zeros_like(genes)
            ctx.save_for_backward(state_gradients, gene_gradients)
        rows = max(1, SCORES_AT_ONCE // len(genes))
        for start in range(0, len(states), rows):
            piece, target = states[start : start + rows], labels[start : start + rows, None]
            scores = piece @ genes.T
            of_target, highest = scores.gather(1, target), scores.amax(dim=1, keepdim=True)
            probabilities = scores.sub_(highest).exp_()
            norm = probabilities.sum(dim=1, keepdim=True)
            total += (highest + norm.log() - of_target).sum()
            if with_gradients:
                probabilities.div_(norm).scatter_add_(1, target, probabilities.new_full(target.shape, -1.0))
                torch.mm(probabilities, genes, out=state_gradients[start : start + rows])
                gene_gradients.addmm_(probabilities.T, piece)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        state_gradients, gene_gradients = ctx.saved_tensors
        return gradient * state_gradients, gradient * gene_gradients, None, None


@torch.compiler.disable
@full_precision
def masked_gene_loss(states: torch.Tensor, genes: torch.Tensor, labels: torch.Tensor) -> LossTerms:
    """Cross entropy of masked genes against the whole vocabulary, without keeping the scores in memory.

    Value and gradients are those of `cross_entropy_terms` of ``states @ genes.T``; it can be differentiated once.

    Parameters
    ----------
    states
        Representations at masked positions, scaled, shape (masked genes, size).
    genes
        Representations of all tokens, scaled by the same head, shape (vocabulary, size).
    labels
        Ids of the masked genes, shape (masked genes,).

    Notes
    -----
    Yuan et al. 2024, section 3.2 (masked gene prediction). Scores are products of two outputs of one head, as in the
    released code.
    """
    with_gradients = torch.is_grad_enabled() and (states.requires_grad or genes.requires_grad)
    total = _ScoredCrossEntropy.apply(states, genes, labels, with_gradients)
    return LossTerms(total, labels.new_tensor(labels.numel()))


@full_precision
def cross_entropy_terms(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None) -> LossTerms:
    """Cross entropy of logits; label -100 is ignored.

    Parameters
    ----------
    weights
        Factor of each item's term, shape (items,); the number of terms stays the number of items.
    """
    reduction = "sum" if weights is None else "none"
    terms = nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction=reduction)
    return LossTerms(terms if weights is None else (terms * weights).sum(), (labels != IGNORED).sum())


# -------------------------------------------------------------------- cell types


@full_precision
def coherence_loss(cells: torch.Tensor, prototypes: torch.Tensor, cell_types: torch.Tensor) -> LossTerms:
    """Cross entropy of cells against the prototypes of all cell types; the target is each cell's own type.

    A supervised form of a contrastive loss: cells of one type move to its prototype, independent of the batch. One
    term for each cell with a type; `regularization_loss` keeps prototypes near the cells.

    Parameters
    ----------
    cells
        Representations, scaled, shape (cells, size).
    prototypes
        Scaled, shape (cell types, size).
    cell_types
        Each cell's row of `prototypes`, -100 for none, shape (cells,).

    Notes
    -----
    Yuan et al. 2024, section 3.3 (intra-cellular coherence).
    """
    return cross_entropy_terms(cells @ prototypes.T, cell_types)


@full_precision
def regularization_loss(projected: torch.Tensor, cells: torch.Tensor, cell_types: torch.Tensor) -> LossTerms:
    """Squared distance of each cell from its type's projected prototype, mean over the size.

    Parameters
    ----------
    projected
        Affine projection of the scaled prototype of each cell's type, shape (cells, size).
    cells
        Representations, scaled, shape (cells, size).
    cell_types
        -100 for cells to ignore, shape (cells,).

    Notes
    -----
    Yuan et al. 2024, section 3.3 (regulariser of the coherence loss).
    """
    known = cell_types != IGNORED
    distances = (projected - cells).square().mean(dim=1)
    return LossTerms(distances.where(known, 0.0).sum(), known.sum())


@torch.compiler.disable
@full_precision
def relational_alignment_loss(
    cells: torch.Tensor,
    cell_types: torch.Tensor,
    similarity_levels: torch.Tensor,
    ancestor_mask: torch.Tensor,
    noised: torch.Tensor | None = None,
    others: torch.Tensor | None = None,
    other_types: torch.Tensor | None = None,
    first: int = 0,
) -> LossTerms:
    """Rank the cells of a batch, for each of its cells, by the ontology's similarity of their types.

    For each cell, and each level of similarity of its type with types in the batch except the lowest level: cells at
    this level or above are positives, cells below it are negatives, unless their type is the cell's own or an ancestor
    of it. A term is the cross entropy of one positive against all these negatives, 0 without negatives. A cell is a
    positive of itself, with the score of its representation and its noised one.

    With one level for a cell's own type and one level for all others, it is a supervised contrastive loss.

    Parameters
    ----------
    cells
        Representations, scaled, shape (cells, size).
    cell_types
        Their rows of the tables, shape (cells,); cells of -100 are ignored.
    similarity_levels
        Whole numbers, higher for more similar types, shape (cell types, cell types).
    ancestor_mask
        True where the second type is an ancestor of the first, or equal to it; shape (cell types, cell types).
    noised
        Representations of the same cells with other dropout noise, scaled, shape (cells, size); by default `cells`.
    others, other_types, first
        All cells to compare with, shape (all cells, size), their types, and the row of the first of `cells` among
        them (see `gather_cells`); by default `cells`.

    Notes
    -----
    Yuan et al. 2024, section 3.4 (inter-cellular relational alignment). Memory: cells x all cells x levels.
    """
    others = cells if others is None else others
    other_types = cell_types if other_types is None else other_types
    scores = _scores_with_noise(cells, cells if noised is None else noised, others, first)
    known, other_known = cell_types != IGNORED, other_types != IGNORED
    rows, columns = cell_types.clamp(min=0), other_types.clamp(min=0)
    pairs = rows[:, None], columns[None, :]
    levels, may_be_negative = similarity_levels[pairs], ~ancestor_mask[pairs].bool() & other_known
    # All levels between the types of the batch, ascending; they are the last axis below.
    present = torch.cat([rows, columns]).unique()
    steps = similarity_levels[present[:, None], present[None, :]].unique()
    # The score of all negatives below a level, shape (cells, 1, levels). Without negatives it is very low, so that the
    # softplus and its gradient are 0.
    below = levels[:, :, None] < steps
    nothing = torch.finfo(scores.dtype).min / 4
    negatives = scores[:, :, None].masked_fill(~(below & may_be_negative[:, :, None]), nothing).logsumexp(1, True)
    # A level counts if some cell has it and some cell is below it.
    at_level = (levels[:, :, None] == steps) & other_known[:, None]
    counted = at_level.any(1, True) & (below & other_known[:, None]).any(1, True) & known[:, None, None]
    positives = counted & ~below & other_known[:, None]
    terms = nn.functional.softplus(negatives - scores[:, :, None])
    return LossTerms(terms.where(positives, 0.0).sum(), positives.sum())


def _scores_with_noise(cells: torch.Tensor, noised: torch.Tensor, others: torch.Tensor, first: int) -> torch.Tensor:
    """Return products of cells with all cells; for a cell and itself, that with the noised cell."""
    places = torch.arange(len(others), device=cells.device)
    itself = places == (places[: len(cells), None] + first)
    return torch.where(itself, (cells * noised).sum(dim=1, keepdim=True), cells @ others.T)


# -------------------------------------------------------------------- several processes


def number_of_processes() -> int:
    """Return the number of processes of `torch.distributed`, 1 if it is not in use."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _Gather(torch.autograd.Function):
    """Concatenate the rows of all processes; a row's gradient is the sum of all processes' gradients."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        ctx.start, ctx.length = dist.get_rank() * len(rows), len(rows)
        pieces = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(pieces, rows.contiguous())
        return torch.cat(pieces)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient[ctx.start : ctx.start + ctx.length]


class GatheredCells(NamedTuple):
    """Cells of all processes.

    Parameters
    ----------
    cells
        Representations, shape (all cells, size).
    cell_types
        Their types, -100 for none and for padding rows, shape (all cells,).
    first
        Row of this process's first cell.
    """

    cells: torch.Tensor
    cell_types: torch.Tensor
    first: int


@torch.compiler.disable
def gather_cells(cells: torch.Tensor, cell_types: torch.Tensor) -> GatheredCells:
    """Gather the cells of all processes, with gradients; every process has to call it.

    Processes with fewer cells than others are padded by cells without a type.

    Parameters
    ----------
    cells
        Representations, shape (cells, size).
    """
    if number_of_processes() == 1:
        return GatheredCells(cells, cell_types, 0)
    most = torch.tensor(len(cells), device=cells.device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    missing = int(most) - len(cells)
    padded = nn.functional.pad(cells, (0, 0, 0, missing))
    types = nn.functional.pad(cell_types, (0, missing), value=IGNORED)
    return GatheredCells(_Gather.apply(padded), _Gather.apply(types), dist.get_rank() * int(most))


def count_items(labels: torch.Tensor | None, cells: torch.Tensor) -> torch.Tensor:
    """Count the items of a batch as `transformers.Trainer` does: labels that are not -100; cells without labels.

    Parameters
    ----------
    labels
        Of any shape, or None.
    cells
        Number of cells, shape ().
    """
    return cells if labels is None else (labels != IGNORED).sum()


def share_of_step(items: torch.Tensor, num_items_in_batch: Any) -> torch.Tensor:
    """Return the share of a batch in a whole step; 1 if the step has no items.

    Parameters
    ----------
    items
        Items of the batch, from `count_items`, shape ().
    num_items_in_batch
        Items of the whole step, over accumulated batches and processes.
    """
    whole = torch.as_tensor(num_items_in_batch, device=items.device)
    return torch.where(whole > 0, items / whole.clamp(min=1), 1.0)


def every_weight_counts() -> bool:
    """Whether a loss has to depend on every weight: `DistributedDataParallel` waits for the gradient of each."""
    return torch.is_grad_enabled() and dist.is_available() and dist.is_initialized()


@torch.compiler.disable
def join_losses(
    parts: dict[str, LossTerms], items: torch.Tensor, num_items_in_batch: Any = None, joined: bool = True
) -> dict[str, torch.Tensor]:
    """Compute losses from terms of this process's cells; their gradients are those of all processes' cells together.

    The loss of the joined batch is (sum of all processes' terms) / (number of all processes' terms).

    - Without `num_items_in_batch`, every process gets the value of the joined batch's loss. Its gradient is that of
      the process's own terms, times the number of processes: the *mean* over processes, which
      `DistributedDataParallel` computes, is the gradient of the joined batch's loss.
    - With it, every process gets its own share of the joined batch's loss, times (items of the joined batch) /
      `num_items_in_batch`: the *sum* over processes and accumulated batches is the mean over batches, weighted by
      items. This is what `transformers.Trainer` expects; it multiplies by the number of processes before
      `DistributedDataParallel` computes the mean. A loss with one term per item equals that of one large batch.

    Parameters
    ----------
    parts
        Terms by name, the same names on every process.
    items
        Number of this process's items, from `count_items`, shape ().
    num_items_in_batch
        Items of a whole step, over accumulated batches and all processes.
    joined
        Whether to join processes; all of them have to call this. Otherwise losses are those of this process only.
    """
    if not parts:
        return {}
    processes = number_of_processes() if joined else 1
    totals = torch.stack([part.total for part in parts.values()])
    numbers = torch.stack([*(part.count for part in parts.values()), items]).to(totals.dtype)
    if processes > 1:
        dist.all_reduce(numbers)
    shares = totals / numbers[:-1].clamp(min=1)
    if num_items_in_batch is not None:
        losses = shares * share_of_step(numbers[-1], num_items_in_batch)
    elif processes > 1:
        values = shares.detach().clone()
        dist.all_reduce(values)
        scaled = shares * processes
        losses = scaled + (values - scaled).detach()
    else:
        losses = shares
    return {name: losses[i].clone() for i, name in enumerate(parts)}


def joined_loss(
    terms: LossTerms | None, labels: torch.Tensor | None, num_items_in_batch: Any, joined: bool
) -> torch.Tensor | None:
    """Compute the loss of a head by `join_losses`; processes are joined only when gradients are computed."""
    if terms is None:
        return None
    joined = joined and torch.is_grad_enabled()
    return join_losses({"loss": terms}, count_items(labels, terms.count), num_items_in_batch, joined)["loss"]


__all__ = [
    "GatheredCells",
    "LossTerms",
    "coherence_loss",
    "count_items",
    "cross_entropy_terms",
    "every_weight_counts",
    "gather_cells",
    "join_losses",
    "joined_loss",
    "masked_gene_loss",
    "number_of_processes",
    "regularization_loss",
    "relational_alignment_loss",
    "scale_representations",
    "share_of_step",
]
