"""One record for each family of models: its configurations, networks, converter and encoder of cells.

PyTorch is imported only when a record returns a class.
"""

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from cellglot.families import Families, resolve


@dataclass(frozen=True)
class ModelFamily:
    """What differs between families of networks.

    Parameters
    ----------
    name
        ``model_type`` of the configuration.
    configs
        Configuration classes, or their names in `cellglot.modeling`: the family's own, then those of its parts. Their
        ``auto_map`` names the networks.
    encoder
        Attribute of a model with a head: the encoder that embeds cells.
    reads_texts
        Whether it has a text encoder, and so annotates cells and searches them by texts.
    converter
        Module that converts the released checkpoint; None without such a checkpoint.
    doi
        Of the paper; None without one.
    """

    name: str
    configs: tuple[str | type, ...]
    encoder: str
    reads_texts: bool = False
    converter: str | None = None
    doi: str | None = None

    def config_classes(self) -> list[Any]:
        """Return the configuration classes, the family's own first."""
        return [resolve("cellglot.modeling", config) for config in self.configs]

    def networks(self, auto_class: str) -> Iterator[tuple[Any, Any]]:
        """Yield each configuration class with the network that an Auto class loads for it."""
        for config in self.config_classes():
            path = _auto_map(config).get(auto_class)
            if path is not None:
                yield config, _beside(config, path)

    def network_named(self, name: str) -> Any:
        """Return the network of this class name; None if there is none."""
        for config in self.config_classes():
            for auto_class, path in _auto_map(config).items():
                if auto_class != "AutoConfig" and path.rpartition(".")[2] == name:
                    return _beside(config, path)
        return None

    def convert(self) -> ModuleType:
        """Return the module that converts the released checkpoint; an error if there is none."""
        if self.converter is None:
            raise ValueError(f"{self.name} has no released checkpoint to convert")
        return importlib.import_module(self.converter)


def _auto_map(config: Any) -> dict[str, str]:
    return config.__dataclass_fields__["auto_map"].default_factory()


def _beside(config: Any, path: str) -> Any:
    """Return a class, such as ``modeling_sccello.ScCelloModel``, of the package of a configuration."""
    file, _, name = path.rpartition(".")
    package, _, own = config.__module__.rpartition(".")
    module = sys.modules[config.__module__] if own == file else importlib.import_module(f"{package}.{file}")
    return getattr(module, name)


FAMILIES: Families[ModelFamily] = Families(
    ModelFamily(
        name="exceiver",
        configs=("ExceiverConfig",),
        encoder="exceiver",
        converter="cellglot.modeling.convert.exceiver",
        doi="10.48550/arXiv.2210.14330",
    ),
    ModelFamily(
        name="sccello",
        configs=("ScCelloConfig",),
        encoder="sccello",
        converter="cellglot.modeling.convert.sccello",
        doi="10.48550/arXiv.2408.12373",
    ),
    ModelFamily(
        name="langcell",
        configs=("LangCellConfig", "LangCellCellConfig", "LangCellTextConfig"),
        encoder="cell_model",
        reads_texts=True,
        converter="cellglot.modeling.convert.langcell",
        doi="10.48550/arXiv.2405.06708",
    ),
)


def find_network(name: str) -> tuple[ModelFamily, Any] | None:
    """Return a network by the name of its class, with the record of its family; None where there is none."""
    found = ((family, family.network_named(name)) for family in FAMILIES.values())
    return next(((family, network) for family, network in found if network is not None), None)


def knows_texts(model_type: str | None) -> bool:
    """Whether models of a type read texts; False for unknown types."""
    family = FAMILIES.get(str(model_type))
    return family is not None and family.reads_texts


__all__ = ["FAMILIES", "ModelFamily", "find_network", "knows_texts"]
