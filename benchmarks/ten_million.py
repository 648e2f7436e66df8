"""Ten million synthetic cells, tokenized and streamed through an epoch: time and memory, compared with one million.

python benchmarks/ten_million.py tokenize --folder FOLDER
python benchmarks/ten_million.py stream --folder FOLDER

Simulated: one file of a million cells over 1,000 genes, about 60 of them expressed in a cell (Poisson counts by gene
means that are log-normal), and nine hard links to it: ten files of a million cells are read, and ten million cells are
tokenized and written. Cells of 10x have about twenty times as many genes. `cellglot tokenize` runs as a command, its
memory is polled. Then a process streams an epoch into padded batches of 64 cells, without masks, on one core; its
memory is noted after every tenth of the epoch. The folder keeps the corpora between the two, about 3 GB.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from measure import MIB, parser, report, run


N_GENES, MEAN_GENES, AT_ONCE = 1_000, 60, 10_000
EPOCH = """
import json, sys, time
from pathlib import Path
import pyarrow as pa, torch
from torch.utils.data import BatchSampler, DataLoader
from cellglot.tokenization import Corpus
from cellglot.training.data.rank_value_collator import rank_value_collator
from cellglot.training.data.streaming import StreamedCells
torch.set_num_threads(1); pa.set_cpu_count(1)
begin = time.perf_counter()
corpus = Corpus.open(sys.argv[1], contents=None)
cells = StreamedCells(corpus, "train", only_ids=True)
opened = time.perf_counter() - begin
collator = rank_value_collator(corpus.tokenizer(), mask_fraction=0.0)
loader = DataLoader(cells, batch_sampler=BatchSampler(cells.sampler(64, 0), 64, False), collate_fn=collator)
def memory(name):
    return next(int(l.split()[1]) for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(name))
seen, filled, places, resident, begin = 0, 0, 0, [], time.perf_counter()
for batch in loader:
    mask = batch["attention_mask"]
    seen, filled, places = seen + int(mask.any(1).sum()), filled + int(mask.sum()), places + mask.numel()
    if seen * 10 >= len(cells) * (len(resident) + 1):
        resident.append(memory("VmRSS:") / 1024)
print("FOUND", json.dumps({"cells": seen, "of": len(cells), "opened": opened, "seconds": time.perf_counter() - begin,
                           "padding": 1 - filled / places, "resident": resident, "peak": memory("VmHWM:") / 1024}))
"""


def write_synthetic(path: Path, cells: int, seed: int = 0) -> None:
    """Write an h5ad file of synthetic cells."""
    import anndata as ad
    import pandas as pd
    from scipy import sparse

    random = np.random.default_rng(seed)
    means = random.lognormal(0.0, 1.5, N_GENES)
    low, high = 0.0, 1e3
    for _ in range(60):  # a factor of the means by which MEAN_GENES genes are expressed, on average
        middle = (low + high) / 2
        low, high = (middle, high) if (1 - np.exp(-means * middle)).sum() < MEAN_GENES else (low, middle)
    parts = []
    for first in range(0, cells, AT_ONCE):
        rows = min(AT_ONCE, cells - first)
        parts.append(sparse.csr_matrix(random.poisson(means * low, (rows, N_GENES)).astype(np.float32)))
    genes = pd.DataFrame(index=[f"ENSG{i:011d}" for i in range(1, N_GENES + 1)])
    obs = pd.DataFrame(index=np.arange(cells).astype(str))
    ad.AnnData(sparse.vstack(parts, format="csr"), obs=obs, var=genes).write_h5ad(path, compression="gzip")


def tokenize(files: list[Path], output: Path, processes: int) -> dict[str, float]:
    """Run the command; return seconds and peak memory."""
    command = [sys.executable, "-m", "cellglot", "tokenize", *map(str, files), "-o", str(output)]
    return run(
        [*command, "--tokenizer", "rank-value", "--option", "add_cls_token=true", "--processes", str(processes)]
    )


def stream(corpus: Path) -> dict:
    """Stream an epoch in a process of its own."""
    done = subprocess.run([sys.executable, "-c", EPOCH, str(corpus)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.rpartition("FOUND ")[2])


def tokenize_all(folder: Path, cells: int, files: int, processes: int) -> list[dict]:
    """Tokenize one file and all files into corpora of the folder; return the rows of the table."""
    paths = [folder / f"cells-{number}.h5ad" for number in range(files)]
    for path in paths:
        path.unlink(missing_ok=True)
    write_synthetic(paths[0], cells)
    for path in paths[1:]:
        os.link(paths[0], path)
    rows = []
    for number, corpus in ((1, folder / "one"), (files, folder / "all")):
        shutil.rmtree(corpus, ignore_errors=True)
        found = tokenize(paths[:number], corpus, processes)
        size = sum(path.stat().st_size for path in (corpus / "data").glob("*.parquet"))
        rows.append({"work": f"tokenize ({processes})", "cells": number * cells, "seconds": found["seconds"],
                     "cells/s": number * cells / found["seconds"], "peak MiB": found["peak_mib"],
                     "file, MiB": paths[0].stat().st_size * number / MIB, "Parquet, MiB": size / MIB})  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def stream_all(folder: Path) -> list[dict]:
    """Stream an epoch of both corpora; return the rows of the table."""
    rows = []
    for corpus in (folder / "one", folder / "all"):
        read = stream(corpus)
        assert read["cells"] == read["of"]
        rows.append({"work": "one epoch, batches of 64", "cells": read["cells"], "seconds": read["seconds"],
                     "cells/s": read["cells"] / read["seconds"], "peak MiB": read["peak"],
                     "seconds to open": read["opened"], "padding": read["padding"],
                     "MiB after a tenth": read["resident"][0], "MiB at the end": read["resident"][-1]})  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def growth(what: str, rows: list[dict], bound: float) -> tuple[str, float, float, bool]:
    """Compare the peaks of few and many cells."""
    few, many = rows
    ratio = many["peak MiB"] / few["peak MiB"]
    return f"{what}: peak of {many['cells']:,} cells over that of {few['cells']:,}", bound, ratio, ratio <= bound


def main() -> None:
    options = parser(__doc__)
    options.add_argument("step", choices=["tokenize", "stream"], help="tokenize first, then stream")
    options.add_argument("--cells", type=int, default=1_000_000, help="cells of a file (default %(default)s)")
    options.add_argument("--files", type=int, default=10, help="files (default %(default)s)")
    options.add_argument("--processes", type=int, default=1, help="of cellglot tokenize (default %(default)s)")
    options.add_argument("--folder", type=Path, required=True, help="folder for the cells and corpora")
    given = options.parse_args()
    kept = given.folder / "tokenized.json"
    if given.step == "tokenize":
        rows = tokenize_all(given.folder, 20_000 if given.quick else given.cells, given.files, given.processes)
        kept.write_text(json.dumps(rows))
        return
    tokenized, streamed = json.loads(kept.read_text()), stream_all(given.folder)
    targets = [growth("tokenize", tokenized, 1.2), growth("an epoch", streamed, 1.05)]
    columns = list(dict.fromkeys(name for row in [*tokenized, *streamed] for name in row))
    report(given, [{name: row.get(name, "") for name in columns} for row in [*tokenized, *streamed]], targets)


if __name__ == "__main__":
    main()
