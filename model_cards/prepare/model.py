"""Models and adapters: gather facts, stage files, compute the examples, write the card."""

import dataclasses
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
import transformers

from cellglot.model_cards.card.details import CardDetails, CardError, check_complete, read_details
from cellglot.model_cards.card.evaluation import EVALUATION_FILE, read_evaluation
from cellglot.model_cards.card.example_cells import ExampleCells, example_cells
from cellglot.model_cards.card.example_outputs import make_examples
from cellglot.model_cards.card.facts import (
    SYSTEMS,
    ModelFacts,
    find_folder,
    gather_runs,
    purpose_of,
    read_json,
    system_kind,
)
from cellglot.model_cards.card.render import check_labels, render_model_card
from cellglot.model_cards.card.run_record import TrainingRun
from cellglot.model_cards.checks.clean_process import Outcome, visit_here
from cellglot.model_cards.prepare.staging import (
    ADAPTER_FILES,
    MODEL_FILES,
    Prepared,
    Staged,
    clean_tokenizer_config,
    stage_code,
    stage_files,
    write_json,
    write_training_configs,
)
from cellglot.modeling.adapters import load_with_adapter
from cellglot.modeling.any_model import describe_model
from cellglot.modeling.loading import load_model, load_tokenizer
from cellglot.tokenization.ontology.cell_ontology import CellOntology


EXAMPLES_FILE = "examples.json"


def prepare_model(
    folder: Path,
    target: Path,
    *,
    repo: str,
    details: CardDetails | None = None,
    evaluation: str | Path | None = None,
    cells: str | Path | None = None,
    base: str | Path | None = None,
) -> Prepared:
    """Stage a model with its card.

    Parameters
    ----------
    repo
        Name under which it is published.
    details, evaluation, cells
        As for `publish`.
    base
        Not used by models.
    """
    config = read_json(folder / "config.json")
    kind = system_kind(config, folder)
    staged = stage_files(folder, target, MODEL_FILES)
    for needed, what in (("model*.safetensors", "weights"), ("gene_vocab.json", "gene tokenizer")):
        if not list(target.glob(needed)):
            raise ValueError(f"{folder} holds no {what} ({needed}): it is no whole model; save it by save_pretrained")
    facts = _facts(folder, target, repo, kind, config, details, evaluation)
    check_labels(facts.labels)
    check_complete(facts.mandatory_values(), facts.mandatory())
    load_model(describe_model(folder).network_class, folder)  # refuses weights that are not whole
    tokenizer, examples = _examples(folder, facts, cells)
    job = {"kind": "model", "folder": str(folder), "cells": examples.cells, "texts": [], "candidates": []}
    if facts.purpose == "zero-shot annotation":
        facts.candidates = _candidates(examples)
        job |= {"candidates": facts.candidates, "texts": [f"cell type: {name}. " for name in facts.candidates]}
    facts.tasks = job["tasks"] = _tasks(config, facts)
    before = visit_here(job)
    facts.new_weights = dict(before.new_weights)
    clean_tokenizer_config(target)
    stage_code(target)
    _finish(facts, staged, examples, before, tokenizer)
    return Prepared(staged, job, before)


def prepare_adapter(
    folder: Path,
    target: Path,
    *,
    repo: str,
    details: CardDetails | None = None,
    evaluation: str | Path | None = None,
    cells: str | Path | None = None,
    base: str | Path | None = None,
) -> Prepared:
    """Stage an adapter with its card.

    Parameters
    ----------
    repo
        Name under which it is published.
    details, evaluation, cells, base
        As for `publish`.
    """
    for name in ("adapter_model.safetensors", "config.json"):
        if not (folder / name).exists():
            raise ValueError(f"{folder} holds no {name}: it is no whole adapter of cellglot finetune")
    config, adapter = read_json(folder / "config.json"), read_json(folder / "adapter_config.json")
    kind = system_kind(config, folder)
    staged = stage_files(folder, target, ADAPTER_FILES)
    facts = _facts(folder, target, repo, kind, config, details, evaluation, adapter)
    place = _place_of_base(folder, base or adapter.get("base_model_name_or_path") or facts.base_model)
    if place is None:
        raise CardError(f"{folder}/adapter_config.json names no base model: pass it by --base-model owner/name")
    if not facts.base_model and Path(place).exists():
        raise CardError(
            f"the base model of {folder} is known as the folder {Path(place).name} of this machine alone, which "
            "nobody else has: publish it first, and pass its repository by --base-model owner/name"
        )
    check_labels(facts.labels)
    check_complete(facts.mandatory_values(), facts.mandatory())
    if not Path(place).exists() and "/" in place and place.startswith(("/", ".", "~")):
        raise ValueError(f"the base model {Path(place).name} is not in the folder that the adapter names: pass --base")
    load_with_adapter(folder, place)  # refuses weights that are not whole
    tokenizer, examples = _examples(place, facts, cells)
    job = {
        "kind": "adapter", "folder": str(folder), "cells": examples.cells, "base": place,
        "auto_class": facts.auto_class,
    }  # fmt: skip
    before = visit_here(job)
    facts.adapter = adapter | _published_base(facts)
    write_json(target / "adapter_config.json", read_json(target / "adapter_config.json") | _published_base(facts))
    stage_code(target)
    _finish(facts, staged, examples, before, tokenizer)
    return Prepared(staged, job, before)


def _published_base(facts: ModelFacts) -> dict[str, Any]:
    """Return what ``adapter_config.json`` says of the base; the revision is that of the repository trained on."""
    trained_on = facts.adapter or {}
    same = trained_on.get("base_model_name_or_path") == facts.base_model
    return {"base_model_name_or_path": facts.base_model, "revision": trained_on.get("revision") if same else None}


def _place_of_base(folder: Path, named: str | Path | None) -> str | None:
    """Return the folder, also one beside the adapter, or repository of a base model."""
    if not named:
        return None
    return str(find_folder(named, folder) or named)


# -------------------------------------------------------------------- facts


def _facts(
    folder: Path,
    target: Path,
    repo: str,
    kind: str,
    config: dict[str, Any],
    details: CardDetails | None,
    evaluation: str | Path | None,
    adapter: dict[str, Any] | None = None,
) -> ModelFacts:
    details = details or read_details(folder)
    runs = gather_runs(folder)
    base = _base(runs, adapter)
    if base is not None and not details.base_model and _is_repository(base):
        details = dataclasses.replace(details, base_model=base)
    facts = ModelFacts(
        repo=repo,
        kind=kind,
        details=details,
        system=SYSTEMS[kind],
        config=config,
        purpose=purpose_of(config, (folder / "processor_config.json").exists()),
        runs=runs,
        adapter=adapter,
        base_name=None if base is None else Path(base).name,
        software=_software(),
    )
    if facts.base_model or facts.base_name:
        recorded = "merge" if runs and runs[-1].merged else "finetune"
        facts.relation = "adapter" if adapter is not None else details.base_model_relation or recorded
    weights = sorted(target.glob("adapter_model.safetensors" if adapter is not None else "model*.safetensors"))
    facts.parameters, facts.weight_bytes = _numbers(weights)
    if runs:
        last = runs[-1]
        facts.results = last.results(last.command(facts.name, facts.base_model or facts.base_name))
    path = folder / EVALUATION_FILE if evaluation is None else Path(evaluation)
    if evaluation is not None or path.exists():
        facts.evaluation = read_evaluation(path, folder.resolve().name, facts.name)
    return facts


def _software() -> str:
    versions = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "Python": platform.python_version(),
    }
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _base(runs: list[TrainingRun], adapter: Mapping[str, Any] | None) -> str | None:
    recorded = runs[-1].record.get("base_model") if runs else None
    named = None if adapter is None else adapter.get("base_model_name_or_path")
    return named or recorded or None


def _is_repository(name: str) -> bool:
    return not Path(name).exists() and name.count("/") == 1 and not name.startswith(("/", ".", "~"))


def _numbers(files: list[Path]) -> tuple[int, int]:
    """Count the numbers in weights, and their bytes."""
    number = 0
    for path in files:
        with safetensors.safe_open(path, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                size = 1
                for length in tensors.get_slice(name).get_shape():
                    size *= length
                number += size
    return number, sum(path.stat().st_size for path in files)


# -------------------------------------------------------------------- examples


def _examples(tokenizer_at: str | Path, facts: ModelFacts, cells: str | Path | None) -> tuple[Any, ExampleCells]:
    """Return the tokenizer with cells for it; neither where the genes of the model are not known."""
    if not facts.genes_known:
        return None, ExampleCells([], [], [], "")
    tokenizer = load_tokenizer(tokenizer_at)
    return tokenizer, example_cells(tokenizer, cells)


def _candidates(examples: ExampleCells) -> list[str]:
    """Names of the cell types of the examples as the Cell Ontology has them; one for each cell."""
    names = examples.labels or ["B cell", "T cell", "monocyte"][: len(examples.cells)]
    ontology = CellOntology.blood()
    found = ontology.resolve(names).cell_types
    return [name if found is None else ontology.name(found) for name, found in zip(names, found, strict=True)]


def _tasks(config: Mapping[str, Any], facts: ModelFacts) -> list[str]:
    """Pipelines of the configuration that this model can run."""
    named = config.get("custom_pipelines") or {}
    annotates = facts.purpose in ("cell classification", "zero-shot annotation")
    tasks = [task for task in named if task != "cell-type-annotation" or annotates]
    return sorted(tasks) if facts.genes_known else []


def _finish(facts: ModelFacts, staged: Staged, cells: ExampleCells, before: Outcome, tokenizer: Any) -> None:
    """Write what is made anew: record, configuration, examples, card."""
    target = staged.folder
    facts.examples = make_examples(facts, cells, before, tokenizer)
    facts.example_source = cells.source
    write_training_configs(staged, facts.runs)
    if facts.evaluation is not None:
        write_json(target / EVALUATION_FILE, facts.evaluation.content)
    if cells.cells:
        shown = [
            {"name": e.name, "cell": cell, "scores": dict(e.scores)} if e.scores
            else {"name": e.name, "cell": cell, "first_values": e.values}
            for e, cell in zip(facts.examples, cells.cells, strict=True)
        ]  # fmt: skip
        content = {"source": cells.source, "software": facts.software, "candidates": facts.candidates, "cells": shown}
        write_json(target / EXAMPLES_FILE, content)
    (target / "README.md").write_text(render_model_card(facts), encoding="utf-8")


__all__ = ["prepare_adapter", "prepare_model"]
