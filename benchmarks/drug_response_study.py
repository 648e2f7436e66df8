"""Models of the collection on drug response: ``python benchmarks/drug_response_study.py``.

This script writes the tables of docs/evaluation/drug_response.md. It resumes where it was stopped.
"""

import argparse
import re
from pathlib import Path

import cellglot
from cellglot.evaluation.benchmark.jobs import BASELINES
from cellglot.evaluation.benchmark.results import Table
from cellglot.evaluation.drug_response.splits import SPLITS
from cellglot.outputs import write_text


ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "evaluation" / "drug_response.md"
MODELS = ("human-exceiver", "human-sccello", "blood-exceiver", "blood-sccello", "blood-langcell")
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
    given = parser.parse_args()
    for name in given.folders:
        heading, values = FOLDERS[name]
        done = cellglot.evaluate(
            given.models, drug_response=given.data / "drug_response" / name, drug_values=values,
            tasks=["drug-response"], output=given.output / name,
        )  # fmt: skip
        summary = done.record.summary().rpartition("\n\n")[0]  # without the time
        shown = f"### {heading}\n\n{tables(done.results, done.record.columns)}\n\n{summary}"
        text = f"<!-- {name} -->\n\n{shown}\n\n<!-- end of {name} -->"
        page = given.page.read_text(encoding="utf-8")
        pattern = rf"<!-- {name} -->.*<!-- end of {name} -->"
        write_text(given.page, re.sub(pattern, lambda _, text=text: text, page, flags=re.S))  # type: ignore[misc]


if __name__ == "__main__":
    main()
