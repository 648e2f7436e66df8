"""Settings of fine-tuning: the section ``finetuning`` of a configuration."""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub.dataclasses import strict

from cellglot.training.config import check_keys, read_section, where
from cellglot.training.data.splits import SPLITS
from cellglot.training.families.recipe import check_share


UNLIKELY_LABELS = ("keep", "leave_out", "unchecked")
BEST_METRICS = {"regression": "eval_mse", "multi-label": "eval_auprc"}  # of others macro F1
OF_ADAPTERS = {"lora": ("rank", "alpha", "dropout"), "dora": ("rank", "alpha", "dropout")}


@strict
@dataclass(kw_only=True)
class FinetuneSettings:
    """Keys of the section ``finetuning``; keys of other tasks are allowed and not used.

    Parameters
    ----------
    split
        ``corpus`` or ``stratified``.
    patience
        Evaluations without improvement after which training stops; the best state is kept.
    average_weights
        Share of the last steps; the mean of their weights is kept.
    class_weights
        ``balanced`` or ``none``.
    levels
        Whether labels are at several levels of the ontology: see `cellglot.training.data.label_levels`.
    classes
        With `levels`, the classes: ids or names. By default they are found.
    fewest_cells
        With `levels`, minimum number of training cells of a class that is found.
    balance
        How evenly labels are drawn for training: 0, by their number of cells; 1, all equally often; 0.5, by the square
        root of their number of cells.
    balance_by
        Column of the corpus: labels are balanced within each of its values, such as ``dataset_id``.
    balance_shares
        Label -> share of the draws.
    balance_open
        With `levels`: labels that leave k classes open are drawn k ** -balance_open times as often.
    ontology
        ``blood``, the date of a release, or an OBO or OWL file.
    unlikely_labels
        Training cells that look like another class: ``keep``, ``leave_out``, or ``unchecked``.
    held_out_genes
        Share of the genes of each class that is held out.
    rank, alpha, dropout
        Settings of LoRA and DoRA.
    """

    split: str = "corpus"
    patience: int | None = None
    average_weights: float | int | None = None
    class_weights: str | bool = "none"
    levels: bool = False
    classes: list[str] | None = None
    fewest_cells: int = 10
    balance: float | int = 0
    balance_by: str | None = None
    balance_shares: dict[str, float] | None = None
    balance_open: float | int = 0
    ontology: str | datetime.date = "shipped"
    unlikely_labels: str = "keep"
    held_out_genes: float | int = 0.2
    rank: int | None = None
    alpha: float | int | None = None
    dropout: float | int | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        self.ontology = str(self.ontology)  # YAML reads the date of a release as a date
        for name, choices in (("split", SPLITS), ("unlikely_labels", UNLIKELY_LABELS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} {getattr(self, name)!r}: it is one of {', '.join(choices)}")
        if self.class_weights not in (False, "none", "balanced"):
            raise ValueError(f"class_weights {self.class_weights!r}: it is balanced or none")
        if self.classes is not None and not self.levels:
            raise ValueError("classes are for labels at several levels: set levels to true")
        if not 0 <= self.balance <= 1:
            raise ValueError(f"balance {self.balance!r}: it is a number from 0 (as frequent as they are) to 1 (equal)")
        if self.balance_open < 0:
            raise ValueError(f"balance_open {self.balance_open!r}: it is 0 or more")
        if sum((self.balance_shares or {}).values()) >= 1 or any(v <= 0 for v in (self.balance_shares or {}).values()):
            raise ValueError(f"balance_shares {self.balance_shares!r}: they are shares above 0, together below 1")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience {self.patience!r}: it is a number of evaluations, at least 1")
        if self.average_weights is not None and not 0 < self.average_weights <= 1:
            raise ValueError(f"average_weights {self.average_weights!r}: it is a share of the steps, up to 1")
        if self.patience is not None and self.average_weights is not None:
            raise ValueError("patience keeps the best state, average_weights a mean: set one of them to null")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank {self.rank!r}: it is a whole number, at least 1")
        check_share("held_out_genes", self.held_out_genes, "each class's genes")

    @property
    def balanced(self) -> bool:
        """Whether all classes have the same weight in the loss."""
        return self.class_weights == "balanced"

    def of_adapter(self, method: str) -> dict[str, Any]:
        """Return the settings for the adapter of a method."""
        names = OF_ADAPTERS.get(method, ())
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def of_trainer(self, section: Mapping[str, Any], task: str) -> dict[str, Any]:
        """Return the trainer's settings for early stopping on the best state, if there is a `patience`."""
        if self.patience is None:
            return {}
        if section.get("eval_strategy", "no") in ("no", False):
            raise ValueError("finetuning.patience counts evaluations: set trainer.eval_strategy to epoch or steps")
        return {
            "load_best_model_at_end": True,
            "metric_for_best_model": BEST_METRICS.get(task, "eval_macro_f1"),
            "greater_is_better": task != "regression",
        }


def finetune_settings(section: Mapping[str, Any], task: str, method: str) -> FinetuneSettings:
    """Read the section ``finetuning``; refuse keys of other methods and values out of range."""
    others = {name for names in OF_ADAPTERS.values() for name in names} - set(OF_ADAPTERS.get(method, ()))
    known = [name for name in FinetuneSettings.__dataclass_fields__ if name not in others]
    check_keys(section, known, f"{where(section, 'finetuning')} ({task}, {method}): setting")
    return read_section(FinetuneSettings, section, "finetuning")


__all__ = ["FinetuneSettings", "finetune_settings"]
