import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader

from cellglot.training.data.collators import ExceiverCollator
from cellglot.training.data.dataset import CellDataset, EpochSampler


@pytest.fixture(scope="module")
def table(corpus):
    parts = [pq.read_table(shard).to_pandas() for shard in corpus.shards("train")]
    return pd.concat(parts, ignore_index=True)


def test_cells_are_those_of_the_parquet_files(corpus, table):
    cells = CellDataset(corpus, "train", columns=["cell_type"])
    assert len(cells) == len(table) == corpus.n_cells("train")
    assert np.array_equal(cells.lengths, table.length)
    assert cells.column("cell_type") == table.cell_type.tolist()
    read = cells.__getitems__([(5, 17), (5, 3), (5, 17)])
    for example, row in zip(read, (17, 3, 17), strict=True):
        assert (example["epoch"], example["cell"]) == (5, row)
        assert np.array_equal(example["input_ids"], table.input_ids[row])
        assert np.array_equal(example["expression_values"], table.expression_values[row])
        assert example["cell_type"] == table.cell_type[row]
    assert cells[3]["epoch"] == -1
    assert np.array_equal(cells[3]["input_ids"], table.input_ids[3])


def test_the_cell_that_fills_up_has_no_tokens(corpus):
    cells = CellDataset(corpus, "train", columns=["cell_type"])
    filler, cell = cells.__getitems__([(0, -1), (0, 4)])
    assert len(filler["input_ids"]) == len(filler["expression_values"]) == 0
    assert "cell_type" not in filler
    assert len(cell["input_ids"]) == cells.lengths[4]
    assert len(cells.__getitems__([(0, -1), (0, -1)])) == 2


def test_cells_left_out_are_counted(corpus, table):
    least = int(table.length.median())
    keep = np.arange(len(table)) % 2 == 0
    cells = CellDataset(corpus, "train", least_tokens=least, keep=keep)
    short = (table.length < least).to_numpy()
    assert cells.rows.tolist() == np.flatnonzero(keep & ~short).tolist()
    assert cells.left_out == (keep & short).sum() > 0
    assert np.array_equal(cells[1]["input_ids"], table.input_ids[cells.rows[1]])


def test_no_cells_are_an_error(corpus):
    with pytest.raises(ValueError, match="has no test cells"):
        CellDataset(corpus, "test")
    with pytest.raises(ValueError, match=r"no train cell of .* has 9,999 tokens or more"):
        CellDataset(corpus, "train", least_tokens=9999)


@pytest.mark.long
def test_an_epoch_through_a_loader_with_workers(corpus, table):
    cells = CellDataset(corpus, "train")
    loader = DataLoader(
        cells,
        batch_size=100,
        sampler=EpochSampler(cells.lengths, 100, seed=0),
        collate_fn=ExceiverCollator(corpus.manifest["vocab_size"] - 2, 5),
        num_workers=1,
        multiprocessing_context="spawn",  # as on macOS and Windows; forks of a process with threads may hang
    )
    loaded = list(loader)
    assert len(loaded) == 6
    assert sum(int(batch["attention_mask"].sum()) for batch in loaded) == table.length.sum()
