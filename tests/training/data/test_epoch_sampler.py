import numpy as np
import pytest
from accelerate import skip_first_batches
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler, DataLoader

from cellglot.training.data.dataset import EpochSampler


def sampler(n_cells, together, seed=0, epoch=0, **options):
    lengths = np.random.default_rng(1).integers(5, 500, n_cells)
    order = EpochSampler(lengths, together, seed, **options)
    order.set_epoch(epoch)
    return order


def batches(n_cells, processes, size, **options):
    """Batches of each process, as Accelerate deals them out."""
    order = sampler(n_cells, processes * size, **options)
    return [list(BatchSamplerShard(BatchSampler(order, size, False), processes, p)) for p in range(processes)]


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("n_cells", [1, 7, 24, 64, 101])
def test_every_cell_is_seen_once_an_epoch(n_cells, processes):
    dealt = batches(n_cells, processes, 4, epoch=3)
    assert len({len(mine) for mine in dealt}) == 1
    assert {len(batch) for mine in dealt for batch in mine} == {4}
    keys = [key for mine in dealt for batch in mine for key in batch]
    assert {epoch for epoch, _ in keys} == {3}
    assert sorted(cell for _, cell in keys if cell >= 0) == list(range(n_cells))
    assert sum(cell < 0 for _, cell in keys) == -n_cells % (4 * processes)


@pytest.mark.parametrize("processes", [2, 3])
def test_batches_of_all_processes_together_are_those_of_one(processes):
    (one,) = batches(101, 1, 12)
    dealt = batches(101, processes, 12 // processes)
    assert [sum(parts, []) for parts in zip(*dealt, strict=True)] == one


def test_order_depends_on_seed_and_epoch_alone():
    orders = {
        (seed, epoch): [cell for _, cell in sampler(64, 8, seed=seed, epoch=epoch)]
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len({tuple(order) for order in orders.values()}) == 4
    assert [cell for _, cell in sampler(64, 8, seed=1, epoch=1)] == orders[1, 1]
    assert [cell for _, cell in sampler(6, 4, shuffle=False)] == [0, 1, 2, 3, 4, 5, -1, -1]


def test_cells_of_similar_length_come_together():
    order = sampler(1_000, 10)
    lengths = order.lengths[[cell for _, cell in order]].reshape(-1, 10)
    drawn = order.lengths[[cell for _, cell in sampler(1_000, 10, pool=1)]].reshape(-1, 10)
    assert np.ptp(lengths, axis=1).mean() < np.ptp(drawn, axis=1).mean() / 10
    assert (np.diff(lengths.mean(axis=1)) > 0).mean() == pytest.approx(0.5, abs=0.15)  # batches in any order


def test_an_epoch_goes_on_in_the_middle():
    def loader():
        return DataLoader(range(10), batch_sampler=BatchSampler(sampler(50, 8, epoch=2), 8, False))

    keys = [list(batch) for batch in loader().batch_sampler]
    rest = [list(batch) for batch in skip_first_batches(loader(), 3).batch_sampler]
    assert rest == keys[3:]
    assert len(rest) == 4
