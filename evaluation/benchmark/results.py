"""Results of an evaluation and their Markdown table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cellglot.evaluation.judges.names import HEADINGS as OF_JUDGES
from cellglot.evaluation.scores.task_result import TaskResult


# Headings of the table, in order: (task, metric) -> name.
HEADINGS = {
    ("clustering", "nmi"): "clustering: NMI",
    ("clustering", "ari"): "clustering: ARI",
    ("clustering", "asw_label"): "clustering: silhouette",
    ("clustering", "avg_bio"): "clustering: AvgBIO",
    ("integration", "asw_batch"): "integration: silhouette of batches",
    ("integration", "graph_connectivity"): "integration: graph connectivity",
    ("integration", "avg_batch"): "integration: AvgBatch",
    ("novel", "accuracy"): "novel cell types: accuracy, all candidates",
    ("novel", "macro_f1"): "novel cell types: macro F1, all candidates",
    ("novel", "accuracy at 75% of candidates"): "novel cell types: accuracy, 75% of candidates",
    ("novel", "accuracy at 50% of candidates"): "novel cell types: accuracy, 50% of candidates",
    ("novel", "accuracy at 25% of candidates"): "novel cell types: accuracy, 25% of candidates",
    ("novel", "accuracy at 10% of candidates"): "novel cell types: accuracy, 10% of candidates",
    **{
        ("retrieval", f"{name}_recall@{k}"): f"retrieval: {heading}, recall@{k}"
        for name, heading in (("cell_to_text", "texts for cells"), ("text_to_cell", "cells for texts"))
        for k in (1, 5, 10)
    },
    ("markers", "auroc"): "marker genes: AUROC, mean over cells",
    ("markers", "auroc_macro"): "marker genes: AUROC, mean over types",
    ("perturbation", "right_direction"): "perturbation: knock-outs that the deletion moves towards (chance 0.5)",
    ("perturbation", "beyond_controls"): "perturbation: further than 95% of genes of like expression (chance 0.05)",
    ("perturbation", "controls_that_move_less"): "perturbation: share of these genes that move less, median",
    **OF_JUDGES,
}
RESPONSE = {
    "pearson": "Pearson of all pairs",
    "pearson_in_drug": "Pearson within a drug, median",
    "pearson_in_line": "Pearson within a line, median",
}
GENES = {
    "auroc_matched": "AUROC against genes of like expression",
    "average_precision": "average precision",
    "coherent_sets": "share of sets nearer than random ones (p < 0.05)",
}
CLASSIFICATION = {"accuracy": "accuracy", "macro_f1": "macro F1", "auroc": "AUROC"}


def plain(value: Any) -> Any:
    """Convert NumPy values and paths to plain types, for `json`."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written to JSON")


Table = dict[str, dict[str, TaskResult]]  # row of a task ("clustering", "annotation: probe") -> model -> result


def markdown_table(results: Table, columns: list[str], baselines: list[str]) -> str:
    """Return a table with one row per metric and one column per model, baselines in italics; the best score is bold.

    Scores have their 95% intervals. An undefined score is a dash with the number of a note; a model without the task
    has an empty field.
    """
    lines = [
        "| | " + " | ".join(f"*{name}*" if name in baselines else name for name in columns) + " |",
        "| :--- |" + " ---: |" * len(columns),
    ]
    notes: list[str] = []
    for task, by_model in results.items():
        for metric, heading in metrics_of(task, by_model):
            scores = {m: r.metrics[metric] for m, r in by_model.items() if metric in r.metrics}
            shown = {name: f"{s.value:.3f}" for name, s in scores.items()}
            best = max(shown.values(), default="")
            fields = []
            for name in columns:
                if name in scores:
                    text = str(scores[name])
                    fields.append(text.replace(shown[name], f"**{shown[name]}**", 1) if shown[name] == best else text)
                elif name in by_model and metric in by_model[name].undefined:
                    why = by_model[name].undefined[metric]
                    if why not in notes:
                        notes.append(why)
                    fields.append(f"– ({notes.index(why) + 1})")
                else:
                    fields.append("")
            lines.append(f"| {heading} | " + " | ".join(fields) + " |")
    if notes:
        lines += ["", "Undefined:", ""] + [f"{i}. {why}" for i, why in enumerate(notes, 1)]
    return "\n".join(lines)


def metrics_of(task: str, by_model: Mapping[str, TaskResult]) -> list[tuple[str, str]]:
    """Return the metrics of a task that any model has, defined or undefined, with their headings."""
    present = {name for result in by_model.values() for name in (*result.metrics, *result.undefined)}
    known = [(m, heading) for (t, m), heading in HEADINGS.items() if t == task and m in present]
    if known:
        return known
    usual = [(m, f"{task}, {name}") for m, name in CLASSIFICATION.items() if m in present]
    usual += [(m, f"{task.replace('-', ' ')}, {name}") for m, name in RESPONSE.items() if m in present]
    usual += [(m, f"{task.replace('-', ' ')}, {name}") for m, name in GENES.items() if m in present]
    known_names = {*CLASSIFICATION, *RESPONSE, *GENES, "balanced_accuracy"}
    others = [(m, f"{task}, {m}") for m in sorted(present - known_names)]
    return usual + others


__all__ = ["Table", "TaskResult", "markdown_table", "metrics_of", "plain"]
