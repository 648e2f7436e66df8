"""Search of a reference for `cellglot map`: the graph of neighbours against exact search.

python benchmarks/reference_search.py

The vectors are synthetic: types, and a few directions in which the cells of one type differ, as in embeddings of
cells. Target: the graph finds at least 98% of the 15 nearest cells of cells that are not in it.
"""

from functools import partial

import numpy as np
from measure import alternate, median, parser, report

from cellglot.evaluation.mapping.neighbours import RECALL, NeighbourGraph, exact_neighbours, unit_rows


K = 15


def synthetic(cells: int, size: int, seed: int, types: int = 60, directions: int = 16) -> np.ndarray:
    shared, random = np.random.default_rng(0), np.random.default_rng(seed)
    centres, basis = shared.normal(size=(types, size)), shared.normal(size=(directions, size))
    found = np.empty((cells, size), dtype=np.float16)
    for start in range(0, cells, 1 << 14):
        number = min(1 << 14, cells - start)
        rows = centres[random.integers(0, types, number)] + 0.3 * random.normal(size=(number, directions)) @ basis
        found[start : start + number] = unit_rows(rows)
    return found


def main() -> None:
    options = parser(__doc__, repeats=3)
    options.add_argument("--cells", type=int, default=200_000, help="cells of the reference (default %(default)s)")
    options.add_argument("--size", type=int, default=256, help="size of an embedding (default %(default)s)")
    options.add_argument("--queries", type=int, default=1_000, help="cells to map (default %(default)s)")
    given = options.parse_args()
    if given.quick:
        given.cells, given.size, given.queries, given.repeats = 5_000, 64, 200, 1

    vectors = synthetic(given.cells, given.size, seed=1)
    queries = synthetic(given.queries, given.size, seed=2).astype(np.float32)
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
    what = f"{given.queries:,} cells in {given.cells:,} of size {given.size}"
    rows = [
        {"way": f"exact search, {what}", "seconds": median(times["exact"])},
        {"way": f"graph of neighbours, {what}", "seconds": median(times["graph"])},
        {"way": "making the graph, once", "seconds": median(build)},
    ]
    report(given, rows, [(f"share of the {K} nearest cells that the graph finds", RECALL, recall, recall >= RECALL)])


if __name__ == "__main__":
    main()
