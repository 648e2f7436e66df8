"""``pretrain`` and ``finetune``: cells, or a corpus of them, to a model."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from cellglot.modeling.loaded_model import LoadedModel
from cellglot.modeling.model_names import resolve_model
from cellglot.training.choices import check_choices
from cellglot.verbs.cells import as_path
from cellglot.verbs.corpora import as_files, check_given, is_corpus


if TYPE_CHECKING:
    from anndata import AnnData

    from cellglot.tokenization import Corpus
    from cellglot.training.config import TrainingConfig


def pretrain(
    cells: "Corpus | str | os.PathLike | AnnData | Sequence[str | os.PathLike | AnnData]",
    config: "str | os.PathLike | TrainingConfig",
    output: str | os.PathLike,
    *,
    settings: Sequence[str] = (),
    resume: bool = True,
    overwrite: bool = False,
) -> dict[str, float]:
    """Pretrain a model.

    Parameters
    ----------
    cells
        A corpus, its folder, or its address (``hf://datasets/OWNER/NAME``, ``s3://BUCKET/FOLDER``), which is read
        without a copy; or files of cells or AnnData, which are first tokenized to ``corpus`` in `output`.
    config
        Configuration: the name of one that ships with cellglot, such as ``"exceiver_small.yaml"``, a YAML file, or a
        `TrainingConfig`.
    output
        Folder for the model, its checkpoints and the record of the run.
    settings
        Changes of the configuration, such as ``"trainer.max_steps=1000"``.
    resume
        Resume from the last checkpoint of the same run, if there is one. A finished run is not repeated.
    overwrite
        Delete what an earlier run wrote in `output`, and start from the beginning.

    Returns
    -------
    dict
        Metrics of the held-out cells, such as ``eval_loss``; empty without such cells.

    Raises
    ------
    ValueError
        If configuration and cells do not fit together, `output` contains something else, or a loss is not finite.

    Examples
    --------
    >>> import cellglot
    >>> metrics = cellglot.pretrain("tokens", "exceiver_tiny.yaml", "pretrained", settings=["trainer.max_steps=2"])
    >>> "eval_loss" in metrics
    True
    """
    check_given(cells)
    from cellglot.training.config import load_config

    chosen = load_config(config, list(settings)) if isinstance(config, str | os.PathLike) else config
    from cellglot.training.finetuning.cells import corpus_of_new_model
    from cellglot.training.pretraining.pretrain import pretrain as run

    options: dict[str, Any] = {"resume": resume, "overwrite": overwrite}
    if is_corpus(cells):
        return run(chosen, cast("Corpus | str", cells), as_path(output), **options)
    _refuse_many_processes()
    with as_files(cells) as (files, _):
        corpus = corpus_of_new_model(str(chosen.model.get("type")), files, as_path(output), None, overwrite=overwrite)
        return run(chosen, corpus, as_path(output), **options)


def finetune(
    cells: "Corpus | str | os.PathLike | AnnData | Sequence[str | os.PathLike | AnnData]",
    model: str | os.PathLike | LoadedModel | None,
    output: str | os.PathLike,
    *,
    task: str = "cell-type",
    method: str = "full",
    labels: str = "cell_type",
    gene_labels: str | os.PathLike | Mapping[str, str] | None = None,
    config: "str | os.PathLike | TrainingConfig | None" = None,
    few_shot: int | None = None,
    settings: Sequence[str] = (),
    resume: bool = True,
    overwrite: bool = False,
) -> dict[str, float]:
    """Fine-tune a model, or train an adapter, on labels of cells or genes.

    Parameters
    ----------
    cells
        Files of labelled cells or AnnData, which are first tokenized to ``corpus`` in `output`; or a corpus that was
        tokenized with the model's vocabulary, or its folder.
    model
        Folder or repository of a pretrained model, or a loaded model; None for a new one of `config`.
    output
        Folder for the result: a model ready for the Hub, or an adapter.
    task
        ``"cell-type"`` (any classes of cells), ``"multi-label"`` (any number of labels of each cell, between ``|``),
        ``"regression"`` (a value of each cell) or ``"gene"`` (classes of genes).
    method
        ``"full"``: all weights learn. ``"probe"``: only the head. ``"lora"``, ``"dora"``, ``"ia3"``: the head and an
        adapter.
    labels
        Column of obs with the classes or values.
    gene_labels
        For genes: gene -> class, or a table with genes in the first column and classes in the second.
    config
        As for `cellglot.pretrain`; by default the one that ships for the model and method.
    few_shot
        For a LangCell: learn from this number of cells of each class, by the texts of the classes.
    settings, resume, overwrite
        As for `cellglot.pretrain`.

    Returns
    -------
    dict
        Metrics of the held-out cells, such as ``eval_accuracy``; empty without such cells.

    Raises
    ------
    ValueError
        If model, cells and options do not fit together, labels are missing, `output` contains something else, or a
        loss is not finite.

    Examples
    --------
    >>> import cellglot
    >>> metrics = cellglot.finetune(adata, "pretrained", "tuned", settings=["trainer.max_steps=2"])
    >>> "eval_accuracy" in metrics
    True
    """
    if model is None and (config is None or few_shot is not None):
        raise ValueError("name a pretrained model, or the configuration of a new one (--config)")
    if few_shot is not None and (task, method, gene_labels) != ("cell-type", "full", None):
        raise ValueError("few-shot learning trains both encoders on cell types: leave task, method, gene labels out")
    check_choices(task, method)
    check_given(cells)
    base = None if model is None else resolve_model(model.name if isinstance(model, LoadedModel) else model)
    from cellglot.training.config import load_config

    chosen = load_config(config, list(settings)) if isinstance(config, str | os.PathLike) else config
    from cellglot.training.families.records import family_of
    from cellglot.training.finetuning.few_shot import few_shot_on
    from cellglot.training.finetuning.finetune import config_name, finetune_on

    if chosen is None:
        name = "langcell_few_shot.yaml" if few_shot is not None else config_name(family_of(str(base)).name, method)
        chosen = load_config(name, list(settings))
    options: dict[str, Any] = {"label_column": labels, "resume": resume, "overwrite": overwrite}

    def learn(files: Any, corpus: Any) -> dict[str, float]:
        if few_shot is not None and base is not None:
            return few_shot_on(chosen, base, files, corpus, as_path(output), few_shot, **options)
        of_task = {"task": task, "method": method, "gene_labels": gene_labels}
        return finetune_on(chosen, base, files, corpus, as_path(output), **of_task, **options)

    if is_corpus(cells):
        return learn(None, cells)
    _refuse_many_processes()
    with as_files(cells) as (files, _):
        return learn(files, None)


def _refuse_many_processes() -> None:
    """Refuse to tokenize in each process of a distributed training."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("training in several processes takes a corpus: tokenize the cells first (cellglot tokenize)")


__all__ = ["finetune", "pretrain"]
