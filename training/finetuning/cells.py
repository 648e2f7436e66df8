"""From files of cells to a corpus for training."""

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
from cellglot.training.runs.output import check_no_other_model


Files = Sequence[str | Path] | None


def corpus_for(
    model: str | Path, cells: Files, output: str | Path, label_column: str | None, **options: Any
) -> Corpus:
    """Tokenize cells with the tokenizer of a model.

    Parameters
    ----------
    output
        Folder for the trained model; its subfolder ``corpus`` is written.
    label_column
        Column of obs with classes or values, None for none.
    **options
        Of `tokenize_corpus`.

    Raises
    ------
    ValueError
        If there are no files, or `output` contains a model that was not trained there.
    """
    family = family_of(model)
    tokenizer = family.corpus_tokenizer(load_tokenizer(model, family.tokenizer_class))
    return _tokenize(cells, output, label_column, tokenizer=tokenizer, **options)


def corpus_of_new_model(
    model_type: str, cells: Files, output: str | Path, label_column: str | None, **options: Any
) -> Corpus:
    """Tokenize cells, with expression values, for a new model with the genes of these cells; else as `corpus_for`."""
    inputs = INPUTS[model_type]
    made = {"tokenizer": inputs.kind, "tokenizer_options": inputs.corpus_options}
    return _tokenize(cells, output, label_column, **made, **options)


def _tokenize(cells: Files, output: str | Path, label_column: str | None, **options: Any) -> Corpus:
    if not cells:
        raise ValueError("pass labelled cells, or their tokens as a corpus")
    if not options.get("overwrite"):
        check_no_other_model(output)
    extra = [] if label_column in (None, "cell_type") else [label_column]
    return tokenize_corpus(cells, Path(output) / "corpus", obs_columns=extra, **options)


def divide_as_fits(config: TrainingConfig, corpus: Corpus) -> TrainingConfig:
    """Divide the cells of a corpus from `corpus_for` by class if it has no donors or data sets.

    A ``split`` in the configuration has precedence. Not for a new model: its gene statistics are those of the training
    cells of the corpus.
    """
    if corpus.manifest["split"]["by"] != "cell":
        return config
    return dataclasses.replace(config, finetuning={"split": "stratified"} | config.finetuning)


__all__ = ["corpus_for", "corpus_of_new_model", "divide_as_fits"]
