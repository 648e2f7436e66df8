"""Builds a model of the collection of any kind."""

from pathlib import Path

from cellglot.model_cards.collection.base_build import BaseBuild
from cellglot.model_cards.collection.build import Build
from cellglot.model_cards.collection.recipe import RecipeError, read_recipe
from cellglot.model_cards.collection.text_build import TextBuild


BUILDS: dict[str, type[Build]] = {"classifier": Build, "base": BaseBuild, "texts": TextBuild}


def build(name: str, data: Path, folder: Path, quick: bool = False, network: Path | None = None) -> Path:
    """Build a model of the collection, and return its finished folder.

    Parameters
    ----------
    name
        A recipe's name, or a YAML file.
    data, folder, quick
        As for `cellglot.model_cards.collection.build.Build`.
    network
        Of a base: as for `cellglot.model_cards.collection.base_build.BaseBuild`.

    Raises
    ------
    RecipeError
        If a network is given for a model of another kind.
    """
    recipe = read_recipe(name)
    if network is not None:
        if recipe.kind != "base":
            raise RecipeError(f"{recipe.file}: --network is for bases, and this is of the kind {recipe.kind}")
        return BaseBuild(recipe, data, folder, quick, network).run()
    return BUILDS[recipe.kind](recipe, data, folder, quick).run()


__all__ = ["BUILDS", "build"]
