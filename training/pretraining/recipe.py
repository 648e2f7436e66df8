"""What pretraining of one model consists of, beside what all have in common."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel

from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.tokenization_gene_expression import GeneExpressionTokenizer
from cellglot.tokenization.tokenization_rank_value import RankValueTokenizer
from cellglot.training.config import TrainingConfig, check_keys
from cellglot.training.data.dataset import CellDataset


WHOLE_CELL = 2048  # tokens, as in the published models


@dataclass
class Recipe:
    """A model with what its pretraining takes.

    Parameters
    ----------
    processing_class
        Tokenizer or processor, saved beside the model.
    collator
        Cells -> batch.
    metrics
        Of held-out cells, added up batch by batch.
    summary
        Line to print before training.
    facts
        For the record of the run.
    summarize
        Batch and output -> tensors of one row a cell for `metrics`; by default predictions and labels.
    """

    model: PreTrainedModel
    processing_class: Any
    train: CellDataset
    held_out: CellDataset | None
    collator: Callable[..., Any]
    metrics: Callable[..., dict[str, float]]
    summary: str
    facts: dict[str, Any] = field(default_factory=dict)
    summarize: Callable[..., Any] | None = None


def check_tokenizer(tokenizer: GeneExpressionTokenizer, wanted: type, corpus: Corpus, model: str, name: str) -> None:
    """Refuse a corpus that another tokenizer made.

    Raises
    ------
    ValueError
        If it is so; says how to tokenize.
    """
    if not isinstance(tokenizer, wanted):
        raise ValueError(
            f"{corpus.folder} was tokenized by {type(tokenizer).__name__}, {model} reads {wanted.__name__}: "
            f"cellglot tokenize --tokenizer {name}"
        )


def rank_value_tokenizer_of(corpus: Corpus, model: str) -> RankValueTokenizer:
    """Return the tokenizer of a corpus of rank-value tokens whose cells begin with ``<cls>``.

    Raises
    ------
    ValueError
        If it is another tokenizer, or cells begin otherwise.
    """
    tokenizer: Any = corpus.tokenizer()
    check_tokenizer(tokenizer, RankValueTokenizer, corpus, model, "rank-value --option add_cls_token=true")
    if not tokenizer.add_cls_token:
        raise ValueError(
            f"cells of {corpus.folder} do not begin with <cls>, {model}'s cell embedding: tokenize with "
            "--option add_cls_token=true"
        )
    return tokenizer


def rank_value_tokenizer_of_model(tokenizer: RankValueTokenizer, longest: int) -> RankValueTokenizer:
    """Return the tokenizer that is saved with a model: no longer cells than it reads, and nothing but its inputs.

    Parameters
    ----------
    longest
        Tokens of a cell at the most.
    """
    return RankValueTokenizer.from_vocabulary(
        tokenizer.vocabulary,
        add_cls_token=True,
        total=tokenizer.total,
        target_sum=tokenizer.target_sum,
        model_max_length=min(longest, tokenizer.model_max_length),
    )


def with_expression_values(tokenizer: Any) -> Any:
    """Return the same tokenizer for training data: with expression values, and no shorter than whole cells mostly are.

    Parameters
    ----------
    tokenizer
        Of a model; Exceiver's is as it should be already.
    """
    if not isinstance(tokenizer, RankValueTokenizer):
        return tokenizer
    return RankValueTokenizer.from_vocabulary(
        tokenizer.vocabulary,
        add_cls_token=tokenizer.add_cls_token,
        total=tokenizer.total,
        target_sum=tokenizer.target_sum,
        return_expression_values=True,
        model_max_length=max(tokenizer.model_max_length, WHOLE_CELL),
    )


def new_configuration(config_class: Any, config: TrainingConfig, tokenizer: Any, **given: Any) -> Any:
    """Make a model's configuration from the section ``model``, the vocabulary's size filled in.

    Parameters
    ----------
    **given
        Fields that the corpus decides; those of the section take precedence.

    Raises
    ------
    ValueError
        If a key is unknown, a value does not fit, or the size of the vocabulary is another.
    """
    sizes = given | {k: v for k, v in config.model.items() if k != "type"}
    check_keys(sizes, list(config_class.__dataclass_fields__), "model")
    if sizes.setdefault("vocab_size", tokenizer.vocab_size) != tokenizer.vocab_size:
        raise ValueError(
            f"model.vocab_size is {sizes['vocab_size']:,}, the corpus has {tokenizer.vocab_size:,} ids: leave it out"
        )
    try:
        return config_class(**sizes)
    except StrictDataclassError as error:
        raise ValueError(f"model: {error}") from error


def mask_fraction(config: TrainingConfig, default: float) -> float:
    """Return the share of a cell's genes to mask, ``data.mask_fraction``.

    Raises
    ------
    ValueError
        If it is no share from 0 to below 1.
    """
    fraction = config.data.get("mask_fraction", default)
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 <= fraction < 1:
        raise ValueError(f"data.mask_fraction {fraction!r}: it is a share of a cell's genes, from 0 to below 1")
    return fraction


__all__ = [
    "Recipe",
    "check_tokenizer",
    "mask_fraction",
    "new_configuration",
    "rank_value_tokenizer_of",
    "rank_value_tokenizer_of_model",
    "with_expression_values",
]
