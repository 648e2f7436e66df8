"""Files of cells that say of themselves what is not so, or reach outside of themselves."""

import gzip
import resource

import anndata as ad
import h5py
import numcodecs
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.io
import scipy.sparse as sp
import zarr

from cellglot.tokenization import CellFileError, read_cells
from cellglot.tokenization.count_matrix import open_counts
from cellglot.tokenization.reading.errors import reading
from cellglot.tokenization.reading.hdf5_arrays import DeflatedArray, fast_array
from cellglot.tokenization.reading.inflation import inflates_beyond
from cellglot.tokenization.reading.zarr_chunks import InsideStore, _inner_chunks, check_chunks


N_CELLS, N_GENES = 40, 12


@pytest.fixture(scope="module")
def cells():
    rng = np.random.default_rng(0)
    counts = sp.csr_matrix(rng.poisson(2, (N_CELLS, N_GENES)).astype(np.float32))
    obs = pd.DataFrame(
        {"cell_type": pd.Categorical(["B cell", "T cell"] * (N_CELLS // 2)), "tissue": ["blood"] * N_CELLS},
        index=[f"c{i}" for i in range(N_CELLS)],
    )
    cells = ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(N_GENES)]))
    cells.layers["counts"] = counts.copy()
    cells.raw = cells
    return cells


@pytest.fixture
def h5ad(cells, tmp_path):
    cells.write_h5ad(tmp_path / "a.h5ad", compression="gzip")
    return tmp_path / "a.h5ad"


def replace(path, name, change):
    """Put another data set in the place of one, with its attributes."""
    with h5py.File(path, "r+") as file:
        values, attributes = file[name][()], dict(file[name].attrs)
        del file[name]
        change(file, name, values)
        if name in file:
            file[name].attrs.update(attributes)


def write_10x(path, cells):
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["data"], group["indices"], group["indptr"] = cells.X.data, cells.X.indices, cells.X.indptr
        group["shape"] = np.array(cells.shape[::-1])
        group["barcodes"] = np.array(cells.obs_names, "S")
        group["features/id"] = group["features/name"] = np.array(cells.var_names, "S")


def write_market(folder, cells, head=None):
    folder.mkdir()
    scipy.io.mmwrite(folder / "matrix.mtx", sp.coo_matrix(cells.X.T.astype(int)))
    (folder / "barcodes.tsv").write_text("".join(f"{name}\n" for name in cells.obs_names))
    (folder / "features.tsv").write_text("".join(f"{name}\n" for name in cells.var_names))
    if head is not None:
        lines = (folder / "matrix.mtx").read_text().splitlines()
        (folder / "matrix.mtx").write_text("\n".join([*head(lines), ""]))


def first_is_minus_three(file, name, values):
    file[name] = np.concatenate([[-3], values[1:]])


@pytest.mark.parametrize("place", ["X", "raw/X", "layers/counts"])
def test_offsets_begin_at_0_in_every_place(h5ad, place):
    replace(h5ad, f"{place}/indptr", first_is_minus_three)
    with pytest.raises(CellFileError, match=r"a\.h5ad: indptr begins at -3"):
        read_cells(h5ad)


def test_offsets_of_10x_begin_at_0(cells, tmp_path):
    write_10x(tmp_path / "a.h5", cells)
    replace(tmp_path / "a.h5", "matrix/indptr", first_is_minus_three)
    with pytest.raises(CellFileError, match=r"a\.h5: indptr begins at -3"):
        read_cells(tmp_path / "a.h5")


@pytest.mark.parametrize("place", ["X", "raw/X", "layers/counts"])
def test_a_place_with_fewer_cells_than_obs(cells, h5ad, place):
    short = cells.X[7:]
    with h5py.File(h5ad, "r+") as file:
        del file[place]
        ad.io.write_elem(file, place, short)
    with pytest.raises(CellFileError, match=r"a\.h5ad: .*(has 33 cells, but obs has 40|the matrix has 33 cells)"):
        read_cells(h5ad)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("X/data", lambda f, n, v: f.create_group(n), "X/data is a group"),
        ("X/data", lambda f, n, v: f.create_dataset(n, data=v.reshape(-1, 1)), "not one dimension"),
        ("X/indices", lambda f, n, v: f.create_dataset(n, data=v.astype("f4")), "not integers"),
        ("obs/_index", lambda f, n, v: f.create_dataset(n, data=b"x"), "not one dimension"),
        ("var/_index", lambda f, n, v: f.create_dataset(n, data=np.arange(N_GENES)), "not names of genes"),
        ("obs/cell_type/codes", lambda f, n, v: f.create_dataset(n, data=v + 0.5), "not integers"),
        ("obs/cell_type/codes", lambda f, n, v: None, "codes|column"),
        ("layers/counts/indptr", lambda f, n, v: None, "layers/counts lacks indptr"),
    ],
)
def test_parts_of_the_wrong_kind_are_named(h5ad, name, change, message):
    replace(h5ad, name, change)
    with pytest.raises(CellFileError, match=rf"a\.h5ad.*({message})"), read_cells(h5ad) as opened:
        opened.metadata()


@pytest.mark.parametrize("code", [2, 100, -2])
def test_codes_outside_of_the_categories(h5ad, code):
    replace(h5ad, "obs/cell_type/codes", lambda f, n, v: f.create_dataset(n, data=np.r_[v[:-1], code].astype("i1")))
    with read_cells(h5ad) as opened, pytest.raises(CellFileError, match=rf"a\.h5ad: column 'cell_type'.*{code}"):
        opened.metadata()


@pytest.mark.parametrize(
    ("owner", "attribute", "value"),
    [
        ("X", "shape", [N_CELLS]),
        ("X", "shape", [N_CELLS, -1]),
        ("X", "encoding-type", "spam"),
        ("var", "encoding-type", "spam"),
        ("obs", "encoding-type", "dict"),
        ("obs", "column-order", 5),
        ("var", "_index", "nothing"),
    ],
)
def test_attributes_that_say_what_is_not_so(h5ad, owner, attribute, value):
    with h5py.File(h5ad, "r+") as file:
        file[owner].attrs[attribute] = value
    with pytest.raises(CellFileError, match=r"^\S*a\.h5ad: "):
        read_cells(h5ad)


def outside(kind, file, name, other):
    if kind == "external link":
        file[name] = h5py.ExternalLink(str(other), "/stolen")
    elif kind == "soft link through an external link":
        file["door"] = h5py.ExternalLink(str(other), "/")
        file[name] = h5py.SoftLink("/door/stolen")
    elif kind == "external storage":
        file.create_dataset(name, (N_CELLS,), "S4", external=[(str(other), 0, 4 * N_CELLS)])
    else:
        layout = h5py.VirtualLayout((N_CELLS,), "S4")
        layout[:] = h5py.VirtualSource(str(other), "stolen", (N_CELLS,))
        file.create_virtual_dataset(name, layout)


@pytest.mark.parametrize("name", ["obs/tissue", "obs/_index", "X/data"])
@pytest.mark.parametrize(
    "kind", ["external link", "soft link through an external link", "external storage", "virtual data set"]
)
def test_bytes_of_other_files_are_refused(h5ad, tmp_path, kind, name):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["stolen"] = np.array([b"key"] * N_CELLS, "S4")
    with h5py.File(h5ad, "r+") as file:
        del file[name]
        outside(kind, file, name, tmp_path / "other.h5")
    with pytest.raises(CellFileError, match=r"a\.h5ad: /.*(another file|other files)"):
        read_cells(h5ad)


def test_links_within_the_file_are_followed(cells, h5ad):
    with h5py.File(h5ad, "r+") as file:
        file.move("X", "elsewhere")
        file["door"] = h5py.SoftLink("/elsewhere")
        file["X"] = h5py.SoftLink("door")
    with read_cells(h5ad, layer="X") as opened:
        assert (sp.vstack(list(opened.chunks())) != cells.X).nnz == 0


def test_links_in_a_circle(h5ad):
    with h5py.File(h5ad, "r+") as file:
        del file["X"]
        file["X"], file["other"] = h5py.SoftLink("/other"), h5py.SoftLink("/X")
    with pytest.raises(CellFileError, match="is a link to itself"):
        read_cells(h5ad)


def test_groups_that_nothing_names_are_not_visited(h5ad):
    with h5py.File(h5ad, "r+") as file:
        last = file["obs"].create_group("extra/0")
        for number in range(1, 40):
            group = file["obs/extra"].create_group(str(number))
            group["a"] = group["b"] = last
            last = group
        last["itself"] = last
    with read_cells(h5ad) as opened:
        assert opened.metadata()["cell_type"].iloc[0] == "B cell"


@pytest.mark.parametrize("name", ["X/data", "X/indptr", "obs/_index", "obs/cell_type/codes", "var/_index"])
def test_declared_sizes_are_held_against_the_file(h5ad, name):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = {"shape": (10**12,), "chunks": (10**6,), "dtype": "i4", "compression": "gzip"}
    replace(h5ad, name, lambda f, n, v: f.create_dataset(n, **size))
    with pytest.raises(CellFileError, match=rf"a\.h5ad: /{name} declares 4,000,000,000,000 bytes"):
        read_cells(h5ad)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_names_of_gigabytes(cells, tmp_path):
    write_10x(tmp_path / "a.h5", cells)
    wide = {"shape": (N_CELLS,), "dtype": "S1000000000", "chunks": (1,)}
    replace(tmp_path / "a.h5", "matrix/barcodes", lambda f, n, v: f.create_dataset(n, **wide))
    with pytest.raises(CellFileError, match="barcodes has values of 1,000,000,000 bytes"):
        read_cells(tmp_path / "a.h5")


def test_layers_beyond_number(h5ad):
    with h5py.File(h5ad, "r+") as file:
        for number in range(1_001):
            file["layers"][f"l{number}"] = file["X"]
    with pytest.raises(CellFileError, match="layers, more than 1,000"):
        read_cells(h5ad)


@pytest.mark.parametrize("shape", [(N_GENES, N_CELLS - 1), (N_GENES + 1, N_CELLS), (N_CELLS,)])
def test_layers_of_loom_have_the_shape_of_its_matrix(cells, tmp_path, shape):
    with h5py.File(tmp_path / "a.loom", "w") as file:
        file["matrix"], file["layers/spliced"] = cells.X.T.toarray(), np.ones(shape)
        file["row_attrs/Gene"], file["col_attrs/CellID"] = (
            np.array(names, "S") for names in (cells.var_names, cells.obs_names)
        )
    with pytest.raises(CellFileError, match=r"a\.loom: .*(has shape|is an array of shape)"):
        read_cells(tmp_path / "a.loom")


# -------------------------------------------------------------------- zarr


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(
    ("part", "refused"), [("codes", False), ("categories", True), ("../_index", True), ("../tissue", True)]
)
def test_lost_chunks_of_labels_are_named(cells, tmp_path, version, part, refused):
    path = tmp_path / "a.zarr"
    with ad.settings.override(zarr_write_format=version):
        cells.write_zarr(path)
    lost = (path / "obs" / "cell_type" / part).resolve()
    for chunk in [p for p in lost.rglob("*") if p.is_file() and not p.name.startswith((".z", "zarr.json"))]:
        chunk.unlink()
    if refused:
        with pytest.raises(CellFileError, match=r"a\.zarr: obs.* lacks 1 of its chunks"):
            read_cells(path)
    else:
        with read_cells(path) as opened:
            assert any("lacks 1 of its chunks" in note for note in opened.notes)


def test_zarr_does_not_lead_out_of_its_folder(cells, tmp_path):
    path = tmp_path / "a.zarr"
    cells.write_zarr(path)
    (path / "obs" / "tissue").rename(tmp_path / "tissue")
    (path / "obs" / "tissue").symlink_to(tmp_path / "tissue")
    with (
        pytest.raises(CellFileError, match=r"a\.zarr: obs/tissue.* is outside of the store"),
        read_cells(path) as opened,
    ):
        opened.metadata()


# -------------------------------------------------------------------- Matrix Market


def words(kind):
    return lambda lines: [f"%%MatrixMarket matrix coordinate {kind} general", *lines[1:]]


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (words("complex"), "contains complex numbers"),
        (words("pattern"), "the first entry has 3 fields, not 2"),
        (lambda lines: [*lines[:3], lines[3] + " 7", *lines[4:]], "the first entry has 4 fields, not 3"),
        (lambda lines: [*lines[:8], lines[8] + " 7", *lines[9:]], "cannot be read"),
        (lambda lines: [*lines[:8], "2 2", *lines[9:]], "entries without a value"),
        (lambda lines: [*lines[:8], "0 2 1", *lines[9:]], "an entry outside"),
        (lambda lines: [*lines[:2], f"{N_GENES} {N_CELLS} {10**10}", *lines[3:]], "too many for its size"),
        (lambda lines: [*lines[:8], "%" * 200_000, *lines[8:]], "a line of more than 65,536 bytes"),
        (lambda lines: ["%" * 70_000, *lines], "a line of more than 65,536 bytes"),
    ],
)
def test_matrix_market_that_says_what_is_not_so(cells, tmp_path, head, message):
    write_market(tmp_path / "folder", cells, head)
    with pytest.raises(CellFileError, match=rf"matrix\.mtx.*{message}"), read_cells(tmp_path / "folder") as opened:
        list(opened.chunks())


def test_a_pattern_is_ones(cells, tmp_path):
    def pattern(lines):
        return [*words("pattern")(lines[:3]), *(line.rsplit(" ", 1)[0] for line in lines[3:])]

    write_market(tmp_path / "folder", cells, pattern)
    with read_cells(tmp_path / "folder") as opened:
        assert (sp.vstack(list(opened.chunks())).toarray() == (cells.X.toarray() > 0)).all()


def test_lines_without_end_are_not_unpacked(cells, tmp_path):
    write_market(tmp_path / "folder", cells)
    (tmp_path / "folder" / "barcodes.tsv").unlink()
    with gzip.open(tmp_path / "folder" / "barcodes.tsv.gz", "wb", compresslevel=1) as file:
        for _ in range(150):
            file.write(b"A" * (1 << 20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CellFileError, match=r"barcodes\.tsv\.gz has a line of more than"):
        read_cells(tmp_path / "folder")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


# -------------------------------------------------------------------- memory


@pytest.mark.parametrize("layout", ["csr", "csc", "coo"])
@pytest.mark.parametrize(
    ("part", "place", "value"), [("indptr", 0, -3), ("indptr", 4, 0), ("indices", 5, 999), ("indices", 5, -1)]
)
def test_broken_matrices_in_memory_do_not_reach_compiled_code(cells, layout, part, place, value):
    matrix = cells.X.asformat(layout, copy=True)
    part = {"indptr": "row", "indices": "col"}[part] if layout == "coo" else part
    getattr(matrix, part)[place] = 999 if layout == "coo" else value
    broken = ad.AnnData(sp.csr_matrix(cells.shape), var=cells.var)
    broken._X = matrix
    with pytest.raises(ValueError, match=r"damaged sparse matrix"):
        list(open_counts(broken).chunks())


def test_filters_in_an_unusual_order_are_left_to_hdf5(tmp_path):
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_chunk((50,))
    settings.set_deflate(4)
    settings.set_shuffle()
    values = np.arange(200, dtype="<i4")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_INT32, h5py.h5s.create_simple((200,)), settings)
        file["x"][:] = values
        array = fast_array(file["x"])
        assert not isinstance(array, DeflatedArray)
        assert (array[:] == values).all()


def test_mistakes_of_the_program_are_not_laid_to_a_file():
    with pytest.raises(NameError), reading("a.h5ad"):
        raise NameError("a mistake")
    with pytest.raises(CellFileError, match=r"^a\.h5ad cannot be read.*TypeError: odd") as caught, reading("a.h5ad"):
        raise TypeError("odd")
    assert isinstance(caught.value.__cause__, TypeError)


# -------------------------------------------------------------------- chunks that inflate


CODECS = {
    "zstd": numcodecs.Zstd(1), "blosc": numcodecs.Blosc(), "gzip": numcodecs.GZip(1), "zlib": numcodecs.Zlib(1),
    "bz2": numcodecs.BZ2(1), "lzma": numcodecs.LZMA(preset=0),
}  # fmt: skip


@pytest.mark.parametrize("codec", CODECS)
def test_what_a_chunk_inflates_to_is_known_before(codec):
    compressed = np.frombuffer(CODECS[codec].encode(np.zeros(3 << 20, np.uint8)), np.uint8)
    assert inflates_beyond(compressed, (3 << 20) - 1) and not inflates_beyond(compressed, 3 << 20)
    for damaged in (compressed[:-7], compressed[:5], compressed[:0]):
        assert not inflates_beyond(damaged, 3 << 20)


def test_a_frame_of_zstd_that_does_not_say_its_size():
    with pa.BufferOutputStream() as sink, pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(bytes(3 << 20))
        stream.close()
        compressed = np.frombuffer(sink.getvalue(), np.uint8)
    assert inflates_beyond(compressed, (3 << 20) - 1) and not inflates_beyond(compressed, 3 << 20)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("name", ["X/data", "obs/cell_type/categories", "var/_index"])
def test_chunks_of_zarr_do_not_inflate_beyond_their_array(cells, tmp_path, version, name):
    path = tmp_path / "a.zarr"
    with ad.settings.override(zarr_write_format=version):
        cells.write_zarr(path)
    codec = numcodecs.Blosc() if b"blosc" in b"".join(p.read_bytes() for p in (path / name).glob("*.*")) else None
    bomb = (codec or CODECS["zstd"]).encode(np.zeros(1 << 26, np.uint8))
    chunks = [p for p in (path / name).rglob("*") if p.is_file() and not p.name.startswith((".z", "zarr"))]
    for chunk in chunks:
        chunk.write_bytes(bomb)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CellFileError, match=rf"a\.zarr: {name}/.* inflates to more than"), read_cells(path) as opened:
        list(opened.chunks())
        opened.metadata()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_chunks_within_a_shard_do_not_inflate_beyond_their_array(tmp_path):
    array = zarr.create_array(tmp_path / "a", shape=(64,), chunks=(16,), shards=(64,), dtype="i4")
    array[:] = np.arange(64)
    shard = tmp_path / "a" / "c" / "0"
    content = np.frombuffer(shard.read_bytes(), np.uint8)
    assert len(_inner_chunks(content, 4)) == 5
    stored = zarr.open_array(InsideStore(tmp_path / "a"), mode="r")
    check_chunks(stored)
    assert stored[:].tolist() == list(range(64)) and stored[17:20].tolist() == [17, 18, 19]


def test_lists_of_names_far_longer_than_the_matrix_are_not_read_to_their_end(cells, tmp_path):
    write_market(tmp_path / "folder", cells)
    with open(tmp_path / "folder" / "barcodes.tsv", "a") as file:
        file.write("a\n" * 70_000)
    with pytest.raises(CellFileError, match=r"barcodes\.tsv has more than .* the matrix has at most 40"):
        read_cells(tmp_path / "folder")
