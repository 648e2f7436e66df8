"""LangCell's zero-shot annotation at its published size, against a full computation for each (cell, text) pair.

    python benchmarks/langcell.py [few] [many] [same] [memory] [--quick] [--model FOLDER]

12 layers of size 512 for cells and 12 of size 768 for texts, cells of 1,024 gene tokens, texts of 60 tokens, random
weights. The straightforward way (`straightforward_langcell.py`) does what the released notebook does: encode cells
once and texts once, then run the text encoder for each pair, with explicit attention weights. In one row PyTorch's
fused attention is on the straightforward side, too. All sides of a row run in turn, after a small run of each; with
many classes, where the straightforward way takes minutes, there is one round. It is checked that float32 gives the
same scores. The share of cells with the same class in bfloat16 is a target for a trained model, ``--model FOLDER``,
such as that of ``make demo``: 700 blood cells and their ten types. The row for random weights of the published size,
three times as large as at the start of training, has no target: its classes differ by little more than rounding.
Memory is the growth of a process. Each part writes its own file of results when it is done.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import anndata
import torch


sys.path.insert(0, str(Path(__file__).parent))

import straightforward_langcell as straightforward  # noqa: E402
from measure import (  # noqa: E402
    DATA,
    add_parts,
    alternate,
    chosen_parts,
    median,
    memory_of,
    parser,
    ratio,
    report,
)

from cellglot.modeling import LangCellConfig, LangCellModel  # noqa: E402
from cellglot.tokenization import LangCellProcessor  # noqa: E402


GENES, WORDS = 1024, 60


def make_model(initializer_range: float = 0.02) -> LangCellModel:
    torch.manual_seed(0)
    spread = {"initializer_range": initializer_range}
    config = LangCellConfig(cell_config=spread, text_config=spread, attn_implementation="sdpa", **spread)
    return LangCellModel(config).eval()


def make_batch(cells: int, classes: int, genes: int = GENES, words: int = WORDS) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    input_ids = torch.randint(2, 25426, (cells, genes), generator=random)
    input_ids[:, 0] = 25426
    text_input_ids = torch.randint(5, 30000, (classes, words), generator=random)
    text_input_ids[:, 0] = 2
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "text_input_ids": text_input_ids,
        "text_attention_mask": torch.ones_like(text_input_ids),
    }


def annotation(cells: int, classes: int, genes: int) -> Callable[[], torch.Tensor]:
    """Return a function that annotates `cells` cells with `classes` classes."""
    model, batch = make_model(), make_batch(cells, classes, genes)
    return lambda: model.annotate(**batch).scores


def has_bf16_instructions() -> bool:
    path = Path("/proc/cpuinfo")
    flags = path.read_text() if path.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


class Table:
    """Rows of the table and targets."""

    def __init__(self, quick: bool):
        self.quick, self.rows, self.targets = quick, [], []

    def add(self, work: str, slow: list[float], fast: list[float], asked: float | None = None) -> None:
        """Add a row, and its target."""
        speed = ratio(slow, fast)
        seconds = {"straightforward, s": median(slow), "ours, s": median(fast), "times as fast": speed}
        self.rows.append({"work": work, **seconds})
        if asked is not None and not self.quick:
            self.targets.append((f"{work}: times as fast", asked, speed, speed >= asked))


def few_classes(table: Table, model: LangCellModel, genes: int, repeats: int) -> None:
    batch, found = make_batch(16, 8, genes), {}
    sides = {
        "straightforward": lambda: found.update(a=straightforward.annotate(model, **batch)),
        "fused": lambda: straightforward.annotate(model, **batch, fused=True),
        "ours": lambda: found.update(b=model.annotate(**batch).scores),
    }
    times = alternate(sides, repeats)
    torch.testing.assert_close(found["a"], found["b"], rtol=1e-5, atol=1e-5)
    table.add("16 cells x 8 classes, exact, float32", times["straightforward"], times["ours"], 1.6)
    table.add("16 cells x 8 classes, both with fused attention", times["fused"], times["ours"])


def many_classes(table: Table, model: LangCellModel, half: LangCellModel, genes: int, classes: int) -> None:
    batch, small = make_batch(4, classes, genes), make_batch(1, 2, 64)
    shortlist = max(1, classes // 20)
    texts = (batch["text_input_ids"], batch["text_attention_mask"])
    ready = model.get_text_features(*texts).detach()
    times, found = {}, {}

    def once(name: str, function: Callable[[dict], torch.Tensor]) -> None:
        function(small)
        start = time.perf_counter()
        found[name] = function(batch)
        times[name] = [time.perf_counter() - start]

    def features(b: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            return straightforward.encode_texts(model, b["text_input_ids"], b["text_attention_mask"], False)

    def pairs(b: dict[str, torch.Tensor]) -> torch.Tensor:
        return straightforward.annotate(model, **b, text_features=ready[: len(b["text_input_ids"])])

    def shortlisted(b: dict[str, torch.Tensor]) -> torch.Tensor:
        few = {"text_features": ready[: len(b["text_input_ids"])], "shortlist": shortlist}
        return model.annotate(**b, **few).scores

    once("ours", lambda b: model.annotate(**b).scores)
    once("texts", features)
    once("pairs", pairs)
    once("bf16", lambda b: half.annotate(**b).scores)
    once("shortlist", shortlisted)
    torch.testing.assert_close(found["ours"], found["pairs"], rtol=1e-5, atol=1e-5)
    whole = [times["texts"][0] + times["pairs"][0]]
    table.add(f"4 cells x {classes} classes, exact, float32", whole, times["ours"], 2.2)
    asked = 4.0 if has_bf16_instructions() else None
    table.add(f"4 cells x {classes} classes, exact, ours in bfloat16", whole, times["bf16"], asked)
    work = f"4 cells x {classes} classes, shortlist {shortlist}, text embeddings ready"
    table.add(work, times["pairs"], times["shortlist"], 15.0)


def same_in_bfloat16(table: Table, cells: int, trained: Path | None) -> None:
    """Add the share of cells with the same class in bfloat16, for random weights and for a trained model."""
    share = same_class(make_model(0.06), make_batch(cells, 8, 128, 30))
    table.rows.append({"work": f"{cells} cells x 8 classes, random weights, bfloat16", "same class": share})
    if trained is None:
        return
    blood = anndata.read_h5ad(DATA / "cells" / "pbmc68k_reduced_counts.h5ad")
    types = sorted(blood.obs["cell_type"].unique())
    batch = LangCellProcessor.from_pretrained(trained)(cells=blood, text=types, return_tensors="pt")
    share = same_class(LangCellModel.from_pretrained(trained).eval(), batch)
    work = f"{blood.n_obs} blood cells x {len(types)} types, trained model, bfloat16"
    table.rows.append({"work": work, "same class": share})
    table.targets.append((f"{work}: share of cells with the same class", 0.99, share, share >= 0.99))


def same_class(model: LangCellModel, batch: dict[str, torch.Tensor]) -> float:
    exact = model.annotate(**batch).scores.argmax(1)
    return (exact == model.to(torch.bfloat16).annotate(**batch).scores.argmax(1)).float().mean().item()


def memory(table: Table, genes: int, numbers: tuple[int, ...]) -> None:
    peaks = [memory_of(functools.partial(annotation, 1, number, genes)) for number in numbers]
    for number, peak in zip(numbers, peaks, strict=True):
        table.rows.append({"work": f"1 cell x {number} classes", "ours, MiB": peak})
    growth = peaks[-1] / peaks[0]
    work = f"memory at {numbers[-1]} classes over that at {numbers[0]}"
    table.targets.append((work, 1.1, growth, growth <= 1.1))


def few(given: argparse.Namespace) -> Table:
    table = Table(given.quick)
    few_classes(table, make_model(), *((256, 1) if given.quick else (GENES, given.repeats)))
    return table


def many(given: argparse.Namespace) -> Table:
    table = Table(given.quick)
    many_classes(table, make_model(), make_model().to(torch.bfloat16), *((256, 20) if given.quick else (GENES, 160)))
    return table


def same(given: argparse.Namespace) -> Table:
    table = Table(given.quick)
    same_in_bfloat16(table, 16 if given.quick else 100, given.model)
    return table


def flat(given: argparse.Namespace) -> Table:
    table = Table(given.quick)
    memory(table, *((256, (64, 128)) if given.quick else (GENES, (64, 160, 320))))
    return table


PARTS = {"few": few, "many": many, "same": same, "memory": flat}


def main() -> None:
    options = parser(__doc__, repeats=3)
    add_parts(options, PARTS)
    options.add_argument("--model", type=Path, help="folder of a trained LangCell, for `same`")
    given = options.parse_args()
    for name in chosen_parts(options, given, PARTS):
        table = PARTS[name](given)
        report(given, table.rows, table.targets)


if __name__ == "__main__":
    main()
