"""``models``: the models that ship with the package."""

import dataclasses
import json

from cellglot.modeling.collection import CollectionModel, model_path, read_collection


_KNOWN = 6  # types that a line of the table names


class Collection(list[CollectionModel]):
    """The models that ship with the package. As text, a table."""

    def __str__(self) -> str:
        """Return a table with two lines for each model, and its scores."""
        if not self:
            return "this installation ships no models"
        return "\n\n".join(_described(model) for model in self)

    def to_json(self) -> str:
        """Return all facts as JSON: a list of mappings."""
        return json.dumps([dataclasses.asdict(model) for model in self], indent=2)


def models() -> Collection:
    """List the models that ship with the package: what they know, their size, scores and licence.

    Returns
    -------
    Collection
        A list of `cellglot.modeling.collection.CollectionModel`; as text, a table.

    Raises
    ------
    ValueError
        If the facts of a model are damaged.

    Examples
    --------
    >>> import cellglot
    >>> cellglot.models()[0].name
    'blood-exceiver'
    """
    return Collection(read_collection())


def _described(model: CollectionModel) -> str:
    facts = [
        model.purpose + (" (used where no model is named)" if model.default else ""),
        f"adapter of {model.base}" if model.base else "",
        f"{model.parameters:,} parameters, {model.size / 1e6:.1f} MB, {model.license}",
        f"{model.cells:,} cells of {model.data_sets:,} data sets" if model.cells else "",
        ", ".join(model.tissues),
    ]
    lines = [model.name, *(fact for fact in facts if fact)]
    if model.types:
        shown = list(model.types)[:_KNOWN]
        more = len(model.types) - len(shown)
        lines.append(f"{len(model.types):,} types: {'; '.join(shown)}{f'; and {more:,} more' if more > 0 else ''}")
    for score in model.scores:
        interval = f" ({score['low']:.3f} to {score['high']:.3f})" if score.get("low") is not None else ""
        others = [f"{name} {value:.3f}" for name, value in (score.get("baselines") or {}).items()]
        lines.append(f"{score['name']}: {score['value']:.3f}{interval}{'; ' if others else ''}{', '.join(others)}")
    return "\n  ".join(lines)


__all__ = ["Collection", "model_path", "models"]
