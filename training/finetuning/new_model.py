"""A model to be trained for a task from the start, without pretraining: for small corpora."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.corpus.tokenize import tokenize_corpus
from cellglot.tokenization.tokenization_exceiver import ExceiverTokenizer
from cellglot.tokenization.tokenization_gene_expression import GeneExpressionTokenizer
from cellglot.training.config import TrainingConfig
from cellglot.training.pretraining.gene_embeddings import initialize_gene_embeddings
from cellglot.training.pretraining.recipe import (
    check_tokenizer,
    new_configuration,
    rank_value_tokenizer_of,
    rank_value_tokenizer_of_model,
)


def corpus_of_new_model(
    model_type: str, cells: Sequence[str | Path], output: str | Path, columns: Sequence[str] = (), **options: Any
) -> Corpus:
    """Tokenize cells for a new model, whose vocabulary are the genes of these cells.

    Parameters
    ----------
    model_type
        ``"exceiver"``, ``"langcell"`` or ``"sccello"``.
    output
        Folder of the model to be; tokens go into its folder ``corpus``, with expression values.
    columns
        Columns of obs to carry beside those of the CELLxGENE schema.
    **options
        Of `tokenize_corpus`.
    """
    if model_type == "exceiver":
        tokenizer, of_tokenizer = "exceiver", {}
    else:
        tokenizer, of_tokenizer = "rank-value", {"add_cls_token": True, "return_expression_values": True}
    return tokenize_corpus(
        cells,
        Path(output) / "corpus",
        tokenizer=tokenizer,
        tokenizer_options=of_tokenizer,
        obs_columns=columns,
        **options,
    )


def new_model(
    model_class: Any, config: TrainingConfig, corpus: Corpus, seed: int, **given: Any
) -> tuple[PreTrainedModel, GeneExpressionTokenizer]:
    """Make a model of the sizes in the section ``model``, and the tokenizer that is saved with it.

    With ``data.initialize_gene_embeddings`` its gene embeddings start from the training cells' co-expression.

    Parameters
    ----------
    model_class
        A model with a head for the task.
    config
        The configuration; ``model.type`` is that of `model_class`.
    corpus
        Cells tokenized for this type of model; its vocabulary becomes the model's.
    seed
        Of the start of the gene embeddings.
    **given
        Further fields of the model's configuration, such as its classes.

    Raises
    ------
    ValueError
        If configuration, corpus and model do not fit together.
    """
    config_class, name = model_class.config_class, model_class.__name__
    if config_class.model_type == "exceiver":
        tokenizer: Any = corpus.tokenizer()
        check_tokenizer(tokenizer, ExceiverTokenizer, corpus, name, "exceiver")
    else:
        tokenizer = rank_value_tokenizer_of(corpus, name)
    built = new_configuration(config_class, config, tokenizer, **given)
    model = model_class(built)
    if config_class.model_type == "exceiver":
        model.exceiver.set_background_values(tokenizer.background_values)
    else:
        longest = getattr(built, "cell_config", built).max_position_embeddings
        tokenizer = rank_value_tokenizer_of_model(tokenizer, longest)
    if config.data.get("initialize_gene_embeddings", False):
        ranks = None if config_class.model_type == "exceiver" else getattr(built, "cell_config", built)
        deviation = 1.0 if ranks is None else ranks.initializer_range
        initialize_gene_embeddings(model.get_input_embeddings(), corpus, seed, deviation=deviation)
    return model, tokenizer


__all__ = ["corpus_of_new_model", "new_model"]
