"""What a name is a model of, and the loader of models of any kind."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel

from cellglot.modeling.adapter_folders import holds_adapter, model_file, revision_of_base
from cellglot.modeling.families import FAMILIES, ModelFamily, find_network, knows_texts
from cellglot.modeling.loaded_model import LoadedModel, purpose_of, without_adapter
from cellglot.modeling.loading import load_model, load_processor, load_tokenizer, read_config
from cellglot.modeling.model_files import check_loaded
from cellglot.modeling.model_names import resolve_model


logger = logging.getLogger(__name__)

OTHER_MODELS = (
    "it embeds and classifies cells, but does not read texts. Zero-shot annotation and search by texts need a "
    "LangCell model; to annotate with this one, train a classifier with cellglot finetune"
)


@dataclass(frozen=True)
class ModelDescription:
    """What a folder or repository contains, without its weights.

    Parameters
    ----------
    name
        Folder or repository, as all loaders take it.
    is_adapter
        Whether it is an adapter; then the other fields are those of the adapted model.
    family
        The record of its family.
    network_class
        The class that it was saved from.
    purpose
        As for `LoadedModel`.
    config
        The content of ``config.json``.
    """

    name: str
    is_adapter: bool
    family: ModelFamily
    network_class: Any
    purpose: str
    config: Mapping[str, Any]

    @property
    def model_type(self) -> str:
        """The type that the configuration names."""
        return str(self.config.get("model_type"))

    @property
    def reads_texts(self) -> bool:
        """Whether it has a text encoder."""
        return knows_texts(self.model_type)


def describe_model(name: str | os.PathLike) -> ModelDescription:
    """Say what a name is a model of: its family, its class, what it is for. Its weights are not read.

    Parameters
    ----------
    name
        Folder, name in the collection, or repository of a model or adapter.

    Raises
    ------
    ValueError
        If there is no such model, its files are damaged, or it is not one of cellglot's.
    """
    source = resolve_model(name)
    config = read_config(source)
    model_type, architecture = config.get("model_type"), str((config.get("architectures") or ["Model"])[0])
    found = find_network(architecture)
    if found is None:
        family = FAMILIES.of(model_type, name)
        if architecture != "Model":
            raise ValueError(f"{name} holds a {architecture}, which cellglot does not know")
        found = family, next(network for _, network in family.networks("AutoModel"))
    purpose = purpose_of(config, knows_texts(model_type))
    return ModelDescription(source, holds_adapter(source), *found, purpose, config)


def load_any_model(
    name: str | os.PathLike, adapter: str | os.PathLike | None = None, dtype: str | None = None
) -> LoadedModel:
    """Load a model of any kind with its tokenizer.

    A model of cells and texts without a processor is loaded for embeddings.

    Parameters
    ----------
    name
        Folder, name in the collection, or repository of a model or an adapter; or of the base model of `adapter`.
    adapter
        The same of an adapter that was trained on the model.
    dtype
        Type of the weights, such as ``"bfloat16"``; by default as they are stored.

    Raises
    ------
    ValueError
        If there is no such model, it is not one of cellglot's, or its files are damaged or do not belong together.
    """
    what = describe_model(name)
    _refuse_graphs_alone(what.name)
    if adapter is None and what.purpose == "cells and texts" and _has_processor(what.name):
        network, processor = load_cell_text_model(what.name, dtype)
        return LoadedModel(what.name, network, processor.tokenizer, processor, "cells and texts")
    options, home, revision = _of_type(dtype), what.name, None
    if adapter is not None or what.is_adapter:
        from cellglot.modeling.adapters import load_with_adapter  # and PEFT, which other models do not need

    if adapter is not None:
        source = resolve_model(adapter)
        network = load_with_adapter(source, what.name, **options)
    elif what.is_adapter:
        source, network = what.name, load_with_adapter(what.name, **options)
        home, revision = network.adapters["default"].base, network.adapters["default"].revision
    else:
        source, network = what.name, load_model(what.network_class, what.name, **options).eval()
    plain = without_adapter(network)
    config, named = plain.config, {"architectures": [type(plain).__name__]}
    purpose = purpose_of(named | {"problem_type": config.problem_type}, False)
    classes = tuple(config.id2label[i] for i in range(config.num_labels)) if purpose.startswith("classes") else ()
    revision = revision_of_base({"revision": revision}, home)
    tokenizer = load_tokenizer(home, **({} if revision is None else {"revision": revision}))
    return LoadedModel(source, network, tokenizer, None, purpose, classes)


def load_cell_text_model(name: str | Path, dtype: str | None = None) -> tuple[Any, Any]:
    """Load a LangCell model and its processor.

    Parameters
    ----------
    dtype
        As for `load_any_model`.

    Raises
    ------
    ValueError
        If the model does not read texts, or its text encoder or its processor is missing.
    """
    what = describe_model(name)
    if not what.reads_texts:
        raise ValueError(f"{name} is of type {what.model_type!r}: {OTHER_MODELS}")
    model, info = load_model(AutoModel, what.name, check=False, output_loading_info=True, **_of_type(dtype))
    missing = sorted(info["missing_keys"])
    if all(f"text_model.{key}" in missing for key, _ in model.text_model.named_parameters()):
        raise ValueError(
            f"{name} has no weights for {len(missing):,} parts of LangCellModel, such as {missing[0]}: it was saved "
            "from the cell encoder or a classifier only; save the whole LangCellModel"
        )
    check_loaded(name, model, info)
    processor = load_processor(what.name)
    if not hasattr(processor, "text_tokenizer"):
        raise ValueError(f"{name} has no text tokenizer: save a LangCellProcessor in the folder of the model")
    check_cell_text_model(model)
    return model.eval(), processor


def check_cell_text_model(model: Any) -> None:
    """Refuse models that do not read texts; warn where texts were not trained."""
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if not knows_texts(kind) or not hasattr(model, "annotate"):
        raise ValueError(f"{type(model).__name__} is of type {kind!r}: {OTHER_MODELS}")
    if model.config.stage == 1:
        logger.warning("The model is of pretraining stage 1, trained on cells only: its scores of texts are noise.")


def _refuse_graphs_alone(source: str) -> None:
    """Refuse a folder of ``cellglot export``, which has graphs and no weights of PyTorch."""
    folder = Path(source)
    weights = any(folder.glob("*model.safetensors")) or any(folder.glob("*.safetensors.index.json"))
    if not weights and any(folder.glob("onnx/*.onnx")):
        raise ValueError(f"{source} has ONNX graphs and no weights: run it with backend='onnx' (--backend onnx)")


def _has_processor(source: str) -> bool:
    return model_file(source, "processor_config.json") is not None


def _of_type(dtype: str | None) -> dict[str, Any]:
    return {} if dtype is None else {"dtype": getattr(torch, dtype)}


__all__ = ["ModelDescription", "check_cell_text_model", "describe_model", "load_any_model", "load_cell_text_model"]
