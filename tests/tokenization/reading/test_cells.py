import gzip
import shutil

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp
import zarr

from cellglot.outputs.environment import EnvironmentFailureError
from cellglot.tokenization import CellFileError, GeneVocabulary, NotCountsError, read_cells
from cellglot.tokenization.corpus.count_cache import small_rows
from cellglot.tokenization.reading.obs import schema_names


@pytest.fixture(scope="module")
def cells(blood):
    """Real cells with metadata as files carry it."""
    part = blood[:120].copy()
    part.obs = pd.DataFrame(
        {
            "celltype": pd.Categorical(part.obs["cell_type"].astype(str)),
            "Donor": [f"d{i % 3}" for i in range(120)],
            "is_primary_data": [i % 2 == 0 for i in range(120)],
            "n": np.arange(120),
            "score": np.where(np.arange(120) % 5 == 0, np.nan, np.arange(120) / 7),
        },
        index=part.obs_names,
    )
    part.obs.loc[part.obs_names[3], "celltype"] = np.nan
    part.var = pd.DataFrame({"gene_ids": [f"ENSG{i:011d}" for i in range(765)]}, index=part.var_names)
    return part


def write_10x(folder, cells, zipped):
    folder.mkdir()
    scipy.io.mmwrite(folder / "matrix.mtx", sp.coo_matrix(cells.X.T.astype(int)))
    (folder / "barcodes.tsv").write_text("".join(f"{b}\n" for b in cells.obs_names))
    rows = zip(cells.var["gene_ids"], cells.var_names, strict=True)
    (folder / "features.tsv").write_text("".join(f"{i}\t{n}\tGene Expression\n" for i, n in rows))
    if zipped:
        for path in list(folder.iterdir()):
            with open(path, "rb") as source, gzip.open(f"{path}.gz", "wb") as target:
                shutil.copyfileobj(source, target)
            path.unlink()


def write_10x_h5(path, cells, version=3, antibodies=0):
    counts = cells.X.tocsr()
    if antibodies:
        extra = sp.csr_matrix(np.full((counts.shape[0], antibodies), 9.0))
        counts = sp.hstack([extra, counts], format="csr")
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix" if version == 3 else "GRCh38")
        group["data"], group["indices"], group["indptr"] = counts.data.astype(int), counts.indices, counts.indptr
        group["shape"] = counts.shape[::-1]
        group["barcodes"] = np.array(list(cells.obs_names), "S")
        ids = [f"AB{i}" for i in range(antibodies)] + list(cells.var["gene_ids"])
        names = [f"CD{i}" for i in range(antibodies)] + list(cells.var_names)
        if version == 3:
            group["features/id"], group["features/name"] = np.array(ids, "S"), np.array(names, "S")
            types = ["Antibody Capture"] * antibodies + ["Gene Expression"] * cells.n_vars
            group["features/feature_type"] = np.array(types, "S")
        else:
            group["genes"], group["gene_names"] = np.array(ids, "S"), np.array(names, "S")


def write_loom(path, cells):
    with h5py.File(path, "w") as file:
        file.create_dataset("matrix", data=cells.X.T.toarray(), chunks=(64, 64), compression="gzip")
        file["row_attrs/Gene"] = np.array(list(cells.var_names), "S")
        file["row_attrs/Accession"] = np.array(list(cells.var["gene_ids"]), "S")
        file["col_attrs/CellID"] = np.array(list(cells.obs_names), "S")
        file["col_attrs/celltype"] = np.array(cells.obs["celltype"].astype(str), "S")
        file.create_group("layers")


def write(form, cells, path):
    if form in ("mtx", "mtx gz"):
        write_10x(path, cells, form == "mtx gz")
    elif form.startswith("10x"):
        write_10x_h5(path, cells, version=2 if "2" in form else 3, antibodies=4 if "antibodies" in form else 0)
    elif form == "loom":
        write_loom(path, cells)
    else:
        kind, layout = form.split()
        stored = cells.copy()
        stored.X = {"csr": cells.X, "csc": cells.X.tocsc(), "dense": cells.X.toarray()}[layout]
        if kind == "zarr":
            stored.write_zarr(path)
        else:
            stored.write_h5ad(path, compression="gzip")


FORMS = {
    "h5ad csr": "a.h5ad", "h5ad csc": "a.h5ad", "h5ad dense": "a.h5ad", "zarr csr": "a.zarr", "zarr csc": "a.zarr",
    "zarr dense": "a.zarr", "mtx": "folder", "mtx gz": "folder", "10x h5": "a.h5", "10x h5 version 2": "a.h5",
    "10x h5 antibodies": "a.h5", "loom": "a.loom",
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_format_gives_the_same_cells(form, cells, tmp_path):
    path = tmp_path / FORMS[form]
    write(form, cells, path)
    with read_cells(path) as opened:
        assert (len(opened), opened.n_genes) == cells.shape
        parts = list(opened.chunks(max_cells=50, max_values=9_000))
        assert max(p.nnz for p in parts) <= 9_000 or "dense" in form or form == "loom"
        assert len(parts) > 2
        read = sp.vstack(parts)
        assert (read != cells.X).nnz == 0
        small = small_rows(opened.counts, 3, 90)
        assert small.data.dtype == np.uint8 and small.indices.dtype == np.uint16
        small = sp.csr_matrix((small.data, small.indices, small.indptr), (87, cells.n_vars))
        assert (small != cells.X[3:90]).nnz == 0
        assert opened.names().tolist() == list(cells.obs_names)
        assert opened.names(7, 9).tolist() == list(cells.obs_names[7:9])
        var = opened.var
        assert list(var["gene_ids"]) == list(cells.var["gene_ids"])
        assert list(var.index) == list(cells.var_names)
        numbered = opened.metadata(2, 5, only=[], names=False)
        assert numbered.index.tolist() == [2, 3, 4] and not len(numbered.columns)
        if form.startswith(("h5ad", "zarr")) or form == "loom":
            assert opened.metadata(2, 5, only=["cell_type"]).columns.tolist() == ["cell_type"]
            assert opened.metadata()["cell_type"].tolist()[:3] == cells.obs["celltype"].tolist()[:3]
        if "antibodies" in form:
            assert "4 Antibody Capture" in opened.notes[0]
        assert ("converted to rows" in " ".join(opened.notes)) == ("csc" in form or "mtx" in form)


def test_metadata_under_the_schemas_names(cells, tmp_path):
    cells.write_h5ad(tmp_path / "a.h5ad")
    cells.write_zarr(tmp_path / "a.zarr")
    for source in (tmp_path / "a.h5ad", tmp_path / "a.zarr", cells):
        with read_cells(source, rename={"n": "batch"}) as opened:
            assert opened.metadata_columns == {
                "cell_type": "celltype", "is_primary_data": "is_primary_data", "donor_id": "Donor", "batch": "n",
            }  # fmt: skip
            table = opened.metadata(2, 6)
            assert table["donor_id"].tolist() == ["d2", "d0", "d1", "d2"]
            assert table["cell_type"].tolist()[1] is None
            assert table["is_primary_data"].tolist() == [True, False, True, False]
            assert table["batch"].tolist() == [2, 3, 4, 5]
            assert list(table.index) == list(cells.obs_names[2:6])


def write_old_sparse(file, name, matrix):
    group = file.create_group(name)
    group.attrs["h5sparse_format"], group.attrs["h5sparse_shape"] = b"csr", matrix.shape
    for part in ("data", "indices", "indptr"):
        group[part] = getattr(matrix.tocsr(), part)


def write_records(file, name, names, columns):
    """Write a table as AnnData did before version 0.7."""
    parts = {"index": np.array(list(names), "S"), **columns}
    table = np.zeros(len(parts["index"]), [(part, values.dtype) for part, values in parts.items()])
    for part, values in parts.items():
        table[part] = values
    file[name] = table


def write_table_of_07(file, name, names, columns, categories):
    group = file.create_group(name)
    group.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.1.0", "_index": "index"})
    group.attrs["column-order"] = list(columns)
    group["index"] = list(names)
    for column, values in columns.items():
        group[column] = values
        if column in categories:
            group[f"__categories/{column}"] = list(categories[column])
            group[column].attrs["categories"] = group[f"__categories/{column}"].ref


@pytest.mark.parametrize("version", [0.6, 0.7])
@pytest.mark.parametrize("in_raw", [True, False])
def test_files_of_early_anndata(version, in_raw, cells, tmp_path):
    types = cells.obs["celltype"].cat
    obs = {"celltype": types.codes.to_numpy(), "n": np.arange(120), "level": np.arange(120) % 3}
    genes = {"gene_ids": np.array(list(cells.var["gene_ids"]), "S" if version < 0.7 else h5py.string_dtype())}
    with h5py.File(tmp_path / "a.h5ad", "w") as file:
        write_old_sparse(file, "X", cells.X.log1p() * 0.7 if in_raw else cells.X)
        raw = {0.6: "raw.", 0.7: "raw/"}[version]
        if in_raw:
            write_old_sparse(file, f"{raw}X", cells.X)
        for name in ("var", *([f"{raw}var"] if in_raw else [])):
            if version < 0.7:
                write_records(file, name, cells.var_names, genes)
            else:
                write_table_of_07(file, name, cells.var_names, genes, {})
        if version < 0.7:
            write_records(file, "obs", cells.obs_names, obs)
            file["uns/celltype_categories"] = np.array(list(types.categories), "S")
            file["uns/level_categories"] = np.array([b"low", b"high"])  # of something else: too few for the numbers
        else:
            write_table_of_07(file, "obs", cells.obs_names, obs, {"celltype": types.categories})
    with read_cells(tmp_path / "a.h5ad", rename={"n": "batch", "level": "level"}) as opened:
        assert opened.counts.location == ("raw.X" if in_raw else "X")
        assert (sp.vstack(list(opened.chunks())) != cells.X).nnz == 0
        table = opened.metadata()
        assert table["cell_type"].tolist() == [None if pd.isna(t) else t for t in cells.obs["celltype"]]
        assert table["batch"].tolist() == list(range(120)) and table["level"].tolist() == [i % 3 for i in range(120)]
        assert list(table.index) == list(cells.obs_names)
        assert list(opened.var.index) == list(cells.var_names)
        assert list(opened.var["gene_ids"]) == list(cells.var["gene_ids"])


def test_a_table_that_is_none(cells, tmp_path):
    write("h5ad csr", cells, tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        del file["obs"]
        file["obs"] = np.arange(120)
    with pytest.raises(CellFileError, match="a.h5ad: /obs is not a table but an array of int64"):
        read_cells(tmp_path / "a.h5ad")


@pytest.mark.parametrize("form", ["h5ad", "zarr", "memory"])
def test_columns_of_pandas_own_types_with_missing_values(form, cells, tmp_path):
    given = {
        "cell_type": pd.array(["B cell", None, "T cell"] * 40, dtype="string"),
        "donor_id": pd.array([7, 8, None] * 40, dtype="Int64"),
        "is_primary_data": pd.array([None, True, False] * 40, dtype="boolean"),
    }
    genes = {"gene_ids": pd.array([None, *cells.var["gene_ids"][1:]], dtype="string")}
    source = ad.AnnData(cells.X, pd.DataFrame(given, cells.obs_names), pd.DataFrame(genes, cells.var_names))
    if form != "memory":
        path = tmp_path / f"cells.{form}"
        group = h5py.File(path, "w") if form == "h5ad" else zarr.open_group(path, mode="w")
        with ad.settings.override(allow_write_nullable_strings=True):
            ad.io.write_elem(group, "/", source)  # as write_h5ad, which would make strings categories first
        if form == "h5ad":
            group.close()
        source = path
    vocabulary = GeneVocabulary.from_statistics(list(cells.var["gene_ids"]))
    with read_cells(source) as opened:
        table = opened.metadata()
        assert table["cell_type"].tolist() == ["B cell", None, "T cell"] * 40
        assert table["donor_id"].tolist() == [7, 8, None] * 40
        assert table["is_primary_data"].tolist() == [None, True, False] * 40
        match = vocabulary.resolve(opened.counts.index, opened.counts.columns)
    assert match.token_ids[0] == -1 and match.known[1:].all()


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        (["cell_type", "CellType"], {"cell_type": "cell_type"}),
        (["Cell Type"], {"cell_type": "Cell Type"}),
        (["patient.id", "assay"], {"assay": "assay", "donor_id": "patient.id"}),
        (["batch"], {}),
    ],
)
def test_usual_names(columns, found):
    assert schema_names(columns) == found


def test_nothing_is_renamed_that_is_not_there(cells):
    with pytest.raises(ValueError, match="no column 'label' in obs to rename; it has celltype"):
        read_cells(cells, rename={"label": "cell_type"})


def test_backed_anndata_is_streamed_with_its_own_metadata(cells, tmp_path):
    write("h5ad csc", cells, tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    backed.obs["donor_id"] = "new"
    with read_cells(backed) as opened:
        assert set(opened.metadata()["donor_id"]) == {"new"}
        assert (sp.vstack(list(opened.chunks())) != cells.X).nnz == 0


def test_duplicate_cells_are_counted_and_kept(cells, tmp_path):
    twice = cells[np.r_[0:50, 0:10]].copy()
    twice.write_h5ad(tmp_path / "a.h5ad")
    with read_cells(tmp_path / "a.h5ad") as opened:
        assert len(opened) == 60
        assert opened.duplicate_names() == 10
        assert "10 cells have the name of an earlier cell; all are kept" in opened.summary()


def test_values_that_stand_twice_are_summed(tmp_path, cells):
    write("h5ad csr", cells, tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        indices = file["X/indices"][:]
        indices[1] = indices[0]
        del file["X/indices"]
        file["X/indices"] = indices
    with read_cells(tmp_path / "a.h5ad") as opened:
        first = next(opened.chunks())
        assert first.has_canonical_format
        assert first[0, indices[0]] == cells.X.data[0] + cells.X.data[1]
        assert first.sum() == cells.X.sum()


# -------------------------------------------------------------------- where the counts are


def test_counts_are_found_and_their_place_is_said(cells, tmp_path):
    logged = cells.copy()
    logged.X = cells.X.log1p() * 0.7
    logged.layers["counts"] = cells.X
    logged.write_h5ad(tmp_path / "layer.h5ad")
    raw = cells[:, :300].copy()
    raw.raw = cells
    raw.write_h5ad(tmp_path / "raw.h5ad")
    for name, place in (("layer", "layers['counts']"), ("raw", "raw.X")):
        with read_cells(tmp_path / f"{name}.h5ad") as opened:
            assert f"raw counts in {place}" in opened.summary()
            assert opened.n_genes == 765
    with read_cells(tmp_path / "raw.h5ad", layer="X") as opened:
        assert opened.n_genes == 300
    with pytest.raises(ValueError, match=r"has no 'other': it has X, layers\['counts'\]"):
        read_cells(tmp_path / "layer.h5ad", layer="other")


@pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
def test_an_x_of_zeros_is_the_last_resort(cells, tmp_path, layout):
    zeros = cells.copy()
    zeros.X = sp.csr_matrix(cells.shape)
    zeros.layers["counts"] = cells.X
    write(f"h5ad {layout}", zeros, tmp_path / "a.h5ad")
    for source in (zeros, tmp_path / "a.h5ad"):
        with read_cells(source) as opened:
            assert "raw counts in layers['counts'] (X: only zeros in the checked cells)" in opened.summary()
            assert (sp.vstack(list(opened.chunks())) != cells.X).nnz == 0
    with read_cells(tmp_path / "a.h5ad", layer="X") as opened:
        assert "raw counts in X (X: only zeros in the checked cells)" in opened.summary()
    del zeros.layers["counts"]
    zeros.raw = cells
    assert read_cells(zeros).counts.location == "raw.X"


@pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_log1p_of_scaled_counts_is_recovered_exactly(cells, tmp_path, layout, dtype):
    logged = cells.copy()
    scaled = cells.X.astype(dtype)
    scaled.data *= np.repeat(1e4 / np.asarray(cells.X.sum(1)).ravel(), np.diff(scaled.indptr)).astype(dtype)
    logged.X = scaled.log1p()
    write(f"h5ad {layout}", logged, tmp_path / "a.h5ad")
    with read_cells(tmp_path / "a.h5ad") as opened:
        assert (sp.vstack(list(opened.chunks())) != cells.X).nnz == 0
        assert "computed back exactly" in opened.summary()


@pytest.mark.reference
def test_scanpys_cells_give_their_true_counts(reference_data, blood_log):
    true = ad.read_h5ad(reference_data / "cells" / "pbmc68k_reduced_counts.h5ad")
    assert (read_cells(blood_log).to_anndata().X != true.X).nnz == 0


@pytest.mark.reference
def test_all_reference_files_are_read(reference_data):
    files = sorted([*(reference_data / "cells").glob("*.h5ad"), *(reference_data / "corpus").glob("*.h5ad")])
    assert len(files) == 25
    for path in files:
        with read_cells(path) as opened:
            read = sum(chunk.sum() for chunk in opened.chunks())
        assert read == ad.read_h5ad(path).X.sum(dtype=np.float64), path


# -------------------------------------------------------------------- bad input


@pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
@pytest.mark.parametrize(
    ("value", "message"),
    [(-2.0, "negative"), (np.nan, "missing"), (np.inf, "infinite"), (1.25, "not whole numbers")],
)
def test_bad_values_are_refused_wherever_they_are(cells, tmp_path, layout, value, message):
    bad = cells.copy()
    counts = cells.X.astype(np.float32).tolil()
    counts[100, 700] = value
    bad.X = counts.tocsr()
    write(f"h5ad {layout}", bad, tmp_path / "a.h5ad")
    with pytest.raises(NotCountsError, match=message), read_cells(tmp_path / "a.h5ad") as opened:
        list(opened.chunks())


def test_the_cell_with_a_bad_value_is_named(blood, tmp_path):
    bad = blood.copy()
    bad.X = blood.X.copy()
    bad.X.data[bad.X.indptr[130]] = 0.5  # not among the cells that are sampled when the file is opened
    write("h5ad csr", bad, tmp_path / "a.h5ad")
    with read_cells(tmp_path / "a.h5ad") as opened, pytest.raises(NotCountsError, match=rf"'{bad.obs_names[130]}'"):
        list(opened.chunks())


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_empty_matrices(tmp_path, shape):
    ad.AnnData(sp.csr_matrix(shape)).write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(ValueError, match=f"a.h5ad is empty: {shape[0]} cells x {shape[1]} genes"):
        read_cells(tmp_path / "a.h5ad")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.h5ad", b"cell,gene,count\n1,2,3\n", "is a text file, not HDF5: it begins 'cell,gene,count.*read_csv"),
        ("a.h5ad", b"", "is empty"),
        ("a.h5ad.gz", b"\x1f\x8b\x08rest", "is gzipped: unpack it first"),
        ("a.zarr.zip", b"PK\x03\x04rest", "is a zip archive: unpack it first"),
        ("a.RDS", b"\x1f\x8b\x08rest", "is an object of R: write it as .h5ad there"),
        ("a.h5ad", b"\x00\x01\x02\xff" * 30, "is not an HDF5 file"),
    ],
)
def test_files_that_are_no_hdf5(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CellFileError, match=f"{name} {message}"):
        read_cells(tmp_path / name)


def test_a_missing_file(tmp_path):
    with pytest.raises(CellFileError, match="nothing.h5ad does not exist"):
        read_cells(tmp_path / "nothing.h5ad")
    with pytest.raises(CellFileError, match="is an address, not a file: download it first"):
        read_cells("https://example.org/a.h5ad")


def test_the_home_folder(cells, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write("h5ad csr", cells, tmp_path / "a.h5ad")
    with read_cells("~/a.h5ad") as opened:
        assert len(opened) == 120


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_truncated_files(cells, tmp_path, share):
    write("h5ad csr", cells, tmp_path / "a.h5ad")
    content = (tmp_path / "a.h5ad").read_bytes()
    (tmp_path / "a.h5ad").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CellFileError, match=r"a\.h5ad"):
        read_cells(tmp_path / "a.h5ad")


@pytest.mark.parametrize("group", ["obs", "var", "X/indptr", "X/data"])
def test_missing_groups_are_named(cells, tmp_path, group):
    write("h5ad csr", cells, tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        del file[group]
    with pytest.raises(CellFileError, match=f"a.h5ad.*{group.split('/')[-1]}"):
        read_cells(tmp_path / "a.h5ad")


@pytest.mark.parametrize("name", ["X/data", "X/indptr", "obs/n", "var/gene_ids"])
def test_compression_that_is_not_read_is_named(cells, tmp_path, name):
    write("h5ad csr", cells, tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        kind, shape = file[name].id.get_type(), file[name].shape
        del file[name]
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_chunk(shape)
        settings.set_filter(40_000, h5py.h5z.FLAG_OPTIONAL)
        h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(shape), settings)
        file["uns/nowhere"] = h5py.SoftLink("/nothing")
        file["obs/nowhere"] = h5py.SoftLink("/nothing")
    with pytest.raises(CellFileError, match=f"a.h5ad: /{name} is compressed by HDF5's filter 40000, .*gzip"):
        read_cells(tmp_path / "a.h5ad")


@pytest.mark.parametrize("filter_name", ["Blosc", "Zstd"])
def test_compression_of_hdf5plugin_is_read(cells, tmp_path, filter_name):
    import hdf5plugin

    write("h5ad csr", cells, tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        for name in ("data", "indices"):
            values = file["X"].pop(name)[:]
            file["X"].create_dataset(name, data=values, **getattr(hdf5plugin, filter_name)())
    with read_cells(tmp_path / "a.h5ad") as read:
        assert (sp.vstack(list(read.chunks())).toarray() == cells.X.toarray()).all()


def test_hdf5_of_something_else(tmp_path):
    with h5py.File(tmp_path / "a.h5ad", "w") as file:
        file["model_weights"] = np.ones(3)
    with pytest.raises(CellFileError, match="not an AnnData file. Found: 'model_weights'"):
        read_cells(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "w") as file:
        file.create_group("assays/RNA/counts")
    with pytest.raises(CellFileError, match="this is a Seurat object of R: write it as .h5ad there"):
        read_cells(tmp_path / "a.h5ad")


def test_mudata_is_named(cells, tmp_path):
    with h5py.File(tmp_path / "a.h5mu", "w") as file:
        for name, element in {"obs": cells.obs, "var": cells.var, "mod/rna": cells, "mod/prot": cells}.items():
            ad.io.write_elem(file, name, element)
    with pytest.raises(CellFileError, match=r"this is MuData of prot, rna: write .* with mudata.read\(...\)\['rna'\]"):
        read_cells(tmp_path / "a.h5mu")


def damage(path, name, change):
    with h5py.File(path, "r+") as file:
        values = change(file[name][:])
        del file[name]
        file[name] = values


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("X/indptr", lambda v: v[:-3], "indptr has 118 entries"),
        ("X/data", lambda v: v[:-5], "values, but .* indices: the matrix is damaged"),
        ("X/indices", lambda v: v + 700, "gene indices from"),
        ("X/indptr", lambda v: np.r_[v[:50], v[50] - 4000, v[51:]], "indptr decreases"),
    ],
)
def test_corrupt_matrices(cells, tmp_path, name, change, message):
    write("h5ad csr", cells, tmp_path / "a.h5ad")
    damage(tmp_path / "a.h5ad", name, change)
    with pytest.raises(CellFileError, match=message), read_cells(tmp_path / "a.h5ad") as opened:
        list(opened.chunks())


def write_zarr(matrix, path, chunk):
    """A sparse matrix in zarr, in small chunks; those of nothing but zeros are left out, as is zarr's default."""
    ad.AnnData(matrix).write_zarr(path)
    store = zarr.open_group(path, mode="r+")
    for name, length in (("data", 4 * chunk), ("indices", 4 * chunk), ("indptr", chunk)):
        values = store[f"X/{name}"][:]
        del store[f"X/{name}"]
        store["X"].create_array(name, shape=values.shape, dtype=values.dtype, chunks=(length,))[:] = values
    zarr.consolidate_metadata(path)


def chunk_files(folder):
    return sorted(f for f in folder.rglob("*") if f.is_file() and not f.name.startswith((".", "zarr.json")))


@pytest.mark.parametrize("layout", ["csr", "csc"])
@pytest.mark.parametrize("number", [0, -1])
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("data", "stored counts are not 0"),
        ("indices", "more than once in a row"),
        ("indptr", "decrease|to one row or column"),
    ],
)
def test_a_missing_chunk_of_zarr_is_no_zeros(cells, tmp_path, layout, number, name, why):
    write_zarr(cells.X.asformat(layout), tmp_path / "a.zarr", 100)
    chunk_files(tmp_path / "a.zarr" / "X" / name)[number].unlink()
    with (
        pytest.raises(CellFileError, match=rf"X/{name}: 1 of [\d,]+ chunks is missing.*{why}.*incomplete"),
        read_cells(tmp_path / "a.zarr") as opened,
    ):
        list(opened.chunks())


@pytest.mark.parametrize(
    "matrix",
    [
        np.vstack([np.zeros((60, 3)), np.eye(3), np.zeros((60, 3))]),  # begins with empty cells
        np.ones((60, 1)),  # one gene
        np.tile([[4.0, 0, 0]], (60, 1)),  # cells with the first gene alone
        np.zeros((60, 3)),
    ],
)
def test_chunks_of_zeros_that_zarr_leaves_out(tmp_path, matrix):
    write_zarr(sp.csr_matrix(matrix), tmp_path / "a.zarr", 10)
    with read_cells(tmp_path / "a.zarr") as opened:
        assert (sp.vstack(list(opened.chunks())).toarray() == matrix).all()
    assert not chunk_files(tmp_path / "a.zarr" / "X" / "indices")[1:]


def test_absent_chunks_of_a_dense_matrix_are_said(cells, tmp_path):
    write("zarr dense", cells, tmp_path / "a.zarr")
    chunk_files(tmp_path / "a.zarr" / "X")[0].unlink()
    with read_cells(tmp_path / "a.zarr") as opened:
        assert "X lacks 1 of its" in opened.summary()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "barcodes.tsv").unlink(), "none of barcodes.tsv, barcodes.tsv.gz is in the folder of"),
        (lambda f: (f / "matrix.mtx").unlink(), "neither zarr nor a 10x folder.*found barcodes.tsv"),
        (lambda f: (f / "barcodes.tsv").write_text("A\nB\n"), "but there are 765 features and 2 barcodes"),
        (lambda f: (f / "matrix.mtx").write_text("%%MatrixMarket nonsense\n"), "not a general coordinate"),
        (
            lambda f: (f / "matrix.mtx").write_text("".join((f / "matrix.mtx").read_text().splitlines(True)[:-9])),
            "entries, but its head declares",
        ),
        (
            lambda f: (f / "matrix.mtx").write_text((f / "matrix.mtx").read_text() + "9999 1 3\n"),
            "an entry outside its 765 genes x 120 cells",
        ),
    ],
)
def test_broken_10x_folders(cells, tmp_path, change, message):
    write("mtx", cells, tmp_path / "folder")
    change(tmp_path / "folder")
    with pytest.raises(CellFileError, match=message), read_cells(tmp_path / "folder") as opened:
        list(opened.chunks())


def cut(share):
    return lambda content: content[: int(len(content) * share)]


def flipped(content):
    """Three bytes of the compressed data turned over."""
    content = bytearray(content)
    for place in (40, len(content) // 8, len(content) // 2):
        content[place] ^= 0xFF
    return bytes(content)


DAMAGES = {"cut at 2%": cut(0.02), "cut at 50%": cut(0.5), "cut at 99%": cut(0.99), "flipped": flipped}


@pytest.mark.parametrize(
    ("form", "name", "message"),
    [
        ("10x h5", "matrix/barcodes", "barcodes has 100 values, but the matrix has 120 cells"),
        ("10x h5", "matrix/features/id", "gene_ids has 100 values, but the matrix has 765 genes"),
        ("10x h5 antibodies", "matrix/features/name", "gene_symbols has 100 values, but the matrix has 769 genes"),
        ("10x h5 version 2", "GRCh38/barcodes", "barcodes has 100 values, but the matrix has 120 cells"),
        ("loom", "col_attrs/CellID", "CellID has 100 values, but the matrix has 120 cells"),
        ("loom", "col_attrs/celltype", "celltype has 100 values, but the matrix has 120 cells"),
        ("loom", "row_attrs/Accession", "Accession has 100 values, but the matrix has 765 genes"),
        ("h5ad csr", "obs/_index", r"obs\['names'\] has 100 values, but the matrix has 120 cells"),
        ("h5ad csr", "obs/n", r"obs\['n'\] has 100 values, but the matrix has 120 cells"),
        ("h5ad csr", "obs/celltype/codes", r"obs\['celltype'\] has 100 values, but the matrix has 120 cells"),
    ],
)
def test_names_and_metadata_shorter_than_the_matrix(cells, tmp_path, form, name, message):
    path = tmp_path / FORMS[form]
    write(form, cells, path)
    with h5py.File(path, "r+") as file:
        values, attributes = file[name][:100], dict(file[name].attrs)
        del file[name]
        file[name] = values
        file[name].attrs.update(attributes)
    with pytest.raises(CellFileError, match=f"{path.name}: .*{message}"):
        read_cells(path)


@pytest.mark.parametrize("damage_by", DAMAGES)
@pytest.mark.parametrize("name", ["matrix.mtx.gz", "barcodes.tsv.gz", "features.tsv.gz"])
def test_damaged_gzip_in_a_10x_folder_is_named(cells, tmp_path, name, damage_by):
    write("mtx gz", cells, tmp_path / "folder")
    path = tmp_path / "folder" / name
    path.write_bytes(DAMAGES[damage_by](path.read_bytes()))
    with pytest.raises(CellFileError, match=name), read_cells(tmp_path / "folder") as opened:
        list(opened.chunks())


@pytest.mark.parametrize(
    ("line", "message"),
    [("1 x 3", "cannot be read after 0 entries"), ("1 1 many", "not numbers"), ("1 1.5 2", "cannot be read after")],
)
def test_entries_that_are_no_numbers(cells, tmp_path, line, message):
    write("mtx", cells, tmp_path / "folder")
    path = tmp_path / "folder" / "matrix.mtx"
    head = [*path.read_text().splitlines()[:2], "765 120 1"]
    path.write_text("\n".join([*head, line]) + "\n")
    with pytest.raises(CellFileError, match=message), read_cells(tmp_path / "folder") as opened:
        list(opened.chunks())


def test_a_matrix_market_file_without_entries(cells, tmp_path):
    empty = cells.copy()
    empty.X = sp.csr_matrix(cells.shape)
    write("mtx", empty, tmp_path / "folder")
    with read_cells(tmp_path / "folder") as opened:
        assert sp.vstack(list(opened.chunks())).nnz == 0
        assert len(opened) == 120


@pytest.mark.parametrize(
    ("genes", "barcodes"),
    [("gene_names", "cell_names"), ("Ensembl", "Barcodes"), ("Gene", "CellID"), ("var_names", "")],
)
def test_usual_names_in_loom(cells, tmp_path, genes, barcodes):
    write_loom(tmp_path / "a.loom", cells)
    with h5py.File(tmp_path / "a.loom", "r+") as file:
        del file["row_attrs"], file["col_attrs"]
        file[f"row_attrs/{genes}"] = np.array(list(cells.var_names), "S")
        if barcodes:
            file[f"col_attrs/{barcodes}"] = np.array(list(cells.obs_names), "S")
    with read_cells(tmp_path / "a.loom") as opened:
        assert list(opened.var.index) == list(cells.var_names)
        assert opened.names().tolist() == (list(cells.obs_names) if barcodes else [str(i) for i in range(120)])
        assert (sp.vstack(list(opened.chunks())) != cells.X).nnz == 0


def test_loom_without_names_of_genes(cells, tmp_path):
    write_loom(tmp_path / "a.loom", cells)
    with h5py.File(tmp_path / "a.loom", "r+") as file:
        del file["row_attrs/Gene"], file["row_attrs/Accession"]
        file["row_attrs/length"] = np.ones(cells.n_vars)
    with pytest.raises(CellFileError, match="found no names of genes among the row attributes length"):
        read_cells(tmp_path / "a.loom")
    with h5py.File(tmp_path / "a.loom", "r+") as file:
        del file["row_attrs"]
    with pytest.raises(CellFileError, match="Found: 'col_attrs', 'layers', 'matrix'"):
        read_cells(tmp_path / "a.loom")


def test_a_matrix_of_another_name(cells, tmp_path):
    write_10x(tmp_path / "raw", cells, zipped=False)
    (tmp_path / "raw" / "matrix.mtx").rename(tmp_path / "raw" / "UniqueAndMult-EM.mtx")
    with read_cells(tmp_path / "raw" / "UniqueAndMult-EM.mtx") as opened:
        assert (sp.vstack(list(opened.chunks())) != cells.X).nnz == 0


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(CellFileError, match="found nothing$"):
        read_cells(tmp_path)


def test_folders_with_a_matrix_inside_are_named(cells, tmp_path):
    write_10x(tmp_path / "filtered_feature_bc_matrix", cells, zipped=True)
    with pytest.raises(CellFileError, match="name one of its folders with a matrix: filtered_feature_bc_matrix$"):
        read_cells(tmp_path)


def test_conversion_needs_room(cells, tmp_path, monkeypatch):
    write("h5ad csc", cells, tmp_path / "a.h5ad")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with (
        read_cells(tmp_path / "a.h5ad") as opened,
        pytest.raises(EnvironmentFailureError, match="set TMPDIR to a folder with room"),
    ):
        list(opened.chunks())


def test_conversion_is_kept_where_asked_and_used_again(cells, tmp_path, monkeypatch):
    write("h5ad csc", cells, tmp_path / "a.h5ad")
    for _ in range(2):
        with read_cells(tmp_path / "a.h5ad", folder=tmp_path / "kept") as opened:
            assert (sp.vstack(list(opened.chunks())) != cells.X).nnz == 0
        monkeypatch.setattr(
            "cellglot.tokenization.reading.matrices.ConvertedRows._convert", None
        )  # a second would fail


def test_cells_are_read_from_paths_and_anndata_alone():
    with pytest.raises(TypeError, match="not from int"):
        read_cells(3)
