"""Models of the collection before the field's judges: ``python benchmarks/judges_study.py``.

It embeds, removes batches, and lets scib-metrics and cz-benchmarks score beside our metrics, PCA and HVG. This script
writes the tables of docs/evaluation/judges.md. It resumes where it was stopped, and needs the network once, for the
environment of cz-benchmarks.
"""

import argparse
import re
from pathlib import Path

import anndata
import pandas as pd

import cellglot
from cellglot.evaluation.benchmark.evaluate import Evaluation
from cellglot.evaluation.benchmark.jobs import BASELINES, HARMONY
from cellglot.evaluation.benchmark.results import markdown_table
from cellglot.outputs import write_text


ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "evaluation" / "judges.md"
MODELS = ("human-exceiver", "human-sccello", "blood-exceiver", "blood-sccello", "blood-langcell")
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


def tables(done: Evaluation) -> str:
    """Return a table of the embeddings as they are, and one of those after Harmony; the best of a row in bold."""
    parts = []
    for after in (False, True):
        columns = [name for name in done.record.columns if name.endswith(HARMONY) == after]
        results = {row: {n: r for n, r in by.items() if n in columns} for row, by in done.results.items()}
        if columns:
            parts.append(markdown_table(results, columns, list(BASELINES)))
    return "\n\n".join(parts)


def main() -> None:
    """Evaluate the models on every set, and write the tables into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the data sets")
    parser.add_argument("--output", type=Path, default=Path("judges_evaluation"), help="folder of the evaluations")
    parser.add_argument("--page", type=Path, default=PAGE, help="page whose tables are replaced")
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=list(SETS), help="data sets, all by default")
    parser.add_argument("--models", nargs="*", default=list(MODELS), help="models, %(default)s by default")
    parser.add_argument("--judges", nargs="*", default=["scib-metrics", "cz-benchmarks"], help="both by default")
    given = parser.parse_args()
    for name in given.sets:
        cells, labels, batches = cells_of(name, given.data)
        done = cellglot.evaluate(
            given.models, cells, labels=labels, batches=batches, tasks=["clustering", "integration"],
            judges=given.judges, without_batches=True, output=given.output / name,
        )  # fmt: skip
        seconds = {
            judge: sum(tasks[judge]["seconds"] for tasks in done.record.content["finished"].values() if judge in tasks)
            for judge in given.judges
        }
        took = ", ".join(f"{judge} {value:.0f} s" for judge, value in seconds.items())
        judged = "\n\n".join(line for line in done.record.summary().split("\n\n") if "its own code" in line)
        text = (
            f"<!-- {name} -->\n\n**{SETS[name]}** {cells.n_obs:,} cells, {cells.n_vars:,} genes.\n\n{tables(done)}\n\n"
            f"{judged} Time for all columns: {took}.\n\n<!-- end of {name} -->"
        )
        page = given.page.read_text(encoding="utf-8")
        pattern = rf"<!-- {name} -->.*<!-- end of {name} -->"
        write_text(given.page, re.sub(pattern, lambda _, text=text: text, page, flags=re.S))  # type: ignore[misc]


if __name__ == "__main__":
    main()
