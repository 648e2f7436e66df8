"""Records of families of models: each layer has one for each family, with what differs between them."""

import importlib
from typing import Any, Protocol, TypeVar


class _Named(Protocol):
    @property
    def name(self) -> str: ...


Record = TypeVar("Record", bound=_Named)


class Families(dict[str, Record]):
    """The records of one layer: type of model -> record.

    Parameters
    ----------
    *records
        The first records.
    """

    def __init__(self, *records: Record):
        super().__init__({record.name: record for record in records})

    def add(self, record: Record) -> None:
        """Add the record of another family, or replace the one with its name."""
        self[record.name] = record

    def of(self, model_type: Any, source: Any) -> Record:
        """Return the record of a type of model.

        Parameters
        ----------
        model_type
            As in ``config.json`` or in the section ``model`` of a training configuration.
        source
            The folder, repository or setting of this type, for the message.
        """
        if model_type not in self:
            known = ", ".join(sorted(self))
            raise ValueError(f"{source}: model type {model_type!r} is unsupported; there are {known}")
        return self[model_type]


def resolve(package: str, reference: Any) -> Any:
    """Return an object of a record: a string is the public name of a package, which is imported now."""
    return getattr(importlib.import_module(package), reference) if isinstance(reference, str) else reference


__all__ = ["Families", "resolve"]
