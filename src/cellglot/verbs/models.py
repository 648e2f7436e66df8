"""``load_model``: a network with what turns cells into its inputs."""

import os
from dataclasses import dataclass
from typing import Any


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
        What the network is for, as one of these: ``"embeddings"``, ``"classes of cells"``, ``"a value of cells"``,
        ``"classes of genes"``, ``"cells and texts"``.
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
        plain = self.network.get_base_model() if hasattr(self.network, "get_base_model") else self.network
        classes = f": {len(self.classes):,}" if self.classes else ""
        return f"{self.name}: {type(plain).__name__} for {self.purpose}{classes}"


def load_model(
    name: str | os.PathLike, *, adapter: str | os.PathLike | None = None, dtype: str | None = None
) -> LoadedModel:
    """Load a model of any kind with its tokenizer.

    Parameters
    ----------
    name
        Folder or repository of a model, a classifier or an adapter; or of the base model of `adapter`.
    adapter
        Folder or repository of an adapter that was trained on the model.
    dtype
        Type of the weights: ``"float32"``, ``"bfloat16"`` or ``"float16"``; by default as they are stored.

    Returns
    -------
    LoadedModel
        Network, tokenizer, what they are for.

    Raises
    ------
    ValueError
        If there is no such model, it is not one of cellglot's, or its files are damaged or do not belong together.

    Examples
    --------
    >>> import cellglot
    >>> model = cellglot.load_model("model")
    >>> print(model)
    model: ExceiverForMaskedExpression for embeddings
    >>> inputs = model.tokenizer(adata, return_tensors="pt")
    """
    check_dtype(dtype)
    import torch

    from cellglot.evaluation.text_model import load_cell_text_model
    from cellglot.modeling.adapters import is_adapter, load_with_adapter, read_adapter
    from cellglot.modeling.families import FAMILIES, knows_texts
    from cellglot.modeling.loading import load_model as load
    from cellglot.modeling.loading import load_tokenizer, read_config
    from cellglot.modeling.model_names import resolve_model

    source, options = resolve_model(name), {} if dtype is None else {"dtype": getattr(torch, dtype)}
    if adapter is not None:
        network, home = load_with_adapter(resolve_model(adapter), source, **options), source
    elif is_adapter(source):
        network, home = load_with_adapter(source, **options), read_adapter(source).base
    else:
        config = read_config(source)
        model_type, architecture = config.get("model_type"), (config.get("architectures") or [""])[0]
        if knows_texts(model_type) and architecture.endswith(("Model", "ForPreTraining")):
            network, processor = load_cell_text_model(source, dtype)
            return LoadedModel(source, network, processor.tokenizer, processor, "cells and texts")
        kind = next((found for family in FAMILIES.values() if (found := family.network_named(architecture))), None)
        if kind is None:
            raise ValueError(f"{name} holds a {architecture or 'model without a name'}, which cellglot does not know")
        network, home = load(kind, source, **options).eval(), source
    purpose, classes = _purpose(network)
    return LoadedModel(str(adapter or source), network, load_tokenizer(home), None, purpose, classes)


def check_dtype(name: str | None) -> None:
    """Refuse a type that weights do not have.

    Raises
    ------
    ValueError
        If it is not one of them.
    """
    if name not in (None, "float32", "bfloat16", "float16"):
        raise ValueError(f"dtype {name!r}: it is float32, bfloat16 or float16")


def _purpose(network: Any) -> tuple[str, tuple[str, ...]]:
    """Return what a network is for, and its classes."""
    plain = network.get_base_model() if hasattr(network, "get_base_model") else network
    kind, config = type(plain).__name__, plain.config
    if not kind.endswith(("ForSequenceClassification", "ForTokenClassification")):
        return "embeddings", ()
    if config.problem_type == "regression":
        return "a value of cells", ()
    classes = tuple(config.id2label[i] for i in range(config.num_labels))
    return ("classes of cells" if kind.endswith("ForSequenceClassification") else "classes of genes"), classes


__all__ = ["LoadedModel", "load_model"]
