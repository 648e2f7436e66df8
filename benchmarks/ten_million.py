"""Ten million synthetic cells, tokenized and streamed through an epoch: time and memory, compared with one million.

python benchmarks/ten_million.py --folder FOLDER

Simulated: one file of a million cells over 2,000 genes, about 150 of them expressed in a cell (Poisson counts by gene
means that are log-normal), and nine hard links to it, so that ten files of a million cells are read and ten million
cells are tokenized and written. A cell is a seventh as long as one of 10x. `cellglot tokenize` runs as a command, its
memory is polled. Then a process streams an epoch into padded batches of 64 cells with masked genes, as in pretraining,
on one core; its memory is noted after every tenth of the epoch. Needs about 6 GB of disk.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from measure import MIB, parser, report, run


N_GENES, MEAN_GENES, AT_ONCE = 2_000, 150, 10_000
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
collator = rank_value_collator(corpus.tokenizer())
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


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--cells", type=int, default=1_000_000, help="cells of a file (default %(default)s)")
    options.add_argument("--files", type=int, default=10, help="files (default %(default)s)")
    options.add_argument("--processes", type=int, default=1, help="of cellglot tokenize (default %(default)s)")
    options.add_argument("--folder", type=Path, help="folder for temporary files")
    given = options.parse_args()
    if given.quick:
        given.cells = 20_000
    rows, tokenized, streamed = [], {}, {}
    with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
        folder = Path(temporary)
        files = [folder / f"cells-{number}.h5ad" for number in range(given.files)]
        begin = time.perf_counter()
        write_synthetic(files[0], given.cells)
        print(f"{given.cells:,} cells written in {time.perf_counter() - begin:.0f} s", flush=True)
        for file in files[1:]:
            os.link(files[0], file)
        for number in (1, given.files):
            cells, corpus = number * given.cells, folder / "corpus"
            shutil.rmtree(corpus, ignore_errors=True)
            found = tokenized[number] = tokenize(files[:number], corpus, given.processes)
            size = sum(path.stat().st_size for path in (corpus / "data").glob("*.parquet"))
            rows.append({"work": "tokenize", "cells": cells, "seconds": found["seconds"],
                         "cells/s": cells / found["seconds"], "peak MiB": found["peak_mib"],
                         "file, MiB": files[0].stat().st_size * number / MIB, "Parquet, MiB": size / MIB})  # fmt: skip
            print(rows[-1], flush=True)
            read = streamed[number] = stream(corpus)
            assert read["cells"] == read["of"]
            rows.append({"work": "one epoch, batches of 64", "cells": read["cells"], "seconds": read["seconds"],
                         "cells/s": read["cells"] / read["seconds"], "peak MiB": read["peak"],
                         "seconds to open": read["opened"], "padding": read["padding"],
                         "MiB after a tenth": read["resident"][0],
                         "MiB at the end": read["resident"][-1]})  # fmt: skip
            print(rows[-1], flush=True)
    few, many = given.cells, given.cells * given.files
    growth = tokenized[given.files]["peak_mib"] / tokenized[1]["peak_mib"]
    larger = streamed[given.files]["peak"] / streamed[1]["peak"]
    targets = [
        (f"tokenize: peak of {many:,} cells over that of {few:,}", 1.2, growth, growth <= 1.2),
        (f"an epoch: peak of {many:,} cells over that of {few:,}", 1.05, larger, larger <= 1.05),
    ]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    report(given, [{name: row.get(name, "") for name in columns} for row in rows], targets)


if __name__ == "__main__":
    main()
