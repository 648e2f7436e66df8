"""Models that onnxruntime computes on the CPU, from ``onnx/`` of their folder, in place of PyTorch."""

import importlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput

from cellglot.modeling.adapter_folders import model_file, weight_files, weights_fingerprint
from cellglot.modeling.any_model import describe_model
from cellglot.modeling.loaded_model import LoadedModel
from cellglot.modeling.loading import load_configuration, load_tokenizer


FOLDER = "onnx"
# Type of the weights -> file, as transformers.js names them.
ONNX_FILES = {"float32": "model.onnx", "float16": "model_fp16.onnx", "int8": "model_int8.onnx"}
FACTS = "cellglot"  # key of a graph's metadata
MEASURED = "measured_genes"  # input of models that impute genes
INSTALL = "pip install 'cellglot[onnx]'"


class OnnxError(ValueError):
    """A graph cannot be made, is damaged, or belongs to another model."""


@dataclass
class Computed(BaseModelOutputWithPooling):
    """Output of an `OnnxNetwork`: the fields of an encoder's output, and `logits`.

    Parameters
    ----------
    logits
        Scores of a classifier, shape (cells, classes) or as the model's own; None for encoders.
    """

    logits: torch.Tensor | None = None


class OnnxNetwork(nn.Module):
    """A graph in place of a network: cells to ``pooler_output``, and ``logits`` if it has a head.

    Parameters
    ----------
    path
        File of the graph.
    config
        Configuration of the model.

    Raises
    ------
    OnnxError
        If the file is damaged or not one of cellglot's.
    """

    def __init__(self, path: str | os.PathLike, config: Any):
        super().__init__()
        self.path, self.config = Path(path), config
        self.session = open_graph(path)
        self.inputs = [entry.name for entry in self.session.get_inputs()]
        self.outputs = [entry.name for entry in self.session.get_outputs()]

    def forward(self, **batch: torch.Tensor) -> ModelOutput:
        """Compute cells.

        Parameters
        ----------
        **batch
            Inputs of the tokenizer, each of shape (cells, genes), and ``measured_genes`` of a model that imputes
            genes, by default all.
        """
        if MEASURED in self.inputs and MEASURED not in batch:
            size = next(entry.shape[0] for entry in self.session.get_inputs() if entry.name == MEASURED)
            batch[MEASURED] = torch.ones(size, dtype=torch.bool)
        missing = [name for name in self.inputs if name not in batch]
        if missing:
            raise ValueError(f"{self.path} needs {', '.join(missing)}: use the model's own tokenizer")
        given = {name: batch[name].cpu().numpy() for name in self.inputs}
        values = dict(zip(self.outputs, self.session.run(self.outputs, given), strict=True))
        found = {name: torch.from_numpy(array) for name, array in values.items()}
        pooled = found.pop("embedding")
        return Computed(pooler_output=pooled, **found)


def load_onnx_model(name: str | os.PathLike, dtype: str | None = None) -> LoadedModel:
    """Load a model whose graphs `cellglot export` wrote.

    Parameters
    ----------
    name
        Folder, name in the collection, or repository with a folder ``onnx``.
    dtype
        Type of the stored weights: ``"float32"``, ``"float16"`` or ``"int8"``; by default the first of these that
        there is.

    Raises
    ------
    OnnxError
        If there is no such graph, or it belongs to another model.
    ImportError
        If onnxruntime is not installed.
    """
    needs("onnxruntime")
    what = describe_model(name)
    path = _graph_file(what.name, dtype, str(name))
    config = load_configuration(what.name, what.network_class.config_class)
    network, tokenizer = OnnxNetwork(path, config), load_tokenizer(what.name)
    _check_facts(network, tokenizer, what.name)
    with_classes = what.purpose.startswith("classes")
    classes = tuple(config.id2label[i] for i in range(config.num_labels)) if with_classes else ()
    return LoadedModel(what.name, network.eval(), tokenizer, None, what.purpose, classes)


def _graph_file(source: str, dtype: str | None, name: str) -> str:
    if dtype is not None:
        check_weights_type(dtype)
    wanted = ONNX_FILES if dtype is None else {dtype: ONNX_FILES[dtype]}
    for file in wanted.values():
        if (path := model_file(source, f"{FOLDER}/{file}")) is not None:
            return path
    what = "" if dtype is None else f" of {dtype}"
    option = "" if dtype is None else f" --dtype {dtype}"
    raise OnnxError(
        f"{name} has no ONNX graph{what} ({FOLDER}/{', '.join(wanted.values())}): make one by cellglot export {name} "
        f"-o FOLDER --format onnx{option}, and name FOLDER as the model"
    )


def _check_facts(network: OnnxNetwork, tokenizer: Any, source: str) -> None:
    """Refuse the graph of another model."""
    path, facts = network.path, facts_of(network.session)
    if facts is None:
        raise OnnxError(f"{path} was not written by cellglot export: export the model again")
    expected = graph_facts(network.config, input_names(network.config, tokenizer))
    differing = [key for key, value in expected.items() if facts.get(key) != value]
    if differing:
        raise OnnxError(
            f"{path} is the graph of another model: it differs from config.json in {', '.join(differing)}. Export the "
            "model again"
        )
    recorded = facts.get("fingerprint")
    if recorded and weight_files(source) and weights_fingerprint(source) != recorded:
        raise OnnxError(f"{path} is the graph of another model: the weights beside it differ. Export the model again")


def input_names(config: Any, tokenizer: Any) -> list[str]:
    """Return the names of a graph's inputs."""
    imputes = getattr(config, "gene_sums", False) and config.imputed_genes
    return [*tokenizer.model_input_names, *([MEASURED] if imputes else [])]


def graph_facts(config: Any, inputs: Sequence[str]) -> dict[str, Any]:
    """Return what a graph records of its model: type, class, size of the vocabulary, classes, names of the inputs."""
    kind = str((config.architectures or [""])[0])
    facts: dict[str, Any] = {
        "model_type": config.model_type, "architecture": kind, "vocab_size": config.vocab_size, "inputs": list(inputs)
    }  # fmt: skip
    if kind.endswith("Classification"):
        facts["classes"] = [config.id2label[i] for i in range(config.num_labels)]
    return facts


def facts_of(session: Any) -> Mapping[str, Any] | None:
    """Return what an opened graph records of its model; None for graphs of others."""
    text = session.get_modelmeta().custom_metadata_map.get(FACTS)
    try:
        found = None if text is None else json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def open_graph(path: str | os.PathLike) -> Any:
    """Open a graph in onnxruntime, on the CPU, with PyTorch's number of threads.

    Raises
    ------
    OnnxError
        If the file is damaged.
    """
    runtime = needs("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        return runtime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - onnxruntime has a class of error for each status
        cause = " ".join(str(error).split())[:300]
        raise OnnxError(f"{path} is not an ONNX graph, or it is damaged ({cause}): export the model again") from error


def check_weights_type(dtype: str) -> None:
    """Refuse a type of weights that graphs do not have."""
    if dtype not in ONNX_FILES:
        raise ValueError(f"dtype {dtype!r}: of an ONNX graph it is {', '.join(ONNX_FILES)}")


def needs(*packages: str) -> Any:
    """Import packages of the extra ``onnx``, and return the first; say what to install where one is missing."""
    try:
        return [importlib.import_module(package) for package in packages][0]
    except ImportError as error:
        raise ImportError(f"ONNX graphs need {', '.join(packages)}: {INSTALL}") from error


__all__ = ["FOLDER", "MEASURED", "ONNX_FILES", "OnnxError", "OnnxNetwork", "input_names", "load_onnx_model"]
