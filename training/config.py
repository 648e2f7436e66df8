"""Training configurations: YAML files with overrides from the command line."""

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


@dataclass
class TrainingConfig:
    """What a training run is made of.

    Parameters
    ----------
    model
        ``type`` names the configuration class (``exceiver``), other keys are its fields; sizes that the corpus
        decides (``vocab_size``) are left out. For fine-tuning, fields to change in the model that is loaded.
    data
        Fields of the collator: shares of masked genes and so on.
    optimizer
        ``name`` (``adamw``, or ``adam`` with weight decay added to gradients, as published for Exceiver).
    trainer
        Fields of `transformers.TrainingArguments`.
    """

    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 as a number, which YAML 1.1 takes for text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainingConfig:
    """Read a configuration.

    Parameters
    ----------
    path
        YAML file with the sections of `TrainingConfig`.
    overrides
        ``section.key=value``, the value as YAML: ``trainer.max_steps=100``.

    Raises
    ------
    ValueError
        If a section or key does not exist, or an override is not of that form.
    FileNotFoundError
        If there is no such file; names the configurations that come with the package.
    """
    path = Path(path)
    if not path.exists():
        shipped = sorted(p.name for p in configs_folder().glob("*.yaml"))
        raise FileNotFoundError(f"no configuration {path}; with the package come {', '.join(shipped)}")
    content = yaml.load(path.read_text(encoding="utf-8"), _Loader) or {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no mapping of sections")
    for override in overrides:
        key, separator, value = override.partition("=")
        section, dot, name = key.strip().partition(".")
        if not separator or not dot:
            raise ValueError(f"override {override!r}: write section.key=value, e.g. trainer.max_steps=100")
        content.setdefault(section, {})[name] = yaml.load(value, _Loader)
    sections = [f.name for f in dataclasses.fields(TrainingConfig)]
    check_keys(content, sections, f"{path}: section")
    return TrainingConfig(**{name: dict(value or {}) for name, value in content.items()})


def configs_folder() -> Path:
    """Folder of the configurations that come with the package."""
    return Path(__file__).parent / "configs"


def check_keys(given: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    """Refuse keys that do not exist, with the one that may be meant."""
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            meant = f"; is {close[0]!r} meant?" if close else f"; there are {', '.join(sorted(known))}"
            raise ValueError(f"{what} {key!r} does not exist{meant}")


__all__ = ["TrainingConfig", "check_keys", "configs_folder", "load_config"]
