"""A training step of Exceiver at the published size: ours against attention over all genes, as in the released code.

python benchmarks/exceiver_training.py

A step is forward, backward and Adam on cells with 15% of the expressed genes masked. Memory is that of a step beyond
model and cells, in a new process. Targets: 6 times as fast, at most a quarter of the memory.
"""

import torch
from measure import alternate, median, memory_of, parser, ratio, report
from released_exceiver import draw_cells, models


SIDES = ("as released", "without weights", "exclude", "bias")


def prepare(side: str, n_cells: int, share: float, threads: int):
    """Return the function that runs a training step."""
    torch.set_num_threads(threads)
    cells, model = draw_cells(n_cells, share), models()[side].train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4, weight_decay=1e-5)
    if side in ("exclude", "bias"):
        names = ["input_ids", "expression_values", "masked_genes", "query_ids", "labels"]
        batch = {name: cells[name] for name in names + (["background_values"] if side == "bias" else [])}

        def loss() -> torch.Tensor:
            return model(**batch).loss
    else:
        batch = tuple(cells[name] for name in ("masked_ids", "masked_values", "unexpressed", "query_ids"))

        def loss() -> torch.Tensor:
            return torch.nn.functional.mse_loss(model(*batch), cells["labels"])

    def step() -> float:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return value.item()

    return step


def main() -> None:
    options = parser(__doc__, repeats=7)
    options.add_argument("--cells", type=int, nargs="+", default=[4, 16], help="numbers of cells in a batch")
    options.add_argument("--expressed", type=float, nargs="+", default=[0.05, 0.1, 0.2], help="shares of genes")
    options.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of PyTorch")
    given = options.parse_args()
    if given.quick:
        given.cells, given.repeats = given.cells[-1:], 3
    sizes = [(n, 0.1) for n in given.cells]
    sizes += [(given.cells[-1], share) for share in given.expressed if share != 0.1 and not given.quick]
    rows, targets = [], []
    for n, share in sizes:
        sides = {side: prepare(side, n, share, given.threads) for side in SIDES}
        first = {side: step() for side, step in sides.items()}
        assert abs(first["bias"] / first["as released"] - 1) < 1e-4, f"losses differ: {first}"
        times = alternate(sides, given.repeats)
        memory = {side: memory_of(prepare, side, n, share, given.threads) for side in SIDES}
        for side in SIDES:
            gain, part = ratio(times["as released"], times[side]), memory[side] / memory["as released"]
            rows.append(
                {
                    "model": side,
                    "cells": n,
                    "genes expressed": f"{share:.0%}",
                    "ms per step": median(times[side]) * 1e3,
                    "ratio to released": gain,
                    "ratio to without weights": ratio(times["without weights"], times[side]),
                    "peak MiB": memory[side],
                    "memory, share of released": part,
                }
            )
            if n == given.cells[-1] and share == 0.1 and side in ("exclude", "bias"):
                targets.append((f"{side}: times as fast as released ({n} cells)", 6, gain, gain >= 6))
                targets.append((f"{side}: share of the released step's memory", 0.25, part, part <= 0.25))
    report(given, rows, targets)


if __name__ == "__main__":
    main()
