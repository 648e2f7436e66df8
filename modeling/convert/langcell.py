"""Released LangCell checkpoints, and plain text encoders, -> models of this package."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from cellglot.modeling.configuration_langcell import ROBERTA_LIKE, LangCellConfig, LangCellTextConfig
from cellglot.modeling.convert.release import (
    BERT_FIELDS,
    BERT_LAYERS,
    CheckpointError,
    check_weights,
    read_folder,
    read_weights,
    rename_weights,
    weight_file,
    write_model,
)
from cellglot.modeling.loading import load_configuration, load_model
from cellglot.modeling.modeling_langcell import LangCellForPreTraining, LangCellModel


# Parts of the release: two Hugging Face folders, and three files of one linear layer each.
TOWERS = ("cell_bert", "text_bert")
LAYERS = {"cell_proj": "cell_model.projection.", "text_proj": "text_model.projection.", "ctm_head": "matching_head."}

# Parts of a BERT that LangCell's encoders do not have: no pooler (embeddings are read at [CLS]), no head for words.
UNUSED = ("pooler.", "embeddings.position_ids", "cls.", "lm_head.", "discriminator_predictions.", "qa_outputs.")

_EMBEDDINGS = {
    "embeddings.word_embeddings.": "embeddings.word_embeddings.",
    "embeddings.position_embeddings.": "embeddings.position_embeddings.",
    "embeddings.LayerNorm.": "embeddings.norm.",
}

TOKEN_TYPES = "embeddings.token_type_embeddings.weight"

_LAYERS = BERT_LAYERS | {
    "crossattention.self.query.": "cross_attn.q_proj.",
    "crossattention.self.key.": "cross_attn.k_proj.",
    "crossattention.self.value.": "cross_attn.v_proj.",
    "crossattention.output.dense.": "cross_attn.o_proj.",
    "crossattention.output.LayerNorm.": "norm_cross_attention.",
}


def read_checkpoint(folder: str | Path) -> tuple[dict[str, Any], dict[str, dict[str, torch.Tensor]]]:
    """Read the five parts of a release without running anything in them.

    Parameters
    ----------
    folder
        With ``cell_bert/`` and ``text_bert/`` (``config.json`` and weights each), ``cell_proj.bin``,
        ``text_proj.bin`` and ``ctm_head.bin``.

    Returns
    -------
    config
        ``cell`` and ``text``, as released.
    parts
        Weights by their released names, by part.
    """
    folder, config, parts = Path(folder), {}, {}
    for part in TOWERS:
        config[part.removesuffix("_bert")], parts[part] = read_folder(folder / part)
    for part in LAYERS:
        parts[part] = read_weights(folder / f"{part}.bin")
    return config, parts


def convert(config: Mapping[str, Any], parts: Mapping[str, Mapping[str, torch.Tensor]]) -> LangCellModel:
    """Build the model of a release.

    The first row of token types is added to the position embeddings; poolers, which are not used, are dropped.

    Parameters
    ----------
    config
        ``cell`` and ``text``: names as in BERT's configuration, unknown ones are ignored; ``temperature``, 0.05 by
        default.
    parts
        Weights by their released names under ``cell_bert``, ``text_bert``, ``cell_proj``, ``text_proj`` and
        ``ctm_head``; unknown ones are ignored, with a warning that names them.

    Raises
    ------
    CheckpointError
        If a part or a weight is missing, or towers, projections and configuration have different sizes.
    """
    missing = [name for name in ("cell", "text") if name not in config]
    missing += [name for name in (*TOWERS, *LAYERS) if name not in parts]
    if missing:
        raise CheckpointError(f"the release lacks {', '.join(missing)}: it has five parts and two configurations")
    size = len(parts["cell_proj"]["weight"])
    try:
        built = LangCellConfig(
            cell_config={n: config["cell"][n] for n in BERT_FIELDS if config["cell"].get(n) is not None},
            text_config={n: config["text"][n] for n in BERT_FIELDS if config["text"].get(n) is not None},
            projection_dim=size,
            tau=config.get("temperature", 0.05),
        )
    except (ValueError, StrictDataclassError) as error:
        raise CheckpointError(f"the release's configurations are not LangCell's: {error}") from error
    model = LangCellModel(built)
    converted: dict[str, torch.Tensor] = {}
    for part, prefix in zip(TOWERS, ("cell_model.", "text_model."), strict=True):
        converted |= {prefix + name: weight for name, weight in convert_bert(parts[part]).items()}
    for part, prefix in LAYERS.items():
        converted |= {prefix + name: weight for name, weight in parts[part].items()}
    check_weights(converted, model.state_dict())
    model.load_state_dict(converted)
    return model.eval()


def convert_bert(released: Mapping[str, torch.Tensor], first_position: int = 0) -> dict[str, torch.Tensor]:
    """Rename the weights of a BERT, and add its token type 0 to the position embeddings.

    Parameters
    ----------
    released
        Weights by the names of `transformers`, with or without the name of a model before them.
    first_position
        Rows of position embeddings that no token uses: RoBERTa begins at ``pad_token_id + 1``.
    """
    plain = {_without_model(name): weight for name, weight in released.items()}
    weights = rename_weights(plain, _EMBEDDINGS, ("encoder.layer.", "layers."), _LAYERS, (*UNUSED, TOKEN_TYPES))
    positions = "embeddings.position_embeddings.weight"
    if positions in weights:
        weights[positions] = weights[positions][first_position:].clone()
        if TOKEN_TYPES in plain:
            weights[positions] += plain[TOKEN_TYPES][0]
    return weights


def from_text_checkpoint(
    text_checkpoint: str | Path,
    cell_checkpoint: str | Path | None = None,
    model_class: type[LangCellModel] = LangCellForPreTraining,
    **options: Any,
) -> LangCellModel:
    """Create a LangCell with a plain text encoder: its text mode returns that encoder's hidden states.

    The blocks of cross attention and the projection, which a plain encoder does not have, start at random (our choice:
    normal, standard deviation ``initializer_range``).

    Parameters
    ----------
    text_checkpoint
        Folder or repository of an encoder whose network is BERT's (BERT, RoBERTa, ELECTRA).
    cell_checkpoint
        Folder or repository of a LangCell, for instance of stage 1, whose cell encoder to use. By default the cell
        encoder starts at random.
    **options
        Fields of `LangCellConfig`.

    Raises
    ------
    ValueError
        If options do not fit together.
    """
    theirs = load_configuration(text_checkpoint)
    cell = None
    if cell_checkpoint is not None:
        cell = load_model(LangCellModel, cell_checkpoint, new=("text_model", "matching_head")).cell_model
        options = {"cell_config": cell.config, "projection_dim": cell.config.projection_dim} | options
    try:
        LangCellTextConfig.from_bert(theirs)
    except (ValueError, StrictDataclassError) as error:
        raise CheckpointError(f"{text_checkpoint}: {error}") from error
    model = model_class(LangCellConfig(text_config=theirs, **options))
    first = theirs.pad_token_id + 1 if theirs.model_type in ROBERTA_LIKE else 0
    weights = convert_bert(_weights_of(text_checkpoint), first)
    expected = model.text_model.state_dict()
    check_weights(
        weights, {n: w for n, w in expected.items() if not n.startswith("projection.") and "cross_att" not in n}
    )
    model.text_model.load_state_dict(weights, strict=False)
    if cell is not None:
        model.cell_model.load_state_dict(cell.state_dict())
    return model.eval()


def save_converted(model: LangCellModel, output: str | Path) -> None:
    """Write a converted model and its card; without tokenizers."""
    write_model(model, output, _CARD)


_CARD = """\
---
library_name: transformers
tags: [single-cell, gene-expression, langcell, zero-shot, cellglot]
---
# LangCell, converted from the released checkpoint

The weights of "LangCell: Language-Cell Pre-training for Cell Identity Understanding" (Zhao et al. 2024, arXiv
2405.06708), converted by `cellglot convert langcell`. They give the released code's numbers: similarity, matching and
combined scores.

The authors state no terms of use for their weights: ask them before you pass these on.
"""


def _weights_of(checkpoint: str | Path) -> dict[str, torch.Tensor]:
    """Read the weights of a folder or repository."""
    from transformers import AutoModel

    path = weight_file(Path(checkpoint))
    return read_weights(path) if path is not None else load_model(AutoModel, checkpoint, new=("pooler",)).state_dict()


def _without_model(name: str) -> str:
    first, _, rest = name.partition(".")
    name = rest if first in ("bert", "roberta", "electra") else name
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


__all__ = ["CheckpointError", "convert", "convert_bert", "from_text_checkpoint", "read_checkpoint", "save_converted"]
