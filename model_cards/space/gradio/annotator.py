"""The model of the page: a visitor's cells to types, a map, the genes behind a cell's type, and files to take home."""

import os
import secrets
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy.sparse import csc_matrix, csr_matrix

from cellglot.evaluation.annotation.by_classifier import classify_cells
from cellglot.evaluation.annotation.by_texts import CellAnnotation, annotate_cells
from cellglot.evaluation.annotation.classified import ClassifiedCells
from cellglot.evaluation.output import KEY, add_results, write_annotated, write_table
from cellglot.evaluation.plots import umap_coordinates
from cellglot.inputs.errors import InputError
from cellglot.model_cards.space.gradio.genes import GeneNames
from cellglot.model_cards.space.gradio.limits import Limits, TooLargeError
from cellglot.model_cards.space.gradio.reading import VisitorCells, read_table
from cellglot.model_cards.space.gradio.reasons import Reasons, cell_reasons
from cellglot.model_cards.space.gradio.zero_gpu import gpu
from cellglot.modeling.annotation_calibration import AnnotationCalibration
from cellglot.modeling.any_model import describe_model, load_any_model
from cellglot.modeling.loaded_model import LoadedModel
from cellglot.modeling.masked_genes import cell_encoder
from cellglot.modeling.model_names import resolve_model
from cellglot.tokenization.ontology.candidates import Candidates, make_candidates, split_candidates
from cellglot.tokenization.ontology.cell_ontology import CellOntology
from cellglot.tokenization.reading.cells import read_cells


Progress = Callable[[int, int], None]


@dataclass
class Annotated:
    """Annotated cells of a visitor.

    Parameters
    ----------
    cells
        The counts and where they came from.
    found
        Types and scores.
    model
        Name of the model, as the page calls it.
    species
        As it was chosen.
    coordinates
        Of the map, shape (cells, 2); None until it was computed, or where cells are too few.
    """

    cells: VisitorCells
    found: ClassifiedCells | CellAnnotation
    model: str
    species: str | None = None
    coordinates: np.ndarray | None = None

    @cached_property
    def columns(self) -> dict[str, Any]:
        """Column -> one value per cell, as `cellglot.annotate` writes them without prefix."""
        return self.found.columns()

    @property
    def confidence(self) -> np.ndarray:
        """Of each cell's type: the calibrated one where the model has a calibration; shape (cells,)."""
        names = ("confidence", "score_calibrated", "score_uncalibrated")
        return np.asarray(next(self.columns[name] for name in names if name in self.columns), dtype=np.float32)

    @property
    def novelty(self) -> np.ndarray | None:
        """How unlike the training cells each cell is; None for models without a calibration."""
        return np.asarray(self.columns["novelty"], dtype=np.float32) if "novelty" in self.columns else None

    @cached_property
    def genes(self) -> GeneNames:
        """Names of the file's genes, to search in."""
        return GeneNames(self.cells.adata.var)

    @cached_property
    def _by_gene(self) -> csc_matrix:
        return csc_matrix(self.cells.adata.X)

    @cached_property
    def _totals(self) -> np.ndarray:
        return np.maximum(np.asarray(self.cells.adata.X.sum(axis=1)).ravel(), 1)

    def gene_values(self, gene: int) -> np.ndarray:
        """Return log1p of a gene's counts per 10,000, float32, shape (cells,)."""
        counts = self._by_gene[:, [gene]].toarray().ravel()
        return np.log1p(counts / self._totals * 1e4).astype(np.float32)

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write the annotated cells and a table; return both paths.

        An ``.h5ad`` keeps everything that it had; of other formats, and of a sample, counts and tables are written.
        """
        stem = self.cells.name.removesuffix(".gz").rsplit(".", 1)[0].replace(" ", "_") or "cells"
        files = folder / f"{stem}_annotated.h5ad", folder / f"{stem}_annotated.csv"
        added = {f"{KEY}_{name}": values for name, values in self.columns.items()}
        matrices = self.found.matrices()
        if self.coordinates is not None:
            matrices[f"X_{KEY}_umap"] = self.coordinates
        facts = {KEY: self.found.facts() | {"model": self.model}}
        if self.cells.source is None:
            adata = self.cells.adata.copy()
            add_results(adata, obs=added, obsm=matrices, uns=facts)
            adata.write_h5ad(files[0], compression="gzip", compression_opts=1)
        else:
            write_annotated(None, self.cells.source, files[0], obs=added, obsm=matrices, uns=facts)
        write_table(self.found.table(), files[1])
        return files


class Annotator:
    """A model that annotates cells of visitors, one visitor at a time.

    Parameters
    ----------
    model
        Folder, name in the collection, or repository of a classifier, an adapter, or a LangCell model.
    limits
        Of a visit.

    Raises
    ------
    ValueError
        If there is no such model, or it does not annotate cells.
    """

    def __init__(self, model: str | os.PathLike, limits: Limits | None = None):
        name = resolve_model(model)
        purpose = describe_model(name).purpose
        self.loaded: LoadedModel = load_any_model(name)
        if not self.loaded.classes and self.loaded.processor is None:
            raise ValueError(
                f"{model} is for {purpose}: the page annotates cells, by a classifier, an adapter or a LangCell model "
                "with its texts"
            )
        self.name = Path(str(model)).name
        self.limits = limits or Limits()
        self.calibration = AnnotationCalibration.load(name) if self.loaded.classes else None
        self._one_at_a_time = threading.Lock()
        self._key = secrets.token_hex(4)
        _ANNOTATORS[self._key] = self

    @property
    def by_texts(self) -> bool:
        """Whether the model compares cells with texts of types that the visitor chooses."""
        return not self.loaded.classes

    @property
    def tokenizer(self) -> Any:
        """Tokenizer of cells."""
        return self.loaded.tokenizer

    @cached_property
    def ontology(self) -> CellOntology:
        """The Cell Ontology that comes with the package."""
        return CellOntology.shipped()

    def known_genes(self, names: Sequence[str]) -> int:
        """Return how many names are genes of the model."""
        return self.tokenizer.vocabulary.resolve([str(name) for name in names]).report().matched

    # -------------------------------------------------------------------- annotation

    def annotate(
        self,
        cells: VisitorCells,
        *,
        species: str | None = None,
        candidates: str = "",
        branch: str = "",
        leaves_only: bool = False,
        progress: Progress | None = None,
    ) -> Annotated:
        """Annotate the cells of a visitor.

        Parameters
        ----------
        cells
            From `read_files` or `read_table`.
        species
            As for `cellglot.read_cells`.
        candidates
            For a LangCell model: names of cell types between commas or in lines.
        branch
            For a LangCell model: all types of the ontology below this one.
        leaves_only
            Of the branch only types without subtypes.
        progress
            Called with the numbers of cells that are done, and of all.

        Raises
        ------
        ValueError
            If the genes are not those of the model, or candidates are missing or too many.
        """
        chosen = self._candidates(candidates, branch, leaves_only) if self.by_texts else None
        with self._one_at_a_time, _counted(cell_encoder(self.loaded.network), cells.adata.n_obs, progress):
            try:
                found = _annotate_on_gpu(self._key, cells.adata, species, chosen)
            except ValueError as error:
                if cells.mouse and species != "mouse":
                    raise InputError(
                        "These are genes of mouse, and the model knows human genes: choose “mouse” under "
                        "Options to read them as their human one-to-one orthologs"
                    ) from error
                raise
        return Annotated(cells, found, self.name, species)

    def compute(
        self, adata: AnnData, species: str | None, chosen: Candidates | None
    ) -> ClassifiedCells | CellAnnotation:
        """Annotate cells by the classes of the model, or by the texts of candidates."""
        opened, network = read_cells(adata, layer="X", species=species), self.loaded.network
        if chosen is None:
            return classify_cells(network, self.tokenizer, opened, calibration=self.calibration, progress=False)
        return annotate_cells(network, self.loaded.processor, opened, chosen, progress=False)

    def warm_up(self) -> None:
        """Annotate two made cells, so that a visitor does not wait for what the first cells import and compile."""
        genes = self.tokenizer.vocabulary.genes[:20]
        made = AnnData(csr_matrix(np.ones((2, len(genes)), dtype=np.float32)), var=pd.DataFrame(index=genes))
        self.annotate(read_table(made, self.limits), candidates="T cell, B cell")

    def _candidates(self, candidates: str, branch: str, leaves_only: bool) -> Candidates:
        text = ",".join(line.strip() for line in candidates.splitlines() if line.strip())
        given = [name for name in split_candidates(text, self.ontology) if name] if text else []
        branch = branch.strip()
        if not given and not branch:
            raise InputError(
                "Name the cell types to choose from, such as: B cell, T cell, monocyte; or a branch of the Cell "
                "Ontology, such as leukocyte"
            )
        options: dict[str, Any] = {"branch": branch, "leaves_only": leaves_only} if branch else {}
        made = make_candidates(given, self.ontology, **options)
        if len(made) > self.limits.candidates:
            raise TooLargeError(
                f"These are {len(made):,} cell types; this page compares cells with at most "
                f"{self.limits.candidates:,}: choose a smaller branch, or only types without subtypes"
            )
        return made

    # -------------------------------------------------------------------- a cell

    def reasons(self, result: Annotated, cell: int, most: int = 12) -> Reasons:
        """Return the genes that a cell's type rests on: each is hidden, and the cell is computed again.

        Parameters
        ----------
        cell
            Number of the cell.
        most
            Number of genes to return.

        Raises
        ------
        ValueError
            If the cell expresses fewer than two genes of the model.
        """
        row = result.cells.adata[[cell]].copy()
        with self._one_at_a_time:
            return _reasons_on_gpu(self._key, row, result.species, most)


# A GPU of ZeroGPU is lent to a copy of this process, which finds the model here; all else is sent to it.
_ANNOTATORS: weakref.WeakValueDictionary[str, Annotator] = weakref.WeakValueDictionary()


@gpu
def _annotate_on_gpu(key: str, adata: AnnData, species: str | None, chosen: Candidates | None) -> Any:
    return _ANNOTATORS[key].compute(adata, species, chosen)


@gpu
def _reasons_on_gpu(key: str, adata: AnnData, species: str | None, most: int) -> Reasons:
    own = _ANNOTATORS[key]
    return cell_reasons(own.loaded, read_cells(adata, layer="X", species=species), own.calibration, most)


def draw_map(result: Annotated) -> np.ndarray | None:
    """Compute the map of annotated cells, a UMAP of their embeddings; None for fewer than four cells."""
    if np.isfinite(result.found.embedding).all(axis=1).sum() < 4:
        return None
    result.coordinates = np.asarray(umap_coordinates(result.found.embedding), dtype=np.float32)
    return result.coordinates


def example_cells(model: str | os.PathLike) -> tuple[Any, str]:
    """Return example cells, and what they are: the model's ``example_cells.h5ad``, else blood cells of scanpy."""
    own = Path(resolve_model(model), "example_cells.h5ad")
    if own.is_file():
        return own, "the example cells of the model"
    return _blood(), "700 blood cells (10x Genomics' PBMC 68k, CC BY 4.0)"


def _blood() -> AnnData:
    import warnings

    import scanpy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the format in which scanpy stores them
        return read_cells(scanpy.datasets.pbmc68k_reduced(), rename={"bulk_labels": "cell_type"}).to_anndata()


@contextmanager
def _counted(encoder: torch.nn.Module, n_cells: int, progress: Progress | None) -> Iterator[None]:
    """Call `progress` after each batch of cells that the encoder has computed."""
    if progress is None:
        yield
        return
    done = 0

    def count(module: Any, given: Any, named: dict[str, Any], found: Any) -> None:
        nonlocal done
        done = min(done + len(named["input_ids"] if "input_ids" in named else given[0]), n_cells)
        progress(done, n_cells)

    hook = encoder.register_forward_hook(count, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


__all__ = ["Annotated", "Annotator", "draw_map", "example_cells"]
