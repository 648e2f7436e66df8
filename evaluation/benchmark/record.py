"""The JSON of an evaluation, written after each task, so that a stopped run can resume."""

import json
import os
import platform
import shlex
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from cellglot.evaluation.benchmark.jobs import BASELINES, Rows
from cellglot.evaluation.benchmark.results import Table, TaskResult, plain
from cellglot.evaluation.benchmark.split import CellSplit
from cellglot.evaluation.benchmark.tasks import DRUG_RESPONSE, GENE_SETS, PATHWAYS, PERTURBATION, RETRIEVAL, TASKS
from cellglot.evaluation.judges.names import JUDGES
from cellglot.inputs import read_json
from cellglot.outputs import write_json


FILE = "evaluation.json"
SOFTWARE = (
    "cellglot", "torch", "transformers", "peft", "numpy", "scipy", "scikit-learn", "anndata", "scanpy", "igraph",
    "umap-learn", "evaluate", "scib-metrics", "harmonypy",
)  # fmt: skip


@dataclass
class EvaluationRecord:
    """Settings and results of an evaluation, as plain types.

    Parameters
    ----------
    content
        Content of the JSON: ``date``, ``command``, ``arguments``, ``software``, ``machine``, ``data``, ``split``,
        ``models`` (name -> facts), ``results`` (row of the table -> model -> metrics, undefined, details),
        ``finished`` (model -> task -> settings, weights, rows, seconds), ``seconds``.
    folder
        Folder of the JSON; None to keep the record in memory.
    """

    content: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    @classmethod
    def open(cls, folder: Path | None, conditions: dict[str, Any], overwrite: bool = False) -> "EvaluationRecord":
        """Read the record of a folder, or begin a new one.

        Parameters
        ----------
        folder
            Created if it does not exist.
        conditions
            Cells, labels, batches: settings that all results depend on.
        """
        conditions = json.loads(json.dumps(conditions, default=plain))
        empty: dict[str, Any] = {"data": conditions, "models": {}, "results": {}, "finished": {}}
        if folder is None:
            return cls(empty)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FILE
        if path.exists() and not overwrite:
            content = read_json(path)
            differing = [k for k in conditions if k != "source" and content["data"].get(k) != conditions[k]]
            if differing:
                raise ValueError(
                    f"{path} is an evaluation with a different {', '.join(differing)}: use another folder, or "
                    "overwrite it"
                )
            return cls(content, folder)
        return cls(empty, folder)

    def begin(self, arguments: dict[str, Any], split: CellSplit | None) -> None:
        """Record arguments, date, software and split."""
        known = {d.metadata["Name"].lower(): d.version for d in metadata.distributions()}
        self.content |= {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "arguments": arguments,
            "software": {"python": platform.python_version()} | {n: known[n] for n in SOFTWARE if n in known},
            "machine": {"system": platform.platform(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
            "split": None if split is None else split.facts(),
        }

    def add_model(self, name: str, facts: dict[str, Any]) -> None:
        """Record facts about a model; earlier facts about the same weights stay."""
        earlier = self.content["models"].get(name, {})
        same = earlier.get("weights_sha256") == facts.get("weights_sha256")
        self.content["models"][name] = (earlier if same else {}) | facts

    def has(self, name: str, task: str, settings: dict[str, Any], weights: str | None) -> bool:
        """Whether a task of a model is finished with these settings and weights."""
        done = self.content["finished"].get(name, {}).get(task)
        wanted = json.loads(json.dumps(settings, default=plain))
        return done is not None and done["settings"] == wanted and done["weights_sha256"] == weights

    def add(
        self, name: str, task: str, rows: Rows, settings: dict[str, Any], weights: str | None, seconds: float
    ) -> None:
        """Add the results of a finished task, and write the JSON."""
        earlier = self.content["finished"].get(name, {}).get(task, {}).get("rows", [])
        for row in earlier:
            self.content["results"].get(row, {}).pop(name, None)
        for row, result in rows.items():
            self.content["results"].setdefault(row, {})[name] = result.to_dict()
        self.content["finished"].setdefault(name, {})[task] = {
            "settings": settings,
            "weights_sha256": weights,
            "rows": list(rows),
            "seconds": round(seconds, 2),
        }
        self._write()

    def finish(self, seconds: float) -> None:
        """Record the time, and write the JSON."""
        self.content["seconds"] = round(seconds, 2)
        self._write()

    def _write(self) -> None:
        if self.folder is not None:
            write_json(self.folder / FILE, self.content, default=plain)

    @property
    def columns(self) -> list[str]:
        """Models with results, baselines last."""
        present = {name for by_model in self.content["results"].values() for name in by_model}
        models = [name for name in self.content["models"] if name in present and name not in BASELINES]
        return models + [name for name in BASELINES if name in present]

    @property
    def results(self) -> Table:
        """Row of the table -> model -> result, in the order of the tasks."""
        order = (*TASKS, *JUDGES)
        rows = sorted(self.content["results"], key=lambda row: order.index(row.split(":")[0].split(",")[0]))
        return {
            row: {name: TaskResult.from_dict(found) for name, found in self.content["results"][row].items()}
            for row in rows
        }

    def summary(self) -> str:
        """Summarise cells, split, excluded cells and time."""
        data, split, lines = self.content["data"], self.content.get("split"), []
        if not data.get("cell_lines_alone"):
            lines.append(
                f"Scores with 95% intervals over bootstrap samples of cells; {data['cells']:,} cells, "
                f"{data['cells_without_label']:,} without a label, which are excluded. SHA-256 of the cells "
                f"{data['sha256'][:16]}."
            )
        if split is not None and any(row.startswith("annotation:") for row in self.content["results"]):
            lines.append(
                f"Annotation: trained on {split['training_cells']:,} cells, scored on {split['test_cells']:,}, split "
                f"by {split['by']}; {split['note']}."
            )
        if unseen := self._details("annotation: probe").get("unseen_classes"):
            named = ", ".join(f"{name} ({cells:,} cells)" for name, cells in unseen.items())
            lines.append(f"Classes that are not in the training cells, counted as errors: {named}.")
        sampled = self._details("markers")
        if sampled.get("sampled_cells"):
            without = ", ".join(sampled["labels_without_markers"]) or "no type"
            lines.append(
                f"Marker genes: {sampled['sampled_cells']:,} cells of {sampled['cells_with_markers_in_table']:,} "
                f"whose type has markers; without markers: {without}."
            )
        novel = self._details("novel")
        if novel.get("chance"):
            lines.append(
                f"Novel cell types: {len(novel['novel_types'])} types held out, {len(novel['known_types'])} known, "
                f"{novel['cells']:,} cells to predict; chance among all held-out types is {novel['chance']:.3f}."
            )
        if (scored := self._details(f"{GENE_SETS}: static")) and "genes" in scored:
            lines.append(
                f"Gene sets: {scored['gene_sets']:,} sets on the same {scored['genes']:,} genes for all columns; "
                "a gene without an embedding is similar to none. Baselines are in both rows. Intervals are over "
                f"bootstrap samples of sets, which share genes; chance of average precision is "
                f"{scored['chance_of_average_precision']:.3f}, of AUROC 0.5, of the share of sets 0.05."
            )
        found = self._details(f"{PATHWAYS}: probe")
        if "pathways" in found:
            lines.append(
                f"Pathways: {len(found['pathways'])}, active in a quarter of the cells by half of the genes of all "
                f"sets, which models do not read; {found['training_cells']:,} training and {found['test_cells']:,} "
                f"test cells; chance of average precision is {found['chance_of_average_precision']:.3f}."
            )
        lines += self._of_retrieval() + self._of_knock_outs() + self._of_drugs() + self._of_judges()
        lines.append(f"Took {self.content['seconds']:.0f} s.")
        return "\n\n".join(lines)

    def _of_retrieval(self) -> list[str]:
        """Say what was searched, and chance."""
        found = self._details(RETRIEVAL)
        if "chance" not in found:
            return []
        to_text, to_cell = (
            ", ".join(f"{found['chance'][f'{name}_recall@{k}']:.3f}" for k in (1, 5, 10))
            for name in ("cell_to_text", "text_to_cell")
        )
        return [
            f"Retrieval: {found['cells']:,} cells and {len(found['texts']):,} texts, by cosine. Chance of recall@1, 5 "
            f"and 10: texts for cells {to_text}; cells for texts {to_cell}."
        ]

    def _of_knock_outs(self) -> list[str]:
        """Say which knock-outs deletions were compared with."""
        found = self._details(PERTURBATION)
        if "knock_outs" not in found:
            return []
        left_out = found["left_out"]
        names = ", ".join(list(left_out)[:10]) + (", ..." if len(left_out) > 10 else "")
        return [
            f"Perturbation: the gene of each of {found['knock_outs']:,} real knock-outs is deleted in the same "
            f"{found['control_cells']:,} control cells; the direction to the knocked-out cells leaves out the gene "
            "itself. Genes of like expression: at most 50, a test needs 19. A gene that a model lacks moves nothing. "
            "Intervals are over bootstrap samples of knock-outs."
            + (f" Left out: {len(left_out):,} ({names})." if left_out else "")
        ]

    def _of_drugs(self) -> list[str]:
        """Summarise drug response: what was measured, what was left out, and the splits."""
        rows = [row for row in self.content["results"] if row.startswith(f"{DRUG_RESPONSE}:")]
        if not rows:
            return []
        facts, lines = self._details(rows[0]).get("data", {}), []
        if facts:
            notes = "".join(f"; {note}" for note in facts["notes"])
            lines.append(
                f"Drug response: {facts['pairs']:,} pairs of {facts['lines']:,} cell lines and {facts['drugs']:,} "
                f"drugs, {facts['genes']:,} genes, expression read as {facts['values']}{notes}. Correlations within a "
                "drug or line are medians over those with ten test pairs; intervals are over bootstrap samples of "
                "pairs, of held-out lines, or of held-out drugs."
            )
        for row in rows:
            if (found := self._details(row)).get("split"):
                pairs = f"{found['training_pairs']:,} training and {found['test_pairs']:,} test pairs"
                lines.append(f"{row.partition(': ')[2].capitalize()}: {found['split']}; {pairs}.")
        return lines

    def _of_judges(self) -> list[str]:
        """Say which packages scored the embeddings, and which cells they left out."""
        lines = []
        for judge in JUDGES:
            facts = self._details(judge)
            if not facts:
                continue
            left_out = [
                f"{facts[name]:,} {name.replace('_', ' ')}"
                for name in facts
                if name.startswith("cells_") and facts[name]
            ]
            lines.append(
                f"{facts['package']}: its own code on {facts['cells']:,} cells, without intervals"
                f"{'; left out: ' + ', '.join(left_out) if left_out else ''}."
            )
        return lines

    def _details(self, row: str) -> dict[str, Any]:
        """Return the details of the first model in a row of the table."""
        return next((r["details"] for r in self.content["results"].get(row, {}).values()), {})


def models_in(folder: Path) -> list[str]:
    """Return the models of the evaluation in a folder; empty without a readable evaluation."""
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return [str(name) for name in content["models"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


__all__ = ["FILE", "EvaluationRecord", "models_in"]
