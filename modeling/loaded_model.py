"""A loaded model of any kind. PyTorch is not imported before one is loaded."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


# Of models for cells: problem_type -> what they are for; others are for "classes of cells".
SEVERAL = "classes of cells, several at the same time"
KINDS = {"regression": "a value of cells", "multi_label_classification": SEVERAL}


@dataclass(frozen=True)
class LoadedModel:
    """A network in evaluation mode, with its tokenizer.

    `cellglot.embed`, `cellglot.annotate` and `cellglot.query` take it in place of a name, and then load nothing.

    Parameters
    ----------
    name
        Folder or repository.
    network
        The PyTorch module; with an adapter a ``peft.PeftModel``.
    tokenizer
        Turns cells into inputs of the network.
    processor
        Tokenizes cells and texts; None for models that do not read texts.
    purpose
        What the network is for, as one of these: ``"embeddings"``, ``"classes of cells"``, ``"classes of cells,
        several at the same time"``, ``"a value of cells"``, ``"classes of genes"``, ``"cells and texts"``.
    classes
        Names of the classes that it predicts; none where it predicts no classes.
    """

    name: str
    network: Any
    tokenizer: Any
    processor: Any = None
    purpose: str = "embeddings"
    classes: tuple[str, ...] = ()

    @property
    def encoder(self) -> Any:
        """The part of the network that embeds cells: its ``pooler_output`` is the embedding."""
        from cellglot.modeling.masked_genes import cell_encoder

        return self.network if self.purpose == "cells and texts" else cell_encoder(self.network)

    def __str__(self) -> str:
        classes = f": {len(self.classes):,}" if self.classes else ""
        return f"{self.name}: {type(without_adapter(self.network)).__name__} for {self.purpose}{classes}"


def without_adapter(network: Any) -> Any:
    """Return the model itself, without PEFT's wrapper where it has an adapter."""
    return network.get_base_model() if hasattr(network, "get_base_model") else network


def purpose_of(config: Mapping[str, Any], reads_texts: bool) -> str:
    """Return what a model is for, one of the purposes of a `LoadedModel`.

    Parameters
    ----------
    config
        The content of ``config.json``, which names the class that the model was saved from.
    reads_texts
        Whether its family does.
    """
    architecture = str((config.get("architectures") or [""])[0])
    if architecture.endswith("ForTokenClassification"):
        return "classes of genes"
    if architecture.endswith("ForSequenceClassification"):
        return KINDS.get(str(config.get("problem_type")), "classes of cells")
    return "cells and texts" if reads_texts and architecture.endswith(("Model", "ForPreTraining")) else "embeddings"


def weights_checksum(network: Any) -> str:
    """Return the SHA-256 of the model's state dict."""
    import torch

    digest = hashlib.sha256()
    for name, values in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(values.shape)} {values.dtype}".encode())
        digest.update(memoryview(values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


__all__ = ["LoadedModel", "purpose_of", "weights_checksum", "without_adapter"]
