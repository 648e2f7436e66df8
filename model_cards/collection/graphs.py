"""Graphs of the classifiers that ship, by which ``cellglot annotate`` begins without PyTorch."""

from pathlib import Path

from cellglot.evaluation.onnx_export import made_batches
from cellglot.modeling.any_model import load_any_model
from cellglot.modeling.convert.onnx_alone import export_graph_alone


def add_graph(folder: Path) -> Path:
    """Write the graph of a classifier into its folder, see `cellglot.modeling.graph_alone`; return its file.

    Parameters
    ----------
    folder
        Of the classifier.

    Raises
    ------
    OnnxError
        If it is not a classifier, or the graph returns other values than PyTorch.
    """
    loaded = load_any_model(folder)
    return export_graph_alone(loaded, list(made_batches(loaded.tokenizer)))


__all__ = ["add_graph"]
