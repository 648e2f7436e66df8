"""Facts for the card of a model or an adapter, from its folder."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cellglot.families import Families
from cellglot.model_cards.card.details import CardFacts
from cellglot.model_cards.card.run_record import CONFIG_FILE, Result, TrainingRun, read_run
from cellglot.modeling import loaded_model
from cellglot.modeling.families import knows_texts


# What a model is for, as loaders say it -> as cards do.
PURPOSES = {
    "embeddings": "embedding",
    "classes of cells": "cell classification",
    loaded_model.SEVERAL: "multi-label classification",
    "classes of genes": "gene classification",
    "a value of cells": "regression",
    "cells and texts": "zero-shot annotation",
}
# Purpose -> tag of the Hub's pipelines.
PIPELINE_TAGS = {
    "embedding": "feature-extraction",
    "cell classification": "text-classification",
    "multi-label classification": "text-classification",
    "gene classification": "token-classification",
    "regression": "text-classification",
    "zero-shot annotation": "zero-shot-classification",
}
AUTO_CLASSES = {
    "cell classification": "AutoModelForSequenceClassification",
    "multi-label classification": "AutoModelForSequenceClassification",
    "regression": "AutoModelForSequenceClassification",
    "gene classification": "AutoModelForTokenClassification",
}


@dataclass
class System:
    """Facts about all models of a kind: the content of ``systems/<kind>.yaml``.

    Parameters
    ----------
    title, family, summary
        Name, kind of network, a few sentences.
    as_published, our_choice
        What follows the paper and its released code, and what does not.
    citation
        BibTeX of the paper.
    needs_ontology
        Whether the release of the Cell Ontology is mandatory.
    limits_without
        Field of the configuration -> limit of models that have no value for it.
    """

    name: str
    title: str
    family: str
    summary: str
    uses: list[str]
    not_for: list[str]
    as_published: list[str]
    our_choice: list[str]
    citation: str
    paper: str
    tags: list[str]
    needs_ontology: bool = True
    limits_without: dict[str, str] = field(default_factory=dict)


def _read_systems() -> Iterator[System]:
    for path in sorted(Path(__file__).parents[1].joinpath("systems").glob("*.yaml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        content["summary"] = content["summary"].strip()
        yield System(name=path.stem, **content)


SYSTEMS: Families[System] = Families(*_read_systems())


@dataclass
class Example:
    """An example input and the model's output.

    Parameters
    ----------
    text
        The cell, as JSON of gene -> count.
    scores
        (class, score), best first; empty for models without classes.
    values
        First values of the output of models without classes.
    size
        Number of all values.
    """

    name: str
    text: str
    scores: list[tuple[str, float]] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    size: int = 0


@dataclass
class ModelFacts(CardFacts):
    """Content of a card of a model or an adapter.

    Parameters
    ----------
    kind
        ``exceiver``, ``sccello`` or ``langcell``.
    config
        Content of ``config.json``.
    purpose
        ``embedding``, ``cell classification``, ``gene classification``, ``regression``, ``zero-shot annotation``.
    runs
        Known runs of training, first to last.
    results
        Scores of training on held-out cells.
    evaluations
        Scores of ``cellglot evaluate``.
    example_source
        Source of the example cells.
    new_weights
        Auto class -> parts whose weights are not in the repository.
    parameters
        Number of weights.
    adapter
        Content of ``adapter_config.json``, None for models.
    relation
        To the base model: ``finetune``, ``adapter`` or ``merge``; None without one.
    base_name
        Name of the base model in the record, without folders.
    software
        Versions with which the card's outputs were computed.
    candidates
        Names of the candidate cell types for examples of zero-shot annotation.
    tasks
        Supported pipelines.
    calibrated
        Whether a calibration travels with the model.
    """

    kind: str
    system: System
    config: dict[str, Any]
    purpose: str
    runs: list[TrainingRun] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    evaluations: list[Any] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    example_source: str = ""
    new_weights: dict[str, list[str]] = field(default_factory=dict)
    parameters: int = 0
    weight_bytes: int = 0
    adapter: dict[str, Any] | None = None
    relation: str | None = None
    base_name: str | None = None
    software: str = ""
    candidates: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    calibrated: bool = False

    @property
    def pipeline_tag(self) -> str:
        """Tag of the Hub."""
        return PIPELINE_TAGS[self.purpose]

    @property
    def auto_class(self) -> str:
        """Auto class that loads the model as trained."""
        return AUTO_CLASSES.get(self.purpose, "AutoModel")

    @property
    def labels(self) -> list[str]:
        """Classes in order; empty for models without a trained head for classes."""
        if self.purpose not in ("cell classification", "multi-label classification", "gene classification"):
            return []
        return [name for _, name in sorted(self.config.get("id2label", {}).items(), key=lambda item: int(item[0]))]

    @property
    def results_title(self) -> str:
        """Heading of the scores of training."""
        cells = next((r.cells for r in self.results if r.cells), None)
        return f"On {f'the {cells:,}' if cells else 'the'} held-out cells of {self.runs[-1].data}"

    @property
    def genes_known(self) -> bool:
        """Whether the gene of each row of the embedding is known."""
        return bool(self.config.get("gene_order_known", True))

    @property
    def ontology_release(self) -> str | None:
        """Release of the Cell Ontology that training used."""
        recorded = [run.ontology for run in self.runs if run.ontology]
        return self.details.ontology_release or (recorded[-1] if recorded else None)

    @property
    def training_data(self) -> str | None:
        """Description of the training data, or None."""
        if self.details.training_data:
            return self.details.training_data
        return "recorded" if any(run.files for run in self.runs) else None

    @property
    def base_model(self) -> str | None:
        """Repository of the base model."""
        return self.details.base_model

    def mandatory(self) -> list[str]:
        """Fields that cannot be empty."""
        needed = ["license", "training_data", "training_data_license"]
        if self.system.needs_ontology:
            needed.append("ontology_release")
        return [*needed, "base_model"] if self.adapter is not None else needed

    def mandatory_values(self) -> dict[str, Any]:
        """Return the values of the mandatory fields."""
        return {name: getattr(self, name, None) or getattr(self.details, name, None) for name in self.mandatory()}


def system_kind(config: dict[str, Any], folder: str | Path) -> str:
    """Return the kind of a model from the content of its ``config.json``; refuse other models."""
    kind = str(config.get("model_type", "")).split("_")[0]
    return SYSTEMS.of(kind, folder).name


def purpose_of(config: dict[str, Any], has_processor: bool) -> str:
    """Return the purpose of a model, by the class in its ``config.json`` and whether it has a processor of texts."""
    return PURPOSES[loaded_model.purpose_of(config, knows_texts(config.get("model_type")) and has_processor)]


def find_folder(named: str | Path, folder: Path) -> Path | None:
    """Find a folder that is named in a record of another folder, also relative to that folder or its parent."""
    places = (Path(named), folder / named, folder.resolve().parent / named)
    return next((place.resolve() for place in places if place.is_dir()), None)


def gather_runs(folder: str | Path) -> list[TrainingRun]:
    """Read the record of a model, and those of its base models if their folders exist."""
    runs: list[TrainingRun] = []
    place: Path | None = Path(folder)
    while place is not None and (run := read_run(place)) is not None and len(runs) < 10:
        runs.insert(0, run)
        if len(runs) > 1:
            run.config_file = f"base_{len(runs) - 1}_{CONFIG_FILE}"
        base = run.record.get("base_model") or (run.record.get("config", {}).get("data") or {}).get("start_from")
        place = find_folder(base, place) if isinstance(base, str) else None
    return runs


__all__ = [
    "SYSTEMS", "Example", "ModelFacts", "System", "find_folder", "gather_runs", "purpose_of", "system_kind",
]  # fmt: skip
