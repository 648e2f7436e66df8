"""A LangCell model with its processor, and texts that are encoded once for all cells."""

import hashlib
import logging
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel

import cellglot
from cellglot.evaluation.embedding import default_device
from cellglot.modeling.families import knows_texts
from cellglot.modeling.loading import load_configuration, load_model, load_processor
from cellglot.modeling.model_files import check_loaded
from cellglot.tokenization.processing_langcell import DEFAULT_TEXT_LENGTH, LangCellProcessor


logger = logging.getLogger(__name__)

OTHER_MODELS = (
    "it embeds and classifies cells, but knows no texts. Zero-shot annotation and search by texts take a LangCell "
    "model; for this one there is cellglot finetune"
)


@dataclass
class EncodedTexts:
    """Texts, tokenized and embedded.

    Parameters
    ----------
    input_ids, attention_mask
        Tokens, shape (texts, tokens).
    class_ids
        Class of each text, shape (texts,).
    features
        Text embeddings, shape (texts, size).
    cut
        Texts that had more tokens than the text encoder takes.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    class_ids: torch.Tensor
    features: torch.Tensor
    cut: int


def load_cell_text_model(name: str | Path, dtype: str | None = None) -> tuple[Any, LangCellProcessor]:
    """Load a LangCell model and its processor.

    Parameters
    ----------
    dtype
        Of the weights: ``"float32"``, ``"bfloat16"`` or ``"float16"``; by default as they are stored.
    """
    cellglot.register_auto_classes()
    kind = load_configuration(name).model_type
    if not knows_texts(kind):
        raise ValueError(f"{name} is a model of type {kind!r}: {OTHER_MODELS}")
    options = {} if dtype is None else {"dtype": getattr(torch, dtype)}
    model, info = load_model(AutoModel, name, check=False, output_loading_info=True, **options)
    missing = sorted(info["missing_keys"])
    if all(f"text_model.{key}" in missing for key, _ in model.text_model.named_parameters()):
        raise ValueError(
            f"{name} holds no weights for {len(missing):,} parts of LangCellModel, such as {missing[0]}: it was saved "
            "from the cell encoder or a classifier alone"
        )
    check_loaded(name, model, info)
    processor = load_processor(name)
    if not hasattr(processor, "text_tokenizer"):
        raise ValueError(f"{name} holds no text tokenizer: save a LangCellProcessor beside the model")
    check_cell_text_model(model)
    return model.eval(), processor


def check_cell_text_model(model: Any) -> None:
    """Refuse models that know no texts; say it where texts were not trained."""
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if not knows_texts(kind) or not hasattr(model, "annotate"):
        raise ValueError(f"{type(model).__name__} is a model of type {kind!r}: {OTHER_MODELS}")
    if model.config.stage == 1:
        logger.warning("The model is of pretraining's stage 1, cells alone: what it says of texts is noise.")


def as_processor(processor: Any, model: Any) -> LangCellProcessor:
    """Return a LangCellProcessor.

    Parameters
    ----------
    processor
        A LangCellProcessor, or (tokenizer of cells, tokenizer of texts).
    """
    if isinstance(processor, tuple | list) and len(processor) == 2:
        processor = LangCellProcessor(*processor)
    if not (hasattr(processor, "tokenizer") and hasattr(processor, "text_tokenizer")):
        raise TypeError(
            f"{type(processor).__name__} is no processor of cells and texts: pass a LangCellProcessor, or (tokenizer "
            "of cells, tokenizer of texts)"
        )
    for what, tokenizer, size in (
        ("cells", processor.tokenizer, model.config.vocab_size),
        ("texts", processor.text_tokenizer, model.config.text_config.vocab_size),
    ):
        if len(tokenizer) > size:
            raise ValueError(
                f"the tokenizer of {what} has {len(tokenizer):,} ids, but the model's vocab_size is {size:,}: they do "
                "not belong together"
            )
    return processor


def encode_texts(model: Any, processor: LangCellProcessor, texts: Sequence[Sequence[str]]) -> EncodedTexts:
    """Tokenize and embed texts on the model's device; longer ones than the text encoder takes are cut and counted.

    Raises
    ------
    ValueError
        If there are none or one is empty.
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
        As for `as_processor`.
    texts
        A text, or several.
    device
        Where to compute; by default CUDA, MPS or the CPU, whichever is there.

    Returns
    -------
    numpy.ndarray
        Normalised, shape (texts, size), float32.

    Raises
    ------
    ValueError
        If there are none, one is empty, or the model knows no texts.
    """
    check_cell_text_model(model)
    given = [texts] if isinstance(texts, str) else list(texts)
    with evaluated_on(model, device):
        return encode_texts(model, as_processor(processor, model), [[t] for t in given]).features.float().cpu().numpy()


@contextmanager
def evaluated_on(model: Any, device: str | torch.device | None) -> Any:
    """Take a model to a device and out of training for a while; gives the device."""
    device = torch.device(device) if device is not None else default_device()
    training, home = model.training, next(model.parameters()).device
    model.to(device).eval()
    try:
        yield device
    finally:
        model.to(home).train(training)


def fingerprint(model: Any) -> str:
    """Return a short checksum of the weights that make cell and text embeddings comparable: both projections."""
    digest = hashlib.sha256()
    for part in (model.cell_model.projection, model.text_model.projection):
        for _, values in sorted(part.state_dict().items()):
            digest.update(values.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


__all__ = [
    "EncodedTexts",
    "as_processor",
    "check_cell_text_model",
    "embed_texts",
    "encode_texts",
    "evaluated_on",
    "fingerprint",
    "load_cell_text_model",
]
