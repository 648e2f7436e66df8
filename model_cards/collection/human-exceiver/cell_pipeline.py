"""Base of the pipelines for cells: cells in any form, in batches of similar length, results in their order."""

import importlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, Pipeline
from transformers.utils import logging

from .adapter_folders import adapter_settings, base_of, holds_adapter, revision_of_base
from .model_files import check_finite, check_loaded, check_model_folder
from .named_modules import name_in_package


logger = logging.get_logger(__name__)

DEFAULT_BATCH_SIZE = 64

MANY_CELLS = 1000  # from this number of cells a progress bar is shown

READING = ("genes", "layer", "gene_column", "min_coverage", "progress")


class AutoModelForCells:
    """Loads a folder's model by the Auto class that its configuration names for the task of a pipeline."""

    @classmethod
    def from_pretrained(cls, name: str, **kwargs: Any) -> Any:
        """Load a model, as `transformers.pipeline` does.

        Parameters
        ----------
        name
            Folder or repository.
        **kwargs
            As for Auto classes; ``_from_pipeline`` is the task.

        Raises
        ------
        ValueError
            If the model has no such pipeline.
        """
        task = kwargs["_from_pipeline"]
        check_model_folder(name)
        hub = {k: kwargs[k] for k in ("revision", "token", "trust_remote_code", "local_files_only") if k in kwargs}
        config = AutoConfig.from_pretrained(name, **hub)
        found = config.pipelines() if hasattr(config, "pipelines") else {}
        if task not in found:
            raise ValueError(f"{name} is a model of type {config.model_type!r}, which has no pipeline {task!r}")
        kind = getattr(transformers, found[task]["pt"][0])
        model, info = kind.from_pretrained(name, **(kwargs | {"output_loading_info": True}))
        check_loaded(name, model, info)
        return model


class CellPipeline(Pipeline):
    """Base of the pipelines for cells.

    Cells are an AnnData (in memory or backed), the path of an ``.h5ad`` (read by anndata, which has to be installed),
    ``{gene: count}`` or a list of these, a matrix with ``genes=``, or another input of the tokenizer. They contain raw
    counts, which the tokenizer checks; ``pipeline.last_report`` lists matched and lost genes.

    Parameters
    ----------
    tokenizer
        Its gene tokenizer; by default that of `processor`, or of the model's folder.
    **kwargs
        As for other pipelines: ``device``, ``batch_size``, and defaults of a call's options.
    """

    _load_tokenizer = None
    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False

    of_a_call: tuple[str, ...] = ("found_processor",)  # attributes that calls set and pickles do not contain
    found_processor: Any = None  # the processor of the model's folder, once a call has loaded it
    options_of_model: tuple[str, ...] = ()
    options_of_result: tuple[str, ...] = ()

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        name_in_package(cls.__module__)

    def __init__(self, model: Any, tokenizer: Any = None, **kwargs: Any):
        if tokenizer is None:
            tokenizer = getattr(kwargs.get("processor"), "tokenizer", None) or self._tokenizer_of(model)
        super().__init__(model, tokenizer=tokenizer, **kwargs)
        self.model.eval()
        check_finite(self.model.config.name_or_path or type(self.model).__name__, self.model)
        if self.model.config.vocab_size < self.tokenizer.vocab_size:
            raise ValueError(
                f"the tokenizer has {self.tokenizer.vocab_size:,} ids, but the model's vocab_size is "
                f"{self.model.config.vocab_size:,}: they do not belong together"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes that calls do not change, so that `datasets` recognises the pipeline in its cache."""
        return {name: value for name, value in self.__dict__.items() if name not in self.of_a_call}

    @property
    def last_report(self) -> Any:
        """Genes and cells that the last call matched, lost and cut."""
        return self.tokenizer.last_report

    def loading_options(self, model: Any) -> dict[str, Any]:
        """Return the options that allow code of the model's folder to run, if the model itself is such code."""
        return {"trust_remote_code": type(model).__module__.split(".")[0] == "transformers_modules"}

    def _tokenizer_of(self, model: Any) -> Any:
        name = model.config.name_or_path
        if not name:
            raise ValueError("the model was not loaded from a folder: pass its tokenizer, tokenizer=...")
        options = self.loading_options(model)
        if holds_adapter(name):
            settings, name = adapter_settings(name), base_of(name)
            options["revision"] = revision_of_base(settings, name)
        return AutoTokenizer.from_pretrained(name, **options)

    def _sanitize_parameters(self, **given: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        sorted_out = [
            {name: given.pop(name) for name in names if name in given}
            for names in (READING, self.options_of_model, self.options_of_result)
        ]
        if given:
            raise TypeError(f"{type(self).__name__} does not take {', '.join(sorted(given))}")
        return sorted_out[0], sorted_out[1], sorted_out[2]

    def __call__(self, cells: Any, *, batch_size: int | None = None, **options: Any) -> Any:
        """Run the model on cells.

        Parameters
        ----------
        cells
            See the class.
        batch_size
            Cells in a batch; 64 by default.
        **options
            ``genes``, ``layer``, ``gene_column``, ``min_coverage`` as for the tokenizer; ``progress``: whether to show
            a bar, by default for 1,000 cells or more; and options of the pipeline.

        Returns
        -------
        Any
            Results in the order of the cells; a single result for one ``{gene: count}``.
        """
        if isinstance(cells, list | tuple) and not cells:
            raise ValueError("no cells: the list is empty")
        new = self._sanitize_parameters(**options)
        own = (self._preprocess_params, self._forward_params, self._postprocess_params)
        reading, of_model, of_result = ({**a, **b} for a, b in zip(own, new, strict=True))
        of_model = self.prepare(**of_model)
        batch_size = self._batch_size if batch_size is None else batch_size
        with opened_cells(cells) as source:
            batches = self.preprocess(source, DEFAULT_BATCH_SIZE if batch_size is None else batch_size, **reading)
            values: np.ndarray | None = None
            for n_cells, numbers, batch in batches:
                outputs = self.forward(batch, **of_model)["values"].float().numpy()
                if values is None:
                    values = np.zeros((n_cells, *outputs.shape[1:]), dtype=np.float32)
                values[numbers] = outputs
        report = self.last_report
        if report.cells_cut or report.cells_without_genes:
            logger.warning_once(report.summary())
        results = self.postprocess(values, **of_result)
        return results[0] if self.tokenizer.is_named_cell(cells) else results

    def prepare(self, **of_model: Any) -> dict[str, Any]:
        """Turn the call's options of the model into arguments that all batches share."""
        return of_model

    def preprocess(
        self, cells: Any, batch_size: int = DEFAULT_BATCH_SIZE, progress: bool | None = None, **reading: Any
    ) -> Iterator[tuple[int, np.ndarray, dict[str, Any]]]:
        """Tokenize cells and yield batches: number of all cells, numbers of the batch's cells, inputs of the model."""
        counts = self.tokenizer.open_counts(cells, reading.pop("genes", None), reading.pop("layer", None))
        shown = counts.n_cells >= MANY_CELLS if progress is None else progress
        with logging.tqdm(total=counts.n_cells, unit=" cells", disable=not shown) as bar:
            shared = self.inputs_of_file(counts, reading.get("gene_column"))
            for numbers, batch in self.tokenizer.batches(counts, batch_size, **reading):
                yield counts.n_cells, numbers, batch | shared
                bar.update(len(numbers))

    def inputs_of_file(self, counts: Any, gene_column: str | None) -> dict[str, torch.Tensor]:
        """Return inputs of the model that all cells of a file share."""
        return {}

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save the model with the code of its pipelines, and its processor or tokenizer."""
        self.model.save_pretrained(save_directory, **kwargs)
        (self.processor or self.found_processor or self.tokenizer).save_pretrained(save_directory)


@contextmanager
def opened_cells(cells: Any) -> Iterator[Any]:
    """Open the path of an ``.h5ad``; yield other cells unchanged."""
    if not isinstance(cells, str | os.PathLike):
        yield cells
        return
    path = os.fspath(cells)
    if not path.endswith(".h5ad"):
        raise ValueError(f"{path}: pipelines open .h5ad only; open other files by cellglot.read_cells")
    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no file {path}")
    try:
        anndata = importlib.import_module("anndata")  # not a requirement of a model's folder
    except ImportError as error:
        raise ImportError(f"reading {path} needs anndata: pip install anndata, or pass counts") from error
    try:
        if outside := data_from_outside(path):
            raise ValueError(f"the data of {outside} are in another file: copy them into this one")
        opened = anndata.read_h5ad(path, backed="r")
    except BlockingIOError as error:
        raise OSError(
            f"{path} is open for writing in another program, e.g. in a notebook with backed='r+': close it there. If "
            "no program writes to it or the file system has no locks, set HDF5_USE_FILE_LOCKING=FALSE"
        ) from error
    except Exception as error:
        cause = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{path} cannot be read, it may be damaged or cut short: {cause}") from error
    try:
        yield opened
    finally:
        opened.file.close()


def data_from_outside(path: str) -> str | None:
    """Return the first object of an HDF5 file whose data are in another file; None if there is none.

    Every group is visited once, even if several links lead to it.
    """
    h5py = importlib.import_module("h5py")  # anndata requires it
    with h5py.File(path, "r") as file:
        seen, waiting = set(), [file["/"]]
        while waiting:
            group = waiting.pop()
            for name in group:
                if isinstance(group.get(name, getlink=True), h5py.ExternalLink):
                    return f"{group.name.rstrip('/')}/{name}"
                member = group.get(name)
                if isinstance(member, h5py.Dataset) and (member.external or member.is_virtual):
                    return str(member.name)
                if isinstance(member, h5py.Group) and (place := h5py.h5o.get_info(member.id).addr) not in seen:
                    seen.add(place)
                    waiting.append(member)
    return None


def cells_with_genes(batch: Mapping[str, torch.Tensor], tokenizer: Any) -> torch.Tensor:
    """Tell which cells have at least one gene among a model's inputs, shape (cells,)."""
    return genes_of_cells(batch, tokenizer).any(dim=1)


def genes_of_cells(batch: Mapping[str, torch.Tensor], tokenizer: Any) -> torch.Tensor:
    """Tell which tokens of a model's inputs are genes, shape (cells, tokens)."""
    genes = batch["attention_mask"].bool()
    for token in tokenizer.all_special_ids:
        if token is not None:
            genes = genes & (batch["input_ids"] != token)  # faster than torch.isin
    return genes


__all__ = [
    "DEFAULT_BATCH_SIZE",
    "AutoModelForCells",
    "CellPipeline",
    "cells_with_genes",
    "genes_of_cells",
    "opened_cells",
]
