"""Facts on a card of a model or an adapter, gathered from its folder."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cellglot import inputs
from cellglot.families import Families
from cellglot.model_cards.card.details import CardDetails
from cellglot.model_cards.card.run_record import CONFIG_FILE, Result, TrainingRun, read_run
from cellglot.modeling import loaded_model
from cellglot.modeling.families import knows_texts


# What a model is for, as loaders say it -> as cards do.
PURPOSES = {
    "embeddings": "embedding",
    "classes of cells": "cell classification",
    "classes of genes": "gene classification",
    "a value of cells": "regression",
    "cells and texts": "zero-shot annotation",
}
# Purpose -> tag of the Hub's pipelines.
PIPELINE_TAGS = {
    "embedding": "feature-extraction",
    "cell classification": "text-classification",
    "gene classification": "token-classification",
    "regression": "text-classification",
    "zero-shot annotation": "zero-shot-classification",
}
AUTO_CLASSES = {
    "cell classification": "AutoModelForSequenceClassification",
    "regression": "AutoModelForSequenceClassification",
    "gene classification": "AutoModelForTokenClassification",
}


@dataclass
class System:
    """What holds for every model of a kind: the content of ``systems/<kind>.yaml``.

    Parameters
    ----------
    title, family, summary
        Name, kind of network, a few sentences.
    as_published, our_choice
        What follows the paper and its released code, and what does not.
    citation
        BibTeX of the paper.
    needs_ontology
        Whether the release of the Cell Ontology has to be known.
    limits_without
        Field of the configuration -> what to say of models in which it has no value.
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
    """An input with the output that the model gave for it.

    Parameters
    ----------
    text
        The cell, as JSON of gene -> count.
    scores
        (class, score), best first; empty for models that give no classes.
    values
        First values of what the model gives, where it gives no classes.
    size
        How many values there are in all.
    """

    name: str
    text: str
    scores: list[tuple[str, float]] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    size: int = 0


@dataclass
class ModelFacts:
    """All that a card of a model says.

    Parameters
    ----------
    repo
        ``owner/name``, or the folder's name where it is not uploaded.
    kind
        ``exceiver``, ``sccello`` or ``langcell``.
    details
        What a person added.
    system
        What holds for every model of the kind.
    config
        The content of ``config.json``.
    purpose
        ``embedding``, ``cell classification``, ``gene classification``, ``regression``, ``zero-shot annotation``.
    runs
        Runs of training, first to last, that are known.
    results
        Numbers that training measured on held-out cells.
    evaluation
        Numbers of ``cellglot evaluate``.
    example_source
        Where the example cells come from.
    new_weights
        Auto class -> parts whose weights are not in the repository.
    parameters
        Numbers in the weights.
    adapter
        The content of ``adapter_config.json``, None for models.
    relation
        To the base model: ``finetune``, ``adapter`` or ``merge``; None without one.
    base_name
        The base model as the record names it, without folders.
    software
        Versions with which the card's outputs were computed.
    candidates
        Names of the cell types that the examples of zero-shot annotation choose among.
    tasks
        Pipelines that run it.
    """

    repo: str
    kind: str
    details: CardDetails
    system: System
    config: dict[str, Any]
    purpose: str
    runs: list[TrainingRun] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    evaluation: Any = None
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

    @property
    def name(self) -> str:
        """The repository's name without its owner."""
        return self.repo.split("/")[-1]

    @property
    def title(self) -> str:
        """Heading of the card."""
        return self.details.title or self.name

    @property
    def pipeline_tag(self) -> str:
        """Tag of the Hub."""
        return PIPELINE_TAGS[self.purpose]

    @property
    def auto_class(self) -> str:
        """Auto class that gives the model as it was trained."""
        return AUTO_CLASSES.get(self.purpose, "AutoModel")

    @property
    def labels(self) -> list[str]:
        """Classes in their order; none for models without a trained head for classes."""
        if self.purpose not in ("cell classification", "gene classification"):
            return []
        return [name for _, name in sorted(self.config.get("id2label", {}).items(), key=lambda item: int(item[0]))]

    @property
    def results_title(self) -> str:
        """On which cells the numbers of training were measured."""
        cells = next((r.cells for r in self.results if r.cells), None)
        return f"On {f'the {cells:,}' if cells else 'the'} held-out cells of {self.runs[-1].data}"

    @property
    def genes_known(self) -> bool:
        """Whether it is known which gene each row of the embedding stands for."""
        return bool(self.config.get("gene_order_known", True))

    @property
    def ontology_release(self) -> str | None:
        """Release of the Cell Ontology that training used."""
        recorded = [run.ontology for run in self.runs if run.ontology]
        return self.details.ontology_release or (recorded[-1] if recorded else None)

    @property
    def training_data(self) -> str | None:
        """What is known of the training data, in words; None where nothing is."""
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
    """Return the kind of a model.

    Parameters
    ----------
    config
        The content of its ``config.json``.

    Raises
    ------
    ValueError
        If it is none of ours.
    """
    kind = str(config.get("model_type", "")).split("_")[0]
    return SYSTEMS.of(kind, folder).name


def purpose_of(config: dict[str, Any], has_processor: bool) -> str:
    """Say what a model was trained for, by the class that it was saved from.

    Parameters
    ----------
    config
        The content of its ``config.json``.
    has_processor
        Whether texts can be read.
    """
    return PURPOSES[loaded_model.purpose_of(config, knows_texts(config.get("model_type")) and has_processor)]


def find_folder(named: str | Path, folder: Path) -> Path | None:
    """Find the folder that a record in another folder names: as it is, or relative to that folder or the one above.

    Returns
    -------
    pathlib.Path or None
        None where there is no such folder.
    """
    places = (Path(named), folder / named, folder.resolve().parent / named)
    return next((place.resolve() for place in places if place.is_dir()), None)


def gather_runs(folder: str | Path) -> list[TrainingRun]:
    """Read the record of a model, and those of the models it was made from as far as their folders are here."""
    runs: list[TrainingRun] = []
    place: Path | None = Path(folder)
    while place is not None and (run := read_run(place)) is not None and len(runs) < 10:
        runs.insert(0, run)
        if len(runs) > 1:
            run.config_file = f"base_{len(runs) - 1}_{CONFIG_FILE}"
        base = run.record.get("base_model") or (run.record.get("config", {}).get("data") or {}).get("start_from")
        place = find_folder(base, place) if isinstance(base, str) else None
    return runs


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file.

    Raises
    ------
    ValueError
        If it is not JSON, or holds no mapping; names the file.
    """
    return inputs.read_json(path)


__all__ = [
    "SYSTEMS", "Example", "ModelFacts", "System", "find_folder", "gather_runs", "purpose_of", "read_json",
    "system_kind",
]  # fmt: skip
