"""Staging: copies of the files that belong in a repository, in a new folder."""

import inspect
import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from transformers.dynamic_module_utils import get_relative_import_files

import cellglot.tokenization
from cellglot.inputs import path_inside, read_json
from cellglot.model_cards.card.details import CARD_FILE, CardDetails
from cellglot.model_cards.card.run_record import CONFIG_FILE, TrainingRun
from cellglot.model_cards.checks.clean_process import Outcome
from cellglot.model_cards.content_scan import Cleaned, clean_json
from cellglot.modeling.annotation_calibration import CALIBRATION_FILE
from cellglot.modeling.families import FAMILIES
from cellglot.modeling.model_files import code_names
from cellglot.training.run import RUN_FILE


_OWN_CODE = re.compile(r"[a-z_0-9]+\.[A-Za-z_0-9]+")
_OWN_LIBRARIES = ("cellglot", "transformers_modules", "modeling_")

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")

# Files of a trainer that are never published.
LEFT_OVERS = (
    "optimizer.pt", "scheduler.pt", "scaler.pt", "training_args.bin", "trainer_state.json", "rng_state*.pth",
    "run_identity.json", "events.out.tfevents.*", "checkpoint-*", "runs", "corpus", ".work", "__pycache__", ".cache",
    ".git*", ".*",
)  # fmt: skip

MODEL_FILES = (
    "config.json", "generation_config.json", "model.safetensors", "model-*-of-*.safetensors",
    "model.safetensors.index.json", "gene_vocab.json", "gene_stats.safetensors", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "processor_config.json", "text_tokenizer/*.json",
    "text_tokenizer/*.txt", CALIBRATION_FILE, RUN_FILE,
)  # fmt: skip
COMPACT = ("gene_vocab.json", "tokenizer.json")  # large: written without whitespace
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "config.json", CALIBRATION_FILE, RUN_FILE)
CORPUS_FILES = (  # and the shards in the manifest
    "manifest.json", "tokenizer/gene_vocab.json", "tokenizer/gene_stats.safetensors",
    "tokenizer/tokenizer_config.json", "tokenizer/special_tokens_map.json", "tokenizer/added_tokens.json",
)  # fmt: skip


class PickleError(ValueError):
    """A folder contains a pickle, which can run any code when it is loaded."""


@dataclass
class Source:
    """A folder to publish.

    Parameters
    ----------
    folder
        A model, an adapter, a token data set or a metric.
    repo
        Name under which it is published.
    details, evaluation, cells, base, onnx
        As for `cellglot.model_cards.publishing.publish`.
    """

    folder: Path
    repo: str
    details: CardDetails
    evaluation: str | Path | None = None
    cells: str | Path | None = None
    base: str | Path | None = None
    onnx: bool = False


@dataclass
class Staged:
    """A folder of staged files.

    Parameters
    ----------
    cleaned
        Paths of this machine that were shortened.
    left_out
        Files of the source that were not copied.
    """

    folder: Path
    cleaned: Cleaned = field(default_factory=Cleaned)
    left_out: list[str] = field(default_factory=list)

    @property
    def files(self) -> dict[str, int]:
        """File -> bytes."""
        found = sorted(p for p in self.folder.rglob("*") if p.is_file())
        return {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in found}


@dataclass
class Prepared:
    """A staged folder and its results in this process.

    Parameters
    ----------
    job
        For `stranger.Visit`, without the folder.
    before
        Results of the source in this process.
    """

    staged: Staged
    job: dict[str, Any]
    before: Outcome


def stage_files(source: str | Path, target: str | Path, patterns: Iterable[str]) -> Staged:
    """Copy the files that match; paths of this machine are removed from JSON, Parquet files are linked if possible.

    Parameters
    ----------
    patterns
        Files to copy, relative to `source`.

    Raises
    ------
    PickleError
        If `source` contains a pickle.
    ValueError
        If a matching file is a link out of `source` and its cache of the Hub.
    """
    source, staged = Path(source), Staged(Path(target))
    wanted = {path for pattern in patterns for path in source.glob(pattern) if path.is_file()}
    found = _files(source)
    pickles = [p.relative_to(source).as_posix() for p in found if p.suffix in PICKLES and p not in wanted]
    if pickles:
        raise PickleError(
            f"{source} contains {', '.join(pickles[:5])}: a pickle runs code when it is loaded, and is not published. "
            "Save weights as safetensors (model.save_pretrained does), or move the file elsewhere"
        )
    for path in sorted(wanted):
        path_inside(source, path.relative_to(source).as_posix(), source)
    for path in sorted(wanted):
        _copy(path, path.relative_to(source).as_posix(), staged)
    written_new = {"README.md", CARD_FILE, CONFIG_FILE, "evaluation.json", "examples.json"}
    staged.left_out = [
        p.relative_to(source).as_posix() for p in found if p not in wanted and p.name not in written_new
        and p.suffix != ".py"
    ]  # fmt: skip
    staged.left_out += [f"{p.name}{'/' if p.is_dir() else ''}" for p in sorted(source.iterdir()) if _left_over(p.name)]
    return staged


def _files(source: Path) -> list[Path]:
    """Return all files except those of a trainer."""
    found: list[Path] = []
    for folder, folders, files in os.walk(source):
        folders[:] = sorted(f for f in folders if not _left_over(f))
        found += [Path(folder, file) for file in sorted(files) if not _left_over(file)]
    return found


def _left_over(name: str) -> bool:
    return any(Path(name).match(pattern) for pattern in LEFT_OVERS)


def _copy(path: Path, name: str, staged: Staged) -> None:
    target = staged.folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        write_json(target, clean_json(read_json(path), name, staged.cleaned), None if path.name in COMPACT else 2)
        return
    if path.suffix == ".parquet":
        try:
            os.link(path.resolve(), target)
            return
        except OSError:
            pass  # another file system: copy the file
    shutil.copyfile(path, target)


def stage_code(folder: str | Path) -> list[str]:
    """Copy into a folder the Hub files that its configurations name, with their imports; return the file names."""
    folder, copied = Path(folder), set()
    for module in sorted(_modules(folder)):
        source = next((place / f"{module}.py" for place in _code_folders() if (place / f"{module}.py").exists()), None)
        if source is None:
            raise ValueError(f"{folder}: a configuration names the code {module}.py, which is not part of cellglot")
        for file in (source, *map(Path, get_relative_import_files(source))):
            shutil.copyfile(file, folder / file.name)
            copied.add(file.name)
    return sorted(copied)


def _code_folders() -> list[Path]:
    configs = [config for family in FAMILIES.values() for config in family.config_classes()]
    of_families = dict.fromkeys(Path(inspect.getfile(config)).parent for config in configs)
    return [*of_families, Path(str(cellglot.tokenization.__file__)).parent]


def _modules(folder: Path) -> set[str]:
    """Return the modules that the configurations of a folder name; refuse those of other repositories."""
    named: set[str] = set()
    for name in ("config.json", "tokenizer_config.json", "processor_config.json", "adapter_config.json"):
        if not (folder / name).exists():
            continue
        config = read_json(folder / name)
        found = code_names(config)
        foreign = [path for path in found if not _OWN_CODE.fullmatch(path)]
        if foreign:
            raise ValueError(
                f"{folder / name} names the code {foreign[0]!r:.120}, which is not a file of this folder and would "
                "run on loading the model. Save the model again with cellglot's classes. Nothing was published"
            )
        library = (config.get("auto_mapping") or {}).get("parent_library")
        if library is not None and not str(library).startswith(_OWN_LIBRARIES):
            raise ValueError(
                f"{folder / name} names the library {library!r:.120}, which PEFT would import: nothing was published"
            )
        named.update(found)
    return {path.split(".")[0] for path in named}


def clean_tokenizer_config(folder: str | Path) -> None:
    """Remove the processor from a tokenizer's configuration if the folder has none."""
    path = Path(folder, "tokenizer_config.json")
    if not path.exists() or Path(folder, "processor_config.json").exists():
        return
    config = read_json(path)
    config.pop("processor_class", None)
    config.get("auto_map", {}).pop("AutoProcessor", None)
    write_json(path, config)


def write_json(path: Path, content: Any, indent: int | None = 2) -> None:
    """Write a JSON file with an indent, or without whitespace."""
    separators = (",", ":") if indent is None else None
    text = json.dumps(content, indent=indent, separators=separators, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def write_training_configs(staged: Staged, runs: Iterable[TrainingRun]) -> None:
    """Write the configurations of runs as the YAML files of the commands on the card."""
    for run in runs:
        if config := clean_json(run.record.get("config"), run.config_file, staged.cleaned):
            text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
            (staged.folder / run.config_file).write_text(text, encoding="utf-8")


__all__ = [
    "ADAPTER_FILES", "CORPUS_FILES", "MODEL_FILES", "PickleError", "Prepared", "Source", "Staged",
    "clean_tokenizer_config", "stage_code", "stage_files", "write_json", "write_training_configs",
]  # fmt: skip
