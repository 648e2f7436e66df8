"""Data, commands and scores in the record of a training run."""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cellglot.inputs import read_json
from cellglot.tokenization.families import tokenizers
from cellglot.training.run import RUN_FILE
from cellglot.training.runs.work import summary


CONFIG_FILE = "training_config.yaml"

MERGE = "python -c \"from cellglot.modeling.adapters import merge_adapter; merge_adapter('adapter', output='{}')\""

# Numbers of the trainer that are not scores of the model.
_NO_RESULTS = ("runtime", "per_second", "epoch", "flos", "eval_loss", "zero_shot_loss")

METRIC_NAMES = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "mse": "mean squared error",
    "r2": "R squared",
    "pearson": "Pearson correlation",
    "masked_mse": "mean squared error of masked expression",
    "explained_variance": "explained variance of masked expression",
    "zero_shot_accuracy": "accuracy before, by texts alone",
    "zero_shot_macro_f1": "macro F1 before, by texts alone",
}


@dataclass
class Result:
    """A score and its source.

    Parameters
    ----------
    metric, name
        Identifier, such as ``macro_f1``, and name, such as ``macro F1``.
    low, high
        Bounds of the confidence interval.
    cells
        Number of cells.
    """

    task: str
    data: str
    metric: str
    name: str
    value: float
    low: float | None = None
    high: float | None = None
    cells: int | None = None
    command: str = ""


@dataclass
class TrainingRun:
    """One run of training.

    Parameters
    ----------
    record
        Content of ``training_run.json``.
    name
        ``pretraining``, ``fine-tuning``, or ``training`` for a classifier without a base.
    config_file
        File name of the published configuration.
    """

    record: Mapping[str, Any]
    name: str = "pretraining"
    config_file: str = CONFIG_FILE
    command_name: str = field(init=False)

    def __post_init__(self) -> None:
        self.command_name = "pretrain" if self.name == "pretraining" else "finetune"

    @property
    def files(self) -> list[dict[str, Any]]:
        """Files of cells: name, n_cells, counts_in."""
        return list(self.record.get("corpus", {}).get("files", []))

    @property
    def data(self) -> str:
        """Names of the files."""
        return ", ".join(f["name"] for f in self.files) or "the training data"

    @property
    def processes(self) -> str:
        """Number of processes and device, in words."""
        number = int(self.record.get("processes", 1))
        return f"{number} process{'es' if number > 1 else ''} on {self.record.get('device', 'cpu')}"

    @property
    def cells(self) -> int:
        """Number of training cells."""
        return int(self.record.get("training_cells") or sum(f["n_cells"] for f in self.files))

    @property
    def split(self) -> str:
        """How cells were held out, in words."""
        split = self.record.get("corpus", {}).get("split", {})
        shares = {name: share for name, share in split.get("fractions", {}).items() if share}
        if not shares:
            return "none held out"
        of = ", ".join(f"{share:.0%} for {name}" for name, share in shares.items())
        by = {"cell": "single cells, as the metadata has no donors and no data sets"}.get(
            split.get("by", ""), f"whole groups of {split.get('by', 'cells')}"
        )
        return f"{of}; {by}; seed {split.get('seed', 0)}"

    @property
    def merged(self) -> bool:
        """Whether the trained adapter was merged into its base."""
        return bool(self.record.get("merged"))

    @property
    def seed(self) -> int:
        """Seed of the run; by default 42, as in `transformers.TrainingArguments`."""
        return int(self.record.get("config", {}).get("trainer", {}).get("seed", 42))

    @property
    def ontology(self) -> str | None:
        """Release of the Cell Ontology, or None."""
        return (self.record.get("ontology") or {}).get("release")

    @property
    def software(self) -> str:
        """Versions."""
        names = ("cellglot", "transformers", "torch", "python")
        return ", ".join(f"{name} {self.record[name]}" for name in names if name in self.record)

    @property
    def work(self) -> str:
        """What the run did and took, in a line; empty for records of earlier versions."""
        return summary(self.record["work"]) if "work" in self.record else ""

    @property
    def code(self) -> str:
        """Commit that the run was made with, if it is known."""
        code = (self.record.get("work") or {}).get("code", {})
        if "commit" not in code:
            return ""
        return f"commit {code['commit']}" + (", with changes" if code.get("changed") else "")

    def command(self, output: str, base: str | None) -> str:
        """Return the command that repeats the run with the published configuration."""
        if isinstance(self.record.get("command"), str):
            return self.record["command"]
        words = [f"cellglot {self.command_name}"]
        if self.command_name == "finetune":
            words += [*([] if self.name == "training" else [base or "BASE_MODEL"]), *self._options()]
        name = output.split("/")[-1]
        words += [f"--config {self.config_file}", "--corpus corpus", f"--output {'adapter' if self.merged else name}"]
        return " ".join(words) + (f"\n{MERGE.format(name)}" if self.merged else "")

    def _options(self) -> Iterator[str]:
        """Yield the options of the command that are not in the configuration."""
        record = self.record
        if record.get("task") not in (None, "cell-type"):
            yield f"--task {record['task']}"
        if record.get("method") not in (None, "full"):
            yield f"--method {record['method']}"
        if record.get("task") == "gene":
            yield f"--gene-labels {shlex.quote((record.get('gene_labels') or {}).get('file', 'GENE_LABELS'))}"
        if record.get("label_column"):
            yield f"--labels {shlex.quote(str(record['label_column']))}"
        if isinstance(record.get("cells_of_each_class"), int):
            yield f"--few-shot {record['cells_of_each_class']}"

    def tokenize_command(self, vocabulary: str) -> str:
        """Return the command that tokenizes the files with the vocabulary of a model."""
        corpus = self.record.get("corpus", {})
        kind = {c.__name__: name for name, c in tokenizers().items()}.get(corpus.get("tokenizer"), "rank-value")
        split = corpus.get("split", {})
        shares = "".join(
            f" --{name}-fraction {share:g}" for name, share in split.get("fractions", {}).items() if share
        )
        return (
            f"cellglot tokenize FILES --tokenizer {kind} --vocabulary {vocabulary}{shares} --seed "
            f"{split.get('seed', 0)} --output corpus"
        )

    def results(self, command: str) -> list[Result]:
        """Return the scores of the run on held-out cells."""
        rows = []
        for name, value in self.record.get("metrics", {}).items():
            if not isinstance(value, int | float) or any(part in name for part in _NO_RESULTS):
                continue
            metric = name.removeprefix("eval_")
            rows.append(
                Result(
                    task=self.name,
                    data=f"{self.data}, held-out cells",
                    metric=metric,
                    name=METRIC_NAMES.get(metric, metric.replace("_", " ")),
                    value=float(value),
                    cells=self.record.get("held_out_cells") or None,
                    command=command,
                )
            )
        return rows


def read_run(folder: str | Path) -> TrainingRun | None:
    """Read the training record in the folder of a model, None without a record."""
    path = Path(folder, RUN_FILE)
    if not path.is_file():
        return None
    record = read_json(path)
    if record.get("base_model"):
        return TrainingRun(record, "fine-tuning")
    return TrainingRun(record, "training" if "method" in record else "pretraining")


__all__ = ["CONFIG_FILE", "Result", "TrainingRun", "read_run"]
