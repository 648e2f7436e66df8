"""Models whose weights FSDP2 divides over processes: which layers are units, and as what they are saved."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


def layers_to_divide(model: nn.Module) -> list[str]:
    """Return the names of the classes of layers that are gathered one at a time.

    They are those that the model must not be split inside of, without classes that the model does not have, and
    without the layer that contains the embedding of genes: Accelerate makes a unit of the embedding, and a weight
    cannot be in two.
    """
    genes = getattr(model, "get_input_embeddings", lambda: None)()
    classes: dict[str, bool] = {}
    for module in model.modules():
        name = type(module).__name__
        if name in (getattr(model, "_no_split_modules", None) or ()):
            holds_genes = any(part is genes for part in module.modules())
            classes[name] = classes.get(name, False) or holds_genes
    return [name for name, holds_genes in classes.items() if not holds_genes]


def choose_units(model: nn.Module, accelerator: Any) -> None:
    """Set the layers that FSDP2 makes units of, unless the configuration names them."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.fsdp_version == 2 and plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = layers_to_divide(model)


@contextmanager
def under_own_name(model: nn.Module) -> Iterator[None]:
    """Give the class of a divided model the name and module of the model's class while it is saved.

    FSDP2 makes a class such as ``FSDPScCelloModel`` in a module of PyTorch, whose files would be saved as the model's
    code.
    """
    made = type(model)
    names = made.__module__, made.__name__
    own = next((c for c in made.__mro__[1:] if names[1] == f"FSDP{c.__name__}"), made)
    made.__module__, made.__name__ = own.__module__, own.__name__
    try:
        yield
    finally:
        made.__module__, made.__name__ = names


__all__ = ["choose_units", "layers_to_divide", "under_own_name"]
