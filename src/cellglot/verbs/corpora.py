"""``tokenize``: cells to a corpus of tokens. Verbs that train take cells in the same forms."""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellglot.contents import contents_of
from cellglot.inputs import is_remote
from cellglot.inputs.addresses import as_source
from cellglot.modeling.collection import in_collection
from cellglot.verbs.cells import as_path, existing, is_anndata


if TYPE_CHECKING:
    from anndata import AnnData

    from cellglot.tokenization import Corpus


def tokenize(
    cells: "str | os.PathLike | AnnData | Sequence[str | os.PathLike | AnnData]",
    output: str | os.PathLike,
    *,
    tokenizer: Any = "exceiver",
    vocabulary: Any = None,
    gene_table: str | os.PathLike | None = None,
    genes: str | os.PathLike | Sequence[str] | None = None,
    layer: str | None = None,
    gene_column: str | None = None,
    rename: Mapping[str, str] | None = None,
    obs_columns: Sequence[str] = (),
    species: str | None = None,
    filter: str | None = None,
    preset: str | None = None,
    tokenizer_options: Mapping[str, Any] | None = None,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.0,
    seed: int = 0,
    shuffle: bool = False,
    processes: int | None = None,
    cluster: str | None = None,
    skip_broken: bool = False,
    overwrite: bool = False,
) -> "Corpus":
    """Turn cells into a corpus: token Parquet with vocabulary and statistics, ready for training.

    Call it again with the same arguments to resume a run that was stopped.

    Parameters
    ----------
    cells
        A file of cells, as for `cellglot.read_cells`; a folder, for all ``.h5ad`` files, stores of zarr and SOMA
        experiments in it and in its folders; a SOMA experiment, on disk or at an address such as ``s3://bucket/name``;
        ``census:VERSION`` for CELLxGENE Census; an AnnData with raw counts; or several of them.
    output
        Folder for ``data/*.parquet``, ``tokenizer/`` and ``manifest.json``.
    tokenizer
        ``"exceiver"`` or ``"rank-value"`` (scCello, LangCell), or a tokenizer.
    vocabulary
        Folder of a tokenizer or model, or name of a model of the collection, whose vocabulary is used; or a
        `GeneVocabulary`. By default a new one is made of the training cells.
    gene_table
        Table of Ensembl ids, symbols and aliases, for cells with symbols only.
    genes
        The only genes to keep: their ids or names, or a text file with one a line.
    layer
        Where the raw counts are: ``"X"``, ``"raw.X"`` or the name of a layer. Found by default.
    gene_column
        Column of var with the ids of genes; ``"index"`` for the index. Found by default.
    rename
        Column of obs -> its name in the corpus.
    obs_columns
        Columns of obs to keep in the corpus, besides those of the CELLxGENE schema.
    species
        ``"mouse"``: genes are read as their human one-to-one orthologs. ``"other"``: names are taken as they are. By
        default human: files of mouse are refused, unless `vocabulary` is one of mouse.
    filter
        Which cells to read, by columns of obs: ``'tissue == "lung" and not ("cancer" in disease)'``.
    preset
        ``"sccello"``: human, primary, 10x, not cancer, as scCello was pretrained on. A filter chooses among these.
    tokenizer_options
        Options of the tokenizer, such as ``{"total": "vocabulary"}``.
    validation_fraction, test_fraction
        Shares of the cells to hold out: whole donors, else whole data sets, else single cells.
    seed
        Seed of the draw of held-out cells, and of the order of shuffled ones.
    shuffle
        Shuffle the cells when all are written, for corpora larger than memory: reading them one after the other is
        then reading cells in any order. Takes a third pass and temporary files as large as the corpus.
    processes
        Number of processes; by default one for two processors.
    cluster
        Compute on a Dask cluster: ``"local"``, ``"local:N"`` for N processes of this machine, or the address of a
        scheduler (``"tcp://10.0.0.1:8786"``) whose workers see the same folders. The result is the same.
    skip_broken
        Leave out files that cannot be used; the manifest names them.
    overwrite
        Delete an earlier corpus or unfinished run in `output`, and start from the beginning.

    Returns
    -------
    Corpus
        The corpus; ``print(corpus.summary())`` says what it contains and what was left out.

    Raises
    ------
    ValueError
        If cells cannot be used, the vocabulary covers too few of their counts, `output` contains something else, or an
        option is unknown.

    Examples
    --------
    >>> import cellglot
    >>> corpus = cellglot.tokenize("cells.h5ad", "tokens", validation_fraction=0.2)
    >>> corpus.n_cells("train") + corpus.n_cells("validation")
    60
    """
    if not skip_broken:
        check_given(cells)
    from cellglot.inputs import read_text
    from cellglot.tokenization import tokenize_corpus

    if isinstance(vocabulary, str | os.PathLike):
        vocabulary = in_collection(vocabulary) or vocabulary
    if isinstance(genes, str | os.PathLike):
        genes = [line.strip() for line in read_text(as_path(genes)).split("\n") if line.strip()]
    with as_files(cells, layer) as (files, layer):
        return tokenize_corpus(
            files,
            as_path(output),
            tokenizer=tokenizer,
            tokenizer_options=tokenizer_options,
            vocabulary=vocabulary,
            gene_table=gene_table,
            genes=genes,
            layer=layer,
            gene_column=gene_column,
            rename=rename,
            obs_columns=obs_columns,
            species=species,
            filter=filter,
            preset=preset,
            validation_fraction=validation_fraction,
            test_fraction=test_fraction,
            seed=seed,
            shuffle=shuffle,
            processes=processes,
            cluster=cluster,
            skip_broken=skip_broken,
            overwrite=overwrite,
        )


def check_given(cells: Any) -> None:
    """Refuse files that do not exist, before large libraries are imported."""
    for one in cells if isinstance(cells, list | tuple) else [cells]:
        if isinstance(one, str | os.PathLike) and isinstance(as_source(one), Path):
            existing(one)


@contextmanager
def as_files(cells: Any, layer: str | None = None) -> Iterator[tuple[list[Path | str], str | None]]:
    """Return files and addresses of cells, and where their counts are; files of AnnData are temporary.

    These have counts in X.

    Raises
    ------
    TypeError
        If cells are neither paths nor AnnData.
    ValueError
        If a layer is named for AnnData and files together.
    """
    given = list(cells) if isinstance(cells, list | tuple) else [cells]
    in_memory = [is_anndata(one) for one in given]
    if layer is not None and any(in_memory) and not all(in_memory):
        raise ValueError(f"layer {layer!r} is for AnnData and files at once: write the AnnData to files first")
    with tempfile.TemporaryDirectory(prefix="cellglot-") as folder:
        names = ["AnnData.h5ad"] if len(given) == 1 else [f"AnnData-{n + 1}.h5ad" for n in range(len(given))]
        files: list[Path | str] = [Path(folder, name) for name in names]
        for number, one in enumerate(given):
            if in_memory[number]:
                _write(one, Path(files[number]), layer)
            else:
                files[number] = as_source(one)
        yield files, None if any(in_memory) else layer


def _write(adata: "AnnData", path: Path, layer: str | None) -> None:
    """Write raw counts, genes and obs of an AnnData; all keep their names."""
    from cellglot.evaluation.output import write_counts
    from cellglot.tokenization import read_cells

    same = {str(column): str(column) for column in adata.obs.columns}
    with read_cells(adata, layer=layer, rename=same) as opened:
        write_counts(opened, path)


def is_corpus(cells: Any) -> bool:
    """Whether cells are a corpus, or its folder; not a store of cells."""
    from cellglot.tokenization import Corpus

    if not isinstance(cells, str | os.PathLike):
        return isinstance(cells, Corpus)
    if is_remote(cells):
        return True
    folder = as_path(cells)
    if contents_of(folder) == "corpus":
        return True
    stored = any((folder / name).exists() for name in (".zgroup", ".zattrs", "zarr.json"))
    return folder.is_dir() and not stored and not any(folder.glob("*matrix.mtx*"))


def open_corpus(folder: str | os.PathLike) -> "Corpus | Path | str":
    """Return the folder of a corpus, or its address.

    Raises
    ------
    CorpusError
        If it is not one.
    """
    from cellglot.tokenization import Corpus

    if is_remote(folder):
        return str(folder)
    return as_path(folder) if is_corpus(folder) else Corpus.open(as_path(folder))


__all__ = ["as_files", "check_given", "is_corpus", "open_corpus", "tokenize"]
