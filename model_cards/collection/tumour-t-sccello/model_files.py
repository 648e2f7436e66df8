"""Checks of a model's or adapter's files before loading, and of its weights after loading."""

import json
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from transformers.utils import logging


logger = logging.get_logger(__name__)

MOST_JSON_BYTES = 64 << 20
MOST_HEADER_BYTES = 100_000_000  # the limit of safetensors
MOST_LABELS = 1_000_000
LARGEST_NUMBER = 1 << 31

# Files that transformers and PEFT read without checks.
CONFIGURATIONS = (
    "config.json", "generation_config.json", "adapter_config.json", "tokenizer_config.json", "processor_config.json",
    "special_tokens_map.json", "added_tokens.json", "model.safetensors.index.json",
)  # fmt: skip
PICKLES = (
    "pytorch_model.bin", "pytorch_model.bin.index.json", "adapter_model.bin", "tf_model.h5", "flax_model.msgpack",
)  # fmt: skip
LAYERS = ("num_hidden_layers",)
LABELS = ("num_labels", "num_cell_types")
SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "gene_embedding_size", "max_position_embeddings", "num_latents",
    "projection_dim", "num_attention_heads", "num_cross_attention_heads", "type_vocab_size",
)  # fmt: skip
ADAPTER_SIZES = ("r",)
PATTERNS = ("target_modules", "exclude_modules", "feedforward_modules", "layers_pattern", "modules_to_save")
PATTERN_KEYS = ("rank_pattern", "alpha_pattern")
ADAPTERS = ("LORA", "IA3")
MOST_REPEATS = 3  # unlimited repeats in sequence: with more, time grows by a high power of a name's length
LONGEST_PATTERN = 1000

_AGAIN = "copy or save it again"


class ModelFileError(ValueError):
    """A file of a model or adapter cannot be used; the message names the file."""


# -------------------------------------------------------------------- before loading


def check_model_folder(folder: str | os.PathLike) -> None:
    """Refuse a folder of a model or adapter with damaged or unsafe files.

    Configurations are JSON of a bounded size that names only files and code of the folder; weights are complete
    safetensors; sizes match these weights; patterns of adapters match in bounded time.

    Parameters
    ----------
    folder
        Of a model or adapter; anything but a folder is ignored.

    Raises
    ------
    ModelFileError
        Names the file, says what is wrong with it and what to do.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return
    found = {name: read_configuration(folder / name) for name in CONFIGURATIONS if (folder / name).exists()}
    for name, content in found.items():
        check_names(folder / name, content)
    shapes = _shapes(folder, found.get("model.safetensors.index.json"))
    if "adapter_config.json" in found:
        adapter_weights = folder / "adapter_model.safetensors"
        of_adapter = dict(_header(adapter_weights)) if adapter_weights.exists() else {}
        check_adapter_settings(folder / "adapter_config.json", found["adapter_config.json"], of_adapter)
    if not shapes and not (folder / "adapter_model.safetensors").exists():
        _refuse_pickles(folder)
    if "config.json" in found:
        check_sizes(folder / "config.json", found["config.json"], shapes)
    texts = folder / "text_tokenizer"
    if texts.is_dir():
        for name in CONFIGURATIONS:
            if (texts / name).exists():
                check_names(texts / name, read_configuration(texts / name))


def read_configuration(path: str | os.PathLike) -> dict[str, Any]:
    """Read a JSON file that contains a mapping."""
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MOST_JSON_BYTES:
            raise ModelFileError(f"{path} has {size:,} bytes, which is too large for a configuration: {_AGAIN}")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError) as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(f"{path} is not readable JSON ({type(error).__name__}: {error}): {_AGAIN}") from error
    if not isinstance(content, dict):
        raise ModelFileError(f"{path} contains a {type(content).__name__}, not a mapping: {_AGAIN}")
    return content


def is_inside(name: Any) -> bool:
    """Whether the name of a file, given in another file, is inside the folder of that file."""
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    return not (posix.is_absolute() or windows.drive or windows.root or ".." in (*posix.parts, *windows.parts))


def check_names(path: Path, content: Mapping[str, Any]) -> None:
    """Refuse names of files outside the folder; warn if a configuration names code of another repository."""
    files = dict(_named_files(content))
    for key, name in files.items():
        if not is_inside(name) and not _is_own(path.parent, name):
            raise ModelFileError(f"{path} names {name!r:.200} as {key}, outside of its folder: it is not read")
    foreign = sorted({name for name in code_names(content) if "--" in name})
    if foreign:
        logger.warning_once(f"{path} names code of another repository, {foreign[0]}: it is not run")


def _named_files(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if key.endswith("_file") and value is not None:
            yield key, value
    weights = content.get("weight_map")
    if isinstance(weights, Mapping):
        yield from weights.items()


def _is_own(folder: Path, name: Any) -> bool:
    """Whether a path is that of a file in the folder, as older versions of transformers wrote it."""
    return isinstance(name, str) and "\0" not in name and Path(name).resolve().parent == folder.resolve()


def code_names(content: Mapping[str, Any]) -> list[str]:
    """List the code that a configuration names, such as ``modeling_exceiver.ExceiverModel``."""
    values: list[Any] = []
    for name in ("auto_map", "custom_pipelines"):
        given = content.get(name)
        values += list(given.values()) if isinstance(given, Mapping) else [] if given is None else [given]
    flat = [v.get("impl") if isinstance(v, Mapping) else v for v in values]
    return [name for v in flat for name in (v if isinstance(v, list | tuple) else [v]) if isinstance(name, str)]


# -------------------------------------------------------------------- weights on disk


def _shapes(folder: Path, index: Mapping[str, Any] | None) -> dict[str, tuple[int, ...]]:
    """Read the shapes of a model's weights from the headers of its files, which have to be complete."""
    whole = folder / "model.safetensors"
    if whole.exists():
        return _header(whole)
    if index is None:
        return {}
    path, names = folder / "model.safetensors.index.json", index.get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ModelFileError(f"{path} has no weight_map: {_AGAIN}")
    shapes: dict[str, tuple[int, ...]] = {}
    for name in sorted(set(map(str, names.values()))):
        file = folder / name
        if not file.exists():
            if folder.parent.name == "snapshots":  # of the Hub's cache: not downloaded yet
                return {}
            raise ModelFileError(f"{path} names {name}, which is missing: {_AGAIN}")
        _check_link(path, folder, file)
        shapes |= _header(file)
    missing = sorted(set(names) - set(shapes))
    if missing:
        raise ModelFileError(
            f"{path} names {len(missing):,} weights that are in none of its files, such as {missing[0]}: {_AGAIN}"
        )
    return shapes


def _check_link(path: Path, folder: Path, file: Path) -> None:
    """Refuse a link that leads out of the folder; in the Hub's cache, out of the repository."""
    home = folder.resolve()
    if home.parent.name == "snapshots":
        home = home.parents[1]
    if file.is_symlink() and not file.resolve().is_relative_to(home):
        raise ModelFileError(f"{path} names {file.name}, a link that leads out of the folder: it is not read")


def _header(path: Path) -> dict[str, tuple[int, ...]]:
    """Read names and shapes from the header of a safetensors file; the file has to be as long as its header says."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > min(size - 8, MOST_HEADER_BYTES):
                raise ModelFileError(f"{path} is not a complete safetensors file, it may be cut short: {_AGAIN}")
            head = json.loads(file.read(length))
        end = max((t["data_offsets"][1] for name, t in head.items() if name != "__metadata__"), default=0)
        shapes = {name: tuple(map(int, t["shape"])) for name, t in head.items() if name != "__metadata__"}
    except ModelFileError:
        raise
    except (OSError, RecursionError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ModelFileError(f"{path} has no readable header of safetensors ({error}): {_AGAIN}") from error
    if 8 + length + end != size:
        raise ModelFileError(
            f"{path} has {size:,} bytes, but its header says {8 + length + end:,}: it is damaged, {_AGAIN}"
        )
    return shapes


def _refuse_pickles(folder: Path) -> None:
    pickles = [name for name in PICKLES if (folder / name).exists()]
    if pickles:
        raise ModelFileError(
            f"{folder / pickles[0]} is a pickle, which is not loaded because it could run code: save the weights as "
            "safetensors (save_pretrained does)"
        )


def check_sizes(path: Path, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a configuration with sizes that its weights cannot have, before a model of these sizes is built.

    Parameters
    ----------
    shapes
        Shapes of the weights; empty if they are unknown.
    """
    numbers = sum(map(math.prod, shapes.values()))
    towers = {k: v for k, v in config.items() if k.endswith("_config") and isinstance(v, Mapping)}
    for part, tower in {"": config, **towers}.items():
        for name in (*LAYERS, *LABELS, *SIZES):
            value = tower.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < LARGEST_NUMBER:
                raise ModelFileError(f"{path}: {name} is {value!r:.60}, which is impossible: {_AGAIN}")
            if name in LABELS and value > MOST_LABELS:
                raise ModelFileError(f"{path}: {name} is {value:,}, but {MOST_LABELS:,} is the limit: {_AGAIN}")
        if not shapes:
            continue
        if (tower.get("num_hidden_layers") or 0) > 4 * len(shapes) + 64:
            layers = tower["num_hidden_layers"]
            raise ModelFileError(
                f"{path}: num_hidden_layers is {layers:,}, but there are only {len(shapes):,} weights: {_AGAIN}"
            )
        needed, held = _least_numbers(tower), part.replace("_config", "_model.")
        spare = 1 << (26 if any(held in name for name in shapes) else 28)  # a classifier of cells has no text encoder
        if needed > 16 * numbers + spare:
            raise ModelFileError(
                f"{path} has sizes of a model of {needed:,} or more parameters, but its weights have {numbers:,}: "
                f"{_AGAIN}"
            )


def _least_numbers(tower: Mapping[str, Any]) -> int:
    """Return a lower bound of the number of parameters of a transformer of these sizes."""
    size = {name: tower.get(name) or 0 for name in (*SIZES, *LAYERS)}
    hidden = size["hidden_size"]
    embedding = size["gene_embedding_size"] or hidden
    layer = 4 * hidden * hidden + 2 * hidden * size["intermediate_size"]
    around = size["vocab_size"] * embedding + (size["max_position_embeddings"] + size["num_latents"]) * hidden
    return size["num_hidden_layers"] * layer + around + hidden * size["projection_dim"]


# -------------------------------------------------------------------- adapters


def check_adapter_settings(
    path: Path, settings: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]] | None = None
) -> None:
    """Refuse settings of ``adapter_config.json`` that would run other code, or take unbounded time or memory.

    Parameters
    ----------
    shapes
        Shapes of the adapter's weights.
    """
    kind = settings.get("peft_type")
    if kind not in ADAPTERS:
        raise ModelFileError(
            f"{path}: adapters of the type {kind!r:.40} are unsupported, {' and '.join(ADAPTERS)} are"
        )
    if settings.get("megatron_config") is not None:
        raise ModelFileError(f"{path}: megatron_config is unsupported, it imports code by a name that the file gives")
    base = settings.get("base_model_name_or_path")
    if base is not None and not isinstance(base, str):
        raise ModelFileError(f"{path}: base_model_name_or_path is {base!r:.60}, not the name of a model: {_AGAIN}")
    for name in PATTERNS:
        given = settings.get(name)
        if given is None:
            continue
        texts = [given] if isinstance(given, str) and name != "modules_to_save" else given
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ModelFileError(f"{path}: {name} is {given!r:.60}, not names of modules: {_AGAIN}")
        if isinstance(given, str):
            check_pattern(given, f"{path}: {name}")
    largest = max((max(shape, default=0) for shape in (shapes or {}).values()), default=None)
    for name in PATTERN_KEYS:
        given = settings.get(name) or {}
        if not isinstance(given, Mapping):
            raise ModelFileError(f"{path}: {name} is {given!r:.60}, not a mapping: {_AGAIN}")
        for pattern, value in given.items():
            check_pattern(pattern, f"{path}: {name}")
            _check_rank(path, name, value, largest)
    for name in ADAPTER_SIZES:
        if name in settings and kind == "LORA":
            _check_rank(path, name, settings[name], largest)


def _check_rank(path: Path, name: str, value: Any, largest: int | None) -> None:
    if name == "alpha_pattern":
        return
    most = LARGEST_NUMBER if largest is None else largest
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
        raise ModelFileError(f"{path}: {name} is {value!r:.60}, which does not match the adapter's weights: {_AGAIN}")


def check_pattern(pattern: str, what: str) -> None:
    """Refuse a regular expression that is invalid or may take unbounded time.

    Nested repeats, references to groups and more than three unlimited repeats are refused.

    Parameters
    ----------
    what
        File and field of the pattern, for the message.
    """
    if len(pattern) > LONGEST_PATTERN:
        raise ModelFileError(
            f"{what}: the pattern has {len(pattern):,} characters, but {LONGEST_PATTERN:,} is the limit"
        )
    try:
        parsed = re._parser.parse(pattern)  # type: ignore[attr-defined]
    except (re.error, RecursionError, OverflowError, ValueError) as error:
        raise ModelFileError(f"{what} {pattern!r:.80} is not a regular expression: {error}") from error
    if _repeats(parsed, False) > MOST_REPEATS:
        raise ModelFileError(f"{what} {pattern!r:.80} may take very long to match: write it without nested repeats")


def _repeats(parsed: Any, inside: bool) -> int:
    """Count unlimited repeats; a nested one counts as too many."""
    number = 0
    for operation, argument in parsed:
        kind = str(operation)
        if "REPEAT" in kind:
            least, most, inner = argument
            if inside and most > 1:
                return LONGEST_PATTERN
            number += most > 1
            found = _repeats(inner, inside or most > 1)
            if most > 1 and (found or _optional(inner)):
                return LONGEST_PATTERN
            number += found
        elif kind in ("GROUPREF", "GROUPREF_EXISTS"):
            return LONGEST_PATTERN
        elif kind == "BRANCH":
            if inside and any(_optional(branch) for branch in argument[1]):
                return LONGEST_PATTERN
            number += max(_repeats(branch, inside) for branch in argument[1])
        elif kind == "SUBPATTERN":
            number += _repeats(argument[-1], inside)
        elif kind in ("ASSERT", "ASSERT_NOT", "ATOMIC_GROUP"):
            number += _repeats(argument[-1] if isinstance(argument, tuple) else argument, inside)
    return number


def _optional(parsed: Any) -> bool:
    """Whether a repeated part can match in several ways."""
    for operation, argument in parsed:
        kind = str(operation)
        if "REPEAT" in kind or kind == "BRANCH":
            return True
        if kind == "SUBPATTERN" and _optional(argument[-1]):
            return True
    return False


# -------------------------------------------------------------------- after loading


def check_loaded(
    name: Any, model: torch.nn.Module, info: Mapping[str, Any] | None = None, new: Collection[str] = ()
) -> None:
    """Refuse a model with weights that were not in its files, had other shapes, or are not finite numbers.

    Parameters
    ----------
    name
        Folder or repository of the model.
    info
        From ``from_pretrained(..., output_loading_info=True)``.
    new
        Modules whose weights may be missing: heads that are trained next.
    """
    place = f"{name}/model.safetensors" if Path(str(name)).is_dir() else str(name)
    if info is not None:
        heads = tuple(new)
        missing = sorted(k for k in info["missing_keys"] if not _is_of(k, heads))
        others = sorted({k[0] if isinstance(k, tuple) else k for k in info["mismatched_keys"]})
        others = [k for k in others if not _is_of(k, heads)]
        total = len(model.state_dict())
        if missing:
            unknown = sorted(info["unexpected_keys"])
            instead = f"; it has {len(unknown):,} others, such as {unknown[0]}" if unknown else ""
            raise ModelFileError(
                f"{place} lacks {len(missing):,} of the {total:,} weights of {type(model).__name__}, such as "
                f"{missing[0]}{instead}: they would be random numbers. Save the model again by save_pretrained"
            )
        if others:
            raise ModelFileError(
                f"{place} has {len(others):,} of the {total:,} weights of {type(model).__name__} in another shape "
                f"than its config.json says, such as {others[0]}: these files do not belong together"
            )
    check_finite(place, model)


def _is_of(key: str, modules: tuple[str, ...]) -> bool:
    return any(key == module or key.startswith(f"{module}.") for module in modules)


def check_finite(place: str, model: torch.nn.Module) -> None:
    """Refuse weights that are NaN or infinite; `place` is their origin, for the message."""
    unset = {name for name, values in model.named_buffers() if _is_unset(values)}
    bad = [name for name, values in model.state_dict().items() if name not in unset and not _finite(values)]
    if bad:
        raise ModelFileError(
            f"{place} has values that are not finite numbers (NaN, infinity) in {len(bad):,} weights of "
            f"{type(model).__name__}, such as {bad[0]}: the training diverged, or the file is damaged"
        )


def _is_unset(values: torch.Tensor) -> bool:
    """Whether a buffer was never set, like Exceiver's background expression: all of its values are NaN."""
    return values.is_floating_point() and not values.is_meta and bool(torch.isnan(values).all())


def _finite(values: Any) -> bool:
    if not isinstance(values, torch.Tensor) or not values.is_floating_point() or values.is_meta or not values.numel():
        return True
    low, high = torch.aminmax(values.detach())
    return bool(torch.isfinite(low) & torch.isfinite(high))


__all__ = [
    "ModelFileError", "check_adapter_settings", "check_finite", "check_loaded", "check_model_folder", "check_names",
    "check_pattern", "check_sizes", "code_names", "is_inside", "read_configuration",
]  # fmt: skip
