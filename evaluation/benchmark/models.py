"""Models to evaluate: pretrained, fine-tuned, or a base model with an adapter."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anndata import AnnData

from cellglot.evaluation.embedding import evaluated_on, run_model
from cellglot.evaluation.labelled_cells import LabelledCells
from cellglot.evaluation.scores.marker_table import MarkerGenes, marker_tokens
from cellglot.modeling.adapter_folders import cached_revision
from cellglot.modeling.any_model import load_any_model
from cellglot.modeling.loaded_model import weights_checksum, without_adapter
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
        return self.embed_cells(data.cells, progress, **data.options)

    def embed_cells(self, cells: Any, progress: bool = True, **options: Any) -> np.ndarray:
        """Embed other cells, shape (cells, size); NaN for cells without a known gene."""
        encoder = self.network if self.processor is not None else cell_encoder(self.network)
        return self._run(encoder, cells, "pooler_output", options, progress)

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
    loaded = load_any_model(source)
    network = loaded.encoder if loaded.purpose == "embeddings" else loaded.network
    plain = without_adapter(network)
    classes = list(loaded.classes) if loaded.purpose == "classes of cells" else []
    adapters = getattr(network, "adapters", {})
    facts = {
        "source": str(source),
        "revision": cached_revision(loaded.name),
        "base_model": adapters["default"].base if adapters else None,
        "model_type": plain.config.model_type,
        "model_class": type(plain).__name__,
        "parameters": int(sum(p.numel() for p in network.parameters())),
        "weights_sha256": weights_checksum(network),
        "classes": classes,
    }
    return EvaluatedModel(
        name or Path(str(source).rstrip("/")).name,
        network,
        loaded.tokenizer,
        classes,
        dict(getattr(network.config, "label_cl_ids", None) or {}),
        loaded.processor,
        facts,
        batch_size,
        device,
    )


__all__ = ["EvaluatedModel", "load_evaluated_model"]
