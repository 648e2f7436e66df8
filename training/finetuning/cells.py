"""Files of cells to a corpus for fine-tuning."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cellglot.modeling.loading import load_tokenizer
from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.corpus.tokenize import tokenize_corpus
from cellglot.tokenization.families import FAMILIES as INPUTS
from cellglot.training.config import TrainingConfig
from cellglot.training.families.records import family_of


def corpus_for(
    model: str | Path, cells: Sequence[str | Path], output: str | Path, label_column: str | None, **options: Any
) -> Corpus:
    """Tokenize cells with a model's own tokenizer, as training data beside the model to be.

    Parameters
    ----------
    model
        Folder or repository of the model.
    output
        Folder of the model to be; tokens go into its folder ``corpus``.
    label_column
        Column of obs that holds classes or values, None for none.
    **options
        Of `tokenize_corpus`.
    """
    family = family_of(model)
    tokenizer = family.corpus_tokenizer(load_tokenizer(model, family.tokenizer_class))
    return _tokenize(cells, output, label_column, tokenizer=tokenizer, **options)


def corpus_of_new_model(
    model_type: str, cells: Sequence[str | Path], output: str | Path, label_column: str | None, **options: Any
) -> Corpus:
    """Tokenize cells for a new model, whose vocabulary is the genes of these cells.

    Parameters
    ----------
    cells, output, label_column, **options
        As for `corpus_for`. The tokens have expression values.
    """
    inputs = INPUTS[model_type]
    made = {"tokenizer": inputs.kind, "tokenizer_options": inputs.corpus_options}
    return _tokenize(cells, output, label_column, **made, **options)


def _tokenize(cells: Sequence[str | Path], output: str | Path, label_column: str | None, **options: Any) -> Corpus:
    extra = [] if label_column in (None, "cell_type") else [label_column]
    return tokenize_corpus(cells, Path(output) / "corpus", obs_columns=extra, **options)


def divide_as_fits(config: TrainingConfig, corpus: Corpus) -> TrainingConfig:
    """Let cells be divided by class where the corpus, made for this fine-tuning, knows no donors or data sets.

    Not for a new model, whose gene statistics are those of the corpus's own training cells.

    Parameters
    ----------
    config
        The configuration; what it says itself counts.
    corpus
        From `corpus_for`.
    """
    if corpus.manifest["split"]["by"] != "cell":
        return config
    return dataclasses.replace(config, finetuning={"split": "stratified"} | config.finetuning)


__all__ = ["corpus_for", "corpus_of_new_model", "divide_as_fits"]
