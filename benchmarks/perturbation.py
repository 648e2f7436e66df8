"""In-silico perturbation: each gene of a cell deleted once at scCello's published size; 20 genes in 500 cells.

python benchmarks/perturbation.py [PART...]

Each part, `one_cell` and each model of 500 cells, writes its own file of results when it is done.

One cell: 1,000 genes, float32, random weights; 64 of its genes are deleted, which takes a sixteenth of the time of the
whole cell. Ours is `cellglot.modeling.perturbed_genes`: copies share the first attention, and the last layer computes
only ``<cls>``. The straightforward way deletes genes in copies of the cell, 32 at a time, and runs the whole encoder
on them, with eager and with fused attention. All give the same embeddings. Target: three times as fast as eager.

500 cells: `cellglot.perturb` on real blood cells with models that ship, 50 control genes for each gene and 1,000
permutations included, from the file to the table. Target: 5 minutes.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from measure import DATA, add_parts, alternate, chosen_parts, median, parser, ratio, report

import cellglot
from cellglot.modeling import ScCelloConfig, ScCelloModel
from cellglot.modeling.perturbed_genes import DELETE, Change, changed_tokens, rank_copies


GENES, HIDDEN, COPIES, CELLS, SECONDS = 1000, 64, 32, 500, 300
MARKERS = (
    "CD3D", "CD3E", "IL7R", "CCR7", "CD8A", "CD8B", "GZMB", "GZMK", "NKG7", "GNLY", "MS4A1", "CD79A", "CD19", "CD14",
    "LYZ", "FCGR3A", "CST3", "FCER1A", "PPBP", "CD34",
)  # fmt: skip
MODELS = ("blood-sccello", "human-exceiver")


def straightforward(model: ScCelloModel, copies: torch.Tensor, implementation: str) -> torch.Tensor:
    """Embed copies of a cell by whole forward passes."""
    model.config._attn_implementation = implementation
    with torch.inference_mode():
        found = torch.cat([model(input_ids=part).pooler_output for part in copies.split(COPIES)])
    model.config._attn_implementation = "sdpa"
    return found


def one_cell(quick: bool, repeats: int) -> tuple[dict, tuple]:
    """Time the deletion of genes of one cell."""
    torch.manual_seed(0)
    model = ScCelloModel(ScCelloConfig(num_cell_types=0)).eval()
    genes = torch.randperm(model.config.num_genes)[: 200 if quick else GENES] + 2
    cell = {"input_ids": torch.cat([torch.tensor([model.config.cls_token_id]), genes])}
    change = Change(DELETE, limit=len(genes) + 1, first=1)
    # 64 neighbouring genes of the middle share the first attention as they do when all genes are deleted.
    middle = len(genes) // 2 - HIDDEN // 2
    chosen = genes[middle : middle + HIDDEN]
    copies = torch.stack([changed_tokens(cell, gene, change)["input_ids"] for gene in chosen.tolist()])

    def ours() -> torch.Tensor:
        with torch.inference_mode():
            return torch.cat(list(rank_copies(model, cell, chosen, change)))

    np.testing.assert_allclose(ours().numpy(), straightforward(model, copies, "eager").numpy(), atol=1e-5)
    sides = {
        "eager": lambda: straightforward(model, copies, "eager"),
        "sdpa": lambda: straightforward(model, copies, "sdpa"),
        "ours": ours,
    }
    times = alternate(sides, repeats, untimed=0)
    speed = ratio(times["eager"], times["ours"])
    row = {
        "work": f"{HIDDEN} deletions in a cell of {len(genes):,} genes",
        "eager, 32 copies a pass, s": median(times["eager"]),
        "sdpa, 32 copies a pass, s": median(times["sdpa"]),
        "ours, s": median(times["ours"]),
        "times as fast as eager": speed,
        "times as fast as sdpa": ratio(times["sdpa"], times["ours"]),
    }
    return row, (f"a cell of {len(genes):,} genes: times as fast as eager", 3, speed, speed >= 3)


def many_cells(name: str, quick: bool) -> tuple[dict, tuple]:
    """Time 20 genes of 500 blood cells with their controls."""
    model, number = cellglot.load_model(name), 50 if quick else CELLS
    path = DATA / "cells" / "pbmc_facs.h5ad"
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        found = cellglot.perturb(
            path, model, delete=list(MARKERS), max_cells=number, output=Path(folder, "table.csv"), device="cpu"
        )
        seconds = time.perf_counter() - start
    work = f"{len(found)} genes with 50 controls each in {number} cells, {name}"
    row = {"work": work, "seconds": seconds}
    return row, (f"{number} cells x {len(found)} genes with {name}, s", SECONDS, seconds, seconds <= SECONDS)


PARTS: dict[str, Callable[[bool, int], list[tuple[dict, tuple]]]] = {
    "one_cell": lambda quick, repeats: [one_cell(quick, repeats)],
    **{name: lambda quick, repeats, name=name: [many_cells(name, quick)] for name in MODELS},
}


def main() -> None:
    options = parser(__doc__, repeats=3)
    add_parts(options, PARTS)
    given = options.parse_args()
    for name in chosen_parts(options, given, PARTS):
        found = PARTS[name](given.quick, given.repeats)
        report(given, [row for row, _ in found], [target for _, target in found])


if __name__ == "__main__":
    main()
