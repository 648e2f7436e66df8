"""Models of the collection on Reactome's pathways, as sets of genes and as labels of cells.

python benchmarks/gene_embeddings.py

This script writes the tables of docs/evaluation/genes.md, and docs/evaluation/gene_sets.json, from which it resumes:
models whose results are there with the same weights are not computed again.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from evaluation_records import FOLDER, MODELS, RECORDS, summary_of, write_between, write_record

import cellglot
from cellglot.evaluation.benchmark.gene_sets import BASELINES, IN_CELLS, STATIC
from cellglot.evaluation.benchmark.jobs import PCA
from cellglot.evaluation.benchmark.pathways import BY_TEXTS, METRICS, PROBE
from cellglot.evaluation.benchmark.record import EvaluationRecord
from cellglot.evaluation.benchmark.results import GENES
from cellglot.evaluation.labelled_cells import open_labelled_cells
from cellglot.inputs import read_json
from cellglot.modeling.model_names import resolve_model
from cellglot.outputs import sha256, write_json


PAGE = FOLDER / "genes.md"
RESULTS = FOLDER / "gene_sets.json"
TASKS = ("gene-sets", "pathways")
OF_CELLS = (PCA, *BASELINES)


def table(results: dict[str, Any]) -> str:
    """Return a row for each model, static and in cells, and each baseline; the best of a column in bold."""
    rows = [
        (f"{name}, {row.partition(': ')[2]}", results[row][name])
        for name in _models(results[STATIC])
        for row in (STATIC, IN_CELLS)
    ]
    rows += [(f"*{name}*", results[IN_CELLS][name]) for name in OF_CELLS]
    best = {m: max(f"{found['metrics'][m]['value']:.3f}" for _, found in rows) for m in GENES}
    lines = [
        f"| | {' | '.join(GENES.values())} | genes with an embedding |",
        "| :--- |" + " ---: |" * (len(GENES) + 1),
    ]
    for name, found in rows:
        shown = []
        for metric in GENES:
            score = found["metrics"][metric]
            value = f"{score['value']:.3f}"
            bold = f"**{value}**" if value == best[metric] else value
            shown.append(f"{bold} [{score['low']:.3f}, {score['high']:.3f}]")
        details = found["details"]
        shown.append(f"{details['genes_with_embedding']:,} of {details['genes']:,}")
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _models(scored: dict[str, Any]) -> list[str]:
    return [name for name in MODELS if name in scored]


def best_sets(results: dict[str, Any]) -> str:
    """Return the five sets with the best AUROC of each model in cells, and of the baselines."""
    lines = ["| | sets with the best AUROC against genes of like expression |", "| :--- | :--- |"]
    for name in (*_models(results[IN_CELLS]), *OF_CELLS):
        sets = results[IN_CELLS][name]["details"]["best_sets"][:5]
        words = [
            f"{s['set'].removeprefix('REACTOME_').replace('_', ' ').lower()} ({s['auroc_matched']:.2f})" for s in sets
        ]
        lines.append(f"| {name if name in MODELS else f'*{name}*'} | {'; '.join(words)} |")
    return "\n".join(lines)


def pathways(results: dict[str, Any]) -> str:
    """Return a row for a probe on each model, and on principal components; the best of a column in bold.

    Models that read texts have a row more, by the names of pathways.
    """
    scored = results[PROBE]
    rows = [(f"probe on {n if n in MODELS else f'*{n}*'}", scored[n]) for n in (*_models(scored), PCA)]
    rows += [(f"by texts, {name}", found) for name, found in results.get(BY_TEXTS, {}).items()]
    best = {m: max(f"{found['metrics'][m]['value']:.3f}" for _, found in rows) for m in METRICS}
    lines = ["| | average precision | AUROC |", "| :--- | ---: | ---: |"]
    for name, found in rows:
        shown = []
        for metric in METRICS:
            score = found["metrics"][metric]
            value = f"{score['value']:.3f}"
            bold = f"**{value}**" if value == best[metric] else value
            shown.append(f"{bold} [{score['low']:.3f}, {score['high']:.3f}]")
        lines.append(f"| {name} | {' | '.join(shown)} |")
    details = rows[0][1]["details"]
    lines += [
        "",
        f"{len(details['pathways'])} pathways, {details['training_cells']:,} training and {details['test_cells']:,} "
        f"test cells, {details['genes_read']:,} genes to read; chance of average precision "
        f"{details['chance_of_average_precision']:.3f}.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Evaluate the models and write the tables into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", default="../shared/data/cells/pbmc_facs.h5ad", help="file of cells")
    parser.add_argument("--gene-sets", default="../shared/data/markers/reactome.gmt", help="gene sets, .gmt")
    parser.add_argument("--number", type=int, default=500, help="cells that are drawn, by seed 0")
    parser.add_argument("--models", nargs="*", default=MODELS, help="models to evaluate")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of the results")
    parser.add_argument("--page", type=Path, default=PAGE, help="page whose tables are replaced")
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of the records for cards")
    parser.add_argument("--quick", action="store_true", help="one model, 100 cells: to try it")
    given = parser.parse_args()
    models, number = (given.models[:1], 100) if given.quick else (given.models, given.number)
    adata = cellglot.read_cells(given.cells).to_anndata()
    drawn = np.sort(np.random.default_rng(0).permutation(len(adata))[:number])
    content = read_json(given.results) if given.results.exists() else {"results": {}, "seconds": {}}
    content.setdefault("weights", {})
    for task, name in ((task, name) for task in TASKS for name in models):
        weights = sha256(Path(resolve_model(name)) / "model.safetensors")
        if content["weights"].get(f"{task}: {name}") == weights:
            continue
        start = time.perf_counter()
        done = cellglot.evaluate(
            [name],
            adata[drawn].copy(),
            tasks=[task],
            gene_sets=given.gene_sets,
            baselines=not any(row.startswith(task) for row in content["results"]),
        )
        for row, by_model in done.results.items():
            content["results"].setdefault(row, {}).update({n: r.to_dict() for n, r in by_model.items()})
        content["seconds"][f"{task}: {name}"] = round(time.perf_counter() - start, 1)
        content["weights"][f"{task}: {name}"] = weights
        software = done.record.content["software"]
        write_json(given.results, content | {"cells": number, "file": Path(given.cells).name, "software": software})
    results = content["results"]
    write_between(given.page, "tables", f"{table(results)}\n\n{best_sets(results)}")
    write_between(given.page, "pathways", pathways(results))
    record = EvaluationRecord(
        {"data": open_labelled_cells(adata[drawn].copy()).facts(), "results": results, "seconds": 0}
        | {"software": read_json(given.results).get("software", {})}
    )
    data = f"{number:,} cells of {Path(given.cells).name}, sorted blood cells on which all models were trained. "
    title, command = "Embeddings of genes, and pathways of cells", "python benchmarks/gene_embeddings.py"
    write_record(given.records, "genes", "reactome", title, command, data + summary_of(record), record.content)


if __name__ == "__main__":
    main()
