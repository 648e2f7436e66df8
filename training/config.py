"""Training configurations: YAML files with overrides from the command line."""

import dataclasses
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from huggingface_hub.errors import StrictDataclassFieldValidationError

from cellglot.inputs.documents import parse_yaml, read_yaml


Settings = TypeVar("Settings")


class Section(dict[str, Any]):
    """A section of a configuration, with the file that it was read from."""

    file = ""

    def __or__(self, other: Any) -> "Section":  # type: ignore[override]
        return _joined(self.file, self, other)

    def __ror__(self, other: Any) -> "Section":  # type: ignore[override]
        return _joined(self.file, other, self)


def _joined(file: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> Section:
    joined = Section({**first, **second})
    joined.file = file
    return joined


def where(section: Mapping[str, Any], name: str) -> str:
    """Return the name of a section for messages, with its file if there is one."""
    file = getattr(section, "file", "")
    return f"{file}: {name}" if file else name


@dataclass
class TrainingConfig:
    """The settings of a training run, in sections.

    Each section is checked when it is used: `read_section` makes typed settings of it.

    Parameters
    ----------
    model
        ``type`` is the type of model (``exceiver``); the other keys are fields of its configuration, without those
        that depend on the corpus (``vocab_size``). For fine-tuning, fields to change in the pretrained model.
    data
        Settings of the cells: share of masked genes, thinning, ontology, ...
    optimizer
        ``name`` (``adamw``, or ``adam`` with weight decay added to gradients, as published for Exceiver).
    trainer
        Fields of `cellglot.training.arguments.CellTrainingArguments`.
    finetuning
        For fine-tuning: division of cells, weights of classes, early stopping, sizes of adapters.
    """

    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    finetuning: dict[str, Any] = field(default_factory=dict)


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 as a number, which is a text in YAML 1.1."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def load_config(path: str | os.PathLike, overrides: Sequence[str] = ()) -> TrainingConfig:
    """Read a configuration.

    Parameters
    ----------
    path
        YAML file with the sections of `TrainingConfig`, or the name of one that comes with the package.
    overrides
        ``section.key=value``, the value as YAML: ``trainer.max_steps=100``. Keys of nested mappings are separated by
        dots: ``model.cell_config.pooling=mean``.

    Raises
    ------
    ValueError
        If the file is not YAML with these sections, or an override is not of this form.
    FileNotFoundError
        If there is no such file; the message lists the configurations in the package.
    """
    path = Path(path)
    shipped = {p.name: p for p in sorted(configs_folder().glob("*.yaml"))}
    if not path.exists() and str(path) not in shipped:
        raise FileNotFoundError(f"no configuration {path}; the package has {', '.join(shipped)}")
    path = path if path.exists() else shipped[str(path)]
    content = read_yaml(path, _Loader) or {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a mapping of sections")
    names = [f.name for f in dataclasses.fields(TrainingConfig)]
    check_keys(content, names, f"{path}: section")
    sections: dict[str, Section] = {}
    for name in names:
        section = content.get(name) or {}
        if not isinstance(section, dict):
            raise ValueError(f"{path}: section {name!r} is not a mapping of keys")
        sections[name] = _joined(str(path), section, {})
    for override in overrides:
        key, separator, value = override.partition("=")
        name, _, field_name = (part.strip() for part in key.partition("."))
        if not separator or not field_name:
            raise ValueError(f"override {override!r}: write section.key=value, e.g. trainer.max_steps=100")
        check_keys({name: None}, names, f"override {override!r}: section")
        _set(sections[name], field_name.split("."), parse_yaml(value, f"override {override!r}", _Loader), override)
    return TrainingConfig(**sections)


def read_section(settings: type[Settings], section: Mapping[str, Any], name: str) -> Settings:
    """Make typed settings of a section; a key without a value has its default.

    Parameters
    ----------
    settings
        A strict dataclass with the keys as fields.
    """
    fields: dict[str, Any] = {f.name: f.type for f in dataclasses.fields(settings)}  # type: ignore[arg-type]
    given = {key: value for key, value in section.items() if value is not None}
    check_keys(given, list(fields), where(section, name))
    try:
        return settings(**given)
    except StrictDataclassFieldValidationError as error:
        key = str(error).split("'")[1]
        kinds = " or ".join(sorted({k.__name__ for k in get_args(fields[key]) or (fields[key],)} - {"NoneType"}))
        raise ValueError(
            f"{where(section, name)}.{key} {given[key]!r} is of type {type(given[key]).__name__}: it has to be {kinds}"
        ) from error
    except ValueError as error:
        raise ValueError(f"{where(section, name)}.{error}") from error


def _set(section: dict[str, Any], keys: Sequence[str], value: Any, override: str) -> None:
    *outer, last = keys
    for depth, key in enumerate(outer):
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise ValueError(f"override {override!r}: {'.'.join(outer[: depth + 1])} is {section!r}, not a mapping")
    section[last] = value


def configs_folder() -> Path:
    """Return the folder of the configurations in the package."""
    return Path(__file__).parent / "configs"


def check_keys(given: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    """Refuse keys that do not exist; the message has a similar key or all keys."""
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            meant = f"; is {close[0]!r} meant?" if close else f"; there are {', '.join(sorted(known))}"
            raise ValueError(f"{what} {key!r} does not exist{meant}")


__all__ = ["Section", "TrainingConfig", "check_keys", "configs_folder", "load_config", "read_section", "where"]
