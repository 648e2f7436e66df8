"""The parts of pretraining that differ between models."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel

from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.tokenization_gene_expression import GeneExpressionTokenizer
from cellglot.training.config import check_keys, where
from cellglot.training.data.dataset import CellDataset
from cellglot.training.data.streaming import StreamedCells


@dataclass
class Recipe:
    """A model with everything for its pretraining.

    Parameters
    ----------
    processing_class
        Tokenizer or processor, saved with the model.
    metrics
        Metrics of held-out cells, updated batch by batch.
    summary
        Text to print before training.
    facts
        Entries of the record of the run.
    summarize
        (model, batch, output) -> tensors for `metrics` with one row for each cell; by default predictions and labels.
    pack_cells
        As for `cellglot.training.trainer.CellTrainer`.
    """

    model: PreTrainedModel
    processing_class: Any
    train: CellDataset | StreamedCells
    held_out: CellDataset | StreamedCells | None
    collator: Callable[..., Any]
    metrics: Callable[..., dict[str, float]]
    summary: str
    facts: dict[str, Any] = field(default_factory=dict)
    summarize: Callable[..., Any] | None = None
    pack_cells: bool = False


def check_tokenizer(tokenizer: GeneExpressionTokenizer, wanted: type, corpus: Corpus, model: str, name: str) -> None:
    """Refuse a corpus that another tokenizer made."""
    if not isinstance(tokenizer, wanted):
        raise ValueError(
            f"{corpus.folder} was tokenized by {type(tokenizer).__name__}, but {model} needs {wanted.__name__}: "
            f"cellglot tokenize --tokenizer {name}"
        )


def new_configuration(config_class: Any, section: Mapping[str, Any], tokenizer: Any, **given: Any) -> Any:
    """Return the configuration of a model from the section ``model``, which has precedence over `given`.

    ``attn_implementation`` is that of transformers, such as ``flash_attention_2``; it is not saved with the model.
    """
    name, sizes = where(section, "model"), given | {k: v for k, v in section.items() if k != "type"}
    check_keys(sizes, [*config_class.__dataclass_fields__, "attn_implementation"], name)
    if sizes.setdefault("vocab_size", tokenizer.vocab_size) != tokenizer.vocab_size:
        raise ValueError(
            f"{name}.vocab_size is {sizes['vocab_size']:,}, but the corpus has {tokenizer.vocab_size:,} ids: remove it"
        )
    try:
        return config_class(**sizes)
    except StrictDataclassError as error:
        raise ValueError(f"{name}: {error}") from error


def check_share(name: str, given: float, what: str) -> None:
    """Refuse a number that is not in [0, 1)."""
    if not 0 <= given < 1:
        raise ValueError(f"{name} {given!r}: it is a share of {what}, from 0 to below 1")


__all__ = ["Recipe", "check_share", "check_tokenizer", "new_configuration"]
