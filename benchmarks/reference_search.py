"""Search of a reference for `cellglot map`: the graph of neighbours against exact search.

python benchmarks/reference_search.py [--kinds real --cells 1000000]

The vectors are of two kinds. Synthetic: types, and a few directions in which the cells of one type differ, as in
embeddings of cells. Real: blood cells embedded by blood-exceiver, in many copies, each moved towards one of the cell's
15 nearest cells, and by noise of a tenth of the distance to it. Target: the graph finds at least 98% of the 15 nearest
cells of cells that are not in it.
"""

from functools import partial
from typing import Any

import numpy as np
from measure import DATA, alternate, median, parser, report

import cellglot
from cellglot.evaluation.embedding import embed_cells
from cellglot.evaluation.mapping.neighbours import RECALL, NeighbourGraph, exact_neighbours, unit_rows


K = 15
KINDS = ("synthetic", "real")


def synthetic(cells: int, size: int, seed: int, types: int = 60, directions: int = 16) -> np.ndarray:
    shared, random = np.random.default_rng(0), np.random.default_rng(seed)
    centres, basis = shared.normal(size=(types, size)), shared.normal(size=(directions, size))
    found = np.empty((cells, size), dtype=np.float16)
    for start in range(0, cells, 1 << 14):
        number = min(1 << 14, cells - start)
        rows = centres[random.integers(0, types, number)] + 0.3 * random.normal(size=(number, directions)) @ basis
        found[start : start + number] = unit_rows(rows)
    return found


def real_embeddings(quick: bool) -> np.ndarray:
    model = cellglot.load_model("blood-exceiver")
    with cellglot.read_cells(DATA / "cells" / "pbmc_facs.h5ad") as cells:
        adata = cells.to_anndata()
    found = embed_cells(model.encoder, model.tokenizer, adata[:200] if quick else adata, progress=False)
    return unit_rows(found[~np.isnan(found[:, 0])])


def copies(embeddings: np.ndarray, cells: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    near, _ = exact_neighbours(embeddings, embeddings, K + 1)
    made = np.empty((cells, embeddings.shape[1]), dtype=np.float16)
    for start in range(0, cells, 1 << 14):
        number = min(1 << 14, cells - start)
        first = random.integers(0, len(embeddings), number)
        step = embeddings[near[first, random.integers(1, K + 1, number)]].astype(np.float32) - embeddings[first]
        noise = random.normal(size=step.shape) * np.linalg.norm(step, axis=1, keepdims=True) / step.shape[1] ** 0.5
        rows = embeddings[first] + random.random((number, 1)) * step + 0.1 * noise
        made[start : start + number] = unit_rows(rows)
    return made


def main() -> None:
    options = parser(__doc__, repeats=3)
    options.add_argument("--cells", type=int, default=200_000, help="cells of the reference (default %(default)s)")
    options.add_argument("--size", type=int, default=256, help="size of an embedding (default %(default)s)")
    options.add_argument("--queries", type=int, default=1_000, help="cells to map (default %(default)s)")
    options.add_argument("--kinds", nargs="*", choices=KINDS, default=KINDS, help="of vectors (default: both)")
    given = options.parse_args()
    if given.quick:
        given.cells, given.size, given.queries, given.repeats = 5_000, 64, 200, 1

    rows, targets = [], []
    for kind in given.kinds:
        if kind == "synthetic":
            vectors, queries = (synthetic(n, given.size, seed) for n, seed in ((given.cells, 1), (given.queries, 2)))
        else:
            real = real_embeddings(given.quick)
            vectors, queries = (copies(real, n, seed) for n, seed in ((given.cells, 1), (given.queries, 2)))
        found, recall = measure(given, kind, vectors, queries.astype(np.float32))
        rows += found
        targets.append(
            (f"share of the {K} nearest cells that the graph finds, {kind}", RECALL, recall, recall >= RECALL)
        )
    report(given, rows, targets)


def measure(given: Any, kind: str, vectors: np.ndarray, queries: np.ndarray) -> tuple[list[dict[str, Any]], float]:
    made: list[tuple[NeighbourGraph, float]] = []
    build = alternate({"build": lambda: made.append(NeighbourGraph.build(vectors))}, 1, untimed=0)["build"]
    graph, _ = made[-1]
    wanted, _ = exact_neighbours(queries, vectors, K)
    found, _ = graph.search(queries, K)
    recall = float((found[:, :, None] == wanted[:, None, :]).any(axis=1).mean())
    sides = {
        "exact": partial(exact_neighbours, queries, vectors, K),
        "graph": partial(graph.search, queries, K),
    }
    times = alternate(sides, given.repeats)
    what = f"{len(queries):,} cells in {len(vectors):,} of size {vectors.shape[1]}, {kind}"
    rows = [
        {"way": f"exact search, {what}", "seconds": median(times["exact"])},
        {"way": f"graph of neighbours, {what}", "seconds": median(times["graph"])},
        {"way": f"making the graph, once, {kind}", "seconds": median(build)},
    ]
    return rows, recall


if __name__ == "__main__":
    main()
