"""The records of all families in training."""

from pathlib import Path

from cellglot.families import Families
from cellglot.modeling.any_model import describe_model
from cellglot.training.families.exceiver import EXCEIVER
from cellglot.training.families.family import TrainedFamily
from cellglot.training.families.langcell import LANGCELL
from cellglot.training.families.sccello import SCCELLO


FAMILIES: Families[TrainedFamily] = Families(EXCEIVER, SCCELLO, LANGCELL)


def family_of(model: str | Path) -> TrainedFamily:
    """Return the family of a model; raise ValueError if it belongs to none."""
    return FAMILIES.of(describe_model(model).model_type, model)


__all__ = ["FAMILIES", "family_of"]
