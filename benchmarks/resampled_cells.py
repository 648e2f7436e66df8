"""Large files of cells with the density and values of real ones: the cells of a small file, shuffled again and again.

python benchmarks/resampled_cells.py --cells 100000 --output cells.h5ad
"""

import argparse
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from measure import DATA


SOURCE = DATA / "cells" / "pbmc_facs.h5ad"


def write_cells(path: Path, n_cells: int, source: Path = SOURCE, seed: int = 0, compression_level: int = 4) -> int:
    """Write a gzip-compressed h5ad file, one shuffle at a time, in bounded memory; return the number of counts.

    Parameters
    ----------
    source
        The small file, with counts by rows in X.
    compression_level
        Level of gzip; 4 is anndata's default.
    """
    import anndata

    small = anndata.read_h5ad(source)
    matrix = small.X.tocsr()
    random = np.random.default_rng(seed)
    shuffles = [random.permutation(small.n_obs) for _ in range(-(-n_cells // small.n_obs))]
    shuffles[-1] = shuffles[-1][: n_cells - small.n_obs * (len(shuffles) - 1)]
    n_values = sum(int(np.diff(matrix.indptr)[s].sum()) for s in shuffles)
    gzip = {"compression": "gzip", "compression_opts": compression_level}
    anndata.AnnData(obs=pd.DataFrame(index=["0"]), var=small.var).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        for name in ("X", "obs"):
            if name in file:
                del file[name]
        x = file.create_group("X")
        x.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        x.attrs["shape"] = np.array([n_cells, small.n_vars])
        data = x.create_dataset("data", (n_values,), matrix.data.dtype, **gzip)
        indices = x.create_dataset("indices", (n_values,), np.int32, **gzip)
        indptr = x.create_dataset("indptr", (n_cells + 1,), np.int64, **gzip)
        obs = file.create_group("obs")
        obs.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"})
        obs.attrs["column-order"] = np.array([], dtype=h5py.string_dtype())
        names = obs.create_dataset("_index", (n_cells,), h5py.string_dtype(), **gzip)
        names.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
        cell = value = 0
        for shuffle in shuffles:
            part = matrix[shuffle]
            cells, values = slice(cell, cell + part.shape[0]), slice(value, value + part.nnz)
            data[values], indices[values] = part.data, part.indices
            indptr[cells.start + 1 : cells.stop + 1] = part.indptr[1:].astype(np.int64) + value
            names[cells] = [f"cell{i}" for i in range(cells.start, cells.stop)]
            cell, value = cells.stop, values.stop
    return n_values


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cells", type=int, default=100_000, help="cells to write (default %(default)s)")
    options.add_argument("--source", type=Path, default=SOURCE, help="small .h5ad file (default pbmc_facs)")
    options.add_argument("--output", type=Path, required=True, help="file to write")
    options.add_argument("--seed", type=int, default=0, help="of the shuffles")
    given = options.parse_args()
    stored = write_cells(given.output, given.cells, given.source, given.seed)
    print(f"{given.output}: {given.cells:,} cells, {stored:,} counts")
