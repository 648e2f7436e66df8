"""One loader for all verbs: files are checked before loading, weights after it; errors name the file."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoProcessor, AutoTokenizer, PreTrainedConfig
from transformers.utils import cached_file

from cellglot.inputs import reading
from cellglot.modeling.adapter_folders import weight_files
from cellglot.modeling.model_files import CONFIGURATIONS, check_loaded, check_model_folder


_CHECKED: set[tuple[str, str | None, bool]] = set()  # repositories: each of their files costs a request
_AGAIN = "save or download it again"


def load_model(
    auto_class: Any, name: str | os.PathLike, *, new: Collection[str] = (), check: bool = True, **kwargs: Any
) -> Any:
    """Load a model, and refuse one with missing weights or weights that are not finite.

    Code of the folder or repository is not run: our own classes load it. Pickles are not read.

    Parameters
    ----------
    name
        Folder or repository of a model or of an adapter.
    new
        Modules whose weights may be missing: heads that are trained next.
    check
        Whether to check the weights.
    **kwargs
        As for ``from_pretrained``. With ``output_loading_info=True`` its info is returned, too.

    Raises
    ------
    ModelFileError
        If weights are missing, of another shape or not finite; says how many of how many.
    InputError
        If a file is damaged; names it or what was loaded.
    """
    with_info = kwargs.pop("output_loading_info", False)
    if name is not None:
        check_model(name, kwargs.get("revision"), weights=True)
    with reading(name if name is not None else "the model", _AGAIN):
        model, info = auto_class.from_pretrained(name, output_loading_info=True, **_of_auto(auto_class, kwargs))
    if check:
        check_loaded(name, model, info, new)
    return (model, info) if with_info else model


def load_tokenizer(name: str | os.PathLike, tokenizer_class: Any = AutoTokenizer, **kwargs: Any) -> Any:
    """Load a tokenizer, by default by its configuration; code of its folder or repository is not run."""
    return _load(tokenizer_class, name, kwargs)


def load_processor(name: str | os.PathLike, **kwargs: Any) -> Any:
    """Load a processor; code of its folder or repository is not run."""
    return _load(AutoProcessor, name, kwargs)


def load_configuration(name: str | os.PathLike, config_class: Any = AutoConfig, **kwargs: Any) -> Any:
    """Load the configuration of a model, by default by its type; code of its folder or repository is not run."""
    return _load(config_class, name, kwargs)


def read_config(name: str | os.PathLike, **kwargs: Any) -> dict[str, Any]:
    """Read the content of ``config.json``."""
    check_model(name, kwargs.get("revision"))
    with reading(name, _AGAIN):
        return PreTrainedConfig.get_config_dict(name, **kwargs)[0]


def _load(kind: Any, name: str | os.PathLike, kwargs: dict[str, Any]) -> Any:
    check_model(name, kwargs.get("revision"))
    with reading(name, _AGAIN):
        return kind.from_pretrained(name, **_of_auto(kind, kwargs))


def _of_auto(kind: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Add the option that keeps Auto classes from asking whether code of the folder may run."""
    return {"trust_remote_code": False} | kwargs if kind.__name__.startswith("Auto") else kwargs


def check_model(name: str | os.PathLike, revision: str | None = None, weights: bool = False) -> None:
    """Check the files of a model or adapter before loading by `check_model_folder`.

    Configurations of a repository are downloaded, and with `weights` its weights, too; then the files in the Hub's
    cache are checked.
    """
    if Path(name).is_dir():
        check_model_folder(name)
        return
    if (str(name), revision, weights) in _CHECKED:
        return
    quiet = {
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
        "_raise_exceptions_for_gated_repo": False,
    }
    with reading(name, _AGAIN):
        found = [cached_file(str(name), file, revision=revision, **quiet) for file in CONFIGURATIONS]
        if weights and any(found):
            weight_files(name, revision)
    for folder in {Path(file).parent for file in found if file is not None}:
        check_model_folder(folder)
    _CHECKED.add((str(name), revision, weights))


__all__ = ["check_model", "load_configuration", "load_model", "load_processor", "load_tokenizer", "read_config"]
