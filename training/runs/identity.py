"""The identity of a training run: corpus, labels, task, base weights and settings, compared when it resumes."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.utils import cached_file

from cellglot.modeling.adapters import weights_fingerprint
from cellglot.modeling.families import FAMILIES
from cellglot.outputs import sha256
from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.training.config import TrainingConfig
from cellglot.training.runs.finite import check_statistics


IDENTITY_FILE = "run_identity.json"
FORMAT_VERSION = 1
LISTED = 8

# Fields of TrainingArguments that do not change weights, or not those before the resumed step.
_NO_MATTER = {
    "output_dir", "max_steps", "num_train_epochs", "per_device_train_batch_size", "torch_empty_cache_steps",
    "run_name", "project", "report_to", "disable_tqdm", "prediction_loss_only", "batch_eval_metrics", "label_names",
    "remove_unused_columns", "resume_from_checkpoint", "restore_callback_states_from_checkpoint", "local_rank",
    "enable_jit_checkpoint", "push_to_hub", "use_cpu", "tf32", "torch_compile", "torch_compile_backend",
    "torch_compile_mode", "use_cache", "auto_find_batch_size", "gradient_checkpointing",
    "gradient_checkpointing_kwargs", "activation_checkpointing", "activation_checkpointing_kwargs",
    "accelerator_config", "parallelism_config", "fsdp", "fsdp_config", "deepspeed", "debug", "full_determinism",
    "skip_memory_metrics", "bf16_full_eval", "fp16_full_eval", "use_liger_kernel", "liger_kernel_config",
    "include_num_input_tokens_seen", "include_for_metrics", "length_column_name", "per_device_eval_batch_size",
    "data_seed", "grad_cache",
}  # fmt: skip
_NO_MATTER_BEGINNINGS = ("log", "save_", "hub_", "trackio_", "dataloader_", "ddp_", "do_", "eval_", "include_")
# These matter if they decide which weights are kept.
_OF_THE_BEST = ("eval_strategy", "eval_steps", "eval_delay")
_BEST = ("metric_for_best_model", "greater_is_better")
# Settings that name files, whose content is compared instead of the name.
FILES = {"data": ("ontology", "start_from", "text_checkpoint"), "finetuning": ("ontology",)}


class OtherRunError(ValueError):
    """An output folder contains another run."""


def run_identity(
    verb: str,
    config: TrainingConfig,
    corpus: Corpus,
    arguments: TrainingArguments,
    *,
    base: str | Path | None = None,
    **parts: Any,
) -> dict[str, Any]:
    """Describe a run by everything that determines its weights.

    Parameters
    ----------
    verb
        ``"pretrain"``, ``"finetune"`` or ``"few-shot"``.
    corpus
        The corpus; described by its content, not by its path.
    base
        Folder or repository of the model that the run starts from.
    **parts
        Further parts, such as task, method and column of labels; None is left out.

    Returns
    -------
    dict
        ``parts`` to compare, their ``digest``, ``length`` (epochs and steps, which may be increased later), and
        ``names`` for messages.

    Raises
    ------
    ValueError
        If the base has no weights, or the statistics of genes in the corpus are not finite.
    """
    tokenizer = corpus.tokenizer()
    check_statistics(tokenizer.vocabulary, str(corpus.tokenizer_folder))
    found: dict[str, Any] = {
        "verb": verb,
        **{name: value for name, value in parts.items() if value is not None},
        "corpus": _corpus(corpus),
        "vocabulary": _digest(tokenizer.vocabulary.to_dict()),
        "settings": _settings(config, arguments, base),
    }
    names = {"corpus": Path(corpus.folder).name}
    if base is not None:
        found["base model"], names["base model"] = _weights(base), Path(str(base)).name
    for section, keys in FILES.items():
        for key in keys:
            if (given := getattr(config, section).get(key)) is not None:
                found[f"{section}.{key}"] = _content(str(given))
                names[f"{section}.{key}"] = Path(str(given)).name
    found = json.loads(json.dumps(found, default=str))
    return {
        "format_version": FORMAT_VERSION,
        "digest": _digest(found),
        "parts": found,
        "names": names,
        "length": run_length(arguments),
    }


def run_length(arguments: TrainingArguments) -> dict[str, Any]:
    """Return the length of a run, in steps and epochs."""
    return {"max_steps": arguments.max_steps, "num_train_epochs": float(arguments.num_train_epochs)}


# -------------------------------------------------------------------- parts


def _corpus(corpus: Corpus) -> dict[str, Any]:
    """Describe the content of a corpus; if its shards have no digests, by the files of cells in its plan."""
    manifest = corpus.manifest
    content = {name: manifest.get(name) for name in ("tokenizer", "vocab_size", "split", "shards")}
    known = {"file", "split", "cells", "tokens", "bytes"}
    if not all(set(shard) - known for shard in manifest["shards"]):
        content["files"] = [f.get("fingerprint") for f in manifest.get("plan", {}).get("files", [])]
    return {
        "cells": {s: corpus.n_cells(s) for s in ("train", "validation", "test") if corpus.n_cells(s)},
        "files": [file["name"] for file in manifest["files"]],
        "content": _digest(content),
    }


def _settings(config: TrainingConfig, arguments: TrainingArguments, base: str | Path | None) -> dict[str, Any]:
    settings = {name: _plain(getattr(config, name), FILES.get(name, ())) for name in ("data", "finetuning")}
    settings["model"] = _not_default(_plain(config.model), _model_defaults(config, base))
    settings["optimizer"] = {"name": config.optimizer.get("name", "adamw")}
    settings["trainer"] = trainer_settings(arguments)
    return settings


def trainer_settings(arguments: TrainingArguments) -> dict[str, Any]:
    """Return the trainer's settings that change the weights, with defaults; batch sizes are over all processes."""
    wanted = [
        f.name
        for f in dataclasses.fields(arguments)
        if f.name not in _NO_MATTER and not f.name.startswith(_NO_MATTER_BEGINNINGS)
    ]
    if arguments.load_best_model_at_end:
        wanted += _OF_THE_BEST
    else:
        wanted = [name for name in wanted if name not in _BEST]
    given = {name: getattr(arguments, name) for name in wanted}
    settings = {name: getattr(value, "value", value) for name, value in given.items()}  # of enumerations
    settings["cells_per_batch"] = arguments.train_batch_size * arguments.world_size
    settings["data_seed"] = "as seed" if arguments.data_seed in (None, arguments.seed) else arguments.data_seed
    settings["dataloader_drop_last"] = arguments.dataloader_drop_last
    return json.loads(json.dumps(settings, default=str))


def _plain(section: Mapping[str, Any], without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return a section without empty settings, which mean the default."""
    return {name: value for name, value in section.items() if value is not None and name not in without}


def _model_defaults(config: TrainingConfig, base: str | Path | None) -> Mapping[str, Any]:
    """Return the defaults of the section ``model``: fields of the base model, or of a new configuration."""
    from transformers import PreTrainedConfig

    if base is not None:
        return PreTrainedConfig.get_config_dict(base)[0]
    family = FAMILIES.get(str(config.model.get("type")))
    return {} if family is None else family.config_classes()[0]().to_dict()


def _not_default(section: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in section.items():
        default = defaults.get(name, ...)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            value = _not_default(value, default)
            if not value:
                continue
        elif (
            name != "type"
            and default is not ...
            and value == default
            and isinstance(value, bool) == isinstance(default, bool)
        ):
            continue
        kept[name] = value
    return kept


def _weights(base: str | Path) -> dict[str, str]:
    """Describe a model by its weights and the fields of its configuration about the network."""
    found = {"weights": weights_fingerprint(base)}
    path = cached_file(base, "config.json", _raise_exceptions_for_missing_entries=False)
    if path is not None:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
        volatile = ("transformers_version", "_name_or_path", "auto_map", "custom_pipelines", "architectures")
        found["configuration"] = _digest({k: v for k, v in config.items() if k not in volatile})
    return found


def _content(given: str) -> str:
    """Describe a file, or a folder or repository of a model, by its content; other names by the name."""
    if os.path.isfile(given):
        return sha256(given)
    if os.path.isdir(given) or given.count("/") == 1:
        return weights_fingerprint(given)
    return given


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:32]


# -------------------------------------------------------------------- comparing


def differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the differences of two runs, from `run_identity`, as texts with both values."""
    before, asked = _flat(there["parts"]), _flat(now["parts"])
    said: list[str] = []
    for name in dict.fromkeys([*before, *asked]):
        missing = name not in before or name not in asked
        if missing and name.startswith("settings.trainer."):  # another version of transformers lacks this field
            continue
        if before.get(name) != asked.get(name):
            values = (_shown(name, values, of) for values, of in ((before, there), (asked, now)))
            said.append("{}: {} there, {} now".format(name.removeprefix("settings."), *values))
    corpora = [text for text in said if text.startswith("corpus.")]
    return said if len(corpora) < 2 else [*corpora, *(text for text in said if text not in corpora)]


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{before}{name}.")
        else:
            flat[f"{before}{name}"] = value
    return flat


def _shown(name: str, values: Mapping[str, Any], identity: Mapping[str, Any]) -> str:
    if name not in values:
        return "not set"
    value = values[name]
    if isinstance(value, list):
        return f"{', '.join(map(str, value[:3]))}{', ...' if len(value) > 3 else ''}"
    named = identity["names"].get(name) or identity["names"].get(name.partition(".")[0])
    digest = isinstance(value, str) and len(value) >= 32 and set(value) <= set("0123456789abcdef")
    if digest:
        return f"{value[:12]}{f' ({named})' if named else ''}"
    return repr(value) if isinstance(value, str) else str(value)


def check_same_run(there: Mapping[str, Any], now: Mapping[str, Any], folder: str | Path) -> None:
    """Refuse to write the run `now` to a folder with the run `there`, both from `run_identity`."""
    if there.get("digest") != now["digest"]:
        refuse_differences(folder, differences(there, now))


def refuse_differences(folder: str | Path, found: list[str]) -> None:
    """Refuse a folder whose run has any differences from the one to write."""
    if not found:
        return
    more = f"; and {len(found) - LISTED:,} more" if len(found) > LISTED else ""
    raise OtherRunError(
        f"{folder} contains a run that differs in {'; '.join(found[:LISTED])}{more}. Choose another folder for the "
        "result, or delete that run and start again with --overwrite (overwrite=True)"
    )


def read_identity(folder: str | Path) -> dict[str, Any] | None:
    """Read the identity of the run in a folder; None if there is no readable one."""
    try:
        content = json.loads(Path(folder, IDENTITY_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    whole = isinstance(content, dict) and all(isinstance(content.get(k), dict) for k in ("parts", "names", "length"))
    return content if whole and content.get("format_version") == FORMAT_VERSION else None


# -------------------------------------------------------------------- runs of earlier versions


def recorded_corpus(corpus: Corpus) -> dict[str, Any]:
    """Return the entry ``corpus`` of the record of a run."""
    return {
        **{name: corpus.manifest[name] for name in ("tokenizer", "vocab_size", "split")},
        "files": [{k: f[k] for k in ("name", "n_cells", "counts_in")} for f in corpus.manifest["files"]],
    }


def recorded_differences(
    record: Mapping[str, Any],
    now: Mapping[str, Any],
    corpus: Corpus,
    trainer_of: Callable[[TrainingConfig], TrainingArguments],
    base: str | Path | None,
) -> list[str]:
    """Return the differences between a run and the record of a run of an earlier version, which has no identity.

    The record, ``training_run.json``, has settings, names and sizes of the files of the corpus, its split, task,
    method, column of labels, table of genes and base weights.

    Parameters
    ----------
    now, corpus, base
        Identity, corpus and base model of the new run.
    trainer_of
        Makes the trainer's arguments from a configuration.
    """
    config = TrainingConfig(**{k: v for k, v in (record.get("config") or {}).items() if isinstance(v, dict)})
    parts, given = now["parts"], record.get("corpus") or {}
    before: dict[str, Any] = {"settings": _settings(config, trainer_of(config), base)}
    asked: dict[str, Any] = {"settings": parts["settings"]}
    of_corpus = recorded_corpus(corpus)
    before["corpus"] = {name: given.get(name) for name in of_corpus}
    asked["corpus"] = of_corpus
    for name in ("task", "method", "labels", "cells_of_each_class"):
        key = "label_column" if name == "labels" else name
        if key in record and name in parts:
            before[name], asked[name] = record[key], parts[name]
    if "gene_labels" in parts:
        before["gene_labels"] = (record.get("gene_labels") or {}).get("sha256")
        asked["gene_labels"] = parts["gene_labels"]
    before["base model"] = record.get("base_model_fingerprint") or ("" if "base_model" in record else "none")
    asked["base model"] = parts.get("base model", {}).get("weights", "none")
    if not before["base model"]:  # a base whose weights were not recorded
        before["base model"], asked["base model"] = record["base_model"], str(base)
    names = {"parts": json.loads(json.dumps(before, default=str)), "names": {}}
    return differences(names, {"parts": json.loads(json.dumps(asked, default=str)), "names": now["names"]})


__all__ = [
    "FILES",
    "IDENTITY_FILE",
    "OtherRunError",
    "check_same_run",
    "differences",
    "read_identity",
    "recorded_corpus",
    "recorded_differences",
    "refuse_differences",
    "run_identity",
    "run_length",
    "trainer_settings",
]
