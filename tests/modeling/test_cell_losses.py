import math

import pytest
import torch
from torch.nn import functional as F

from cellglot.modeling.cell_losses import (
    coherence_loss,
    cross_entropy_terms,
    gather_cells,
    join_losses,
    masked_gene_loss,
    regularization_loss,
    relational_alignment_loss,
    scale_representations,
)


def random_tables(types, seed):
    random = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 7, (types, types), generator=random)
    levels = torch.maximum(levels, levels.T).fill_diagonal_(9)
    ancestors = (torch.rand(types, types, generator=random) < 0.3).fill_diagonal_(True)
    return levels, ancestors


def triple_loop(cells, cell_types, levels, ancestors, noised=None):
    """Every cell, level and positive, one after the other: sum and number."""
    total, count = cells.sum() * 0, 0
    kept = [i for i, t in enumerate(cell_types.tolist()) if t >= 0]
    scores = cells @ cells.T
    for i in kept:
        row = {j: int(levels[cell_types[i], cell_types[j]]) for j in kept}
        score = {j: scores[i, j] for j in kept}
        score[i] = cells[i] @ (cells if noised is None else noised)[i]
        for level in sorted(set(row.values()))[1:]:
            negatives = [score[j] for j in kept if row[j] < level and not ancestors[cell_types[i], cell_types[j]]]
            for j in (j for j in kept if row[j] >= level):
                count += 1
                if negatives:
                    total = total + torch.stack([score[j], *negatives]).logsumexp(0) - score[j]
    return total, count


def some_cells(n, size=8, tau=0.05, seed=0):
    states = torch.randn(n, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return states.requires_grad_(), scale_representations(states, tau)


# -------------------------------------------------------------------- relational alignment


@pytest.mark.parametrize(("cells", "types", "seed"), [(9, 4, 0), (17, 6, 1), (12, 12, 2), (5, 2, 3), (2, 2, 4)])
@pytest.mark.parametrize("unlabelled", [False, True])
def test_alignment_is_the_triple_loop(cells, types, seed, unlabelled):
    levels, ancestors = random_tables(types, seed)
    cell_types = torch.randint(0, types, (cells,), generator=torch.Generator().manual_seed(seed))
    if unlabelled:
        cell_types[::3] = -100
    states, h = some_cells(cells)
    noised = scale_representations(states + 0.1, 0.05)
    total, count = triple_loop(h, cell_types, levels, ancestors, noised)
    expected = torch.autograd.grad(total, states, retain_graph=True)[0]
    terms = relational_alignment_loss(h, cell_types, levels, ancestors, noised)
    assert int(terms.count) == count
    torch.testing.assert_close(terms.total, total)
    torch.testing.assert_close(torch.autograd.grad(terms.total, states)[0], expected)


def test_alignment_by_hand():
    """Two cells of types 0, one of type 1 whose ancestor is type 0: each has one level above the lowest."""
    h = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    types = torch.tensor([0, 0, 1])
    levels, ancestors = torch.tensor([[9, 3], [3, 9]]), torch.tensor([[1, 0], [1, 1]])
    terms = relational_alignment_loss(h, types, levels, ancestors)
    # Cell 0: positives itself (score 1) and cell 1 (0), negative cell 2 (1); cell 1 the same with 1 and 0. Cell 2:
    # positive itself; its negatives would be of an ancestor's type, so its one term is 0, and counted.
    expected = 2 * (math.log(1 + math.exp(1 - 1)) + math.log(1 + math.exp(1 - 0)))
    assert int(terms.count) == 5
    assert terms.total.item() == pytest.approx(expected, rel=1e-6)
    assert terms.mean().item() == pytest.approx(expected / 5, rel=1e-6)


@pytest.mark.parametrize("types", [[2, 2, 2, 2], [1], [-100, -100, -100], [-100, 3]])
def test_alignment_without_terms_is_zero_with_a_graph(types):
    levels, ancestors = random_tables(4, 0)
    states, h = some_cells(len(types))
    loss = relational_alignment_loss(h, torch.tensor(types), levels, ancestors).mean()
    assert loss == 0
    assert not torch.autograd.grad(loss, states)[0].any()


def test_alignment_of_some_rows_adds_up():
    levels, ancestors = random_tables(5, 3)
    types = torch.arange(11) % 5
    _, h = some_cells(11)
    whole = relational_alignment_loss(h, types, levels, ancestors)
    parts = [
        relational_alignment_loss(h[a:b], types[a:b], levels, ancestors, None, h, types, a)
        for a, b in ((0, 4), (4, 11))
    ]
    torch.testing.assert_close(sum(p.total for p in parts), whole.total)
    assert sum(p.count for p in parts) == whole.count


# -------------------------------------------------------------------- the other objectives


def test_masked_gene_loss_is_cross_entropy_of_kept_scores(monkeypatch):
    torch.manual_seed(0)
    states = torch.randn(23, 8, dtype=torch.float64, requires_grad=True)
    genes = torch.randn(31, 8, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 31, (23,))
    kept = cross_entropy_terms(states @ genes.T, labels)
    expected = torch.autograd.grad(3 * kept.total, (states, genes))
    for at_once in (1, 31 * 5, 10**6):
        monkeypatch.setattr("cellglot.modeling.cell_losses.SCORES_AT_ONCE", at_once)
        terms = masked_gene_loss(states, genes, labels)
        assert int(terms.count) == 23
        torch.testing.assert_close(terms.total, kept.total)
        for a, b in zip(torch.autograd.grad(3 * terms.total, (states, genes)), expected, strict=True):
            torch.testing.assert_close(a, b)


def test_masked_gene_loss_of_nothing():
    states, genes = torch.randn(0, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    loss = masked_gene_loss(states, genes, torch.empty(0, dtype=torch.long)).mean()
    assert loss == 0
    loss.backward()
    assert not genes.grad.any()


def test_coherence_and_regularization_by_hand():
    cells = torch.tensor([[1.0, 0.0], [0.0, 2.0], [5.0, 5.0]])
    prototypes = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    types = torch.tensor([0, 1, -100])
    terms = coherence_loss(cells, prototypes, types)
    assert terms.total.item() == pytest.approx(math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-2)), rel=1e-6)
    assert int(terms.count) == 2
    terms = regularization_loss(cells + torch.tensor([[1.0, 0.0], [0.0, 2.0], [9.0, 9.0]]), cells, types)
    assert terms.mean().item() == pytest.approx((0.5 + 2.0) / 2)
    nothing = coherence_loss(cells.requires_grad_(), prototypes, torch.full((3,), -100)).mean()
    assert nothing == 0
    nothing.backward()
    assert not cells.grad.any()


def test_representations_have_length_one_over_root_tau():
    scaled = scale_representations(torch.randn(3, 5), 0.01)
    torch.testing.assert_close(scaled.norm(dim=1), torch.full((3,), 10.0))


def test_stable_in_bfloat16_at_the_released_temperature():
    torch.manual_seed(0)
    states, genes = torch.randn(40, 64), torch.randn(50, 64)
    states = torch.cat([states, states + 1e-3, -states])  # cosines of 1 and -1: scores of 100 and -100
    levels, ancestors = random_tables(8, 0)
    types, labels = torch.arange(120) % 8, torch.arange(120) % 50

    def losses(s, g):
        h, words = scale_representations(s, 0.01), scale_representations(g, 0.01)
        assert h.dtype == torch.float32
        return torch.stack(
            [
                relational_alignment_loss(h, types, levels, ancestors).mean(),
                masked_gene_loss(h, words, labels).mean(),
                coherence_loss(h, words, labels).mean(),
            ]
        )

    half_states = states.bfloat16().requires_grad_()
    half_genes = genes.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = losses(half_states, half_genes)
    torch.testing.assert_close(half, losses(half_states.float(), half_genes.float()))
    torch.testing.assert_close(half, losses(states, genes), rtol=0.02, atol=0.02)
    half.sum().backward()
    assert half_states.grad.isfinite().all()


# -------------------------------------------------------------------- one process


def test_one_process_gathers_itself():
    h, types = torch.randn(3, 2), torch.tensor([0, 1, -100])
    gathered = gather_cells(h, types)
    assert gathered.cells is h
    assert gathered.cell_types is types
    assert gathered.first == 0


def test_joined_losses_of_one_process():
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, -100, 1, 0])
    terms = {"loss": cross_entropy_terms(logits, labels)}
    cells = torch.tensor(6)
    assert join_losses({}, cells) == {}
    expected = F.cross_entropy(logits, labels)
    torch.testing.assert_close(join_losses(terms, cells)["loss"], expected)
    torch.testing.assert_close(join_losses(terms, cells, num_items_in_batch=24)["loss"], expected / 4)
