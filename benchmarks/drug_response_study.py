"""Models of the collection on drug response: ``python benchmarks/drug_response_study.py``.

This script writes the tables of docs/evaluation/drug_response.md. It resumes where it was stopped.
"""

import argparse
from pathlib import Path

from evaluation_records import (
    FOLDER,
    MODELS,
    RECORDS,
    in_order,
    summary_of,
    to_compute,
    with_kept,
    write_between,
    write_record,
)

import cellglot
from cellglot.evaluation.benchmark.jobs import BASELINES
from cellglot.evaluation.benchmark.results import Table
from cellglot.evaluation.drug_response.splits import SPLITS


ROOT = Path(__file__).parents[1]
PAGE = FOLDER / "drug_response.md"
# Folder -> heading, what its expression values are.
FOLDERS = {"deepcdr": ("DeepCDR's data, log2(TPM + 1)", "auto"), "gdsc": ("GDSC, microarrays", "relative")}
COLUMNS = {"pearson": "all pairs", "pearson_in_drug": "within a drug", "pearson_in_line": "within a line"}


def tables(results: Table, columns: list[str]) -> str:
    """Return a table for each split: a row for each model and baseline, the best of a column in bold."""
    parts = []
    for split in SPLITS:
        rows = results[f"drug-response: {split}"]
        best = {
            m: max((f"{r.metrics[m].value:.3f}" for r in rows.values() if m in r.metrics), default="") for m in COLUMNS
        }
        lines = [f"| {split} | {' | '.join(COLUMNS.values())} |", "| :--- |" + " ---: |" * len(COLUMNS)]
        for name in columns:
            shown = []
            for metric in COLUMNS:
                score = rows[name].metrics.get(metric)
                text = "–" if score is None else str(score)
                value = "" if score is None else f"{score.value:.3f}"
                shown.append(text.replace(value, f"**{value}**", 1) if value and value == best[metric] else text)
            lines.append(f"| {f'*{name}*' if name in BASELINES else name} | {' | '.join(shown)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def main() -> None:
    """Evaluate the models on each folder and write the tables into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the data sets")
    parser.add_argument("--output", type=Path, default=Path("drug_response_evaluation"), help="folder of evaluations")
    parser.add_argument("--page", type=Path, default=PAGE, help="page whose tables are replaced")
    parser.add_argument("--folders", nargs="*", default=list(FOLDERS), choices=list(FOLDERS), help="all by default")
    parser.add_argument("--models", nargs="*", default=list(MODELS), help="models, %(default)s by default")
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of the records for cards")
    parser.add_argument(
        "--add", action="store_true", help="only models that the record lacks, or has of other weights"
    )
    parser.add_argument("--quick", action="store_true", help="one folder, one model: to try it")
    given = parser.parse_args()
    models, folders = (given.models[:1], given.folders[:1]) if given.quick else (given.models, given.folders)
    for name in folders:
        heading, values = FOLDERS[name]
        if not (computed := to_compute(given.records, name, models, given.add)):
            continue
        done = cellglot.evaluate(
            computed, drug_response=given.data / "drug_response" / name, drug_values=values,
            tasks=["drug-response"], output=given.output / name,
        )  # fmt: skip
        record = with_kept(done.record.content, given.records, name) if given.add else done.record
        summary = summary_of(record)
        write_between(
            given.page, name, f"### {heading}\n\n{tables(record.results, in_order(record.columns))}\n\n{summary}"
        )
        command = f"python benchmarks/drug_response_study.py --data DATA --folders {name}"
        title = f"Drug response: {heading}"
        write_record(given.records, "drug_response", name, title, command, summary, record.content)


if __name__ == "__main__":
    main()
