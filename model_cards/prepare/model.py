"""Preparation of models and adapters: facts, staged files, examples, card."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from platform import python_version
from typing import Any

import safetensors
import torch
import transformers

from cellglot.inputs import read_json
from cellglot.model_cards.card.details import CardError, check_complete
from cellglot.model_cards.card.evaluation import EVALUATION_FILE, file_content, read_evaluations
from cellglot.model_cards.card.example_cells import ExampleCells, example_cells
from cellglot.model_cards.card.example_outputs import make_examples
from cellglot.model_cards.card.facts import SYSTEMS, ModelFacts, find_folder, gather_runs, purpose_of, system_kind
from cellglot.model_cards.card.render import check_labels, render_model_card
from cellglot.model_cards.checks.clean_process import Outcome, visit_here
from cellglot.model_cards.endpoint.staging import stage_endpoint
from cellglot.model_cards.prepare.staging import (
    ADAPTER_FILES,
    MODEL_FILES,
    Prepared,
    Source,
    Staged,
    clean_tokenizer_config,
    stage_code,
    stage_files,
    write_json,
    write_training_configs,
)
from cellglot.modeling.adapters import load_with_adapter
from cellglot.modeling.annotation_calibration import CALIBRATION_FILE
from cellglot.modeling.any_model import describe_model
from cellglot.modeling.loading import load_model, load_tokenizer
from cellglot.tokenization.ontology.cell_ontology import CellOntology


EXAMPLES_FILE = "examples.json"


def prepare_model(source: Source, target: Path) -> Prepared:
    """Stage a model with its card."""
    folder = source.folder
    config = read_json(folder / "config.json")
    kind = system_kind(config, folder)
    staged = stage_files(folder, target, MODEL_FILES)
    for needed, what in (("model*.safetensors", "weights"), ("gene_vocab.json", "gene tokenizer")):
        if not list(target.glob(needed)):
            raise ValueError(f"{folder} has no {what} ({needed}): save the whole model with save_pretrained")
    facts = _facts(source, target, kind, config)
    check_labels(facts.labels)
    check_complete(facts.mandatory_values(), facts.mandatory())
    load_model(describe_model(folder).network_class, folder)  # refuses incomplete weights
    tokenizer, examples = _examples(folder, facts, source.cells)
    job = {"kind": "model", "folder": str(folder), "cells": examples.cells, "texts": [], "candidates": []}
    if facts.purpose == "zero-shot annotation":
        facts.candidates = _candidates(examples)
        job |= {"candidates": facts.candidates, "texts": [f"cell type: {name}. " for name in facts.candidates]}
    facts.tasks = job["tasks"] = _tasks(config, facts)
    before = visit_here(job)
    facts.new_weights = dict(before.new_weights)
    clean_tokenizer_config(target)
    stage_code(target)
    stage_endpoint(target)
    if source.onnx:
        _add_graphs(folder, target)
    _finish(facts, staged, examples, before, tokenizer)
    return Prepared(staged, job, before)


def _add_graphs(folder: Path, target: Path) -> None:
    """Write the model as ONNX graphs, which other runtimes and browsers compute."""
    from cellglot.evaluation.onnx_export import export_onnx
    from cellglot.modeling.any_model import load_any_model

    export_onnx(load_any_model(folder), target, ("float32", "float16"))


def prepare_adapter(source: Source, target: Path) -> Prepared:
    """Stage an adapter with its card."""
    folder = source.folder
    for name in ("adapter_model.safetensors", "config.json"):
        if not (folder / name).exists():
            raise ValueError(f"{folder} has no {name}: pass the whole folder of an adapter of cellglot finetune")
    config, adapter = read_json(folder / "config.json"), read_json(folder / "adapter_config.json")
    kind = system_kind(config, folder)
    staged = stage_files(folder, target, ADAPTER_FILES)
    facts = _facts(source, target, kind, config, adapter)
    named = source.base or adapter.get("base_model_name_or_path") or facts.base_model
    if not named:
        raise CardError(f"{folder}/adapter_config.json has no base model: pass it with --base-model owner/name")
    place = str(find_folder(named, folder) or named)
    if not facts.base_model and Path(place).exists():
        raise CardError(
            f"the base model of {folder} is {Path(place).name}, a folder of this machine, which others do not have: "
            "publish it first, and pass its repository with --base-model owner/name"
        )
    check_labels(facts.labels)
    check_complete(facts.mandatory_values(), facts.mandatory())
    if not Path(place).exists() and "/" in place and place.startswith(("/", ".", "~")):
        raise ValueError(f"the base model {Path(place).name} is not in the folder that the adapter names: pass --base")
    load_with_adapter(folder, place)  # refuses incomplete weights
    tokenizer, examples = _examples(place, facts, source.cells)
    job = {
        "kind": "adapter", "folder": str(folder), "cells": examples.cells, "base": place,
        "auto_class": facts.auto_class,
    }  # fmt: skip
    before = visit_here(job)
    facts.adapter = adapter | _published_base(facts)
    write_json(target / "adapter_config.json", read_json(target / "adapter_config.json") | _published_base(facts))
    stage_code(target)
    stage_endpoint(target)
    _finish(facts, staged, examples, before, tokenizer)
    return Prepared(staged, job, before)


def _published_base(facts: ModelFacts) -> dict[str, Any]:
    """Return the fields of ``adapter_config.json`` about the base.

    The revision is that of the repository trained on, and ``main`` of another one: a base with a revision is a
    repository, and not a folder that is missing.
    """
    trained_on = facts.adapter or {}
    same = trained_on.get("base_model_name_or_path") == facts.base_model
    return {
        "base_model_name_or_path": facts.base_model,
        "revision": (trained_on.get("revision") if same else None) or "main",
    }


# -------------------------------------------------------------------- facts


def _facts(
    source: Source, target: Path, kind: str, config: dict[str, Any], adapter: dict[str, Any] | None = None
) -> ModelFacts:
    folder, details = source.folder, source.details
    runs = gather_runs(folder)
    recorded_base = runs[-1].record.get("base_model") if runs else None
    base = (adapter or {}).get("base_model_name_or_path") or recorded_base or None
    if base is not None and not details.base_model and _is_repository(base):
        details = dataclasses.replace(details, base_model=base)
    facts = ModelFacts(
        repo=source.repo,
        kind=kind,
        details=details,
        system=SYSTEMS[kind],
        config=config,
        purpose=purpose_of(config, (folder / "processor_config.json").exists()),
        runs=runs,
        adapter=adapter,
        base_name=None if base is None else Path(base).name,
        software=f"transformers {transformers.__version__}, torch {torch.__version__}, Python {python_version()}",
        calibrated=(folder / CALIBRATION_FILE).exists(),
    )
    if facts.base_model or facts.base_name:
        recorded = "merge" if runs and runs[-1].merged else "finetune"
        facts.relation = "adapter" if adapter is not None else details.base_model_relation or recorded
    weights = sorted(target.glob("adapter_model.safetensors" if adapter is not None else "model*.safetensors"))
    facts.parameters, facts.weight_bytes = _numbers(weights)
    if runs:
        last = runs[-1]
        facts.results = last.results(last.command(facts.name, facts.base_model or facts.base_name))
    path = folder / EVALUATION_FILE if source.evaluation is None else Path(source.evaluation)
    if source.evaluation is not None or path.exists():
        facts.evaluations = read_evaluations(path, folder.resolve().name, facts.name)
    return facts


def _is_repository(name: str) -> bool:
    return not Path(name).exists() and name.count("/") == 1 and not name.startswith(("/", ".", "~"))


def _numbers(files: list[Path]) -> tuple[int, int]:
    """Return the number of weights, and their bytes."""
    number = 0
    for path in files:
        with safetensors.safe_open(path, "pt") as tensors:
            number += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return number, sum(path.stat().st_size for path in files)


# -------------------------------------------------------------------- examples


def _examples(tokenizer_at: str | Path, facts: ModelFacts, cells: str | Path | None) -> tuple[Any, ExampleCells]:
    """Return the tokenizer and example cells; None and no cells if the genes of the model are unknown."""
    if not facts.genes_known:
        return None, ExampleCells([], [], [], "")
    tokenizer = load_tokenizer(tokenizer_at)
    return tokenizer, example_cells(tokenizer, cells)


def _candidates(examples: ExampleCells) -> list[str]:
    """Return the name of each example cell's type in the Cell Ontology."""
    names = examples.labels or ["B cell", "T cell", "monocyte"][: len(examples.cells)]
    ontology = CellOntology.shipped()
    found = ontology.resolve(names).cell_types
    return [name if found is None else ontology.name(found) for name, found in zip(names, found, strict=True)]


def _tasks(config: Mapping[str, Any], facts: ModelFacts) -> list[str]:
    """Return the pipelines of the configuration that this model supports."""
    named = config.get("custom_pipelines") or {}
    annotates = facts.purpose in ("cell classification", "zero-shot annotation")
    asked = ("fill-gene-expression", "cell-text-matching")  # they need genes or texts
    tasks = [task for task in named if task not in asked and (task != "cell-type-annotation" or annotates)]
    return sorted(tasks) if facts.genes_known else []


def _finish(facts: ModelFacts, staged: Staged, cells: ExampleCells, before: Outcome, tokenizer: Any) -> None:
    """Write the new files: configuration, evaluation, examples, card."""
    target = staged.folder
    facts.examples = make_examples(facts, cells, before, tokenizer)
    facts.example_source = cells.source
    write_training_configs(staged, facts.runs)
    if facts.evaluations:
        write_json(target / EVALUATION_FILE, file_content(facts.evaluations))
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
