"""A training step of scCello at its published size, and its alignment loss, against the straightforward way.

    python benchmarks/sccello.py [--quick]

A step is forward, backward and AdamW. Both sides have the same weights, cells, dropout of hidden states (0.02) and no
dropout of attention weights; in a further row both have the published dropout of attention weights, 0.02. The
straightforward way computes explicit attention weights, scores all tokens at all positions, encodes the noised pass
after the first, and loops over cells, levels and positives (`straightforward_sccello.py`). It is checked first that
both give the same loss and gradients without dropout. Memory is the growth of a process from before its first step.
"""

import functools
from collections.abc import Callable

import straightforward_sccello as straightforward
import torch
from measure import alternate, median, memory_of, parser, ratio, report

from cellglot.modeling import ScCelloConfig, ScCelloForPreTraining
from cellglot.modeling.cell_losses import relational_alignment_loss, scale_representations


TYPES = 60
SIDES = ("straightforward", "ours")


def made_up_ontology(types: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels and ancestors of a tree in which each type has two children."""
    parents = [[0]]
    for t in range(1, types):
        parents.append([t, *parents[(t - 1) // 2]])
    ancestors = torch.zeros(types, types, dtype=torch.bool)
    for t, line in enumerate(parents):
        ancestors[t, line] = True
    shared = (ancestors[:, None] & ancestors[None, :]).sum(-1)
    own = ancestors.sum(1)
    distance = own[:, None] + own[None, :] - 2 * shared
    return (13 - distance).clamp(min=1), ancestors


def make_model(attention_dropout: float = 0.0, hidden_dropout: float = 0.02) -> ScCelloForPreTraining:
    torch.manual_seed(0)
    config = ScCelloConfig(
        num_cell_types=TYPES,
        hidden_dropout_prob=hidden_dropout,
        attention_probs_dropout_prob=attention_dropout,
        attn_implementation="sdpa",
    )
    model = ScCelloForPreTraining(config)
    model.set_ontology(*made_up_ontology(TYPES))
    return model.train()


def make_cells(cells: int, tokens: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    input_ids = torch.randint(2, 25426, (cells, tokens), generator=random)
    input_ids[:, 0] = 25426
    masked = torch.rand(cells, tokens, generator=random) < 0.15
    masked[:, 0] = False
    return {
        "input_ids": input_ids.masked_fill(masked, 1),
        "attention_mask": torch.ones_like(input_ids),
        "labels": input_ids.masked_fill(~masked, -100),
        "cell_type_ids": torch.randint(0, TYPES, (cells,), generator=random),
    }


def training_step(side: str, cells: int, tokens: int, attention_dropout: float = 0.0) -> Callable[[], None]:
    """Return a function that takes one step."""
    model, batch = make_model(attention_dropout), make_cells(cells, tokens)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.001)

    def step() -> None:
        optimizer.zero_grad()
        loss = straightforward.loss(model, **batch) if side == "straightforward" else model(**batch).loss
        loss.backward()
        optimizer.step()

    return step


def alignment(side: str, cells: int) -> Callable[[], None]:
    """Return a function that computes the alignment loss of so many cells, and its gradient."""
    torch.manual_seed(0)
    levels, ancestors = made_up_ontology(TYPES)
    types = torch.arange(cells) % TYPES
    states = torch.randn(cells, 256, requires_grad=True)
    noised = states.detach() + 0.1 * torch.randn(cells, 256)

    def compute() -> torch.Tensor:
        states.grad = None
        h, other = scale_representations(states, 0.01), scale_representations(noised, 0.01)
        if side == "straightforward":
            loss = straightforward.relational_alignment(h, other, types, levels, ancestors)
        else:
            loss = relational_alignment_loss(h, types, levels, ancestors, other).mean()
        loss.backward()
        return loss.detach()

    return compute


def check_that_both_agree() -> None:
    model, batch = make_model(hidden_dropout=0.0), make_cells(4, 96)
    ours = model(**batch).loss
    ours.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    other = straightforward.loss(model, **batch)
    other.backward()
    torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-5)
    for a, b in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(a, b.grad, rtol=1e-3, atol=1e-4 * float(b.grad.abs().max()) + 1e-6)
    torch.testing.assert_close(alignment("ours", 64)(), alignment("straightforward", 64)(), rtol=1e-5, atol=1e-5)


def main() -> None:
    options = parser(__doc__, repeats=5).parse_args()
    check_that_both_agree()
    shapes = [(2, 256, 0.0), (4, 128, 0.0)] if options.quick else [(2, 2048, 0.0), (12, 512, 0.0), (2, 2048, 0.02)]
    repeats = 2 if options.quick else options.repeats
    rows, targets = [], []
    for cells, tokens, dropout in shapes:
        sides = {side: training_step(side, cells, tokens, dropout) for side in SIDES}
        times = alternate(sides, repeats)
        del sides
        memory = {side: memory_of(training_step, side, cells, tokens, dropout) for side in SIDES}
        speed, size = ratio(times["straightforward"], times["ours"]), memory["straightforward"] / memory["ours"]
        name = f"step, {cells} x {tokens:,} tokens" + (f", attention dropout {dropout}" if dropout else "")
        rows.append(
            {
                "work": name,
                "straightforward, s": median(times["straightforward"]),
                "ours, s": median(times["ours"]),
                "times as fast": speed,
                "straightforward, MiB": memory["straightforward"],
                "ours, MiB": memory["ours"],
                "part of the memory": 1 / size,
            }
        )
        if (cells, tokens, dropout) == (2, 2048, 0.0):
            targets.append((f"{name}: times as fast", 4.0, speed, speed >= 4))
            targets.append((f"{name}: part of the memory", 1 / 3, 1 / size, size >= 3))
        if (cells, tokens) == (12, 512):
            targets.append((f"{name}: times as fast", 2.0, speed, speed >= 2))
    cells = 64 if options.quick else 256
    loops = 1 if options.quick else 2
    once = {side: alignment(side, cells) for side in SIDES}
    times = alternate(once, loops)
    speed = ratio(times["straightforward"], times["ours"])
    memory = {side: memory_of(functools.partial(alignment, side), cells) for side in SIDES}
    rows.append(
        {
            "work": f"relational alignment, {cells} cells of {TYPES} types",
            "straightforward, s": median(times["straightforward"]),
            "ours, s": median(times["ours"]),
            "times as fast": speed,
            "straightforward, MiB": memory["straightforward"],
            "ours, MiB": memory["ours"],
            "part of the memory": memory["ours"] / memory["straightforward"],
        }
    )
    targets.append((f"relational alignment, {cells} cells: times as fast", 50.0, speed, speed >= 50))
    report(options, rows, targets)


if __name__ == "__main__":
    main()
