"""``load_model``: a network with what turns cells into its inputs."""

import os

from cellglot.modeling.loaded_model import LoadedModel
from cellglot.modeling.model_names import resolve_model


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
    resolve_model(name)  # before PyTorch is imported
    if adapter is not None:
        resolve_model(adapter)
    from cellglot.modeling.any_model import load_any_model

    return load_any_model(name, adapter, dtype)


def check_dtype(name: str | None) -> None:
    """Refuse a type that weights do not have."""
    if name not in (None, "float32", "bfloat16", "float16"):
        raise ValueError(f"dtype {name!r}: it is float32, bfloat16 or float16")


__all__ = ["load_model"]
