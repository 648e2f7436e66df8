"""A classifier of cells as a graph for onnxruntime, without PyTorch, by the weights in ``model.safetensors``.

The graph (``graph.onnx``) has the operations of the network and no weights; ``graph.json`` says which tensor of
``model.safetensors`` is which weight of the graph, and of which weights it is. Importing PyTorch and transformers'
networks takes longer than annotating some thousand cells: this module imports neither.
"""

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cellglot.inputs import read_json
from cellglot.inputs.file_digests import digest_of
from cellglot.modeling.expected_weights import WEIGHT_SCALE, expected_weights


GRAPH_FILE = "graph.onnx"
FACTS_FILE = "graph.json"
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
MADE_OF = (WEIGHTS_FILE, CONFIG_FILE)
EMBEDDING, LOGITS = "embedding", "logits"  # outputs
SUMS = "gene_sums"  # the module of its tensors


class GraphAlone:
    """A classifier that onnxruntime computes.

    Parameters
    ----------
    folder
        A folder for which `has_graph_alone` is true.

    Raises
    ------
    ValueError
        If a file is damaged.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.config: Mapping[str, Any] = read_json(self.folder / CONFIG_FILE)
        self.session: Any = None

    @property
    def imputes(self) -> bool:
        """Whether gene sums impute the genes that a file lacks."""
        return bool(self.config.get("gene_sums") and self.config.get("imputed_genes"))

    def open(self, measured_genes: np.ndarray | None = None) -> None:
        """Open the graph, for cells of some genes.

        Parameters
        ----------
        measured_genes
            As for `cellglot.modeling.gene_sums.GeneSums.sums`, bool, shape (vocabulary,); for models that impute.
        """
        names = read_json(self.folder / FACTS_FILE)["weights"]
        self.session = open_graph_alone(self.folder / GRAPH_FILE, self.folder / WEIGHTS_FILE, names, measured_genes)

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the logits."""
        names = self.config["id2label"]
        return [names[str(number)] for number in range(len(names))]

    @property
    def cell_types(self) -> list[str | None]:
        """Cell Ontology id of each class, or None."""
        ids = self.config.get("label_cl_ids") or {}
        return [ids.get(name) for name in self.classes]

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute cells: ``logits``, shape (cells, classes), and ``embedding``, shape (cells, size).

        Parameters
        ----------
        batch
            Arrays of the tokenizer, each of shape (cells, genes).
        """
        if self.session is None:
            self.open()
        given = {entry.name: batch[entry.name] for entry in self.session.get_inputs()}
        found = self.session.run([LOGITS, EMBEDDING], given)
        return dict(zip((LOGITS, EMBEDDING), found, strict=True))


def has_graph_alone(folder: str | os.PathLike) -> bool:
    """Whether onnxruntime is installed, and a folder has a graph of its own weights."""
    place = Path(folder)
    if not all((place / name).is_file() for name in (GRAPH_FILE, FACTS_FILE, *MADE_OF)):
        return False
    if importlib.util.find_spec("onnxruntime") is None:
        return False
    return read_json(place / FACTS_FILE).get("made_of") == digests(place)


def digests(folder: Path) -> dict[str, str]:
    """Return the digests of the files that a graph is made of."""
    return {name: digest_of(folder / name) for name in MADE_OF}


def open_graph_alone(
    graph: Path, weights: Path, names: Mapping[str, Any], measured_genes: np.ndarray | None = None
) -> Any:
    """Open a graph in onnxruntime, on the CPU, with weights of a file of safetensors.

    Parameters
    ----------
    names
        Weight of the graph -> name of the tensor, and whether it is transposed.
    measured_genes
        As for `GraphAlone.open`.

    Raises
    ------
    ValueError
        If a file is damaged or they do not belong together.
    """
    import onnxruntime
    from safetensors.numpy import load_file

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = number_of_threads()
    options.log_severity_level = 3
    try:
        tensors = load_file(weights)
        if measured_genes is not None:
            tensors |= imputed_gene_sums(tensors, measured_genes)
        arrays = [tensors[key].T if transposed else tensors[key] for key, transposed in names.values()]
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(a, np.float32)) for a in arrays]
        options.add_external_initializers(list(names), values)
        return onnxruntime.InferenceSession(os.fspath(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - onnxruntime has a class of error for each status
        cause = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{graph} or {weights.name} beside it is damaged ({cause}): use PyTorch by backend='torch' (--backend "
            "torch), or install the package again"
        ) from error


def imputed_gene_sums(tensors: Mapping[str, np.ndarray], measured_genes: np.ndarray) -> dict[str, np.ndarray]:
    """Return the weights of gene sums for cells of some genes, as `cellglot.modeling.gene_sums.GeneSums.sums`."""
    weight, bias = (tensors[f"{SUMS}.{name}"].astype(np.float32) for name in ("weight", "bias"))
    ids = tensors[f"{SUMS}.imputation.token_ids"]
    means, loadings, variances = (
        tensors[f"{SUMS}.imputation.{name}"].astype(np.float32) for name in ("means", "loadings", "variances")
    )
    measured = measured_genes[ids].astype(np.float32)
    weight[ids], added = expected_weights(weight[ids], means, loadings, variances, measured, np.linalg.solve)
    return {f"{SUMS}.weight": weight, f"{SUMS}.bias": bias + added * WEIGHT_SCALE}


def number_of_threads() -> int:
    """Return ``OMP_NUM_THREADS``, as PyTorch reads it, else the number of processors that this process may use."""
    given = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if given.isdecimal() and int(given) > 0:
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


__all__ = ["FACTS_FILE", "GRAPH_FILE", "GraphAlone", "digests", "has_graph_alone", "open_graph_alone"]
