"""Released scCello checkpoints -> models of this package."""

import json
import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from cellglot.modeling.configuration_sccello import ScCelloConfig
from cellglot.modeling.convert.exceiver import CheckpointError
from cellglot.modeling.model_files import check_sizes
from cellglot.modeling.modeling_sccello import ScCelloForPreTraining
from cellglot.outputs import OutputFolder, write_text


logger = logging.getLogger(__name__)

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")

# Embeddings of one row that the released code adds at every position.
LEGACY_EMBEDDINGS = ("tf_class", "tf_superclass", "expbin")

# Layers that the released code never uses, and copies of what stands elsewhere.
UNUSED = (
    "binary_ce_loss_transform_cell.",
    "binary_ce_loss_transform_cellprot.",
    "binary_ce_loss_transform_prototype.",
    "bert.embeddings.position_ids",
    "bert.pooler.",
    "cls.predictions.bias",
    "cell_cls.predictions.bias",
)

_NAMES = {
    "bert.embeddings.word_embeddings.": "sccello.embeddings.word_embeddings.",
    "bert.embeddings.position_embeddings.": "sccello.embeddings.position_embeddings.",
    "bert.embeddings.LayerNorm.": "sccello.embeddings.norm.",
    "cls.predictions.dense_1.": "gene_head.fc1.",
    "cls.predictions.layer_norm.": "gene_head.norm.",
    "cls.predictions.dense_2.": "gene_head.fc2.",
    "cell_cls.predictions.dense_1.": "cell_head.fc1.",
    "cell_cls.predictions.layer_norm.": "cell_head.norm.",
    "cell_cls.predictions.dense_2.": "cell_head.fc2.",
    "affine_projection.": "affine_projection.",
    "learned_centroid.": "prototypes.",
}

_LAYER_NAMES = {
    "attention.self.query.": "self_attn.q_proj.",
    "attention.self.key.": "self_attn.k_proj.",
    "attention.self.value.": "self_attn.v_proj.",
    "attention.output.dense.": "self_attn.o_proj.",
    "attention.output.LayerNorm.": "norm_attention.",
    "intermediate.dense.": "fc1.",
    "output.dense.": "fc2.",
    "output.LayerNorm.": "norm_feed_forward.",
}

_TABLES = {"ctgraph_sim": "similarity_levels", "cell_type_ancestor_mask": "ancestor_mask"}

_CONFIGURATION = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "layer_norm_eps",
    "initializer_range",
    "tau",
    "pad_token_id",
)


# What torch.load and damaged archives raise.
UNREADABLE = (RuntimeError, EOFError, ValueError, TypeError, AttributeError)


def read_checkpoint(folder: str | Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Read configuration and weights of a released folder without running anything that it holds.

    Parameters
    ----------
    folder
        With ``config.json``, and ``model.safetensors`` or ``pytorch_model.bin``.
    """
    folder = Path(folder)
    if not (folder / "config.json").exists():
        raise CheckpointError(f"{folder} is no released scCello checkpoint: it has no config.json")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it holds no mapping")
    except (RecursionError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'} is damaged: {error}") from error
    path = next((folder / name for name in WEIGHT_FILES if (folder / name).exists()), None)
    if path is None:
        raise CheckpointError(f"{folder} has neither {' nor '.join(WEIGHT_FILES)}")
    try:
        if path.suffix == ".safetensors":
            weights = load_file(path)
        else:
            weights = dict(torch.load(path, map_location="cpu", weights_only=True))
        check_sizes(folder / "config.json", config, {name: tuple(weight.shape) for name, weight in weights.items()})
        return config, weights
    except (SafetensorError, pickle.UnpicklingError, *UNREADABLE) as error:
        raise CheckpointError(f"{path} cannot be read safely: {error}") from error


def convert(
    config: Mapping[str, Any],
    state_dict: Mapping[str, torch.Tensor],
    cell_types: Mapping[str, int] | None = None,
) -> ScCelloForPreTraining:
    """Build the model of a released checkpoint.

    The three embeddings of one row are added to the position embeddings, unused layers are dropped. Prototypes are
    cut to the cell types that there are: the released table has 600 rows, of which 398 are used.

    Parameters
    ----------
    config
        Names as released; unknown ones are ignored.
    state_dict
        Weights by their released names; unknown ones are ignored, with a warning that names them.
    cell_types
        Cell Ontology id -> row of the prototypes. The release keeps it beside the code; without it prototypes have no
        names (`config.cell_types` holds None).

    Raises
    ------
    CheckpointError
        If a weight is missing or of another shape than the configuration says, or a named row does not exist.
    """
    given = {name: config[name] for name in _CONFIGURATION if config.get(name) is not None}
    missing = [name for name in ("vocab_size", "hidden_size", "num_hidden_layers") if name not in given]
    if missing:
        raise CheckpointError(f"the configuration lacks {', '.join(missing)}")
    if "learned_centroid.weight" not in state_dict:
        raise CheckpointError("the checkpoint lacks learned_centroid.weight: is it one of scCello's pretraining?")
    number = _number_of_types(config, state_dict, cell_types)
    names = _names_of_rows(cell_types, number)
    model = ScCelloForPreTraining(ScCelloConfig(**given, num_cell_types=number, cell_types=names))
    converted = _convert_weights(state_dict)
    converted["prototypes.weight"] = converted["prototypes.weight"][:number].clone()
    expected = model.state_dict()
    for name in _TABLES.values():
        converted[name] = converted[name].to(expected[name].dtype) if name in converted else expected[name]
    _check(converted, expected)
    model.load_state_dict(converted)
    return model.eval()


def save_converted(model: ScCelloForPreTraining, output: str | Path) -> None:
    """Write a converted model, with a card that says what is not known about it.

    The tokenizer is written by the caller: this package does not import tokenizers.
    """
    named = sum(name is not None for name in model.config.cell_types or ())
    if named == model.config.num_cell_types:
        types = "`config.cell_types` names the Cell Ontology ids of all prototypes."
    else:
        types = (
            f"**{named:,} of its {model.config.num_cell_types:,} prototypes are named.** Which prototype belongs to "
            "which Cell Ontology id stands in a dictionary beside the released code, not in the checkpoint; "
            "`config.cell_types` holds null where it was not given."
        )
    with OutputFolder(output, "convert") as folder:
        folder.clear()
        model.save_pretrained(output)
        write_text(Path(output, "README.md"), _CARD.format(types=types))
        folder.finish()


_CARD = """\
---
library_name: transformers
tags: [single-cell, gene-expression, sccello, cell-ontology, cellglot]
---
# scCello, converted from a released checkpoint

The weights of "Cell ontology guided transcriptome foundation model" (Yuan et al. 2024, arXiv 2408.12373), converted by
`cellglot convert sccello`. They give the released code's numbers.

{types}

The authors state no terms of use for their weights: ask them before you pass these on.
"""


def _number_of_types(
    config: Mapping[str, Any], state_dict: Mapping[str, torch.Tensor], cell_types: Mapping[str, int] | None
) -> int:
    """Return the number of cell types: what the configuration, the tables, the names or the prototypes say."""
    if config.get("num_cell_types") is not None:
        return int(config["num_cell_types"])
    for name in _TABLES:
        if name in state_dict:
            return len(state_dict[name])
    if cell_types:
        return max(cell_types.values()) + 1
    return len(state_dict["learned_centroid.weight"])


def _names_of_rows(cell_types: Mapping[str, int] | None, number: int) -> list[str | None]:
    names: list[str | None] = [None] * number
    for name, row in (cell_types or {}).items():
        if not 0 <= row < number:
            raise CheckpointError(f"{name} is said to be row {row:,}, but there are {number:,} cell types")
        if names[row] is not None:
            raise CheckpointError(f"{names[row]} and {name} are both said to be row {row:,}")
        names[row] = name
    return names


def _convert_weights(released: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = {}
    unknown = []
    legacy = [f"bert.embeddings.{name}_embeddings.weight" for name in LEGACY_EMBEDDINGS]
    for name, weight in released.items():
        if name in legacy or name.startswith(UNUSED):
            continue
        converted = _TABLES.get(name) or _rename(name)
        if converted is None:
            unknown.append(name)
        else:
            weights[converted] = weight
    positions = "sccello.embeddings.position_embeddings.weight"
    if positions in weights:
        weights[positions] = weights[positions] + sum(released[name] for name in legacy if name in released)
    if unknown:
        logger.warning(
            "%d weights are none of scCello's and are left out: %s", len(unknown), ", ".join(sorted(unknown)[:10])
        )
    return weights


def _rename(name: str) -> str | None:
    if name.startswith("bert.encoder.layer."):
        number, part = name.removeprefix("bert.encoder.layer.").split(".", 1)
        names, prefix = _LAYER_NAMES, f"sccello.layers.{number}."
    else:
        names, prefix, part = _NAMES, "", name
    for released, ours in names.items():
        if part.startswith(released):
            return prefix + ours + part.removeprefix(released)
    return None


def _check(converted: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    missing, unknown = sorted(set(expected) - set(converted)), sorted(set(converted) - set(expected))
    if missing or unknown:
        raise CheckpointError(
            f"the weights do not fit the configuration: missing {missing[:5] or 'none'}, unknown "
            f"{unknown[:5] or 'none'}"
        )
    for name, weight in converted.items():
        if weight.shape != expected[name].shape:
            raise CheckpointError(
                f"{name} has shape {tuple(weight.shape)}, the configuration says {tuple(expected[name].shape)}"
            )


__all__ = ["CheckpointError", "convert", "read_checkpoint", "save_converted"]
