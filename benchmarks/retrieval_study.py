"""Retrieval by the models of the collection that read texts: ``python benchmarks/retrieval_study.py``.

Texts of cell types are searched for cells, and cells for texts (``cellglot evaluate --tasks retrieval``). This script
writes the table of docs/evaluation/papers.md. It resumes where it was stopped.
"""

import argparse
from pathlib import Path

from evaluation_records import FOLDER, RECORDS, ROOT, summary_of, write_between, write_record

import cellglot
from cellglot.evaluation.benchmark.evaluate import Evaluation
from cellglot.evaluation.benchmark.retrieval import CELLS, TO_CELL, TO_TEXT
from cellglot.evaluation.benchmark.tasks import RETRIEVAL


PAGE = FOLDER / "papers.md"
MODELS = ("human-langcell",)
FILES = ("pbmc_hao_rectangle", "pbmc_9samples_fine")
COLUMNS = {
    f"{TO_TEXT}@1": "texts for cells, recall@1",
    f"{TO_TEXT}@5": "recall@5",
    f"{TO_CELL}@1": "cells for texts, recall@1",
    f"{TO_CELL}@5": "recall@5",
}


def rows_of(name: str, done: Evaluation) -> list[str]:
    """Return a row for each model: recall, and chance in brackets."""
    rows = []
    for model, found in done.results[RETRIEVAL].items():
        chance, shown = found.details["chance"], []
        for metric in COLUMNS:
            score = found.metrics.get(metric)
            shown.append("" if score is None else f"{score.value:.3f} ({chance[metric]:.3f})")
        texts, cells = len(found.details["texts"]), found.details["cells"]
        rows.append(f"| {model} | `{name}.h5ad` | {cells:,} | {texts} | {' | '.join(shown)} |")
    return rows


def main() -> None:
    """Evaluate the models on every file, and write the table into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the data sets")
    parser.add_argument("--output", type=Path, default=Path("retrieval_evaluation"), help="folder of the evaluations")
    parser.add_argument("--page", type=Path, default=PAGE, help="page whose table is replaced")
    parser.add_argument("--models", nargs="*", default=list(MODELS), help="models, %(default)s by default")
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of the records for cards")
    parser.add_argument("--quick", action="store_true", help="100 cells of one file: to try it")
    given = parser.parse_args()
    rows = ["| model | file in `labelled/` | cells | texts | " + " | ".join(COLUMNS.values()) + " |"]
    rows.append("| :--- | :--- |" + " ---: |" * (2 + len(COLUMNS)))
    for name in FILES[:1] if given.quick else FILES:
        done = cellglot.evaluate(
            given.models, given.data / "labelled" / f"{name}.h5ad", labels="cell_type", tasks=[RETRIEVAL],
            output=given.output / name, retrieval_cells=100 if given.quick else CELLS,
        )  # fmt: skip
        rows += rows_of(name, done)
        title, command = f"Retrieval: {name}", "python benchmarks/retrieval_study.py --data DATA"
        said = f"Blood of laboratories that these models never saw.\n\n{summary_of(done.record)}"
        write_record(given.records, "retrieval", f"retrieval_{name}", title, command, said, done.record.content)
    write_between(given.page, "retrieval", "\n".join(rows))


if __name__ == "__main__":
    main()
