"""Records of families of models: each layer keeps one a family, and looks up what differs between families there."""

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
        The first ones; others are added by `add`.
    """

    def __init__(self, *records: Record):
        super().__init__({record.name: record for record in records})

    def add(self, record: Record) -> None:
        """Add the record of a further family, or replace that of its name."""
        self[record.name] = record

    def of(self, model_type: Any, source: Any) -> Record:
        """Return the record of a type of model.

        Parameters
        ----------
        model_type
            As in ``config.json`` or in the section ``model`` of a training configuration.
        source
            What has this type, for the message.
        """
        if model_type not in self:
            known = ", ".join(sorted(self))
            raise ValueError(f"{source}: model type {model_type!r} is unsupported; there are {known}")
        return self[model_type]


def resolve(package: str, reference: Any) -> Any:
    """Return what a record refers to: the public name of a package, imported now, or the thing itself."""
    return getattr(importlib.import_module(package), reference) if isinstance(reference, str) else reference


__all__ = ["Families", "resolve"]
