"""Answers of an Inference Endpoint over HTTP: one cell, ten cells, a file, and the time until it is ready.

python benchmarks/endpoint.py

The blood model that ships with cellglot is served by the emulator of Inference Endpoints in a process without
cellglot. Cells are those of scanpy's 700 blood cells, with all of their genes. Target: half
of the answers for one cell within 50 ms.
"""

import base64
import io
import json
import os
import subprocess
import sys
import time
import urllib.request
import warnings
from pathlib import Path

import anndata
import h5py
import numpy as np
from measure import ROOT, parser, report

import cellglot


SERVER = ROOT / "tests" / "model_cards" / "endpoint" / "emulated_endpoint.py"
MOST_MS = 50


def requests() -> dict[str, list[bytes]]:
    """Return bodies of requests: one cell each, ten cells each, and a file of 100 cells."""
    import scanpy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata = cellglot.read_cells(scanpy.datasets.pbmc68k_reduced()).to_anndata()
    rows = adata.X.toarray()[:200]
    cells = [{gene: int(n) for gene, n in zip(adata.var_names, row, strict=True) if n} for row in rows]
    file = io.BytesIO()
    with h5py.File(file, "w") as opened:
        anndata.io.write_elem(opened, "/", adata[:100].copy())
    coded = base64.b64encode(file.getvalue()).decode()
    wide = whole_cells(20)
    bodies = {
        "one cell": cells,
        "one cell of 2,000 genes": wide,
        "ten cells": [cells[i : i + 10] for i in range(0, 200, 10)],
        "a file of 100 cells": [{"h5ad": coded}] * 5,
    }
    return {name: [json.dumps({"inputs": inputs}).encode() for inputs in given] for name, given in bodies.items()}


def whole_cells(number: int) -> list[dict[str, int]]:
    """Return cells with 2,000 expressed genes of the model, as cells that were sequenced deeply have."""
    vocabulary = json.loads(Path(cellglot.model_path("blood-exceiver"), "gene_vocab.json").read_text())
    genes = [name for name in vocabulary["token_ids"] if name.startswith("ENSG")]
    random = np.random.default_rng(0)
    return [
        {genes[i]: int(random.geometric(0.4)) for i in random.choice(len(genes), 2000, replace=False)}
        for _ in range(number)
    ]


def main() -> None:
    given = parser(__doc__, repeats=3).parse_args()
    bodies = requests()
    began = time.perf_counter()
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(SERVER), str(cellglot.model_path("blood-exceiver"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as server:
        try:
            address = f"http://127.0.0.1:{server.stdout.readline().strip()}/"  # type: ignore[union-attr]
            urllib.request.urlopen(f"{address}health").read()
            ready = time.perf_counter() - began
            times = {
                name: timed(address, of_kind, 1 if given.quick else given.repeats) for name, of_kind in bodies.items()
            }
        finally:
            server.terminate()
    rows = [
        {"request": name, "p50, ms": np.percentile(t, 50), "p95, ms": np.percentile(t, 95), "requests": len(t)}
        for name, t in times.items()
    ]
    rows.append({"request": "start until ready", "p50, ms": 1000 * ready, "p95, ms": 1000 * ready, "requests": 1})
    target = float(np.percentile(times["one cell"], 50))
    report(given, rows, [("p50 of one cell, ms", MOST_MS, target, target < MOST_MS)])


def timed(address: str, bodies: list[bytes], repeats: int) -> list[float]:
    """Return the milliseconds until each answer; the first five are not counted."""
    times = []
    for body in [*bodies[:5], *bodies * repeats]:
        start = time.perf_counter()
        asked = urllib.request.Request(address, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked) as answer:
            answer.read()
        times.append(1000 * (time.perf_counter() - start))
    return times[5:]


if __name__ == "__main__":
    main()
