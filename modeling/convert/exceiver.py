"""Released Exceiver checkpoints -> models of this package."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cellglot.modeling.configuration_exceiver import ExceiverConfig
from cellglot.modeling.convert.release import CheckpointError, check_shapes, check_weights, read_weights, write_model
from cellglot.modeling.model_files import ModelFileError
from cellglot.modeling.modeling_exceiver import ExceiverForMaskedExpression, ExceiverForSequenceClassification


# A layer of the released code that its forward pass never uses.
UNUSED_PREFIX = "process_self_attn.encoder_layer."

# Released name -> name of the configuration.
SIZES = {
    "seq_len": "vocab_size", "seq_dim": "gene_embedding_size", "query_len": "num_latents", "query_dim": "hidden_size",
    "num_layers": "num_hidden_layers", "dim_feedforward": "intermediate_size", "classify_dim": "num_labels",
}  # fmt: skip


def read_checkpoint(path: str | Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Read hyper-parameters and weights of a released ``.ckpt`` without running anything in it.

    Returns
    -------
    hyperparameters
        As released: ``seq_len``, ``seq_dim``, ``query_len``, ``query_dim``, ``num_layers``, ...
    weights
        By their released names.

    Raises
    ------
    CheckpointError
        If the file is missing or damaged, or is not a checkpoint of Exceiver.
    """
    checkpoint = read_weights(Path(path))
    try:
        hyperparameters, weights = dict(checkpoint["hyper_parameters"]), dict(checkpoint["state_dict"])
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a released Exceiver checkpoint: it has no hyper_parameters and state_dict"
        ) from error
    try:
        sizes = {ours: hyperparameters[theirs] for theirs, ours in SIZES.items() if theirs in hyperparameters}
        check_shapes(Path(path), sizes, weights)
    except ModelFileError as error:
        raise CheckpointError(str(error)) from error
    return hyperparameters, weights


def convert(
    hyperparameters: Mapping[str, Any], state_dict: Mapping[str, torch.Tensor]
) -> ExceiverForMaskedExpression | ExceiverForSequenceClassification:
    """Build the model of a released checkpoint.

    It is unknown which row of the gene embedding is which gene: neither their order nor the scalers were published.
    The configuration says so (``gene_order_known=False``), and ``unexpressed_genes`` is ``"bias"``, as the weights
    were trained.

    Parameters
    ----------
    hyperparameters
        Names as released; unknown ones are ignored.
    state_dict
        Weights by their released names. ``process_self_attn.encoder_layer.*``, which is never used, is dropped.

    Returns
    -------
    ExceiverForSequenceClassification or ExceiverForMaskedExpression
        The first if ``classify_dim`` is given. The class query of the second, which the release does not have, is
        zero.

    Raises
    ------
    CheckpointError
        If a weight is missing or unknown, or has another shape than the hyper-parameters say.
    """
    given = dict(hyperparameters)
    missing = [k for k in ("seq_len", "seq_dim", "query_len", "query_dim", "num_layers", "nhead") if k not in given]
    if missing:
        raise CheckpointError(f"the hyper-parameters lack {', '.join(missing)}")
    classes = given.get("classify_dim")
    config = ExceiverConfig(
        vocab_size=given["seq_len"] + 2,
        gene_embedding_size=given["seq_dim"],
        hidden_size=given["query_dim"],
        num_latents=given["query_len"],
        num_hidden_layers=given["num_layers"],
        num_attention_heads=given["nhead"],
        num_cross_attention_heads=given.get("encoder_cross_attention_heads", 4),
        intermediate_size=given.get("dim_feedforward", 2048),
        hidden_dropout=given.get("dropout", 0.0),
        attention_dropout=given.get("dropout", 0.0),
        unexpressed_genes="bias",
        gene_order_known=False,
        **({} if classes is None else {"num_labels": classes}),
    )
    model_class = ExceiverForMaskedExpression if classes is None else ExceiverForSequenceClassification
    model = model_class(config)
    converted = _convert_weights({n: w for n, w in state_dict.items() if not n.startswith(UNUSED_PREFIX)}, config)
    expected = {n: w for n, w in model.state_dict().items() if n != "exceiver.background_values"}
    check_weights(converted, expected)
    model.load_state_dict(converted, strict=False)
    return model.eval()


def save_converted(model: ExceiverForMaskedExpression | ExceiverForSequenceClassification, output: str | Path) -> None:
    """Write a converted model, with a card that says what is unknown about its genes; without a tokenizer."""
    write_model(model, output, _CARD)


_CARD = """\
---
library_name: transformers
license: mit
tags: [single-cell, gene-expression, exceiver, cellglot]
---
# Exceiver, converted from the released checkpoint

The weights of "A single-cell gene expression language model" (Connell, Khan and Keiser 2022, arXiv 2210.14330),
converted by `cellglot convert exceiver`. They give the released code's numbers.

**Its rows cannot be tied to genes.** The order of its 19,067 protein-coding genes and their means and standard
deviations were not published with the checkpoint. The tokenizer in this folder has placeholder names and refuses
cells; inputs have to be given as row numbers and values, and `background_values` with every call.
`config.unexpressed_genes` is `"bias"`, as the weights were trained.
"""


def _convert_weights(released: Mapping[str, torch.Tensor], config: ExceiverConfig) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = {}
    for name, weight in released.items():
        if name == "query_emb":
            weights["exceiver.latent_queries"] = weight
        elif name == "gene_emb.weight":
            rows = weight.new_zeros(config.vocab_size, weight.shape[1])
            rows[: len(weight)] = weight
            weights["exceiver.gene_embedding.weight"] = rows
        elif name.startswith("encoder_cross_attn."):
            _convert_block(weights, "exceiver.encoder.", name.removeprefix("encoder_cross_attn."), weight)
        elif name.startswith("decoder_cross_attn."):
            _convert_block(weights, "decoder.", name.removeprefix("decoder_cross_attn."), weight)
        elif name.startswith("process_self_attn.transformer.layers."):
            number, part = name.removeprefix("process_self_attn.transformer.layers.").split(".", 1)
            _convert_layer(weights, f"exceiver.layers.{number}.", part, weight)
        elif name.startswith("mlp_classify."):
            weights[f"classifier.{name.removeprefix('mlp_classify.')}"] = weight
        elif name.startswith("mlp."):
            weights[f"expression_head.{name.removeprefix('mlp.')}"] = weight
        else:
            weights[name] = weight
    return weights


def _convert_block(weights: dict[str, torch.Tensor], prefix: str, part: str, weight: torch.Tensor) -> None:
    if part.startswith("cross_attn."):
        _convert_attention(weights, f"{prefix}cross_attn.", part.removeprefix("cross_attn."), weight)
    else:
        renamed = part.replace("layernorm_kv", "norm_key_value").replace("layernorm_q", "norm_query")
        weights[prefix + renamed] = weight


def _convert_layer(weights: dict[str, torch.Tensor], prefix: str, part: str, weight: torch.Tensor) -> None:
    if part.startswith("self_attn."):
        _convert_attention(weights, f"{prefix}self_attn.", part.removeprefix("self_attn."), weight)
        return
    names = {"linear1": "fc1", "linear2": "fc2", "norm1": "norm_attention", "norm2": "norm_feed_forward"}
    module, parameter = part.split(".")
    weights[f"{prefix}{names.get(module, module)}.{parameter}"] = weight


def _convert_attention(weights: dict[str, torch.Tensor], prefix: str, part: str, weight: torch.Tensor) -> None:
    """Split packed projections; if sizes differ, weights are released separately but biases packed."""
    if part in ("in_proj_weight", "in_proj_bias"):
        kind = part.removeprefix("in_proj_")
        for projection, piece in zip("qkv", weight.chunk(3), strict=True):
            weights[f"{prefix}{projection}_proj.{kind}"] = piece.clone()
    elif part in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
        weights[f"{prefix}{part[0]}_proj.weight"] = weight
    else:
        weights[prefix + part.replace("out_proj", "o_proj")] = weight


__all__ = ["CheckpointError", "convert", "read_checkpoint", "save_converted"]
