"""Reading the files of a release without running them, and checking and writing what they are converted to."""

import logging
import pathlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from cellglot.modeling.model_files import ModelFileError, check_sizes, read_configuration
from cellglot.outputs import OutputFolder, write_text


logger = logging.getLogger(__name__)

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")

# The layers of a BERT: released name -> ours.
BERT_LAYERS = {
    "attention.self.query.": "self_attn.q_proj.",
    "attention.self.key.": "self_attn.k_proj.",
    "attention.self.value.": "self_attn.v_proj.",
    "attention.output.dense.": "self_attn.o_proj.",
    "attention.output.LayerNorm.": "norm_attention.",
    "intermediate.dense.": "fc1.",
    "output.dense.": "fc2.",
    "output.LayerNorm.": "norm_feed_forward.",
}

# Fields of a BERT's configuration that have the same names in ours.
BERT_FIELDS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
    "hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings", "layer_norm_eps",
    "initializer_range", "pad_token_id",
)  # fmt: skip

# What safetensors, torch.load and damaged archives raise.
_UNREADABLE = (
    OSError, RuntimeError, EOFError, LookupError, TypeError, ValueError, AttributeError, pickle.UnpicklingError,
    SafetensorError,
)  # fmt: skip


class CheckpointError(ValueError):
    """A released checkpoint is damaged, incomplete, or of another kind than expected."""


def read_weights(path: Path) -> dict[str, Any]:
    """Read a safetensors file or a pickle; of a pickle, tensors, plain containers and POSIX paths only."""
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([pathlib.PosixPath]):
            return dict(torch.load(path, map_location="cpu", weights_only=True))
    except _UNREADABLE as error:
        cause = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path} cannot be read safely, it is damaged or contains more than tensors and numbers: {cause}"
        ) from error


def weight_file(folder: Path) -> Path | None:
    """Return the path of a folder's weights; None if there are none."""
    return next((folder / name for name in WEIGHT_FILES if (folder / name).exists()), None)


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Read ``config.json`` and the weights of a folder.

    Raises
    ------
    CheckpointError
        If a file is missing or damaged, or the configuration has sizes that the weights cannot have.
    """
    path = folder / "config.json"
    if not path.exists():
        raise CheckpointError(f"{folder} is not a released checkpoint: it has no config.json")
    try:
        config = read_configuration(path)
        weights_path = weight_file(folder)
        if weights_path is None:
            raise CheckpointError(f"{folder} has neither {' nor '.join(WEIGHT_FILES)}")
        weights = read_weights(weights_path)
        check_shapes(path, config, weights)
    except ModelFileError as error:
        raise CheckpointError(str(error)) from error
    return config, weights


def check_shapes(path: Path, sizes: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
    """Refuse sizes that the weights cannot have."""
    check_sizes(path, sizes, {name: tuple(getattr(weight, "shape", ())) for name, weight in weights.items()})


def rename_weights(
    released: Mapping[str, torch.Tensor],
    names: Mapping[str, str],
    layers: tuple[str, str],
    layer_names: Mapping[str, str],
    unused: tuple[str, ...],
) -> dict[str, torch.Tensor]:
    """Rename weights by the beginnings of their names.

    Parameters
    ----------
    names, layer_names
        Released beginning -> ours, of a name and of what follows the number of a layer.
    layers
        Released beginning of the names of layers, and ours.
    unused
        Beginnings of weights to drop; other unknown weights are dropped with a warning that names them.
    """
    weights: dict[str, torch.Tensor] = {}
    unknown = []
    for name, weight in released.items():
        if name.startswith(unused):
            continue
        prefix, part, known = "", name, names
        if name.startswith(layers[0]):
            number, part = name.removeprefix(layers[0]).split(".", 1)
            prefix, known = f"{layers[1]}{number}.", layer_names
        beginning = next((text for text in known if part.startswith(text)), None)
        if beginning is None:
            unknown.append(name)
        else:
            weights[prefix + known[beginning] + part.removeprefix(beginning)] = weight
    if unknown:
        logger.warning("%d unknown weights are ignored: %s", len(unknown), ", ".join(sorted(unknown)[:10]))
    return weights


def check_weights(converted: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Refuse converted weights that are not those of the model that the configuration describes."""
    missing, unknown = sorted(set(expected) - set(converted)), sorted(set(converted) - set(expected))
    if missing or unknown:
        raise CheckpointError(
            f"the weights do not match the configuration: missing {missing[:5] or 'none'}, unknown "
            f"{unknown[:5] or 'none'}"
        )
    for name, weight in converted.items():
        if weight.shape != expected[name].shape:
            raise CheckpointError(
                f"{name} has shape {tuple(weight.shape)}, but the configuration says {tuple(expected[name].shape)}"
            )


def write_model(model: Any, output: str | Path, card: str) -> None:
    """Write a converted model and its card into a folder of `OutputFolder`."""
    with OutputFolder(output, "convert") as folder:
        folder.clear()
        model.save_pretrained(output)
        write_text(Path(output, "README.md"), card)
        folder.finish()


__all__ = [
    "BERT_FIELDS", "BERT_LAYERS", "CheckpointError", "check_shapes", "check_weights", "read_folder", "read_weights",
    "rename_weights", "weight_file", "write_model",
]  # fmt: skip
