"""What computes a model: PyTorch, or onnxruntime on the CPU."""

import os
from typing import Any

from cellglot.modeling.loaded_model import LoadedModel
from cellglot.modeling.model_names import resolve_model
from cellglot.verbs.models import check_dtype


BACKENDS = ("torch", "onnx")


def check_backend(
    backend: str, model: Any, dtype: str | None, device: Any, adapter: str | os.PathLike | None = None
) -> None:
    """Refuse an unknown backend, and options that it does not have.

    Raises
    ------
    ValueError
        If onnxruntime should compute a loaded model, a model on another device than the CPU, or one with an adapter
        beside it; or a type of weights is unknown.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r}: it is {' or '.join(BACKENDS)}")
    if backend == "torch":
        check_dtype(dtype)
        return
    from cellglot.modeling.onnx_network import check_weights_type

    if dtype is not None:
        check_weights_type(dtype)
    if isinstance(model, LoadedModel):
        raise ValueError(f"backend='onnx' is for the name of a model, and {model.name} is loaded: pass its folder")
    if device is not None and str(device) != "cpu":
        raise ValueError(f"backend='onnx' computes on the CPU, and device is {str(device)!r}: leave one of them out")
    if adapter is not None:
        raise ValueError(
            f"backend='onnx' runs graphs, and {adapter} is an adapter: merge it by cellglot export {model} "
            f"--adapter {adapter} -o FOLDER --format onnx, and name FOLDER as the model"
        )


def load_graph(model: str | os.PathLike, dtype: str | None) -> LoadedModel:
    """Load the graph of a model; see `cellglot.modeling.onnx_network.load_onnx_model`."""
    source = resolve_model(model)
    from cellglot.modeling.onnx_network import load_onnx_model

    return load_onnx_model(source, dtype)


__all__ = ["BACKENDS", "check_backend", "load_graph"]
