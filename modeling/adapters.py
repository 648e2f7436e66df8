"""Adapters (LoRA, DoRA, IA3) of our models: load them onto their base model, swap them, merge them."""

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from peft.utils import ModulesToSaveWrapper
from transformers import PreTrainedModel
from transformers.utils import logging

from cellglot.inputs import InputError, reading
from cellglot.modeling.adapter_folders import (
    RUN_FILE,
    AdapterOrigin,
    base_of,
    check_base,
    model_file,
    weights_fingerprint,
)
from cellglot.modeling.collection import in_collection
from cellglot.modeling.families import FAMILIES, find_network
from cellglot.modeling.loading import check_model, load_configuration, load_model, load_tokenizer, read_config
from cellglot.modeling.model_files import (
    ModelFileError,
    check_adapter_settings,
    check_finite,
    check_loaded,
    read_configuration,
)
from cellglot.modeling.model_names import is_repository_name
from cellglot.outputs import OutputFolder, write_json


ADAPTER_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

# Fields of a configuration that depend on the task; all others describe the network.
TASK_FIELDS = ("id2label", "label2id", "problem_type", "label_cl_ids", "target_mean", "target_std")
_NOT_OF_THE_NETWORK = {*TASK_FIELDS, "architectures", "dtype", "transformers_version", "_name_or_path", "auto_map"}


@dataclass(frozen=True)
class Adapter:
    """Description of an adapter's folder or repository.

    Parameters
    ----------
    method
        ``"lora"``, ``"dora"`` or ``"ia3"``.
    base, revision
        Folder or repository of the model that it was trained on, and the revision of a repository.
    record
        Content of its ``training_run.json``; empty without this file.
    model_class
        Class of the model with its head.
    config
        Its configuration: classes, their Cell Ontology ids, kind of problem.
    """

    name: str
    method: str
    base: str
    revision: str | None
    record: Mapping[str, Any]
    model_class: type[PreTrainedModel]
    config: Any
    peft_config: PeftConfig

    @property
    def fingerprint(self) -> str | None:
        """`weights_fingerprint` of the model that it was trained on; None if it was not recorded."""
        return self.record.get("base_model_fingerprint")

    @property
    def base_name(self) -> str:
        """Name of the base model in messages."""
        return self.origin.named(self.config.model_type)

    @property
    def origin(self) -> AdapterOrigin:
        """What it records of the base model."""
        return AdapterOrigin(self.name, self.base, self.revision, self.fingerprint)


def read_adapter(adapter: str | Path, revision: str | None = None) -> Adapter:
    """Read the description of an adapter from its folder or repository, without weights."""
    settings_file = model_file(adapter, ADAPTER_FILE, revision)
    if settings_file is None:
        raise ValueError(f"{adapter} has no {ADAPTER_FILE}: it is not an adapter")
    config_file = model_file(adapter, "config.json", revision)
    if config_file is None:
        raise ValueError(f"{adapter} has no config.json, which names its classes and the model's class")
    check_model(adapter, revision)
    architecture = (read_configuration(config_file).get("architectures") or [""])[0]
    found = find_network(str(architecture))
    if found is None:
        raise ValueError(
            f"{adapter} is for {architecture or 'a model without a name'}, which is not one of cellglot's"
        )
    run_file = model_file(adapter, RUN_FILE, revision)
    record = read_configuration(run_file) if run_file else {}
    check_adapter_settings(Path(settings_file), read_configuration(settings_file))
    with reading(adapter, "train or download the adapter again"):
        peft_config = PeftConfig.from_pretrained(str(adapter), **_revision(revision))
    method, base = str(peft_config.peft_type.value).lower(), base_of(adapter, revision=revision)
    return Adapter(
        name=str(adapter),
        method="dora" if getattr(peft_config, "use_dora", False) else method,
        base=in_collection(base) or base,
        revision=peft_config.revision,
        record=record,
        model_class=found[1],
        config=load_configuration(adapter, found[1].config_class, **_revision(revision)),
        peft_config=peft_config,
    )


def _revision(revision: str | None) -> dict[str, Any]:
    return {} if revision is None else {"revision": revision}


# -------------------------------------------------------------------- the base model


def _load_base(adapter: Adapter, base: str | Path | None, **kwargs: Any) -> PreTrainedModel:
    """Load the base model with a new head for the adapter's task."""
    name = adapter.base if base is None else str(base)
    revision = adapter.revision if name == adapter.base and not Path(name).is_dir() else None
    if not Path(name).is_dir() and not is_repository_name(name):
        raise ValueError(f"{adapter.name} was trained on {adapter.base_name}; there is no {name}: pass it as base")
    of_base = _revision(revision)
    given = read_config(name, **of_base)
    if given.get("model_type") == adapter.config.model_type:
        given = load_configuration(name, type(adapter.config), **of_base).to_dict()
    check_base(adapter.origin, adapter.config.to_dict(), name, given, **of_base)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # no warning of the new head, which the adapter replaces
    try:
        model, info = load_model(
            adapter.model_class,
            name,
            check=False,
            output_loading_info=True,
            config=type(adapter.config).from_dict(adapter.config.to_dict()),
            ignore_mismatched_sizes=True,
            **of_base,
            **kwargs,
        )
        encoder = FAMILIES[adapter.config.model_type].encoder
        # Heads come from the adapter, or are not used: a base may be an encoder alone.
        check_loaded(name, model, info, [part for part, _ in model.named_children() if part != encoder])
    except ModelFileError as error:
        raise ModelFileError(f"{error} ({adapter.name} was trained on {adapter.base_name})") from error
    except InputError as error:
        raise InputError(_with_settings(adapter, name, given, error)) from error
    finally:
        logging.set_verbosity(verbosity)
    return model


def _with_settings(adapter: Adapter, name: str, given: Mapping[str, Any], error: InputError) -> str:
    """Say which settings of an adapter differ from those of its base model, where the model cannot be built."""
    own = adapter.config.to_dict()
    shared = [k for k in sorted(own.keys() & given.keys()) if isinstance(own[k], bool | int | float | str)]
    other = [k for k in shared if own[k] != given[k] and k != "transformers_version"]
    if not other:
        return f"{error} ({adapter.name} was trained on {adapter.base_name})"
    return (
        f"{adapter.name}/config.json: the base model {name} cannot be built with these settings ({error}). They are "
        f"not those of the base model: {', '.join(f'{k} {own[k]!r}, not {given[k]!r}' for k in other[:5])}"
    )


def _check_weights(model: PeftModel, adapter: Adapter, name: str, revision: str | None) -> None:
    """Refuse an adapter whose weights were not all in its file, or are not finite numbers."""
    file = f"{adapter.name}/{WEIGHTS_FILE}"
    with reading(file, "train or download the adapter again"):
        names = _former_names(model)
        stored = set(load_peft_weights(adapter.name, device="cpu", key_mapping=names, **_revision(revision)))
        needed = set(get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))
    if missing := sorted(needed - stored):
        raise ModelFileError(
            f"{file} lacks {len(missing):,} of the {len(needed):,} weights of the adapter, such as {missing[0]}: "
            "train or download the adapter again"
        )
    if unknown := sorted(stored - needed):
        raise ModelFileError(
            f"{file} has {len(unknown):,} weights that do not match adapter_config.json, such as {unknown[0]}: train "
            "or download the adapter again"
        )
    check_finite(file, model)


def _former_names(model: PeftModel) -> dict[str, str] | None:
    """Return patterns of former names of a model's weights, and their names of today."""
    return getattr(model.get_base_model(), "_checkpoint_conversion_mapping", None)


def _require_safetensors(adapter: Adapter, revision: str | None) -> None:
    """Refuse adapters without safetensors: PEFT would load a pickle."""
    if model_file(adapter.name, WEIGHTS_FILE, revision) is None:
        raise ValueError(
            f"{adapter.name} has no {WEIGHTS_FILE}: weights in other files, such as pickles, are not read"
        )


# -------------------------------------------------------------------- use


@contextmanager
def as_peft_asks() -> Iterator[None]:
    """Hide a warning of transformers: PEFT reads an attribute of every model by its former name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def load_with_adapter(
    adapter: str | Path,
    base: str | Path | None = None,
    *,
    name: str = "default",
    revision: str | None = None,
    **kwargs: Any,
) -> PeftModel:
    """Load a base model with an adapter and its head, ready to use.

    Parameters
    ----------
    adapter
        Folder or repository of the adapter.
    base
        Folder or repository of the base model; by default the one that the adapter names, at its revision.
    name
        Name for `add_adapter` and `use_adapter`.
    revision
        Of the adapter's repository.
    **kwargs
        As for ``from_pretrained`` of the base model, such as ``dtype``.

    Returns
    -------
    peft.PeftModel
        In evaluation mode, with the inputs of the model; ``.config`` has the classes.

    Raises
    ------
    ValueError
        If the base model is not the adapter's, by type, sizes or weights; names both.
    """
    read = read_adapter(adapter, revision)
    plain = _load_base(read, base, **kwargs)
    _require_safetensors(read, revision)
    with as_peft_asks(), reading(adapter, "train or download the adapter again"):
        model = PeftModel.from_pretrained(plain, str(adapter), adapter_name=name, **_revision(revision))
    _check_weights(model, read, name, revision)
    model.adapters = {name: read}
    return model.eval()


def add_adapter(model: PeftModel, adapter: str | Path, name: str, revision: str | None = None) -> None:
    """Load another adapter, perhaps with other classes, onto a model of `load_with_adapter`; `use_adapter` swaps them.

    Parameters
    ----------
    model
        Changed in place; its active adapter stays the same.
    adapter
        Folder or repository of the other adapter.
    revision
        Of the adapter's repository.
    """
    read, first = read_adapter(adapter, revision), next(iter(model.adapters.values()))
    if name in model.adapters:
        raise ValueError(f"the model has an adapter {name!r} already: {', '.join(model.adapters)}")
    if (read.fingerprint or read.base) != (first.fingerprint or first.base):
        raise ValueError(
            f"{read.name} was trained on {read.base_name}, but {first.name} on {first.base_name}: load them separately"
        )
    differing = _differences(read, first)
    if differing:
        raise ValueError(f"{read.name} and {first.name} cannot share a model: they differ in {', '.join(differing)}")
    _require_safetensors(read, revision)
    with reading(adapter, "train or download the adapter again"):
        model.add_adapter(name, copy.deepcopy(read.peft_config))
        _fit_heads(model, read, name)
        weights = load_peft_weights(str(adapter), key_mapping=_former_names(model), **_revision(revision))
        set_peft_model_state_dict(model, weights, adapter_name=name)
    _check_weights(model, read, name, revision)
    model.adapters[name] = read
    use_adapter(model, str(model.active_adapter))
    model.eval()


def _differences(a: Adapter, b: Adapter) -> list[str]:
    """List the differences between two adapters' models, except their tasks."""
    if a.model_class is not b.model_class:
        return [f"class ({a.model_class.__name__}, {b.model_class.__name__})"]
    if a.peft_config.peft_type != b.peft_config.peft_type:
        return [f"method ({a.method}, {b.method})"]
    first, second = a.config.to_dict(), b.config.to_dict()
    return sorted(
        key for key in first.keys() | second.keys()
        if key not in _NOT_OF_THE_NETWORK and first.get(key) != second.get(key)
    )  # fmt: skip


def _fit_heads(model: PeftModel, adapter: Adapter, name: str) -> None:
    """Replace an adapter's heads by heads for its own classes: PEFT copies those of the first adapter."""
    with torch.device("meta"):
        fresh = adapter.model_class(adapter.config)
    for path, module in model.get_base_model().named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            old = next(module.modules_to_save[name].parameters())
            head = fresh.get_submodule(path).to_empty(device=old.device).to(old.dtype)
            module.modules_to_save[name] = head.requires_grad_(False)


def use_adapter(model: PeftModel, name: str) -> None:
    """Swap to another adapter of a model of `load_with_adapter`, in place, with its head and its classes."""
    if name not in model.adapters:
        raise ValueError(f"the model has no adapter {name!r}: {', '.join(model.adapters)}")
    model.set_adapter(name, inference_mode=True)
    base, config = model.get_base_model(), model.adapters[name].config
    for field in TASK_FIELDS:
        setattr(base.config, field, getattr(config, field))
    base.num_labels = config.num_labels


def merge_adapter(
    adapter: str | Path | PeftModel,
    base: str | Path | None = None,
    *,
    output: str | Path | None = None,
    **kwargs: Any,
) -> PreTrainedModel:
    """Merge an adapter into its base model; the result is a plain model with the same predictions.

    Files that its ``save_pretrained`` writes do not name the adapter; those in `output` do.

    Parameters
    ----------
    adapter
        Folder or repository of the adapter, or a model of `load_with_adapter`, which cannot be used afterwards.
    base, **kwargs
        As for `load_with_adapter`.
    output
        Folder for the merged model with the base's gene tokenizer and the adapter's record of training, ready for
        `cellglot.publish`. An earlier merged model there is replaced; other files stay.

    Raises
    ------
    OutputError
        If `output` is or contains the adapter or its base, or contains another model or other files of the same names.
    """
    given = [base, None if isinstance(adapter, PeftModel) else adapter]
    if output is not None:
        OutputFolder(output, "merge", given).check()
    model = adapter if isinstance(adapter, PeftModel) else load_with_adapter(adapter, base, **kwargs)
    _unwrap_heads(model)
    merged = model.merge_and_unload().eval()
    if output is not None:
        with OutputFolder(output, "merge", [*given, merged.config.name_or_path]) as folder:
            folder.clear()
            merged.save_pretrained(output)
            _save_origin(model.adapters[str(model.active_adapter)], str(merged.config.name_or_path), output)
            folder.finish()
    return merged


def _save_origin(adapter: Adapter, base: str, folder: str | Path) -> None:
    """Add the gene tokenizer of the base and the record of the adapter's training to a merged model."""
    revision = adapter.revision if base == adapter.base and not Path(base).is_dir() else None
    load_tokenizer(base, **_revision(revision)).save_pretrained(folder)
    if adapter.record:
        origin = {"base_model": base, "base_model_revision": revision, "merged": True}
        write_json(Path(folder, RUN_FILE), dict(adapter.record) | origin)


def _unwrap_heads(model: PeftModel) -> None:
    """Replace wrappers by the active adapter's heads, which PEFT's IA3 does for single layers only."""
    base = model.get_base_model()
    for path, module in list(base.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            parent, _, name = path.rpartition(".")
            setattr(base.get_submodule(parent), name, module.modules_to_save[model.active_adapter])


__all__ = [
    "Adapter",
    "add_adapter",
    "as_peft_asks",
    "load_with_adapter",
    "merge_adapter",
    "read_adapter",
    "use_adapter",
    "weights_fingerprint",
]
