"""Streaming of token Parquet into padded batches: rate, entropy of cell types in a batch, memory, time to open.

python benchmarks/streaming.py --folder FOLDER

The corpora are the cells of one labelled file (about 1,100 tokens a cell), repeated; some are sorted by cell type,
the worst order for a reader, some shuffled. Shards are dropped from the page cache before they are read. One process
on one core pads batches of 64 without masks, with a thread that reads ahead. Rates are per second of processor time
and per second of the clock, which other processes on the machine slow down. Entropy is that of the cell types in a
batch, as a share of that of batches of cells drawn at random. Large corpora repeat a few shards by links.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from measure import MIB, parser, report
from repeated_corpus import drop_from_cache, repeat, small_corpus
from torch.utils.data import BatchSampler, DataLoader

from cellglot.tokenization import Corpus
from cellglot.training.data.dataset import CellDataset, EpochSampler
from cellglot.training.data.rank_value_collator import rank_value_collator
from cellglot.training.data.streaming import StreamedCells


BATCH = 64
SETTINGS = ["trainer.max_steps=40", "trainer.per_device_train_batch_size=64", "trainer.eval_strategy=no",
            "trainer.save_strategy=no", "trainer.use_cpu=true", "trainer.logging_steps=40"]  # fmt: skip
TRAIN = """
import json, sys
from pathlib import Path
from cellglot.training.config import configs_folder, load_config
from cellglot.training.pretraining.pretrain import pretrain
corpus, output, settings = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
pretrain(load_config(configs_folder() / "sccello_tiny.yaml", settings), corpus, output)
status = Path("/proc/self/status").read_text()  # `getrusage` would count the memory of the benchmark, too
print("PEAK", next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))
"""


def entropy(labels: np.ndarray) -> float:
    """Return the entropy of labels, in nats."""
    shares = np.unique(labels, return_counts=True)[1] / len(labels)
    return float(-(shares * np.log(shares)).sum())


def random_entropy(corpus: Corpus) -> float:
    """Return the mean entropy of batches of cells drawn at random."""
    shards = corpus.shards("train")
    labels = np.concatenate([pq.read_table(s, columns=["cell_type"])["cell_type"].to_numpy() for s in shards])
    random = np.random.default_rng(0)
    return float(np.mean([entropy(random.choice(labels, BATCH)) for _ in range(500)]))


def read(corpus: Corpus, how: str, most_cells: int) -> dict[str, float]:
    """Read batches, and return rates, entropy and the share of tokens that are not padding."""
    random = random_entropy(corpus)
    drop_from_cache(corpus.folder)
    if how == "one random row at a time":
        cells = CellDataset(corpus, "train", columns=["cell_type"])
        drop_from_cache(corpus.folder)
        sampler = EpochSampler(cells.lengths, BATCH, 0)
    else:
        cells = StreamedCells(corpus, "train", columns=["cell_type"], only_ids=True)
        sampler = range(len(cells)) if how == "in the order of the shards" else cells.sampler(BATCH, 0)
    keys = [key for key, _ in zip(sampler, range(most_cells), strict=False)]
    collator = rank_value_collator(corpus.tokenizer(), mask_fraction=0.0)
    types: list[np.ndarray] = []

    def collate(examples: list) -> dict[str, torch.Tensor]:
        types.append(np.array([e.get("cell_type") for e in examples if e["cell"] >= 0]))
        return collator(examples)

    loader = DataLoader(cells, batch_sampler=BatchSampler(keys, BATCH, False), collate_fn=collate)
    wall, processor, filled = time.perf_counter(), time.process_time(), []
    for batch in loader:
        filled.append(float(batch["attention_mask"].float().mean()))
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    number = sum(map(len, types))
    return {
        "cells": number,
        "cells/s (processor)": number / processor,
        "cells/s (clock)": number / wall,
        "entropy, share of random": float(np.mean([entropy(t) for t in types if len(t) == BATCH])) / random,
        "tokens that are not padding": float(np.mean(filled)),
    }


def opening(corpus: Path) -> float:
    """Return the seconds to open a corpus and a reader of its training cells."""
    drop_from_cache(corpus)
    start = time.perf_counter()
    StreamedCells(Corpus.open(corpus, contents=None), "train", columns=["cell_type"])
    return time.perf_counter() - start


def training_memory(corpus: Path, folder: Path) -> float:
    """Return the peak memory of a process that pretrains scCello for 40 steps, in MiB."""
    command = [sys.executable, "-c", TRAIN, str(corpus), str(folder), json.dumps(SETTINGS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.rpartition("PEAK ")[2]) * 1024 / MIB


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--cells", type=int, default=100_000, help="cells to read")
    options.add_argument("--large", type=int, nargs=2, default=[1_000_000, 10_000_000], help="sizes to compare")
    options.add_argument("--folder", type=Path, help="folder for temporary files: 1 GB")
    given = options.parse_args()
    if given.quick:
        given.cells, given.large = 20_000, [100_000, 1_000_000]
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    psutil.Process().cpu_affinity([psutil.Process().cpu_affinity()[0]])
    rows, measured = [], {}
    with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
        folder = Path(temporary)
        small = small_corpus(folder / "small")
        for order, group, ways in (
            ("shuffled", 512, ["in the order of the shards", "in blocks"]),
            ("types", 512, ["in blocks", "one random row at a time"]),
            ("types", 16, ["in blocks"]),
        ):
            corpus = Corpus.open(repeat(small, folder / "corpus", given.cells, order, group))
            for how in ways:
                measured[order, group, how] = read(corpus, how, given.cells)
                rows.append({"read": how, "corpus": order, "rows of a block": group} | measured[order, group, how])
        seconds, memory = {}, {}
        for size in given.large:
            corpus = repeat(small, folder / "corpus", size, "shuffled", different=8)
            seconds[size] = opening(corpus)
            memory[size] = training_memory(corpus, folder / f"model-{size}")
            rows.append({"read": "opened; trained for 40 steps", "corpus": "shuffled", "cells": size,
                         "seconds to open": seconds[size], "peak MiB": memory[size]})  # fmt: skip
    first, last = given.large
    blocks, shards = measured["types", 16, "in blocks"], measured["shuffled", 512, "in the order of the shards"]
    rate, share = "cells/s (processor)", "entropy, share of random"
    least = min(blocks[share], measured["shuffled", 512, "in blocks"][share], shards[share])
    growth = memory[last] / memory[first]
    targets = [
        ("blocks of 16 rows, cells a second of one core", 10_000, blocks[rate], blocks[rate] >= 10_000),
        ("in the order of the shards, cells a second of one core", 20_000, shards[rate], shards[rate] >= 20_000),
        ("least entropy of types in a batch, share of random", 0.9, least, least >= 0.9),
        (f"memory of {last:,} cells compared with {first:,}", 1.05, growth, growth <= 1.05),
        (f"seconds to open {last:,} cells", 2.0, seconds[last], seconds[last] <= 2.0),
    ]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    report(given, [{name: row.get(name, "") for name in columns} for row in rows], targets)


if __name__ == "__main__":
    main()
