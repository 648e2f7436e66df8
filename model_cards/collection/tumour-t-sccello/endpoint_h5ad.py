"""Read the counts of an ``.h5ad`` file that comes from anybody, in a process of its own with bounded memory and time.

A damaged file can crash HDF5: this ends the other process only. Nothing is written to disk. This file imports no other
file of the model, because the other process runs it as a script.
"""

import importlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np


SIGNATURE = b"\x89HDF\r\n\x1a\n"
COUNT_LAYERS = ("counts", "raw_counts", "count", "raw", "umi", "umis", "UMIs")
MOST_OBJECTS = 20_000
MOST_COLUMNS = 40
VALUES_AT_ONCE = 1 << 22
MEMORY_BESIDE = 1 << 30  # of Python, NumPy and HDF5
OTHER_KINDS = {b"PK\x03\x04": "a zip file", b"\x1f\x8b": "a gzip file", b"%PDF": "a PDF"}


class H5adError(ValueError):
    """A file that is not read; the message says why."""


class Columns(dict):
    """A table of genes as the tokenizer reads it: name -> values."""

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self)


# -------------------------------------------------------------------- in the process of the model


def read_h5ad(file: bytes, limits: dict[str, int], seconds: float, layer: str | None = None) -> Any:
    """Read cells from the bytes of an ``.h5ad`` file.

    Parameters
    ----------
    file
        Content of the file.
    limits
        ``max_cells`` and ``max_decompressed_bytes``.
    seconds
        Most seconds that it may take.
    layer
        A layer to read; by default X, raw.X and the layers that are usually named for counts.

    Returns
    -------
    types.SimpleNamespace
        Attributes of an AnnData: X, layers, raw, var, var_names, obs_names. Matrices are in compressed sparse rows.

    Raises
    ------
    H5adError
        If the file is not an h5ad, is damaged, exceeds a limit, or refers to other files.
    """
    if SIGNATURE not in (file[at : at + 8] for at in (0, 512, 1024, 2048)):
        kind = next((name for start, name in OTHER_KINDS.items() if file.startswith(start)), None)
        found = f"it is {kind}" if kind else f"it begins with {file[:16]!r}" if file else "it is empty"
        raise H5adError(f"the file is not an h5ad (HDF5): {found}")
    head = json.dumps({**limits, "layer": layer}).encode()
    environment = {**os.environ, "HDF5_PLUGIN_PRELOAD": "::", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [sys.executable, __file__], input=head + b"\n" + file, capture_output=True, timeout=seconds,
            env=environment, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise H5adError(f"reading the file took more than {seconds:.0f} seconds: send fewer cells") from None
    if done.returncode < 0:
        raise H5adError(f"the file is damaged: HDF5 crashed on it (signal {-done.returncode})")
    answer = done.stdout
    if done.returncode or not answer:
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no message"]
        raise H5adError(answer.decode("utf-8", "replace") or f"the file cannot be read: {last[0][:300]}")
    with np.load(io.BytesIO(answer), allow_pickle=False) as arrays:
        return _as_adata({name: arrays[name] for name in arrays.files})


def _as_adata(arrays: dict[str, np.ndarray]) -> SimpleNamespace:
    head = json.loads(arrays["head"].tobytes())
    found = {}
    for number, name in enumerate(head["places"]):
        parts = {part: arrays[f"{number} {part}"] for part in ("data", "indices", "indptr")}
        found[name] = SimpleNamespace(shape=tuple(head["shapes"][name]), **parts)
    genes, raw = head["genes"], None
    if "raw.X" in found:
        raw = SimpleNamespace(
            X=found["raw.X"], var=Columns(head["raw_genes"]["columns"]), var_names=head["raw_genes"]["names"]
        )
    layers = {name.removeprefix("layers/"): matrix for name, matrix in found.items() if name.startswith("layers/")}
    return SimpleNamespace(
        X=found.get("X"), layers=layers, raw=raw, var=Columns(genes["columns"]), var_names=genes["names"],
        obs_names=head["cells"],
    )  # fmt: skip


# -------------------------------------------------------------------- in the process of the file


class Reader:
    """Reads an opened file, and counts the bytes of what it reads.

    Parameters
    ----------
    file
        Opened by h5py.
    max_cells, max_bytes
        Limits.
    """

    def __init__(self, file: Any, max_cells: int, max_bytes: int):
        self.h5py = importlib.import_module("h5py")
        self.file, self.max_cells, self.max_bytes, self.bytes = file, max_cells, max_bytes, 0

    def refuse_links(self) -> None:
        """Refuse a file that refers to other files, or has very many objects; only hard links are followed."""
        seen, waiting = set(), [self.file["/"]]
        while waiting:
            group = waiting.pop()
            for name in group:
                link = group.get(name, getlink=True)
                place = f"{group.name.rstrip('/')}/{name}"
                if isinstance(link, self.h5py.ExternalLink):
                    raise H5adError(f"{place} is a link to another file, which is not followed: copy its data into it")
                if not isinstance(link, self.h5py.HardLink):
                    continue
                member = group[name]
                if isinstance(member, self.h5py.Dataset) and (member.external or member.is_virtual):
                    raise H5adError(f"the data of {place} are in another file: copy them into this one")
                address = self.h5py.h5o.get_info(member.id).addr
                if isinstance(member, self.h5py.Group) and address not in seen:
                    seen.add(address)
                    waiting.append(member)
                if len(seen) + len(waiting) > MOST_OBJECTS:
                    raise H5adError(f"the file has more than {MOST_OBJECTS:,} groups: it is not read")

    def array(self, dataset: Any, what: str, kinds: str = "biuf") -> np.ndarray:
        """Read an array of numbers."""
        return self.checked(dataset, what, kinds)[()]

    def checked(self, dataset: Any, what: str, kinds: str = "biuf") -> Any:
        """Return an array on disk whose size is within the limit."""
        if not isinstance(dataset, self.h5py.Dataset):
            raise H5adError(f"{what} is missing, or not an array: the file is not a complete h5ad")
        if dataset.dtype.kind not in kinds:
            raise H5adError(f"{what} has values of the type {dataset.dtype}, not numbers")
        size = max(int(dataset.size or 0), 1) * max(dataset.dtype.itemsize, 1)
        chunk = int(np.prod(dataset.chunks or (1,), dtype=np.float64)) * dataset.dtype.itemsize
        self.bytes += size
        if max(self.bytes, chunk) > self.max_bytes:
            raise H5adError(
                f"the file has {max(self.bytes, chunk):,} bytes or more when it is decompressed (up to {what}), but "
                f"{self.max_bytes:,} is the limit: send fewer cells, or counts without other layers"
            )
        return dataset

    # ---------------------------------------------------------------- matrices

    def shape_of(self, place: Any, what: str) -> tuple[int, int]:
        """Return the declared shape of a matrix, within the limits."""
        given = place.shape if isinstance(place, self.h5py.Dataset) else _first(place.attrs, "shape", "h5sparse_shape")
        if given is None or len(given) != 2:
            raise H5adError(f"{what} is not a matrix of cells x genes, dense or sparse")
        cells, genes = map(int, given)
        if not 0 < cells <= self.max_cells:
            raise H5adError(
                f"the file has {cells:,} cells, but {self.max_cells:,} is the limit of a request: send them in parts"
                if cells > 0 else f"{what} has {cells:,} cells"
            )  # fmt: skip
        if genes < 1 or genes * 8 > self.max_bytes:
            raise H5adError(f"{what} declares {genes:,} genes, which is impossible")
        return cells, genes

    def matrix(self, place: Any, what: str) -> tuple[tuple[int, int], dict[str, np.ndarray]]:
        """Read a matrix as compressed sparse rows."""
        shape = self.shape_of(place, what)
        if isinstance(place, self.h5py.Dataset):
            return shape, self._dense(self.checked(place, what), shape)
        kind = str(_first(place.attrs, "encoding-type", "h5sparse_format") or "").removesuffix("_matrix")
        if kind not in ("csr", "csc"):
            raise H5adError(f"{what} is stored as {kind or 'a group'!r}: csr_matrix, csc_matrix and arrays are read")
        data, indices, indptr = (
            self.array(place.get(part), f"{what}/{part}", kinds)
            for part, kinds in (("data", "biuf"), ("indices", "iu"), ("indptr", "iu"))
        )
        major, minor = shape if kind == "csr" else shape[::-1]
        indptr = indptr.astype(np.int64)
        right = data.ndim == indices.ndim == indptr.ndim == 1 and len(indptr) == major + 1
        if not right or len(data) != len(indices) or indptr[0] != 0 or (np.diff(indptr) < 0).any():
            raise H5adError(f"{what} is a damaged sparse matrix: its parts do not fit together")
        if indptr[-1] != len(data):
            raise H5adError(f"{what} is damaged: it ends at value {indptr[-1]:,}, and there are {len(data):,}")
        if len(indices) and not (indices.min() >= 0 and indices.max() < minor):
            raise H5adError(f"{what} is damaged: it has indices from {indices.min():,} to {indices.max():,}")
        if kind == "csc":
            order = np.argsort(indices, kind="stable")
            columns: np.ndarray = np.repeat(np.arange(major, dtype=np.int32), np.diff(indptr))
            indptr = np.concatenate([[0], np.cumsum(np.bincount(indices, minlength=minor))]).astype(np.int64)
            data, indices = data[order], columns[order]
        return shape, {"data": data, "indices": indices, "indptr": indptr}

    def _dense(self, dataset: Any, shape: tuple[int, int]) -> dict[str, np.ndarray]:
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        lengths: list[np.ndarray] = [np.zeros(1, dtype=np.int64)]
        step = max(VALUES_AT_ONCE // shape[1], 1)
        for start in range(0, shape[0], step):
            block = dataset[start : start + step]
            rows, columns = np.nonzero(block)
            parts.append((block[rows, columns], columns.astype(np.int32)))
            lengths.append(np.bincount(rows, minlength=len(block)))
        data, indices = (np.concatenate(values) for values in zip(*parts, strict=True))
        return {"data": data, "indices": indices, "indptr": np.cumsum(np.concatenate(lengths))}

    # ---------------------------------------------------------------- tables

    def table(self, group: Any, what: str, number: int, columns: bool = True) -> dict[str, Any]:
        """Read the names of cells or genes and, of genes, the columns of texts."""
        if not isinstance(group, self.h5py.Group):
            raise H5adError(f"{what} is missing or of an old version of anndata: open the file and write it again")
        index = group.attrs.get("_index", "_index")
        names = self._texts(group.get(index), f"{what}/{index}")
        if names is None or len(names) != number:
            raise H5adError(f"{what} has {0 if names is None else len(names):,} names, but {number:,} are needed")
        found: dict[str, list[str]] = {}
        for name in list(group)[:MOST_COLUMNS] if columns else ():
            if name != index and (values := self._texts(group.get(name), f"{what}/{name}")) is not None:
                found[name] = values if len(values) == number else [""] * number
        return {"names": names, "columns": found}

    def _texts(self, place: Any, what: str) -> list[str] | None:
        """Read texts, plain, categorical or nullable; None for other columns."""
        if isinstance(place, self.h5py.Dataset):
            text = self.h5py.check_string_dtype(place.dtype)
            if text is None or place.ndim != 1:
                return None
            return list(self.checked(place, what, "OS").asstr(errors="replace")[()])
        if not isinstance(place, self.h5py.Group):
            return None
        if "categories" in place and "codes" in place:
            categories = self._texts(place["categories"], f"{what}/categories")
            if categories is None:
                return None
            codes = self.array(place["codes"], f"{what}/codes", "iu")
            if len(codes) and not (codes.min() >= -1 and codes.max() < len(categories)):
                raise H5adError(f"{what} is damaged: it has codes from {codes.min()} to {codes.max()}")
            return [categories[code] if code >= 0 else "" for code in codes.tolist()]
        if "values" in place and "mask" in place:
            values = self._texts(place["values"], f"{what}/values")
            mask = self.array(place["mask"], f"{what}/mask")
            return values and ["" if gone else text for text, gone in zip(values, mask.tolist(), strict=False)]
        return None

    # ---------------------------------------------------------------- files

    def places(self, layer: str | None) -> Iterator[tuple[str, Any]]:
        """Yield the places that may contain counts."""
        layers = self.file.get("layers")
        there = list(layers) if isinstance(layers, self.h5py.Group) else []
        if layer is not None and layer not in ("X", "raw.X"):
            if layer not in there:
                raise H5adError(f"the file has no layer {layer!r:.80}: it has {', '.join(there[:20]) or 'no layers'}")
            yield f"layers/{layer}", layers[layer]
            return
        if layer in (None, "X") and "X" in self.file:
            yield "X", self.file["X"]
        if layer in (None, "raw.X") and isinstance(self.file.get("raw"), self.h5py.Group) and "X" in self.file["raw"]:
            yield "raw.X", self.file["raw"]["X"]
        for name in COUNT_LAYERS if layer is None else ():
            if name in there:
                yield f"layers/{name}", layers[name]

    def read(self, layer: str | None) -> dict[str, Any]:
        """Read names and counts, as arrays for `numpy.savez`."""
        self.refuse_links()
        if "matrix" in self.file and "X" not in self.file:
            raise H5adError("this is a 10x .h5 file: open it (scanpy.read_10x_h5) and write it as h5ad")
        head: dict[str, Any] = {"places": [], "shapes": {}}
        arrays: dict[str, np.ndarray] = {}
        for number, (name, place) in enumerate(self.places(layer)):
            shape, parts = self.matrix(place, name)
            head["places"].append(name)
            head["shapes"][name] = shape
            arrays |= {f"{number} {part}": values for part, values in parts.items()}
        if not head["places"]:
            raise H5adError("the file has no X, raw.X or layer of counts: it is not an h5ad of cells")
        cells = {shape[0] for shape in head["shapes"].values()}
        genes = {shape[1] for name, shape in head["shapes"].items() if name != "raw.X"}
        if len(cells) > 1 or len(genes) > 1:
            raise H5adError("X, raw.X and layers have different numbers of cells or genes: the file is damaged")
        head["cells"] = self.table(self.file.get("obs"), "obs", cells.pop(), columns=False)["names"]
        raw = head["shapes"].get("raw.X")
        if raw is not None:
            head["raw_genes"] = self.table(self.file["raw"].get("var"), "raw/var", raw[1])
        head["genes"] = self.table(self.file.get("var"), "var", genes.pop()) if genes else head["raw_genes"]
        return arrays | {"head": np.frombuffer(json.dumps(head).encode(), dtype=np.uint8)}


def _first(attributes: Any, *names: str) -> Any:
    found = next((attributes[name] for name in names if name in attributes), None)
    return found.decode() if isinstance(found, bytes) else found


def main() -> None:
    """Read limits and a file from the standard input; write arrays, or a message, to the standard output."""
    settings, file = sys.stdin.buffer.readline(), sys.stdin.buffer.read()
    given = json.loads(settings)
    limit_memory(2 * given["max_decompressed_bytes"] + len(file) + MEMORY_BESIDE)
    try:
        h5py = importlib.import_module("h5py")
        with h5py.File(h5py.h5f.open_file_image(file)) as opened:
            reader = Reader(opened, given["max_cells"], given["max_decompressed_bytes"])
            out = io.BytesIO()
            np.savez(out, **reader.read(given["layer"]))
    except ImportError:
        message = "this endpoint has no h5py, which reads h5ad files: add h5py to its requirements, or send counts"
    except H5adError as error:
        message = str(error)
    except MemoryError:
        message = "the file needs more memory than its limit when it is decompressed: send fewer cells"
    except Exception as error:  # noqa: BLE001  # whatever HDF5 says of a damaged file
        cause = " ".join(str(error).split())[:300] or type(error).__name__
        filters = ": write it with gzip or without compression" if "filter" in cause else ""
        message = f"the file cannot be read, it may be damaged or cut short ({cause}){filters}"
    else:
        sys.stdout.buffer.write(out.getbuffer())
        return
    sys.stdout.write(message)
    sys.stdout.flush()
    sys.exit(1)


def limit_memory(size: int) -> None:
    """Bound the memory of this process, where the system can."""
    try:
        resource = importlib.import_module("resource")
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, AttributeError, ValueError, OSError):
        return


if __name__ == "__main__":
    main()


__all__ = ["H5adError", "read_h5ad"]
