"""Embedding a backed h5ad: as fast as from memory, with memory that does not grow with the number of cells.

python benchmarks/embed_backed.py

Simulated cells have the density and values of pbmc_facs (its cells in seeded shuffles). The model is a small scCello
(one layer of size 32, 256 genes of a cell) with random weights, so that reading has more weight than with a large one.
Rates: the same cells as an AnnData in memory, as a backed one, and as a file opened by `read_cells`, in turn. Memory:
the peak of a new process minus its memory with model and file open, and minus the embeddings. It is measured twice:
with the default settings, where the C library keeps freed blocks of many sizes and fragments with time, and with freed
blocks of 64 KiB and more returned to the system at once, which shows the memory in use. Targets: a backed rate of at
least 0.9 of that in memory, and a peak of 100,000 cells of at most 1.2 times that of 10,000.
"""

import tempfile
from pathlib import Path
from typing import Any

import anndata
import torch
from measure import MIB, alternate, median, memory_of, parser, ratio, report
from resampled_cells import SOURCE, write_cells

from cellglot.evaluation import embed_cells
from cellglot.modeling import ScCelloConfig, ScCelloModel
from cellglot.tokenization import GeneVocabulary, RankValueTokenizer, read_cells


SIZE = 32


def main() -> None:
    options = parser(__doc__, repeats=5)
    options.add_argument("--sizes", type=int, nargs=2, default=[10_000, 100_000], help="numbers of cells, ascending")
    options.add_argument("--timed", type=int, default=10_000, help="cells in each timed run (default %(default)s)")
    options.add_argument("--source", type=Path, default=SOURCE, help="small .h5ad file to draw cells from")
    options.add_argument("--folder", type=Path, help="folder for temporary files")
    given = options.parse_args()
    if given.quick:
        given.sizes, given.timed, given.repeats = [2_000, 8_000], 2_000, 3
    with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
        folder = Path(temporary)
        for n in {*given.sizes, given.timed}:
            write_cells(folder / f"{n}.h5ad", n, given.source)
        rows, rates = timings(folder / f"{given.timed}.h5ad", given)
        targets = [(f"rate of {given.timed:,} cells, backed over in memory", 0.9, rates, rates >= 0.9)]
        for how, returned_from in (("as it is", None), ("freed blocks given back", 1 << 16)):
            peaks = []
            for n in given.sizes:
                mib = memory_of(prepare, folder / f"{n}.h5ad", returned_from=returned_from)
                peaks.append(mib - n * SIZE * 4 / MIB)
                rows.append({"cells": n, "from": f"backed, {how}", "cells per second": "", "peak MiB": mib,
                             "embeddings MiB": n * SIZE * 4 / MIB})  # fmt: skip
            what = f"peak beyond embeddings, {given.sizes[1]:,} cells over {given.sizes[0]:,}, {how}"
            targets.append((what, 1.2, peaks[1] / peaks[0], peaks[1] <= 1.2 * peaks[0]))
    report(given, rows, targets)


def timings(path: Path, given: Any) -> tuple[list[dict[str, Any]], float]:
    """Time the three ways in turn; return rows of the table, and the backed rate divided by that in memory."""
    model, tokenizer = network(path)
    loaded, backed = anndata.read_h5ad(path), anndata.read_h5ad(path, backed="r")

    def from_file() -> None:
        with read_cells(path) as cells:
            embed_cells(model, tokenizer, cells, progress=False, device="cpu")

    sides = {
        "memory": lambda: embed_cells(model, tokenizer, loaded, progress=False, device="cpu"),
        "backed": lambda: embed_cells(model, tokenizer, backed, progress=False, device="cpu"),
        "file": from_file,
    }
    times = alternate(sides, given.repeats)
    rows = [
        {"cells": loaded.n_obs, "from": how, "cells per second": loaded.n_obs / median(t), "peak MiB": "",
         "embeddings MiB": ""}
        for how, t in times.items()
    ]  # fmt: skip
    return rows, ratio(times["memory"], times["backed"])


def network(path: Path) -> tuple[Any, Any]:
    """Make the small model and a tokenizer with the genes of the file."""
    genes = list(anndata.read_h5ad(path, backed="r").var_names)
    vocabulary = GeneVocabulary.from_statistics(genes, medians=[1.0] * len(genes))
    tokenizer = RankValueTokenizer.from_vocabulary(vocabulary, model_max_length=256)
    torch.manual_seed(0)
    config = ScCelloConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=SIZE, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=2 * SIZE, max_position_embeddings=256,
    )  # fmt: skip
    return ScCelloModel(config).eval(), tokenizer


def prepare(path: Path) -> Any:
    """Open model and cells; return the function whose memory is measured."""
    torch.set_num_threads(2)
    model, tokenizer = network(path)
    cells = anndata.read_h5ad(path, backed="r")
    embed_cells(model, tokenizer, cells[:64].to_memory(), progress=False, device="cpu")
    return lambda: embed_cells(model, tokenizer, cells, progress=False, device="cpu")


if __name__ == "__main__":
    main()
