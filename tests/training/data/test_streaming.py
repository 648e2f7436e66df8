import gc
import json
import os
import pickle
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler, DataLoader

from cellglot.tokenization.corpus.check import CorpusError
from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.training.data.cell_values import DamagedCellError
from cellglot.training.data.dataset import CellDataset, EpochSampler
from cellglot.training.data.reading_order import EpochOrder, Order
from cellglot.training.data.streaming import StreamedCells, StreamSampler


TOGETHER = 32
SHARD_CELLS = 190


@pytest.fixture(scope="module")
def sharded(corpus, tmp_path_factory):
    """The blood cells in three shards of small row groups, sorted by type."""
    folder = tmp_path_factory.mktemp("sharded") / "corpus"
    shutil.copytree(corpus.folder, folder)
    cells = pq.read_table(corpus.shards("train")[0]).sort_by("cell_type")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"] = [shard for shard in manifest["shards"] if shard["split"] != "train"]
    for number, first in enumerate(range(0, len(cells), SHARD_CELLS)):
        path, part = folder / "data" / f"train-{number:06d}.parquet", cells.slice(first, SHARD_CELLS)
        pq.write_table(part, path, row_group_size=16)
        tokens = int(part["length"].to_numpy().sum())
        manifest["shards"].append({"file": f"data/{path.name}", "split": "train", "cells": len(part), "tokens": tokens,
                                   "bytes": path.stat().st_size})  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Corpus.open(folder)


@pytest.fixture
def damaged(sharded, tmp_path):
    """Copies of the corpus, to be damaged."""
    shutil.copytree(sharded.folder, tmp_path / "corpus")
    return Corpus.open(tmp_path / "corpus")


def large(corpus, **options):
    cells = StreamedCells(corpus, "train", columns=["cell_type"], buffer_tokens=20_000, **options)
    assert not cells.is_small
    return cells


def batches(corpus, processes=1, workers=0, epoch=0, seed=0, skipped=0):
    """Cells of each step, over all processes, as Accelerate and loader processes deal them out."""
    dealt = []
    for process in range(processes):
        cells = large(corpus)
        order = cells.sampler(TOGETHER, seed)
        order.set_epoch(epoch)
        own = BatchSamplerShard(BatchSampler(order, TOGETHER // processes, False), processes, process)
        loader = DataLoader(cells, batch_sampler=own, collate_fn=list, num_workers=workers)
        loaded = skip_first_batches(loader, skipped) if skipped else loader
        dealt.append([[(e["cell"], len(e["input_ids"])) for e in batch] for batch in loaded])
    return [sum(parts, []) for parts in zip(*dealt, strict=True)]


@pytest.fixture(scope="module")
def one(sharded):
    """An epoch of one process without loader processes."""
    return batches(sharded)


def test_every_cell_is_read_once_an_epoch(one, sharded):
    cells = [cell for batch in one for cell, _ in batch]
    assert sorted(cell for cell in cells if cell >= 0) == list(range(sharded.n_cells("train")))
    assert all(cell >= 0 for batch in one[:-1] for cell, _ in batch)
    assert len(one) == -(-sharded.n_cells("train") // TOGETHER)
    assert all(tokens == 0 for cell, tokens in one[-1] if cell < 0)


@pytest.mark.parametrize(("processes", "workers"), [(2, 0), (4, 0), (8, 0), (1, 2), (2, 1)])
def test_processes_and_workers_do_not_change_the_batches(one, sharded, processes, workers):
    assert batches(sharded, processes, workers) == one


@pytest.mark.parametrize("processes", [1, 2])
def test_an_epoch_is_resumed_in_its_middle(one, sharded, processes):
    assert batches(sharded, processes, skipped=5) == one[5:]
    cells = large(sharded)
    keys = list(cells.sampler(TOGETHER, 0))
    last = cells.__getitems__(keys[-2 * TOGETHER : -TOGETHER])
    assert [(e["cell"], len(e["input_ids"])) for e in last] == one[-2]


def test_seed_and_epoch_change_the_order(one, sharded):
    assert batches(sharded, epoch=1) != one != batches(sharded, seed=1)
    assert batches(sharded, epoch=1) == batches(sharded, processes=2, epoch=1)


def test_types_are_mixed_and_lengths_are_similar(one, sharded):
    cells = large(sharded)
    types = [len({e["cell_type"] for e in cells.__getitems__([c for c, _ in batch if c >= 0])}) for batch in one[:-1]]
    assert np.mean(types) >= 4  # of 16 rows that lie together, all are of one type or two
    spread = [np.ptp([tokens for _, tokens in batch]) for batch in one[:-1]]
    assert np.mean(spread) < 0.6 * np.ptp(cells.lengths)


def test_cells_are_those_that_fine_tuning_reads(sharded):
    keep = np.arange(sharded.n_cells("train")) % 3 > 0
    options = {"columns": ["cell_type", "dataset_id"], "least_tokens": 230, "keep": keep}
    streamed, mapped = StreamedCells(sharded, "train", **options), CellDataset(sharded, "train", **options)
    assert (len(streamed), streamed.chosen, streamed.left_out) == (len(mapped), mapped.chosen, mapped.left_out)
    assert np.array_equal(streamed.lengths, mapped.lengths)
    assert streamed.count_longer(260) == mapped.count_longer(260) > 0
    assert isinstance(streamed.sampler(8, 0), EpochSampler)  # a small corpus is mixed as a whole
    keys = [3, (2, 17), (2, -1), len(mapped) - 1]
    planned = StreamedCells(sharded, "train", buffer_tokens=1_000, **options)
    order = planned.sampler(8, 0)
    assert isinstance(order, StreamSampler)
    seen = [e for e in planned.__getitems__(list(order)) if e["cell"] >= 0]
    assert len(seen) == len(mapped)
    pairs = [*zip(streamed.__getitems__(keys), mapped.__getitems__(keys), strict=True)]
    pairs += [(e, mapped[0, e["cell"]]) for e in seen[::11]]
    for a, b in pairs:
        assert a.keys() == b.keys()
        assert all(np.array_equal(a[name], b[name]) for name in a)
    ids = StreamedCells(sharded, "train", only_ids=True)[0]
    assert ids.keys() == {"epoch", "cell", "input_ids"}


def test_footers_of_shards_are_not_kept(sharded):
    """Also before the garbage collector runs: those of 600 shards took 190 MiB."""
    gc.collect()
    gc.disable()
    try:
        assert len(large(sharded)) > 0
        assert not any(type(thing).__name__ == "FileMetaData" for thing in gc.get_objects())
    finally:
        gc.enable()


def test_a_new_process_takes_no_open_files_along(sharded):
    cells = large(sharded)
    keys = list(cells.sampler(TOGETHER, 0))[:TOGETHER]
    read = cells.__getitems__(keys)
    copy = pickle.loads(pickle.dumps(cells))
    assert [e["cell"] for e in copy.__getitems__(keys)] == [e["cell"] for e in read]


@pytest.mark.parametrize(("cells", "together", "blocks"), [(1, 64, 1), (99, 10, 7), (5_000, 48, 40), (3_000, 4, 3)])
def test_an_order_has_every_cell_once(cells, together, blocks):
    kept = np.random.default_rng(0).multinomial(cells, np.ones(blocks) / blocks)
    first, lengths = np.cumsum(kept) - kept, np.random.default_rng(1).integers(1, 500, cells)
    plan = EpochOrder(kept, Order(0, 0, together), 600)
    seen, windows = [], {}
    for step in range(plan.steps):
        turn, window, batch = plan.place(step)
        for lane in range(plan.lanes):
            if (turn, window, lane) not in windows:
                pieces = plan.pieces(turn, window, lane)
                of_lane = [np.arange(first[p.block] + p.start, first[p.block] + p.stop) for p in pieces]
                numbers = np.concatenate([*of_lane, np.empty(0)]).astype(int)
                parts = plan.batches(turn, window, lane, lengths[numbers])
                windows[turn, window, lane] = [numbers[part] for part in parts]
            seen += windows[turn, window, lane][batch].tolist()
    assert sorted(seen) == list(range(cells))


def read_all(corpus):
    cells = large(corpus)
    return cells, lambda: cells.__getitems__(list(cells.sampler(TOGETHER, 0)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "disappeared during the run: restore the corpus and run the same command again"),
        (lambda path: path.write_bytes(path.read_bytes()[:-500]), r"was changed during the run \([\d,]+ bytes before"),
        (lambda path: os.utime(path, (1, 1)), "was changed during the run"),
    ],
)
def test_shards_that_change_during_a_run_are_named(damaged, damage, message):
    _, read = read_all(damaged)
    damage(damaged.folder / "data" / "train-000001.parquet")
    with pytest.raises(CorpusError, match=rf"train-000001\.parquet {message}"):
        read()


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("input_ids", 10**6, "input_ids has ids outside the"),
        ("expression_values", np.nan, "expression_values contains NaN"),
    ],
)
def test_values_of_another_vocabulary_are_named(damaged, column, value, message):
    path = damaged.folder / "data" / "train-000002.parquet"
    frame = pq.read_table(path).to_pandas()
    frame[column] = [[*v[:-1], value] if row == 37 else v for row, v in enumerate(frame[column])]
    frame.to_parquet(path, row_group_size=16)
    with pytest.raises(DamagedCellError, match=rf"train-000002\.parquet, row 37: {message}"):
        read_all(damaged)[1]()


def test_a_loader_process_names_the_shard(damaged):
    cells = large(damaged)
    loader = DataLoader(cells, 8, sampler=cells.sampler(8, 0), collate_fn=list, num_workers=1)
    (damaged.folder / "data" / "train-000000.parquet").unlink()
    with pytest.raises(CorpusError, match=r"^\S+train-000000\.parquet disappeared during the run"):
        list(loader)
    assert torch.utils.data.get_worker_info() is None
