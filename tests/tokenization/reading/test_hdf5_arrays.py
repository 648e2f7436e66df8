import h5py
import numpy as np
import pytest

from cellglot.tokenization.reading.hdf5_arrays import DeflatedArray, fast_array, parts


VALUES = np.random.default_rng(0).integers(0, 1000, 1003)


@pytest.fixture
def file(tmp_path):
    with h5py.File(tmp_path / "values.h5", "w") as file:
        yield file


@pytest.mark.parametrize("dtype", ["<f4", "<i4", ">i4", "<u2", "<f8", "<i8"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_values_are_those_that_hdf5_reads(file, dtype, shuffle):
    stored = file.create_dataset("x", data=VALUES.astype(dtype), chunks=(64,), compression="gzip", shuffle=shuffle)
    array = fast_array(stored)
    assert isinstance(array, DeflatedArray)
    assert array.shape == (1003,) and array.dtype == np.dtype(dtype)
    for start, stop in ((0, 1003), (0, 0), (5, 5), (63, 65), (64, 128), (1, 1002), (990, 5000), (-10, 1003)):
        read = array[start:stop]
        assert read.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(read, stored[slice(*slice(start, stop).indices(1003)[:2])])
    assert array[1002] == stored[1002]
    np.testing.assert_array_equal(array[0:100:7], stored[0:100:7])


@pytest.mark.parametrize("options", [{}, {"chunks": (64,), "compression": "gzip"}])
def test_parts_are_the_numbers_in_order(file, options):
    array = fast_array(file.create_dataset("x", data=VALUES, **options))
    for start, stop in ((0, 1003), (0, 30), (30, 64), (64, 70), (70, 200), (200, 200), (10, 20), (1000, 1003)):
        read = list(parts(array, start, stop))
        np.testing.assert_array_equal(np.concatenate([VALUES[:0], *read]), VALUES[start:stop])
        assert all(len(part) for part in read)


def test_a_chunk_in_which_one_range_ends_and_the_next_begins_is_inflated_once(file, monkeypatch):
    array = fast_array(file.create_dataset("x", data=VALUES, chunks=(64,), compression="gzip"))
    inflated = []
    chunk = DeflatedArray._chunk
    monkeypatch.setattr(DeflatedArray, "_chunk", lambda self, first: (inflated.append(first), chunk(self, first))[1])
    for start in range(0, 1003, 100):
        np.testing.assert_array_equal(array[start : start + 100], VALUES[start : start + 100])
    assert inflated == list(range(0, 1003, 64))


def test_chunks_that_were_never_written_hold_the_fill_value(file):
    stored = file.create_dataset("x", (300,), "<i4", chunks=(50,), compression="gzip", fillvalue=7)
    stored[100:120] = 1
    np.testing.assert_array_equal(fast_array(stored)[:], stored[:])


def test_chunks_stored_without_the_filter_are_read(file):
    stored = file.create_dataset("x", (100,), "<i4", chunks=(50,), compression="gzip")
    stored.id.write_direct_chunk((0,), np.arange(50, dtype="<i4").tobytes(), filter_mask=1)
    stored[50:] = 3
    np.testing.assert_array_equal(fast_array(stored)[:], [*range(50), *[3] * 50])


@pytest.mark.parametrize(
    "options", [{}, {"chunks": (50,)}, {"chunks": (50,), "compression": "lzf"}, {"chunks": (50,), "fletcher32": True}]
)
def test_other_arrays_are_left_to_hdf5(file, options):
    stored = file.create_dataset("x", data=VALUES, **options)
    assert fast_array(stored) is stored


def test_checksums_beside_gzip_are_left_to_hdf5(file):
    stored = file.create_dataset("x", data=VALUES, chunks=(50,), compression="gzip", fletcher32=True)
    assert fast_array(stored) is stored


def test_a_damaged_chunk_is_an_error_that_names_the_place(file):
    stored = file.create_dataset("X/data", data=VALUES, chunks=(100,), compression="gzip")
    stored.id.write_direct_chunk((200,), b"this is no deflated chunk")
    with pytest.raises(OSError, match="/X/data: the chunk at 200 cannot be inflated"):
        fast_array(stored)[:]
    np.testing.assert_array_equal(fast_array(stored)[300:400], VALUES[300:400])
