"""Released LangCell checkpoints, and plain text encoders, -> models of this package."""

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file

from cellglot.modeling.configuration_langcell import ROBERTA_LIKE, LangCellConfig, LangCellTextConfig
from cellglot.modeling.convert.exceiver import CheckpointError
from cellglot.modeling.loading import load_configuration, load_model
from cellglot.modeling.model_files import check_sizes, read_configuration
from cellglot.modeling.modeling_langcell import LangCellForPreTraining, LangCellModel
from cellglot.outputs import OutputFolder, write_text


logger = logging.getLogger(__name__)

# Parts of the release: two Hugging Face folders, and three files of one linear layer each.
TOWERS = ("cell_bert", "text_bert")
LAYERS = {"cell_proj": "cell_model.projection.", "text_proj": "text_model.projection.", "ctm_head": "matching_head."}

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")

# What a BERT has and LangCell's encoders do not: they are read at [CLS], without a pooler, and predict no words.
UNUSED = ("pooler.", "embeddings.position_ids", "cls.", "lm_head.", "discriminator_predictions.", "qa_outputs.")

_EMBEDDINGS = {
    "embeddings.word_embeddings.": "embeddings.word_embeddings.",
    "embeddings.position_embeddings.": "embeddings.position_embeddings.",
    "embeddings.LayerNorm.": "embeddings.norm.",
}

TOKEN_TYPES = "embeddings.token_type_embeddings.weight"

_LAYER_NAMES = {
    "attention.self.query.": "self_attn.q_proj.",
    "attention.self.key.": "self_attn.k_proj.",
    "attention.self.value.": "self_attn.v_proj.",
    "attention.output.dense.": "self_attn.o_proj.",
    "attention.output.LayerNorm.": "norm_attention.",
    "crossattention.self.query.": "cross_attn.q_proj.",
    "crossattention.self.key.": "cross_attn.k_proj.",
    "crossattention.self.value.": "cross_attn.v_proj.",
    "crossattention.output.dense.": "cross_attn.o_proj.",
    "crossattention.output.LayerNorm.": "norm_cross_attention.",
    "intermediate.dense.": "fc1.",
    "output.dense.": "fc2.",
    "output.LayerNorm.": "norm_feed_forward.",
}

_SIZES = (
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
    "pad_token_id",
)


def read_checkpoint(folder: str | Path) -> tuple[dict[str, Any], dict[str, dict[str, torch.Tensor]]]:
    """Read the five parts of a release without running anything that they hold.

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
        config[part.removesuffix("_bert")] = _read_json(folder / part / "config.json")
        path = next((folder / part / name for name in WEIGHT_FILES if (folder / part / name).exists()), None)
        if path is None:
            raise CheckpointError(f"{folder / part} has neither {' nor '.join(WEIGHT_FILES)}")
        parts[part] = _read_weights(path)
        shapes = {name: tuple(getattr(weight, "shape", ())) for name, weight in parts[part].items()}
        try:
            check_sizes(folder / part / "config.json", config[part.removesuffix("_bert")], shapes)
        except ValueError as error:
            raise CheckpointError(str(error)) from error
    for part in LAYERS:
        parts[part] = _read_weights(folder / f"{part}.bin")
    return config, parts


def convert(config: Mapping[str, Any], parts: Mapping[str, Mapping[str, torch.Tensor]]) -> LangCellModel:
    """Build the model of a release.

    The first row of token types is added to the position embeddings; poolers, which nothing reads, are dropped.

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
            cell_config={n: config["cell"][n] for n in _SIZES if config["cell"].get(n) is not None},
            text_config={n: config["text"][n] for n in _SIZES if config["text"].get(n) is not None},
            projection_dim=size,
            tau=config.get("temperature", 0.05),
        )
    except (ValueError, StrictDataclassError) as error:
        raise CheckpointError(f"the release's configurations are none of LangCell's: {error}") from error
    model = LangCellModel(built)
    converted: dict[str, torch.Tensor] = {}
    for part, prefix in zip(TOWERS, ("cell_model.", "text_model."), strict=True):
        converted |= {prefix + name: weight for name, weight in convert_bert(parts[part]).items()}
    for part, prefix in LAYERS.items():
        converted |= {prefix + name: weight for name, weight in parts[part].items()}
    _check(converted, model.state_dict())
    model.load_state_dict(converted)
    return model.eval()


def convert_bert(released: Mapping[str, torch.Tensor], first_position: int = 0) -> dict[str, torch.Tensor]:
    """Rename the weights of a BERT, its token type 0 folded into the position embeddings.

    Parameters
    ----------
    released
        Weights by the names of `transformers`, with or without the name of a model before them.
    first_position
        Rows of position embeddings that no token uses: RoBERTa begins at ``pad_token_id + 1``.
    """
    weights: dict[str, torch.Tensor] = {}
    unknown = []
    plain = {_without_model(name): weight for name, weight in released.items()}
    for name, weight in plain.items():
        if name == TOKEN_TYPES or name.startswith(UNUSED):
            continue
        renamed = _rename(name)
        if renamed is None:
            unknown.append(name)
        else:
            weights[renamed] = weight
    positions = "embeddings.position_embeddings.weight"
    if positions in weights:
        weights[positions] = weights[positions][first_position:].clone()
        if TOKEN_TYPES in plain:
            weights[positions] += plain[TOKEN_TYPES][0]
    if unknown:
        logger.warning("%d weights are left out: %s", len(unknown), ", ".join(sorted(unknown)[:10]))
    return weights


def from_text_checkpoint(
    text_checkpoint: str | Path,
    cell_checkpoint: str | Path | None = None,
    model_class: type[LangCellModel] = LangCellForPreTraining,
    **options: Any,
) -> LangCellModel:
    """Make a LangCell whose text encoder is a plain one: its text mode gives that encoder's hidden states.

    The blocks of cross attention and the projection, which no plain encoder has, start as the configuration says (our
    choice: normal, standard deviation ``initializer_range``).

    Parameters
    ----------
    text_checkpoint
        Folder or repository of an encoder whose network is BERT's (BERT, RoBERTa, ELECTRA).
    cell_checkpoint
        Folder or repository of a LangCell, whose cell encoder to take, for instance that of stage 1. By default it
        starts anew.
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
    _check(weights, {n: w for n, w in expected.items() if not n.startswith("projection.") and "cross_att" not in n})
    model.text_model.load_state_dict(weights, strict=False)
    if cell is not None:
        model.cell_model.load_state_dict(cell.state_dict())
    return model.eval()


def save_converted(model: LangCellModel, output: str | Path) -> None:
    """Write a converted model, with a card that says what is known about it.

    Tokenizers are written by the caller: this package does not import them.
    """
    with OutputFolder(output, "convert") as folder:
        folder.clear()
        model.save_pretrained(output)
        write_text(Path(output, "README.md"), _CARD)
        folder.finish()


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


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise CheckpointError(f"{path} is missing: a release has cell_bert/ and text_bert/ with config.json")
    try:
        return read_configuration(path)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    if not path.exists():
        raise CheckpointError(
            f"{path} is missing: a release has {', '.join([*TOWERS, *(f'{n}.bin' for n in LAYERS)])}"
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read safely: {error}") from error


def _weights_of(checkpoint: str | Path) -> dict[str, torch.Tensor]:
    """Read the weights of a folder or repository."""
    from transformers import AutoModel

    folder = Path(checkpoint)
    path = next((folder / name for name in WEIGHT_FILES if (folder / name).exists()), None)
    return _read_weights(path) if path is not None else load_model(AutoModel, checkpoint, new=("pooler",)).state_dict()


def _without_model(name: str) -> str:
    first, _, rest = name.partition(".")
    name = rest if first in ("bert", "roberta", "electra") else name
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _rename(name: str) -> str | None:
    names, prefix, part = _EMBEDDINGS, "", name
    if name.startswith("encoder.layer."):
        number, part = name.removeprefix("encoder.layer.").split(".", 1)
        names, prefix = _LAYER_NAMES, f"layers.{number}."
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


__all__ = ["CheckpointError", "convert", "convert_bert", "from_text_checkpoint", "read_checkpoint", "save_converted"]
