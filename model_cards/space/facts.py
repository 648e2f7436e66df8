"""What the card of a Space says."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SpaceFacts:
    """What the card of a Space says.

    Parameters
    ----------
    name
        Of the Space, without its owner.
    model
        Name of the model.
    title
        Heading of the card.
    license
        The Hub's identifier of the model's licence; "" if it is not known.
    models
        Repositories of the model, which the card links to.
    """

    name: str
    model: str
    title: str
    license: str = ""
    models: tuple[str, ...] = ()


__all__ = ["SpaceFacts"]
