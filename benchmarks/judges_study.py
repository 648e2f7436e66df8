"""Models of the collection before the field's judges: ``python benchmarks/judges_study.py``.

It embeds, removes batches, and lets scib-metrics and cz-benchmarks score beside our metrics, PCA and HVG. This script
writes the tables of docs/evaluation/judges.md. It resumes where it was stopped, and needs the network once, for the
environment of cz-benchmarks.
"""

import argparse
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from evaluation_records import (
    FOLDER,
    MODELS,
    RECORDS,
    ROOT,
    in_order,
    summary_of,
    to_compute,
    with_kept,
    write_between,
    write_record,
)

import cellglot
from cellglot.evaluation.benchmark.jobs import BASELINES, HARMONY
from cellglot.evaluation.benchmark.record import EvaluationRecord
from cellglot.evaluation.benchmark.results import markdown_table


PAGE = FOLDER / "judges.md"
MOST_CELLS = 1_000  # of a set; of more, these many with a label are drawn by seed 0
TITLES = {
    "lung_lines": "lung cancer lines",
    "nine_samples": "nine samples of blood",
    "pbmc_facs": "sorted blood cells",
}
WITHOUT_BATCHES = ("lung_lines",)  # sets whose embeddings are scored after Harmony, too
SETS = {
    "lung_lines": (
        "Two plates of five lung cancer cell lines (CEL-seq2, sc_mixology; batches: the plates): no model was trained "
        "on these lines."
    ),
    "nine_samples": (
        "Nine samples of blood of several laboratories (as sccomp distributes them; batches: the samples): the human "
        "models were trained without them, the blood models on these cells with their labels."
    ),
    "pbmc_facs": (
        "Sorted blood cells (Zheng et al. 2017; batches: the two parts of the file, 3,774 and 100 cells of one "
        "experiment): all models were trained on these cells with their labels."
    ),
}


def cells_of(name: str, data: Path) -> tuple[anndata.AnnData, str, str]:
    """Return the cells of a set, and its columns of labels and batches."""
    if name == "nine_samples":
        return anndata.read_h5ad(data / "labelled" / "pbmc_9samples_fine.h5ad"), "cell_type", "sample"
    if name == "pbmc_facs":
        return anndata.read_h5ad(data / "cells" / "pbmc_facs.h5ad"), "celltype", "split"
    plates = {
        "plate 1": anndata.read_h5ad(data / "cells" / "lung_cell_lines.h5ad"),
        "plate 2": anndata.read_h5ad(data / "corpus" / "scmix_sc_celseq2_5cl_p2.h5ad"),
    }
    for plate in plates.values():
        label = "cell_line" if "cell_line" in plate.obs else "cell_type"
        plate.obs = pd.DataFrame({"cell_type": plate.obs[label].astype(str)})
        plate.var = pd.DataFrame(index=plate.var_names)
    both = anndata.concat(plates, join="inner", label="plate", index_unique=" ")
    return both, "cell_type", "plate"


def drawn_cells(cells: anndata.AnnData, labels: str, most: int) -> anndata.AnnData:
    """Return all cells, or of more than `most` cells these many that have a label, by seed 0, in their order."""
    if cells.n_obs <= most:
        return cells
    labelled = np.flatnonzero(cells.obs[labels].notna())
    return cells[np.sort(np.random.default_rng(0).permutation(labelled)[:most])].copy()


def tables(record: EvaluationRecord) -> str:
    """Return a table of the embeddings as they are, and one of those after Harmony; the best of a row in bold."""
    parts = []
    for after in (False, True):
        columns = [name for name in in_order(record.columns) if name.endswith(HARMONY) == after]
        results = {row: {n: r for n, r in by.items() if n in columns} for row, by in record.results.items()}
        if columns:
            parts.append(markdown_table(results, columns, list(BASELINES)))
    return "\n\n".join(parts)


def main() -> None:
    """Evaluate the models on every set, and write the tables into the page."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the data sets")
    options.add_argument("--output", type=Path, default=Path("judges_evaluation"), help="folder of the evaluations")
    options.add_argument("--page", type=Path, default=PAGE, help="page whose tables are replaced")
    options.add_argument("--sets", nargs="*", default=list(SETS), choices=list(SETS), help="data sets, all by default")
    options.add_argument("--models", nargs="*", default=list(MODELS), help="models, %(default)s by default")
    options.add_argument("--judges", nargs="*", default=["scib-metrics", "cz-benchmarks"], help="both by default")
    options.add_argument("--records", type=Path, default=RECORDS, help="folder of the records for cards")
    options.add_argument(
        "--add", action="store_true", help="only models that the record lacks, or has of other weights"
    )
    options.add_argument("--quick", action="store_true", help="150 cells of one set, one model alone: to try it")
    given = options.parse_args()
    if given.add and (named := [name for name in given.sets if name in WITHOUT_BATCHES]):
        options.error(
            f"--add: records do not have the scores after Harmony of {', '.join(named)}: run it without --add, and "
            "name the others by --sets"
        )
    models, sets, most = given.models, given.sets, MOST_CELLS
    if given.quick:
        models, sets, most = models[:1], sets[:1], 150
    for name in sets:
        after = name in WITHOUT_BATCHES and not given.quick
        if not (computed := to_compute(given.records, name, models, given.add)):
            continue
        whole, labels, batches = cells_of(name, given.data)
        cells = drawn_cells(whole, labels, most)
        done = cellglot.evaluate(
            computed, cells, labels=labels, batches=batches, tasks=["clustering", "integration"], judges=given.judges,
            without_batches=after, baselines=not given.quick,
            output=given.output / name,
        )  # fmt: skip
        record = with_kept(done.record.content, given.records, name) if given.add else done.record
        seconds = {
            judge: sum(tasks[judge]["seconds"] for tasks in done.record.content["finished"].values() if judge in tasks)
            for judge in given.judges
        }
        of = "all columns" if record is done.record else f"{', '.join(computed)} and the baselines"
        took = ", ".join(f"{judge} {value:.0f} s" for judge, value in seconds.items())
        judged = "\n\n".join(line for line in record.summary().split("\n\n") if "its own code" in line)
        drawn = "" if cells is whole else f", drawn of {whole.n_obs:,} by seed 0"
        said = f"{SETS[name]} {cells.n_obs:,} cells{drawn}."
        shown = f"**{SETS[name]}** {cells.n_obs:,} cells{drawn}; {cells.n_vars:,} genes.\n\n{tables(record)}\n\n"
        write_between(given.page, name, f"{shown}{judged} Time for {of}: {took}.")
        title = f"The field's judges: {TITLES[name]}"
        command = f"python benchmarks/judges_study.py --data DATA --sets {name}"
        summary = f"{said}\n\n{summary_of(record)}"
        write_record(given.records, "judges", name, title, command, summary, record.content)


if __name__ == "__main__":
    main()
