"""LangCell's zero-shot annotation at its published size, against running every (cell, text) pair from scratch.

    python benchmarks/langcell.py [--quick]

12 layers of 512 for cells and 12 of 768 for texts, cells of 1,024 gene tokens, texts of 60 tokens, random weights. The
straightforward way (`straightforward_langcell.py`) does what the released notebook does: cells once, texts in text mode
once, then every pair through the text encoder from scratch, with explicit attention weights. One row replaces these by
PyTorch's fused attention on the straightforward side, too. All sides of a row run in turn. That float32 gives the same
scores is checked. Weights are random, but the last layers' are scaled so that classes differ; the share of cells with
the same prediction in bfloat16 is over all cells of the row. Memory is what a process takes beyond its size before.
"""

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch


sys.path.insert(0, str(Path(__file__).parent))

import straightforward_langcell as straightforward  # noqa: E402
from measure import alternate, median, memory_of, parser, ratio, report  # noqa: E402

from cellglot.modeling import LangCellConfig, LangCellModel  # noqa: E402


GENES, WORDS = 1024, 60


def make_model(dtype: torch.dtype = torch.float32) -> LangCellModel:
    torch.manual_seed(0)
    model = LangCellModel(LangCellConfig(attn_implementation="sdpa")).eval()
    with torch.no_grad():
        for head in (model.matching_head, model.cell_model.projection, model.text_model.projection):
            head.weight.mul_(10)
    return model.to(dtype)


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


def annotation(cells: int, classes: int, genes: int, dtype: torch.dtype = torch.float32) -> Callable[[], torch.Tensor]:
    """Give a function that annotates so many cells with so many classes."""
    model, batch = make_model(dtype), make_batch(cells, classes, genes)
    return lambda: model.annotate(**batch).scores


def has_bf16_instructions() -> bool:
    flags = subprocess.run(["lscpu"], capture_output=True, text=True, check=False).stdout
    return "avx512_bf16" in flags or "amx_bf16" in flags


def row(work: str, slow: list[float], fast: list[float]) -> dict[str, object]:
    return {
        "work": work,
        "straightforward, s": median(slow),
        "ours, s": median(fast),
        "times as fast": ratio(slow, fast),
    }


def main() -> None:
    options = parser(__doc__, repeats=3).parse_args()
    genes = 256 if options.quick else GENES
    few, many, repeats = (8, 16, 1) if options.quick else (8, 160, options.repeats)
    shortlist = 2 if options.quick else 8
    model, half = make_model(), make_model(torch.bfloat16)
    rows, targets = [], []

    def row_and_target(work: str, times: dict[str, list[float]], slow: str, fast: str, asked: float | None) -> None:
        rows.append(row(work, times[slow], times[fast]))
        speed = rows[-1]["times as fast"]
        if asked is not None and not options.quick:
            targets.append((f"{work}: times as fast", asked, speed, speed >= asked))

    # -------------------------------------------------------------------- few classes
    batch, found = make_batch(16, few, genes), {}

    def keep(name: str, function: Callable[[], torch.Tensor]) -> Callable[[], None]:
        return lambda: found.__setitem__(name, function())

    times = alternate(
        {
            "straightforward": keep("straightforward", lambda: straightforward.annotate(model, **batch)),
            "fused": keep("fused", lambda: straightforward.annotate(model, **batch, fused=True)),
            "ours": keep("ours", lambda: model.annotate(**batch).scores),
        },
        repeats,
    )
    torch.testing.assert_close(found["ours"], found["straightforward"], rtol=1e-5, atol=1e-5)
    row_and_target(f"16 cells x {few} classes, exact, float32", times, "straightforward", "ours", 1.6)
    row_and_target(f"16 cells x {few} classes, both with fused attention", times, "fused", "ours", None)

    # -------------------------------------------------------------------- many classes
    batch = make_batch(4, many, genes)
    texts = {name: batch[name] for name in ("text_input_ids", "text_attention_mask")}
    ready = model.get_text_features(**texts).detach()
    sides = {
        "straightforward": keep("straightforward", lambda: straightforward.annotate(model, **batch)),
        "texts ready": keep("ready", lambda: straightforward.annotate(model, **batch, text_features=ready)),
        "ours": keep("ours", lambda: model.annotate(**batch).scores),
        "bf16": keep("bf16", lambda: half.annotate(**batch).scores),
        "shortlist": keep(
            "shortlist", lambda: model.annotate(**batch, text_features=ready, shortlist=shortlist).scores
        ),
    }
    times = alternate(sides, max(1, repeats // 3))
    torch.testing.assert_close(found["ours"], found["straightforward"], rtol=1e-5, atol=1e-5)
    row_and_target(f"4 cells x {many} classes, exact, float32", times, "straightforward", "ours", 2.2)
    asked = 4.0 if has_bf16_instructions() else None
    row_and_target(f"4 cells x {many} classes, exact, bfloat16 of ours", times, "straightforward", "bf16", asked)
    work = f"4 cells x {many} classes, shortlist {shortlist}, text embeddings ready"
    row_and_target(work, times, "texts ready", "shortlist", 15.0)

    # -------------------------------------------------------------------- same prediction, memory
    batch = make_batch(4 if options.quick else 64, few, 128 if options.quick else 256)
    same = (model.annotate(**batch).scores.argmax(1) == half.annotate(**batch).scores.argmax(1)).float().mean().item()
    targets.append(
        (f"bfloat16: share of {len(batch['input_ids'])} cells with the same prediction", 0.99, same, same >= 0.99)
    )
    numbers = (64, 128) if options.quick else (64, 160, 640)
    peaks = {number: memory_of(functools.partial(annotation, 1, number, genes)) for number in numbers}
    for number, peak in peaks.items():
        rows.append({"work": f"memory, 1 cell x {number} classes", "ours, MiB": peak})
    growth = peaks[numbers[-1]] / peaks[numbers[0]]
    targets.append((f"memory at {numbers[-1]} classes over {numbers[0]} classes", 1.1, growth, growth <= 1.1))
    columns = list(dict.fromkeys(name for one in rows for name in one))
    report(options, [{name: one.get(name, "") for name in columns} for one in rows], targets)


if __name__ == "__main__":
    main()
