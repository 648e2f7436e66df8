"""PageRank tables of all classes of the Cell Ontology: one sparse factorisation against one networkx call per class.

python benchmarks/cell_ontology.py

networkx runs as in the released code of scCello: one call per class with defaults (at most 100 iterations, early
stopping). Its time for all classes is extrapolated from a sample of them, unless --all is given. Target: less than
1/20 of its time.
"""

import tempfile
from functools import partial
from pathlib import Path

import networkx
import numpy as np
from measure import DATA, alternate, median, parser, report

from cellglot.tokenization import CellOntology


def call_networkx(graph: networkx.Graph, classes: list[str]) -> list[dict[str, float]]:
    return [networkx.pagerank(graph, alpha=0.9, personalization={c: 1}) for c in classes]


def main() -> None:
    options = parser(__doc__, repeats=5)
    options.add_argument("--ontology", type=Path, default=DATA / "cell_ontology" / "cl.owl.gz", help="OBO or OWL")
    options.add_argument("--sample", type=int, default=200, help="classes given to networkx (default %(default)s)")
    options.add_argument("--all", action="store_true", help="give networkx all classes")
    given = options.parse_args()
    if given.quick:
        given.sample, given.repeats = 50, 3

    with tempfile.TemporaryDirectory() as cache:
        read = partial(CellOntology.from_file, given.ontology, cache_folder=cache)
        first = alternate({"read": read}, 1)["read"]  # the untimed round parses
        ontology = read()
    graph = networkx.Graph([(c, p) for c in ontology.cell_types for p in ontology.parents(c)])
    classes = sorted(graph)
    n_called = len(classes) if given.all else min(given.sample, len(classes))
    called = [classes[i] for i in np.linspace(0, len(classes) - 1, n_called).astype(int)]

    sides = {"networkx": partial(call_networkx, graph, called), "cellglot": partial(ontology.similarity, classes)}
    ours = ontology.similarity(classes)[np.searchsorted(classes, called)]
    theirs = np.array([[ranks[c] for c in classes] for ranks in sides["networkx"]()])
    difference = np.abs(ours - theirs).sum(axis=1).max()

    times = alternate(sides, given.repeats)
    whole = [seconds * len(classes) / n_called for seconds in times["networkx"]]
    share = float(np.median([a / b for a, b in zip(times["cellglot"], whole, strict=True)]))
    how = f"{len(classes):,} calls" if n_called == len(classes) else f"extrapolated from {n_called:,} calls"
    rows = [
        {"way": f"networkx, one call per class ({how})", "seconds": median(whole)},
        {"way": f"cellglot, all {len(classes):,} classes at once", "seconds": median(times["cellglot"])},
        {"way": "cellglot, similarities, levels and ancestors", "seconds": _seconds(ontology.restrict, classes)},
        {"way": "cellglot, reading the parsed ontology from the cache", "seconds": median(first)},
    ]
    print(f"largest distance of a class's ranks, summed over classes (networkx stops early): {difference:.2g}\n")
    report(given, rows, [("share of networkx's time", 1 / 20, share, share < 1 / 20)])


def _seconds(function, *arguments) -> float:
    return median(alternate({"it": partial(function, *arguments)}, 3)["it"])


if __name__ == "__main__":
    main()
