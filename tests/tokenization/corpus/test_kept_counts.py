import errno
import os

import numpy as np
import pytest

from cellglot.tokenization.corpus.count_cache import KeptCounts, in_smallest_types
from cellglot.tokenization.count_matrix import CountRows


def chunk(largest, n_columns=1000, kind=np.float32):
    rng = np.random.default_rng(0)
    data = rng.integers(1, largest, 500, endpoint=True).astype(kind)
    data[7] = largest
    return CountRows(data, rng.integers(0, n_columns, 500).astype(np.int32), np.array([0, 100, 100, 500]))


KINDS = [
    (9, 1000, ("u1", "u2")),
    (255, 200, ("u1", "u1")),
    (256, 200, ("u2", "u1")),
    (70_000, 100_000, ("u4", "u4")),
    (2**40, 9, ("u8", "u1")),
]


@pytest.mark.parametrize(("largest", "n_columns", "kinds"), KINDS)
def test_what_was_kept_is_given_back_in_the_smallest_types(tmp_path, largest, n_columns, kinds):
    rows = chunk(largest, n_columns, np.float64)
    KeptCounts(tmp_path / "counts").keep("a", in_smallest_types(rows))
    loaded = KeptCounts(tmp_path / "counts").load("a")
    assert (loaded.data.dtype.str[1:], loaded.indices.dtype.str[1:]) == kinds
    for name in ("data", "indices", "indptr"):
        assert np.array_equal(getattr(loaded, name), getattr(rows, name))
    assert KeptCounts(tmp_path / "counts").load("b") is None


@pytest.mark.parametrize("place", [130, -1, -700])
def test_a_chunk_with_a_changed_bit_is_read_from_its_file_again(tmp_path, place):
    KeptCounts(tmp_path).keep("a", chunk(9))
    content = bytearray((tmp_path / "a.npy").read_bytes())
    content[place] ^= 4
    (tmp_path / "a.npy").write_bytes(content)
    assert KeptCounts(tmp_path).load("a") is None


def test_cells_without_counts_are_kept(tmp_path):
    rows = CountRows(np.zeros(0), np.zeros(0, np.int64), np.array([0, 0, 0]))
    KeptCounts(tmp_path).keep("a", in_smallest_types(rows))
    assert len(KeptCounts(tmp_path).load("a")) == 2


def test_nothing_is_kept_beyond_the_size_or_where_the_disk_is_full(tmp_path, monkeypatch):
    kept = KeptCounts(tmp_path, most_bytes=9500)
    for name in "abc":
        kept.keep(name, chunk(9))
    assert [kept.load(name) is not None for name in "abc"] == [True, True, False]
    kept = KeptCounts(tmp_path)

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    kept.keep("e", chunk(9))
    assert kept.load("e") is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npy", "b.npy"]


def test_the_folder_is_looked_at_now_and_then_and_other_processes_counted(tmp_path, monkeypatch):
    looks = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda *a: (looks.append(a), scandir(*a))[1])
    rows = in_smallest_types(chunk(9))
    KeptCounts(tmp_path).keep("first", rows)
    room = 500 * (tmp_path / "first.npy").stat().st_size
    one, two = (KeptCounts(tmp_path, most_bytes=room) for _ in range(2))
    for number in range(1000):
        (one, two)[number % 2].keep(f"{number}", rows)
    kept = [path.stat().st_size for path in tmp_path.iterdir() if path.suffix == ".npy"]
    assert len(kept) > 450
    assert sum(kept) <= 1.01 * room
    assert len(looks) < 250


@pytest.mark.parametrize("left", [0, 100, 700])
def test_a_chunk_cut_short_is_none(tmp_path, left):
    kept = KeptCounts(tmp_path)
    kept.keep("a", in_smallest_types(chunk(9)))
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content[:left])
    assert kept.load("a") is None
