"""Released scCello checkpoints -> models of this package."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cellglot.modeling.configuration_sccello import ScCelloConfig
from cellglot.modeling.convert.release import (
    BERT_FIELDS,
    BERT_LAYERS,
    CheckpointError,
    check_weights,
    read_folder,
    rename_weights,
    write_model,
)
from cellglot.modeling.modeling_sccello import ScCelloForPreTraining


# Embeddings of one row that the released code adds at every position.
LEGACY_EMBEDDINGS = tuple(
    f"bert.embeddings.{name}_embeddings.weight" for name in ("tf_class", "tf_superclass", "expbin")
)

# Layers that the released code never uses, and copies of other weights.
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

_TABLES = {"ctgraph_sim": "similarity_levels", "cell_type_ancestor_mask": "ancestor_mask"}


def read_checkpoint(folder: str | Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Read configuration and weights of a released folder without running anything in it.

    Parameters
    ----------
    folder
        With ``config.json``, and ``model.safetensors`` or ``pytorch_model.bin``.
    """
    return read_folder(Path(folder))


def convert(
    config: Mapping[str, Any],
    state_dict: Mapping[str, torch.Tensor],
    cell_types: Mapping[str, int] | None = None,
) -> ScCelloForPreTraining:
    """Build the model of a released checkpoint.

    The three embeddings of one row are added to the position embeddings, and unused layers are dropped. Only the
    prototypes of cell types are kept: 398 of the 600 rows of the released table.

    Parameters
    ----------
    config
        Names as released; unknown ones are ignored.
    state_dict
        Weights by their released names; unknown ones are ignored, with a warning that names them.
    cell_types
        Cell Ontology id -> row of the prototypes. It is released with the code; without it prototypes have no names
        (None in `config.cell_types`).

    Raises
    ------
    CheckpointError
        If a weight is missing or has another shape than the configuration says, or a named row does not exist.
    """
    given = {name: config[name] for name in (*BERT_FIELDS, "tau") if config.get(name) is not None}
    missing = [name for name in ("vocab_size", "hidden_size", "num_hidden_layers") if name not in given]
    if missing:
        raise CheckpointError(f"the configuration lacks {', '.join(missing)}")
    if "learned_centroid.weight" not in state_dict:
        raise CheckpointError("the checkpoint lacks learned_centroid.weight: is it a pretrained scCello?")
    number = _number_of_types(config, state_dict, cell_types)
    names = _names_of_rows(cell_types, number)
    model = ScCelloForPreTraining(ScCelloConfig(**given, num_cell_types=number, cell_types=names))
    converted = _convert_weights(state_dict)
    converted["prototypes.weight"] = converted["prototypes.weight"][:number].clone()
    expected = model.state_dict()
    for name in _TABLES.values():
        converted[name] = converted[name].to(expected[name].dtype) if name in converted else expected[name]
    check_weights(converted, expected)
    model.load_state_dict(converted)
    return model.eval()


def save_converted(model: ScCelloForPreTraining, output: str | Path) -> None:
    """Write a converted model, with a card that says which prototypes have names; without a tokenizer."""
    named = sum(name is not None for name in model.config.cell_types or ())
    if named == model.config.num_cell_types:
        types = "`config.cell_types` names the Cell Ontology ids of all prototypes."
    else:
        types = (
            f"**{named:,} of its {model.config.num_cell_types:,} prototypes are named.** The Cell Ontology ids of "
            "prototypes are in a dictionary that is released with the code, not in the checkpoint; unknown ones are "
            "null in `config.cell_types`."
        )
    write_model(model, output, _CARD.format(types=types))


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
    """Return the number of cell types, by the configuration, the tables, the names or the prototypes."""
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
    layers = ("bert.encoder.layer.", "sccello.layers.")
    weights = rename_weights(released, _NAMES | _TABLES, layers, BERT_LAYERS, (*UNUSED, *LEGACY_EMBEDDINGS))
    positions = "sccello.embeddings.position_embeddings.weight"
    if positions in weights:
        legacy = [released[name] for name in LEGACY_EMBEDDINGS if name in released]
        weights[positions] = weights[positions] + sum(legacy)
    return weights


__all__ = ["CheckpointError", "convert", "read_checkpoint", "save_converted"]
