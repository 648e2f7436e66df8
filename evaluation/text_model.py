"""Encoding of texts by a LangCell model."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cellglot.evaluation.embedding import evaluated_on
from cellglot.modeling.any_model import check_cell_text_model
from cellglot.tokenization.processing_langcell import DEFAULT_TEXT_LENGTH, LangCellProcessor


@dataclass
class EncodedTexts:
    """Tokenized and embedded texts.

    Parameters
    ----------
    input_ids, attention_mask
        Tokens, shape (texts, tokens).
    class_ids
        Class of each text, shape (texts,).
    features
        Text embeddings, shape (texts, size).
    cut
        Number of texts that were truncated to the text encoder's maximum length.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    class_ids: torch.Tensor
    features: torch.Tensor
    cut: int


def as_processor(processor: Any, model: Any) -> LangCellProcessor:
    """Return a LangCellProcessor, made if necessary from (tokenizer of cells, tokenizer of texts)."""
    if isinstance(processor, tuple | list) and len(processor) == 2:
        processor = LangCellProcessor(*processor)
    if not (hasattr(processor, "tokenizer") and hasattr(processor, "text_tokenizer")):
        raise TypeError(
            f"{type(processor).__name__} does not process cells and texts: pass a LangCellProcessor, or (tokenizer "
            "of cells, tokenizer of texts)"
        )
    for what, tokenizer, size in (
        ("cells", processor.tokenizer, model.config.vocab_size),
        ("texts", processor.text_tokenizer, model.config.text_config.vocab_size),
    ):
        if len(tokenizer) > size:
            raise ValueError(
                f"the tokenizer of {what} has {len(tokenizer):,} ids, but the model's vocab_size is {size:,}: use the "
                "model's own processor"
            )
    return processor


def encode_texts(model: Any, processor: LangCellProcessor, texts: Sequence[Sequence[str]]) -> EncodedTexts:
    """Tokenize and embed the texts of each class on the model's device; too long ones are truncated and counted.

    Raises
    ------
    ValueError
        If there are no texts or one is empty.
    """
    flat = [text for of_class in texts for text in of_class]
    device = next(model.parameters()).device
    longest = min(
        model.config.text_config.max_position_embeddings,
        processor.text_tokenizer.model_max_length,
        DEFAULT_TEXT_LENGTH,
    )
    tokens = processor(text=flat, return_tensors="pt", text_max_length=longest).to(device)
    classes = np.repeat(np.arange(len(texts)), [len(of_class) for of_class in texts])
    with torch.inference_mode():
        features = model.get_text_features(tokens["text_input_ids"], tokens["text_attention_mask"])
    return EncodedTexts(
        tokens["text_input_ids"],
        tokens["text_attention_mask"],
        torch.from_numpy(classes).to(device),
        features,
        processor.texts_cut,
    )


def embed_texts(
    model: Any, processor: Any, texts: str | Sequence[str], *, device: str | torch.device | None = None
) -> np.ndarray:
    """Embed texts in the space of cells.

    Parameters
    ----------
    model
        A LangCellModel.
    processor
        Its LangCellProcessor, or (tokenizer of cells, tokenizer of texts).
    texts
        One text, or several.
    device
        By default CUDA, MPS or the CPU, in this order.

    Returns
    -------
    numpy.ndarray
        Normalised, shape (texts, size), float32.

    Raises
    ------
    ValueError
        If there are no texts, one is empty, or the model does not read texts.
    """
    check_cell_text_model(model)
    given = [texts] if isinstance(texts, str) else list(texts)
    with evaluated_on(model, device):
        return encode_texts(model, as_processor(processor, model), [[t] for t in given]).features.float().cpu().numpy()


def fingerprint(model: Any) -> str:
    """Return a short checksum of the projections into the common space of cells and texts."""
    digest = hashlib.sha256()
    for part in (model.cell_model.projection, model.text_model.projection):
        for _, values in sorted(part.state_dict().items()):
            digest.update(values.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


__all__ = [
    "EncodedTexts",
    "as_processor",
    "embed_texts",
    "encode_texts",
    "fingerprint",
]
