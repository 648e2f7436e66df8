"""Damaged files of cells of every format; what is read is compared with anndata, SciPy and plain h5py."""

import gzip
import json
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.io
import scipy.sparse as sp
from frame import Target

from cellglot.tokenization import CellFileError, NotCountsError, read_cells
from cellglot.tokenization.corpus.count_cache import small_rows


CELLS, GENES = 14, 9
ODD_NUMBERS = (-1, -3, 0, 1, 2, 100, 10**6, 2**31 - 1, 2**31, 2**62)
ODD_VALUES = (5, -1, 10**12, "spam", [], [[1, 2]], 2.5, True)


@cache
def valid_cells() -> ad.AnnData:
    """Return tiny cells with two layers, raw and columns of several kinds."""
    rng = np.random.default_rng(1)
    counts = sp.csr_matrix(rng.poisson(1.5, (CELLS, GENES)).astype(np.float32))
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(rng.choice(["B cell", "T cell", "monocyte"], CELLS)),
            "donor_id": [f"d{i % 3}" for i in range(CELLS)],
            "n": np.arange(CELLS),
            "age": pd.array([None, *range(1, CELLS)], dtype="Int64"),
        },
        index=[f"c{i}" for i in range(CELLS)],
    )
    var = pd.DataFrame({"gene_ids": [f"ENSG{i:011d}" for i in range(GENES)]}, index=[f"G{i}" for i in range(GENES)])
    cells = ad.AnnData(counts, obs=obs, var=var, layers={"counts": counts.copy(), "spliced": counts * 2})
    cells.raw = cells
    return cells


def write_anndata(path: Path, layout: str = "csr", place: str = "X", compression: str | None = "gzip") -> None:
    """Write AnnData whose counts are in one place, by rows, by columns or dense; the others hold scaled values."""
    cells = valid_cells().copy()
    own = {"csr": cells.X, "csc": cells.X.tocsc(), "dense": cells.X.toarray()}[layout]
    cells.X = own
    if place != "X":
        scaled = cells.X * 0.37
        cells.X = scaled
        cells.layers["counts"] = own if place == "layer" else scaled
        cells.raw = cells.raw.to_adata() if place == "raw" else None
    if path.suffix == ".zarr":
        cells.write_zarr(path)
    else:
        cells.write_h5ad(path, compression=compression)


def write_10x(path: Path, version: int = 3) -> None:
    """Write 10x HDF5."""
    cells = valid_cells()
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix" if version == 3 else "GRCh38")
        parts = {"data": cells.X.data.astype("i4"), "indices": cells.X.indices, "indptr": cells.X.indptr}
        for name, values in parts.items():
            group.create_dataset(name, data=values, chunks=(8,), compression="gzip", shuffle=version == 3)
        group["shape"] = np.array(cells.shape[::-1])
        group["barcodes"] = np.array(cells.obs_names, "S")
        ids, names = np.array(cells.var["gene_ids"], "S"), np.array(cells.var_names, "S")
        if version == 3:
            group["features/id"], group["features/name"] = ids, names
            group["features/feature_type"] = np.array(["Gene Expression"] * GENES, "S")
        else:
            group["genes"], group["gene_names"] = ids, names


def write_loom(path: Path) -> None:
    """Write loom with a layer."""
    cells = valid_cells()
    with h5py.File(path, "w") as file:
        file["matrix"] = file["layers/spliced"] = cells.X.T.toarray()
        file["row_attrs/Gene"] = np.array(cells.var_names, "S")
        file["col_attrs/CellID"] = np.array(cells.obs_names, "S")
        file["col_attrs/cell_type"] = np.array(cells.obs["cell_type"].astype(str), "S")


def write_market(path: Path, zipped: bool) -> None:
    """Write a 10x folder."""
    cells, path = valid_cells(), Path(path)
    path.mkdir()
    scipy.io.mmwrite(path / "matrix.mtx", sp.coo_matrix(cells.X.T.astype(int)))
    (path / "barcodes.tsv").write_text("".join(f"{name}\n" for name in cells.obs_names))
    rows = zip(cells.var["gene_ids"], cells.var_names, strict=True)
    (path / "features.tsv").write_text("".join(f"{i}\t{n}\tGene Expression\n" for i, n in rows))
    for plain in list(path.iterdir()) if zipped else []:
        plain.with_name(f"{plain.name}.gz").write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()


@cache
def valid(name: str, suffix: str, write: Callable[[Path], None]) -> Path:
    """Write a valid input once for each process."""
    path = Path(tempfile.mkdtemp(prefix="fuzz-valid-")) / f"{name}{suffix}"
    write(path)
    return path


# -------------------------------------------------------------------- damage


def damage_bytes(path: Path, rng: np.random.Generator) -> str:
    """Cut a file, turn bits over, or put other bytes in."""
    content = bytearray(path.read_bytes())
    kind = rng.choice(["cut", "flips", "zeros"])
    if not content or kind == "cut":
        path.write_bytes(content[: int(len(content) * rng.random())])
        return f"{path.name} cut"
    for place in rng.integers(0, len(content), rng.integers(1, 6)):
        content[place] = content[place] ^ (1 << int(rng.integers(8))) if kind == "flips" else 0
    path.write_bytes(content)
    return f"{path.name}: {kind}"


def damage_hdf5(path: Path, rng: np.random.Generator) -> str:
    """Edit one object of an HDF5 file, or its bytes."""
    if rng.random() < 0.15:
        return damage_bytes(path, rng)
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name = str(rng.choice([n for n in names if not n.startswith("uns")]))
        item = file[name]
        if len(item.attrs) and rng.random() < 0.25:
            return _damage_attribute(item, rng)
        if isinstance(item, h5py.Dataset) and item.size and rng.random() < 0.85:
            return _damage_dataset(file, name, rng)
        return _damage_link(file, name, path, rng)


def _damage_attribute(item: Any, rng: np.random.Generator) -> str:
    attribute = str(rng.choice(list(item.attrs)))
    if rng.random() < 0.3:
        del item.attrs[attribute]
        return f"{item.name}: attribute {attribute} deleted"
    value = ODD_VALUES[rng.integers(len(ODD_VALUES))]
    old = item.attrs[attribute]
    if attribute == "shape" and rng.random() < 0.6:
        value = np.asarray(old) + rng.integers(-2, 3, len(old))
    item.attrs[attribute] = value
    return f"{item.name}: attribute {attribute} is {value}"


def _damage_dataset(file: h5py.File, name: str, rng: np.random.Generator) -> str:
    values, attributes = file[name][()], dict(file[name].attrs)
    kind = str(
        rng.choice(["value", "value", "value", "type", "shorter", "longer", "reshaped", "scalar", "empty", "huge"])
    )
    numbers = np.asarray(values).dtype.kind in "iuf"
    options: dict[str, Any] = {}
    if kind == "value" and np.ndim(values):
        values = np.array(values)
        place = tuple(int(rng.integers(n)) for n in values.shape)
        odd = ODD_NUMBERS[rng.integers(len(ODD_NUMBERS))]
        values[place] = np.array(odd).astype(values.dtype) if numbers else "odd"
        kind = f"{place} is {odd}"
    elif kind == "type":
        values = values.astype(rng.choice(["f8", "i1", "S3", "u8"])) if numbers else np.arange(np.size(values))
    elif kind == "shorter":
        values = values[:-1]
    elif kind == "longer":
        values = np.concatenate([values, values[-1:]])
    elif kind == "reshaped":
        values = values.reshape(-1, 1) if np.ndim(values) == 1 else values.reshape(-1)
    elif kind == "scalar":
        values = values.reshape(-1)[0]
    elif kind == "empty":
        values = values[:0]
    elif kind == "huge":
        options = {"shape": (10**12, *np.shape(values)[1:]), "chunks": (10**4, *np.shape(values)[1:]), "dtype": "i4"}
    del file[name]
    made = file.create_dataset(name, **(options or {"data": values}))
    made.attrs.update(attributes)
    return f"{name}: {kind}"


def _damage_link(file: h5py.File, name: str, path: Path, rng: np.random.Generator) -> str:
    kind = str(rng.choice(["deleted", "group", "array", "external", "nowhere", "itself", "virtual", "outside"]))
    del file[name]
    if kind == "group":
        file.create_group(name)
    elif kind == "array":
        file[name] = np.arange(3)
    elif kind == "external":
        file[name] = h5py.ExternalLink(str(path), "/")
    elif kind in ("nowhere", "itself"):
        file[name] = h5py.SoftLink(f"/{name}" if kind == "itself" else "/nothing/there")
    elif kind == "virtual":
        layout = h5py.VirtualLayout((CELLS,), "i4")
        layout[:] = h5py.VirtualSource("other.h5", "x", (CELLS,))
        file.create_virtual_dataset(name, layout)
    elif kind == "outside":
        file.create_dataset(name, (CELLS,), "i4", external=[(str(path), 0, 4 * CELLS)])
    return f"{name}: {kind}"


def damage_zarr(path: Path, rng: np.random.Generator) -> str:
    """Edit one file of a zarr store."""
    files = sorted(p for p in path.rglob("*") if p.is_file() and "uns" not in p.parts)
    chosen = files[rng.integers(len(files))]
    where = str(chosen.relative_to(path))
    for consolidated in (path / ".zmetadata",):
        if rng.random() < 0.7:
            consolidated.unlink(missing_ok=True)
    kind = str(rng.choice(["delete", "link", "bytes", "edit", "edit", "edit"]))
    if not chosen.exists() or kind == "delete":
        chosen.unlink(missing_ok=True)
        return f"{where} deleted"
    if kind == "link":
        outside = path.parent / "outside"
        shutil.move(chosen, outside)
        chosen.symlink_to(outside)
        return f"{where} is a link to outside"
    if chosen.name.startswith(".z") or chosen.name == "zarr.json":
        content = json.loads(chosen.read_text())
        done = _damage_json(content, rng)
        chosen.write_text(json.dumps(content))
        return f"{where}: {done}"
    return damage_bytes(chosen, rng)


def _damage_json(content: Any, rng: np.random.Generator) -> str:
    """Change one value of a document."""
    places: list[tuple[Any, Any]] = []

    def visit(value: Any) -> None:
        keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
        for key in keys:
            places.append((value, key))
            visit(value[key])

    visit(content)
    if not places:
        return "nothing to change"
    holder, key = places[rng.integers(len(places))]
    if rng.random() < 0.2:
        del holder[key]
        return f"{key} deleted"
    holder[key] = ODD_VALUES[rng.integers(len(ODD_VALUES))]
    return f"{key} is {holder[key]}"


def damage_market(path: Path, rng: np.random.Generator) -> str:
    """Edit one text of a 10x folder, or its bytes."""
    files = sorted(path.iterdir())
    chosen = files[rng.integers(len(files))]
    if rng.random() < 0.2:
        return damage_bytes(chosen, rng)
    zipped = chosen.suffix == ".gz"
    lines = (gzip.decompress(chosen.read_bytes()) if zipped else chosen.read_bytes()).decode().splitlines()
    at = int(rng.integers(min(len(lines), 6) if rng.random() < 0.5 else len(lines)))
    kind = str(rng.choice(["deleted", "twice", "field", "field", "field", "longer", "shorter", "blank", "bomb"]))
    words = lines[at].split()
    if kind == "field" and words:
        odd = [*map(str, ODD_NUMBERS), "x", "nan", "1.5", "", "integer", "complex", "pattern", "1e3"]
        words[rng.integers(len(words))] = str(rng.choice(odd))
        lines[at] = " ".join(words)
    elif kind == "bomb":
        lines[at] = "%" * (1 << 21)
    else:
        edited = {"deleted": [], "twice": [lines[at]] * 2, "longer": [lines[at] + " 7"], "blank": ["", lines[at]]}
        lines[at : at + 1] = edited.get(kind, [" ".join(words[:-1])])
    content = "".join(f"{line}\n" for line in lines).encode()
    chosen.write_bytes(gzip.compress(content) if zipped else content)
    return f"{chosen.name}, line {at + 1}: {kind} ({lines[at][:40] if at < len(lines) else ''})"


# -------------------------------------------------------------------- reading


def read_all(path: Path) -> dict[str, Any]:
    """Read everything that cellglot reads of a file."""
    with read_cells(path) as cells:
        rows = [small_rows(cells.counts, start, stop) for start, stop in cells.counts.ranges(40, 5)]
        small = sp.vstack([sp.csr_matrix((r.data, r.indices, r.indptr), (len(r), cells.n_genes)) for r in rows])
        counts = sp.vstack(list(cells.chunks(max_cells=4)))
        assert (small.toarray() == counts.toarray()).all(), "small_rows differs from chunks"
        return {
            "location": cells.counts.location,
            "recovered": cells.counts.recover,
            "said": any("lacks" in note for note in cells.notes),
            "counts": counts.toarray(),
            "names": [str(name) for name in cells.names()],
            "genes": [str(gene) for gene in cells.counts.index],
            "cell_type": cells.metadata()["cell_type"].tolist() if "cell_type" in cells.metadata_columns else None,
            "summary": cells.summary(),
        }


def as_anndata(path: Path, ours: dict[str, Any]) -> dict[str, Any]:
    """Read a file by anndata, the place that cellglot chose."""
    cells = ad.read_zarr(path) if path.suffix == ".zarr" else ad.read_h5ad(path)
    place = ours["location"]
    from_raw = place == "raw.X"
    name = place.removeprefix("layers['").removesuffix("']")
    matrix = cells.raw.X if from_raw else cells.X if place == "X" else cells.layers[name]
    labels = cells.obs.get("cell_type")
    if labels is not None and labels.dtype == float and labels.isna().all():
        labels = None  # codes and categories whose mark was deleted: cellglot reads them, anndata reads NaN
    return {
        "counts": matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix),
        "names": [str(name) for name in cells.obs_names],
        "genes": [str(name) for name in (cells.raw if from_raw else cells).var_names],
        "cell_type": None if labels is None else labels.astype(object).where(labels.notna(), None).tolist(),
    }


def as_hdf5(path: Path, ours: dict[str, Any]) -> dict[str, Any]:
    """Read 10x HDF5 or loom by h5py and SciPy."""
    with h5py.File(path) as file:
        if "row_attrs" in file:
            return {"counts": file["matrix"][:].T, "names": file["col_attrs/CellID"].asstr()[:].tolist()}
        group = file["matrix" if "matrix" in file else "GRCh38"]
        parts = tuple(group[name][:] for name in ("data", "indices", "indptr"))
        counts = sp.csc_matrix(parts, tuple(group["shape"][:]))
        counts.check_format(full_check=True)
        return {"counts": counts.T.toarray(), "names": group["barcodes"].asstr()[:].tolist()}


def as_market(path: Path, ours: dict[str, Any]) -> dict[str, Any]:
    """Read a 10x folder by SciPy."""
    matrix = scipy.io.mmread(next(path.glob("matrix.mtx*")))
    counts = matrix.toarray().T
    return {"counts": counts if counts.shape == ours["counts"].shape else counts.T}


def difference(ours: dict[str, Any], theirs: dict[str, Any]) -> str | None:
    """Say in what two readings differ."""
    if ours["counts"].shape != theirs["counts"].shape:
        return f"{ours['counts'].shape} cells and genes, not {theirs['counts'].shape}"
    if not ours["recovered"] and not np.array_equal(ours["counts"], theirs["counts"].astype(np.float64)):
        return f"other counts in {ours['location']}"
    for name in ("names", "genes", "cell_type"):
        if name not in theirs or ours[name] is None or theirs[name] is None:
            continue
        pairs = zip(ours[name], theirs[name], strict=True)
        if not ours["said"] and (wrong := next(((a, b) for a, b in pairs if _text(a) != _text(b)), None)):
            return f"{name}: {wrong[0]!r}, not {wrong[1]!r}"
    return None


def _text(value: Any) -> str:
    """Texts that mean that nothing is known are one."""
    text = "" if value is None else str(value).strip()
    return "" if text.lower() in ("nan", "none", "na", "unknown") else text


def target(name: str, suffix: str, write: Any, damage: Any, reference: Any) -> Target:
    """Return a target whose inputs are copies of one valid file, damaged once or twice."""

    def build(rng: np.random.Generator, folder: Path) -> tuple[Path, str]:
        source, path = valid(name, suffix, write), folder / f"damaged{suffix}"
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, path)
        done = [damage(path, rng)]
        if rng.random() < 0.2:
            with suppress(Exception):  # where the first damage left nothing that can be edited
                done.append(damage(path, rng))
        return path, "; ".join(done)

    return Target(name, build, read_all, (CellFileError, NotCountsError), reference, difference)


def write_zarr_v3(path: Path) -> None:
    """Write zarr of version 3."""
    with ad.settings.override(zarr_write_format=3):
        write_anndata(path)


TARGETS = [
    target("h5ad", ".h5ad", write_anndata, damage_hdf5, as_anndata),
    target("h5ad-plain", ".h5ad", lambda path: write_anndata(path, compression=None), damage_hdf5, as_anndata),
    target("h5ad-csc", ".h5ad", lambda path: write_anndata(path, "csc"), damage_hdf5, as_anndata),
    target("h5ad-dense", ".h5ad", lambda path: write_anndata(path, "dense"), damage_hdf5, as_anndata),
    target("h5ad-layer", ".h5ad", lambda path: write_anndata(path, place="layer"), damage_hdf5, as_anndata),
    target("h5ad-raw", ".h5ad", lambda path: write_anndata(path, place="raw"), damage_hdf5, as_anndata),
    target("zarr2", ".zarr", write_anndata, damage_zarr, as_anndata),
    target("zarr3", ".zarr", write_zarr_v3, damage_zarr, as_anndata),
    target("10x", ".h5", write_10x, damage_hdf5, as_hdf5),
    target("10x-genome", ".h5", lambda path: write_10x(path, 2), damage_hdf5, as_hdf5),
    target("loom", ".loom", write_loom, damage_hdf5, as_hdf5),
    target("market", "", lambda path: write_market(path, False), damage_market, as_market),
    target("market-gz", "", lambda path: write_market(path, True), damage_market, as_market),
]
