"""LoRA against full fine-tuning at the published sizes: a training step, its memory, and the saved files.

    python benchmarks/adapters.py [--quick]

A step is forward, backward and AdamW over the trained weights, for ten classes of cells. LoRA is the preset of
`cellglot.training.finetuning.adapters`: rank 8 on all linear layers of the encoder, and the whole head. Both sides
have the same weights, cells and dropout. Memory is the growth of a process from before its first step, with freed
blocks of 256 KiB and more returned to the system at once: otherwise the C library keeps freed blocks, depending on
their order, up to twice as much, and more with LoRA. Saved sizes are those of the weight files.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import MIB, alternate, median, memory_of, parser, ratio, report

from cellglot.training.families.records import FAMILIES
from cellglot.training.finetuning.adapters import put_adapter, save_adapter


CLASSES = 10
SIDES = ("full", "lora")
# Cells and genes of a batch; Exceiver reads all expressed genes, the others the highest-ranked.
SHAPES = {"exceiver": (16, 1500), "sccello": (12, 512), "langcell": (4, 512)}
QUICK = {"exceiver": (4, 200), "sccello": (2, 64), "langcell": (2, 64)}


def make_model(name: str, side: str) -> Any:
    """Return a model of published size with a head, for full fine-tuning or with a LoRA adapter."""
    torch.manual_seed(0)
    kind = FAMILIES[name]
    model_class = kind.model_class("cell-type")
    model: Any = model_class(model_class.config_class(num_labels=CLASSES, attn_implementation="sdpa"))
    return put_adapter(model, "lora", kind.heads) if side == "lora" else model


def make_cells(name: str, cells: int, genes: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    if name == "exceiver":
        ids = torch.stack([torch.randperm(19067, generator=random)[:genes] for _ in range(cells)])
        batch = {"input_ids": ids, "expression_values": torch.randn(cells, genes, generator=random) + 1}
    else:
        ids = torch.randint(2, 25426, (cells, genes), generator=random)
        ids[:, 0] = 25426
        batch = {"input_ids": ids}
    labels = torch.randint(0, CLASSES, (cells,), generator=random)
    return batch | {"attention_mask": torch.ones_like(ids), "labels": labels}


def training_step(name: str, side: str, cells: int, genes: int) -> Callable[[], None]:
    """Return a function that takes one step."""
    model, batch = make_model(name, side).train(), make_cells(name, cells, genes)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.01)

    def step() -> None:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()

    return step


def saved(name: str, side: str) -> tuple[int, float]:
    """Return the number of weights that learn, and MiB of the files of weights that are saved."""
    model = make_model(name, side)
    with tempfile.TemporaryDirectory() as folder:
        if side == "lora":
            save_adapter(model, folder)
        else:
            model.save_pretrained(folder)
        size = sum(p.stat().st_size for p in Path(folder).glob("*.safetensors"))
    return sum(p.numel() for p in model.parameters() if p.requires_grad), size / MIB


def main() -> None:
    options = parser(__doc__, repeats=7).parse_args()
    repeats = 2 if options.quick else options.repeats
    rows = []
    for name, (cells, genes) in (QUICK if options.quick else SHAPES).items():
        sides = {side: training_step(name, side, cells, genes) for side in SIDES}
        times = alternate(sides, repeats)
        del sides
        memory = {side: memory_of(training_step, name, side, cells, genes, returned_from=1 << 18) for side in SIDES}
        weights = {side: saved(name, side) for side in SIDES}
        rows.append(
            {
                "model": f"{name}, {cells} x {genes:,} genes",
                "full, s a step": median(times["full"]),
                "LoRA, s a step": median(times["lora"]),
                "times as fast": ratio(times["full"], times["lora"]),
                "full, MiB": memory["full"],
                "LoRA, MiB": memory["lora"],
                "full, weights that learn": weights["full"][0],
                "LoRA, weights that learn": weights["lora"][0],
                "model saved, MiB": weights["full"][1],
                "adapter saved, MiB": weights["lora"][1],
            }
        )
    report(options, rows, [])


if __name__ == "__main__":
    main()
