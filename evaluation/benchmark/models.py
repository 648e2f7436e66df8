"""Models to evaluate: pretrained, fine-tuned, or a base model with an adapter."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

import cellglot
from cellglot.evaluation.embedding import evaluated_on, run_model
from cellglot.evaluation.labelled_cells import LabelledCells
from cellglot.evaluation.scores.marker_table import MarkerGenes, marker_tokens
from cellglot.evaluation.text_model import load_cell_text_model
from cellglot.modeling.adapter_folders import cached_revision
from cellglot.modeling.adapters import is_adapter, load_with_adapter, read_adapter
from cellglot.modeling.families import FAMILIES
from cellglot.modeling.loading import load_model, load_tokenizer, read_config
from cellglot.modeling.masked_genes import cell_encoder, gene_distances
from cellglot.tokenization.gene_report import GeneReport


@dataclass
class EvaluatedModel:
    """A loaded model for the tasks of an evaluation.

    Parameters
    ----------
    name
        In tables and plots.
    network
        The model, with any head or an adapter.
    classes
        Names of the predicted classes of cells, in the order of the logits; empty if it is not a classifier.
    class_types
        Class -> Cell Ontology id, if known.
    processor
        Of cells and texts, for models that annotate by texts.
    facts
        Source, revision, checksum of the weights, size.
    device
        By default CUDA, MPS or the CPU, in this order.
    genes
        Genes matched and lost in the last call.
    """

    name: str
    network: Any
    tokenizer: Any
    classes: list[str] = field(default_factory=list)
    class_types: dict[str, str] = field(default_factory=dict)
    processor: Any = None
    facts: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 64
    device: str | torch.device | None = None
    genes: GeneReport | None = None

    def embed(self, data: LabelledCells, progress: bool = True) -> np.ndarray:
        """Embed all cells, shape (cells, size); NaN for cells without a known gene."""
        encoder = self.network if self.processor is not None else cell_encoder(self.network)
        return self._run(encoder, data.cells, "pooler_output", data.options, progress)

    def logits(self, cells: AnnData, progress: bool = True, **options: Any) -> np.ndarray:
        """Return the logits of cells, shape (cells, classes); NaN for cells without a known gene."""
        return self._run(self.network, cells, "logits", options, progress)

    def _run(self, network: Any, cells: Any, output: str, options: dict[str, Any], progress: bool) -> np.ndarray:
        self.genes = GeneReport()
        options = options | {"batch_size": self.batch_size, "device": self.device, "report": self.genes}
        return run_model(network, self.tokenizer, cells, output, progress=progress, **options)

    def gene_scores(
        self, cells: AnnData, markers: MarkerGenes, labels: list[str], advance: Any, **options: Any
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Score each gene of a cell by how far the cell embedding moves if the gene is masked.

        Parameters
        ----------
        markers
            Names of the markers of each label.
        advance
            Called after every cell.

        Returns
        -------
        scores, is_marker
            For each cell, one value per gene that the model knows, shape (genes,); empty for cells with fewer than
            two such genes.
        """
        tokens = marker_tokens(markers, self.tokenizer.vocabulary)
        encoded = self.tokenizer(cells, **options)
        scores, is_marker = [], []
        with evaluated_on(self.network, self.device) as device:
            for number, label in enumerate(labels):
                cell = {
                    name: torch.tensor(encoded[name][number], device=device)
                    for name in ("input_ids", "expression_values")
                    if name in encoded
                }
                genes, distances = np.zeros(0, dtype=np.int64), np.zeros(0)
                if len(cell["input_ids"]) > 1:
                    genes, distances = gene_distances(self.network, cell)
                scores.append(distances)
                is_marker.append(np.isin(genes, list(tokens[label])))
                advance()
        return scores, is_marker


def load_evaluated_model(
    source: str | Path, *, name: str | None = None, batch_size: int = 64, device: str | torch.device | None = None
) -> EvaluatedModel:
    """Load a model from a folder or repository.

    Parameters
    ----------
    source
        Folder or repository of a pretrained model, a classifier, or an adapter.
    name
        For tables; by default the last part of `source`.

    Raises
    ------
    ValueError
        If the folder does not contain a model, or one of another family.
    OSError
        If a file is missing.
    """
    cellglot.register_auto_classes()
    source, label = str(source), name or Path(str(source).rstrip("/")).name
    check_source(source)
    adapter = read_adapter(source) if is_adapter(source) else None
    base = source if adapter is None else adapter.base
    config = read_config(source)
    kind = config.get("model_type")
    family = FAMILIES.of(kind, source)
    architecture = (config.get("architectures") or [""])[0]
    processor = None
    if adapter is not None:
        network = load_with_adapter(source)
    elif architecture.endswith("ForSequenceClassification"):
        network = load_model(AutoModelForSequenceClassification, source)
    elif architecture.endswith("ForTokenClassification"):
        network = load_model(AutoModelForTokenClassification, source)
    elif family.reads_texts and family.network_named(architecture) is not None:
        network, processor = load_cell_text_model(source)
    else:
        network = load_model(AutoModel, source)
    tokenizer = processor.tokenizer if processor is not None else load_tokenizer(base)
    network.eval()
    of_cells = type(_plain(network)).__name__.endswith("ForSequenceClassification")
    classifies = of_cells and network.config.problem_type != "regression"
    classes = [network.config.id2label[i] for i in range(network.config.num_labels)] if classifies else []
    facts = {
        "source": source,
        "revision": cached_revision(source),
        "base_model": None if adapter is None else base,
        "model_type": kind,
        "model_class": type(_plain(network)).__name__,
        "parameters": int(sum(p.numel() for p in network.parameters())),
        "weights_sha256": weights_checksum(network),
        "classes": classes,
    }
    return EvaluatedModel(
        label,
        network,
        tokenizer,
        classes,
        dict(getattr(network.config, "label_cl_ids", None) or {}),
        processor,
        facts,
        batch_size,
        device,
    )


def _plain(network: Any) -> Any:
    return network.get_base_model() if hasattr(network, "get_base_model") else network


def check_source(source: str | Path) -> None:
    """Refuse a source that cannot be a model, before anything is loaded."""
    source = str(source)
    if Path(source).is_dir():
        if not Path(source, "config.json").exists() and not is_adapter(source):
            raise ValueError(f"{source} does not contain config.json: pass the folder of a model")
    elif source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise ValueError(f"{source} is neither a folder nor a repository of the Hub (owner/name)")


def weights_checksum(network: Any) -> str:
    """Return the SHA-256 of the model's state dict."""
    digest = hashlib.sha256()
    for name, values in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(values.shape)} {values.dtype}".encode())
        digest.update(values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


__all__ = ["EvaluatedModel", "check_source", "load_evaluated_model", "weights_checksum"]
