"""Recipes of the collection's models: data sets, labels, genes, training, and what is scored."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError

from cellglot.inputs import read_yaml
from cellglot.model_cards.collection.text_settings import TextSettings
from cellglot.training.config import TrainingConfig, check_keys, load_config
from cellglot.training.finetuning.gene_sum_fit import GeneSumSettings


RECIPES = Path(__file__).with_name("recipes")
DATA_SETS_FILE = "data_sets.yaml"
KINDS = ("classifier", "base", "texts")
SHIPS = ("all", "tested")

Settings = TypeVar("Settings")


class RecipeError(ValueError):
    """A recipe does not fit: names the file and the field."""


@strict
@dataclass(kw_only=True)
class Gate:
    """Cells that marker genes tell apart, whatever their label.

    Parameters
    ----------
    label
        The label that they get, as in `DataSet.types`.
    genes
        Symbols or Ensembl ids of the markers.
    above
        Smallest mean of log1p of counts per 10,000 over the markers; with `share`, smallest share of the counts.
    share
        Whether `above` is a share of the counts.
    without, below
        Further genes, whose mean of log1p of counts per 10,000 lies below this value.
    """

    label: str | list[str]
    genes: list[str]
    above: float | int
    share: bool = False
    without: list[str] = field(default_factory=list)
    below: float | int = 0


@strict
@dataclass(kw_only=True)
class DataSet:
    """A file of cells.

    Parameters
    ----------
    name
        Its name in recipes.
    file
        Path below the folder of data.
    sha256
        Checksum of the file.
    source
        Where the cells come from.
    license
        Terms of the cells.
    laboratory
        Cells of one laboratory or experiment are never on both sides of a test.
    tissue
        In words.
    column
        Column of obs with the labels; None without labels.
    types
        Label -> Cell Ontology id or name; a list where it leaves several open; None to leave the label out. Labels
        that are not here are looked up in the ontology, and are left out where it does not know them.
    every
        The label of all cells, in place of a column.
    marker_labels
        Whether labels to train on are narrowed by marker genes, see `marker_labels`; tests are by the labels as given.
    gates
        Cells that markers tell apart; later ones take precedence.
    training
        Whether models are trained on it; otherwise it serves tests alone.
    where
        Column of obs -> values: cells with another value are left out, so that donors of a file can be data sets of
        their own.
    fewest_counts, fewest_genes
        Cells with fewer are left out.
    most_cells
        Number of cells to draw; all by default.
    """

    name: str
    file: str
    sha256: str
    source: str
    license: str
    laboratory: str
    tissue: str
    column: str | None = None
    types: dict[str, Any] = field(default_factory=dict)
    every: str | list[str] | None = None
    marker_labels: bool = False
    gates: list[Any] = field(default_factory=list)
    training: bool = True
    where: dict[str, list[str]] = field(default_factory=dict)
    fewest_counts: int = 0
    fewest_genes: int = 0
    most_cells: int | None = None

    @property
    def labelled(self) -> bool:
        """Whether any cell has a label."""
        return self.column is not None or self.every is not None or bool(self.gates) or self.marker_labels


@strict
@dataclass(kw_only=True)
class GeneSettings:
    """Which genes a model knows.

    Parameters
    ----------
    protein_coding
        Whether all human protein-coding genes are among them, expressed or not.
    fewest_cells
        Other genes need counts in this number of cells of the data sets.
    """

    protein_coding: bool = True
    fewest_cells: int = 20


@strict
@dataclass(kw_only=True)
class Recipe:
    """What a model of the collection is made of.

    Parameters
    ----------
    name
        Of the model and its folder.
    title, summary
        On the card.
    license
        The Hub's identifier.
    data
        Names of its data sets.
    kind
        ``classifier``; ``base``, an encoder to train others on, which is scored by its embedding; or ``texts``, a
        LangCell whose encoder of cells is that of `base`, a base of scCello, and whose texts are trained.
    default
        Whether it annotates cells for which no model is named.
    base
        Model of the collection, or folder, that is fine-tuned; None for a new network.
    method
        As for `cellglot.finetune`: ``full``, or an adapter such as ``lora``.
    classes
        Cell types that are its classes, as ids or names; by default the finest types with `fewest_cells`.
    fewest_cells
        Training cells that a class needs where classes are not given.
    foreign
        Class of cells of none of the types; None without one.
    genes
        Which genes a new network knows.
    training
        Sections of a training configuration, with ``config`` for the name of the one that they change.
    pretraining
        The same for a pretraining on all cells, those without a label as well, that comes first; empty for none.
    ships
        Of a base: ``all``, trained on all data sets; or ``tested``, the model that was tested, without the
        laboratories of `held_out`, which are then left out at once.
    gene_sums
        How gene sums are fitted after the network, see `GeneSumSettings`; None to leave them as trained.
    linear_genes
        Of a base: genes of a latent of principal components, see `with_linear_latent`; 0 for none.
    linear_data
        Data sets that the components are of.
    linear_labels
        Directions of labels in place of the last of its components.
    linear_label_data
        Data sets that these labels are of; by default those of `linear_data`.
    linear_shrinkage
        How far directions of this latent in which data sets of labels differ are shrunk, see
        `cellglot.model_cards.collection.linear_components.shrinking`; 0 for not. Types are those of the last of
        `groups`.
    linear_share
        Deviation of this latent, relative to that of the embedding without it.
    texts
        Of the kind ``texts``: the text encoder and its training, see `TextSettings`.
    held_out
        Laboratories that are left out in turn to test a model that did not see them; a list of some leaves them out
        at once. By default all with labels of known types.
    unit
        What one of the laboratories is, as the card says it: ``laboratory``, or where data sets are parts of one file,
        such as ``donor``.
    groups
        Name of a level, such as ``fine`` -> type -> Cell Ontology ids that belong to it: what is scored.
    limits, uses
        Further lines on the card.
    seed
        Of everything that is drawn.
    """

    name: str
    title: str
    summary: str
    license: str
    data: list[str]
    kind: str = "classifier"
    default: bool = False
    base: str | None = None
    method: str = "full"
    classes: list[str] | None = None
    fewest_cells: int = 10
    foreign: str | None = None
    genes: Any = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    pretraining: dict[str, Any] = field(default_factory=dict)
    ships: str = "all"
    gene_sums: Any = None
    linear_genes: int = 0
    linear_data: list[str] = field(default_factory=list)
    linear_labels: int = 0
    linear_label_data: list[str] = field(default_factory=list)
    linear_shrinkage: float | int = 0
    linear_share: float | int = 1.5
    texts: Any = None
    held_out: list[str | list[str]] | None = None
    unit: str = "laboratory"
    groups: dict[str, Any] = field(default_factory=dict)
    limits: list[str] = field(default_factory=list)
    uses: list[str] = field(default_factory=list)
    seed: int = 0
    file: str = ""
    sets: list[Any] = field(default_factory=list)

    @property
    def laboratories(self) -> list[str]:
        """Laboratories of its data sets, in their order."""
        return list(dict.fromkeys(data_set.laboratory for data_set in self.sets))

    def config(self, quick: bool = False, section: str = "training") -> TrainingConfig:
        """Return the configuration of the training, or of the pretraining.

        Parameters
        ----------
        quick
            Train a few steps, to try out everything else.
        section
            ``training`` or ``pretraining``.
        """
        given = getattr(self, section)
        sections = {name: value for name, value in given.items() if name != "config"}
        config = load_config(given["config"]) if "config" in given else TrainingConfig()
        check_keys(sections, [f.name for f in dataclasses.fields(TrainingConfig)], f"{self.file}: {section}")
        for name, values in sections.items():
            getattr(config, name).update(values)
        config.trainer.update(seed=self.seed, eval_strategy="no", save_strategy="no")
        if quick:
            config.trainer.update(max_steps=20, logging_steps=10)
        return config


def read_recipe(name: str, folder: Path = RECIPES) -> Recipe:
    """Read a recipe with its data sets.

    Parameters
    ----------
    name
        Name of a recipe of `folder`, or a YAML file.

    Raises
    ------
    RecipeError
        If there is no such recipe, a key does not exist, or a value does not fit; names the file.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    known = sorted(p.stem for p in folder.glob("*.yaml") if p.name != DATA_SETS_FILE)
    if not path.is_file():
        raise RecipeError(f"no recipe {name}; there are {', '.join(known) or 'none'}, and YAML files")
    content = _mapping(path)
    recipe = _typed(Recipe, {"file": str(path), **content}, path)
    if recipe.kind not in KINDS:
        raise RecipeError(f"{path}: kind {recipe.kind!r}: it is one of {', '.join(KINDS)}")
    recipe.genes = _typed(GeneSettings, recipe.genes, f"{path}: genes")
    if recipe.gene_sums is not None:
        recipe.gene_sums = _typed(GeneSumSettings, recipe.gene_sums, f"{path}: gene_sums")
        if recipe.method != "full" or not (recipe.training.get("model") or {}).get("gene_sums"):
            raise RecipeError(f"{path}: gene_sums needs method full, and gene_sums: true in training: model")
    if recipe.texts is not None:
        recipe.texts = _typed(TextSettings, recipe.texts, f"{path}: texts")
    complete = recipe.base is not None and recipe.texts is not None and len(recipe.held_out or []) == 1
    if recipe.kind == "texts" and not complete:
        raise RecipeError(
            f"{path}: kind texts needs base, whose encoder of cells it takes, texts, and one entry of held_out"
        )
    catalogue = read_data_sets(path.with_name(DATA_SETS_FILE))
    if recipe.ships not in SHIPS or (recipe.ships == "tested" and len(recipe.held_out or []) != 1):
        raise RecipeError(f"{path}: ships is all, or tested with one entry of held_out")
    others = [one for one in (*recipe.linear_data, *recipe.linear_label_data) if one not in recipe.data]
    if others or bool(recipe.linear_genes) != bool(recipe.linear_data):
        raise RecipeError(f"{path}: linear_genes needs linear_data, some of the names of data{_named(others)}")
    if recipe.linear_label_data and not recipe.linear_labels:
        raise RecipeError(
            f"{path}: linear_label_data without linear_labels has no effect: set the number of directions"
        )
    if recipe.linear_shrinkage < 0 or (recipe.linear_shrinkage and not (recipe.linear_genes and recipe.groups)):
        raise RecipeError(
            f"{path}: linear_shrinkage is 0 or more, and needs linear_genes and groups, whose types it compares"
        )
    missing = [one for one in recipe.data if one not in catalogue]
    if missing:
        raise RecipeError(f"{path}: data names {', '.join(missing)}, which {DATA_SETS_FILE} does not have")
    recipe.sets = [catalogue[one] for one in recipe.data]
    named = {name for one in recipe.held_out or [] for name in ([one] if isinstance(one, str) else one)}
    unknown = named - set(recipe.laboratories)
    if unknown:
        raise RecipeError(
            f"{path}: held_out names {', '.join(sorted(unknown))}, which are laboratories of no data set"
        )
    return recipe


def _named(names: list[str]) -> str:
    return f"; {', '.join(names)} is not one of them" if names else ""


def read_data_sets(path: Path) -> dict[str, DataSet]:
    """Read the catalogue of data sets: name -> data set.

    Raises
    ------
    RecipeError
        If a key does not exist or a value does not fit; names file and data set.
    """
    if not path.is_file():
        raise RecipeError(f"{path} does not exist: it has the data sets of the recipes beside it")
    found = {}
    for name, content in _mapping(path).items():
        place = f"{path}: {name}"
        data_set = _typed(DataSet, {"name": name, **(content or {})}, place)
        data_set.gates = [_typed(Gate, gate, f"{place}: gates") for gate in data_set.gates]
        found[name] = data_set
    return found


def _mapping(path: Path) -> dict[str, Any]:
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise RecipeError(f"{path} is not a mapping of keys")
    return content


def _typed(kind: type[Settings], content: Any, place: Path | str) -> Settings:
    if not isinstance(content, Mapping):
        raise RecipeError(f"{place}: this is a mapping of keys, not {content!r:.60}")
    try:
        check_keys(content, [f.name for f in dataclasses.fields(kind)], str(place))  # type: ignore[arg-type]
        return kind(**content)
    except (StrictDataclassError, TypeError) as error:
        raise RecipeError(f"{place}: {error}") from error
    except ValueError as error:
        raise RecipeError(str(error)) from error


__all__ = ["DataSet", "Gate", "GeneSettings", "RECIPES", "Recipe", "RecipeError", "read_data_sets", "read_recipe"]
