"""Plan a corpus: which files are readable, which cells are held out, and the units of work."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from cellglot.inputs import digest_of
from cellglot.inputs.addresses import name_of
from cellglot.outputs import check_environment
from cellglot.tokenization.corpus.genes import named_columns
from cellglot.tokenization.count_matrix import CountMatrix
from cellglot.tokenization.gene_names import described_columns
from cellglot.tokenization.reading.cells import Cells, read_cells
from cellglot.tokenization.reading.labels import Labels, read_labels
from cellglot.tokenization.reading.matrices import READ_ERRORS, CellFileError
from cellglot.tokenization.reading.obs import SCHEMA_COLUMNS
from cellglot.tokenization.reading.selection import NothingSelectedError
from cellglot.tokenization.reading.soma import soma_mark
from cellglot.tokenization.reading.soma_experiment import is_soma


SPLITS = ("train", "validation", "test")
UNIT_CELLS = 1 << 14
UNIT_VALUES = 1 << 25
CELLS_AT_ONCE = 1 << 16  # for reading metadata


@dataclass(frozen=True)
class FileOptions:
    """How the files of a corpus are read: see `tokenize_corpus`."""

    layer: str | None = None
    gene_column: str | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    obs_columns: Sequence[str] = ()
    species: str | None = None
    filter: str | None = None


@dataclass
class PlannedFile:
    """A file of the corpus.

    Parameters
    ----------
    name
        Name in the manifest, and ``dataset_id`` of cells that have none: the file's name without its ending.
    fingerprint
        Digest of its content, see `fingerprint`.
    notes
        What was converted, left out or recovered.
    duplicate_names
        Number of cells with the name of an earlier cell of the file.
    metadata
        Name of a column in the metadata -> its name in obs.
    left_out
        Type of features that are not genes -> number of features.
    feature_note
        A sentence about types of features that have no meaning.
    """

    path: str
    name: str
    fingerprint: str
    n_cells: int
    n_genes: int
    counts_in: str
    notes: list[str]
    duplicate_names: int
    metadata: dict[str, str]
    left_out: dict[str, int] = field(default_factory=dict)
    feature_note: str = ""


@dataclass
class Split:
    """Which cells are held out.

    Parameters
    ----------
    by
        ``"donor_id"``, ``"dataset_id"``, ``"donor_id, else dataset_id"`` if some cells lack a donor, or ``"cell"``.
    fractions
        Shares of validation and test cells.
    held_out
        Group -> ``"validation"`` or ``"test"``; all other groups are for training. Empty if `by` is ``"cell"``.
    """

    by: str
    seed: int
    fractions: dict[str, float]
    held_out: dict[str, str]

    def assign(self, groups: np.ndarray, names: np.ndarray) -> np.ndarray:
        """Return the split of cells by their group and name, shape (cells,)."""
        if self.by != "cell":
            return np.array([self.held_out.get(g, "train") for g in groups], dtype=object)
        drawn = _uniform(names, self.seed)
        validation = self.fractions["validation"]
        splits = np.full(len(names), "train", dtype=object)
        splits[drawn < validation + self.fractions["test"]] = "test"
        splits[drawn < validation] = "validation"
        return splits


@dataclass
class Plan:
    """Everything that decides the result: the same plan gives the same bytes.

    Parameters
    ----------
    broken
        Name of a skipped file -> what is wrong with it.
    units
        Pieces of work: (number of the file, first cell, end).
    columns
        Metadata column -> its type in Parquet.
    """

    arguments: dict[str, Any]
    files: list[PlannedFile]
    broken: dict[str, str]
    units: list[tuple[int, int, int]]
    split: Split
    columns: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain types, without the folders of the files."""
        plain = json.loads(json.dumps(asdict(self)))
        for file in plain["files"]:
            del file["path"]
        return plain

    def digest(self) -> str:
        """Return a hash of the plan."""
        return hashlib.blake2b(json.dumps(self.to_dict(), sort_keys=True).encode(), digest_size=16).hexdigest()


def fingerprint(path: Path | str) -> str:
    """Return the digest of a file's content, or of a folder's names and contents.

    Barcodes and features in the folder of a Matrix Market file are part of its content. For a network source, only
    its address and its numbers of cells, genes and values are.
    """
    if isinstance(path, str):
        content = json.dumps([path, soma_mark(path)], sort_keys=True)
        return f"soma:{hashlib.blake2b(content.encode(), digest_size=16).hexdigest()}"
    digest = digest_of(path, progress=True)
    if path.is_dir() or not path.name.removesuffix(".gz").endswith(".mtx"):
        return digest
    beside = sorted(p for p in path.parent.iterdir() if p.is_file() and p.name.removesuffix(".gz").endswith(".tsv"))
    names = [f"{file.name}:{digest_of(file)}" for file in beside]
    return f"mtx:{hashlib.blake2b(' '.join([digest, *names]).encode(), digest_size=16).hexdigest()}"


def fingerprint_of_ends(path: Path) -> str:
    """Hash size, beginning and end of a file, or names and sizes in a folder, as early versions of cellglot did."""
    digest = hashlib.blake2b(digest_size=16)
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{file.relative_to(path)}:{file.stat().st_size};".encode())
        return digest.hexdigest()
    size = path.stat().st_size
    digest.update(str(size).encode())
    with open(path, "rb") as content:
        digest.update(content.read(1 << 20))
        content.seek(max(size - (1 << 20), 0))
        digest.update(content.read())
    return digest.hexdigest()


def open_planned(path: str | Path, options: FileOptions, folder: Path | None) -> Cells:
    """Open a file with the options of the corpus, including the columns of `FileOptions.obs_columns`."""
    cells = read_cells(
        path,
        layer=options.layer,
        rename=options.rename,
        folder=folder,
        species=options.species,
        filter=options.filter,
    )
    for column in options.obs_columns:
        if column in cells.obs.names:
            cells.metadata_columns.setdefault(column, column)
    return cells


def conversion_folder(work: Path, digest: str) -> Path:
    """Return the folder for the converted matrix of a file with this `fingerprint`."""
    return work / "converted" / digest.rpartition(":")[2]


@dataclass
class Inspected:
    """What planning needs of a file.

    Parameters
    ----------
    genes
        Index and columns of its gene table.
    ranges
        Its pieces of work: (first cell, end).
    group_sizes
        Number of cells by donor, else by data set.
    kinds
        Metadata column -> NumPy kind of its values.
    """

    file: PlannedFile
    genes: tuple[list[str], dict[str, Any]]
    ranges: list[tuple[int, int]]
    group_sizes: dict[str, int]
    kinds: dict[str, str]


CheckNames = Callable[[Sequence[str], Mapping[str, Any] | None], str | None]


def inspect_file(
    path: Path | str, name: str, options: FileOptions, work: Path, check_names: CheckNames | None
) -> Inspected:
    """Open a file, find its counts, and read what planning needs."""
    digest = fingerprint(path) if _may_contain_cells(path) else ""  # others are refused when they are opened
    with open_planned(path, options, conversion_folder(work, digest)) as cells:
        file = PlannedFile(
            path=str(path),
            name=name,
            fingerprint=digest or fingerprint(path),
            n_cells=cells.n_cells,
            n_genes=cells.n_genes,
            counts_in=cells.counts.described_location,
            notes=[*cells.notes, *_label_notes(cells)],
            duplicate_names=cells.duplicate_names(),
            metadata=dict(cells.metadata_columns),
            left_out=dict(cells.counts.left_out),
            feature_note=cells.counts.note,
        )
        return Inspected(
            file=file,
            genes=_genes(path, cells.counts, options, check_names),
            ranges=list(cells.counts.ranges(UNIT_VALUES, UNIT_CELLS)),
            group_sizes=_group_sizes(cells, name),
            kinds={n: cells.obs.column(c, 0, 1).dtype.kind for n, c in file.metadata.items()},
        )


def _genes(
    path: Path | str, counts: CountMatrix, options: FileOptions, check_names: CheckNames | None
) -> tuple[list[str], dict[str, Any]]:
    """Return index and columns of a file's gene table; refuse names that cannot be used."""
    index, columns = list(counts.index), {str(c): v for c, v in (counts.columns or {}).items()}
    column = options.gene_column
    if column not in (None, "index"):
        if column not in columns:
            listed = described_columns(columns) or "no column of names"
            raise ValueError(f"{path} has no column {column!r} in var (gene_column); it has {listed}")
        columns = {"only": columns[str(column)]}
    names, table = named_columns((index, columns), column)
    reason = None if check_names is None else check_names(names, table)
    if reason is not None:
        raise CellFileError(f"{path}: {reason}")
    return index, columns


def _label_notes(cells: Cells) -> list[str]:
    """Describe labels of cells that count as missing, or that had blanks at their ends."""
    notes = []
    for name in ("cell_type", "cell_type_ontology_term_id"):
        if (have := cells.metadata_columns.get(name)) is not None:
            found = Labels(np.zeros(0, dtype=object))
            for start in range(0, cells.n_cells, CELLS_AT_ONCE):
                some = read_labels(cells.obs.column(have, start, min(start + CELLS_AT_ONCE, cells.n_cells)))
                found.missing += some.missing
                found.cleaned += some.cleaned
            notes.append(found.note(f"labels in {have!r}"))
    return [note for note in notes if note]


def _may_contain_cells(path: Path | str) -> bool:
    """Whether a file or folder has a known format, so that all of it is read for its digest."""
    if isinstance(path, str):
        return True
    if path.is_dir():
        marks = (".zgroup", ".zattrs", "zarr.json", "*matrix.mtx*")
        return is_soma(path) or any(next(path.glob(mark), None) is not None for mark in marks)
    return path.is_file() and (h5py.is_hdf5(path) or ".mtx" in path.suffixes)


def unique_names(paths: Sequence[Path | str]) -> list[str]:
    """Return the name of each file: without its ending, or with it or with its folders where names are equal.

    Raises
    ------
    ValueError
        If a file is given twice.
    """
    resolved = [p if isinstance(p, str) else p.resolve() for p in paths]
    twice = sorted({str(p) for p, n in Counter(resolved).items() if n > 1})
    if twice:
        raise ValueError(f"given twice: {', '.join(twice)}")
    folders, stems = [_folders(p) for p in resolved], [name_of(p) for p in resolved]
    beside = Counter(zip(map(tuple, folders), stems, strict=True))
    stems = [
        stem if beside[tuple(own), stem] == 1 else str(p).rsplit("/", 1)[-1]
        for p, own, stem in zip(resolved, folders, stems, strict=True)
    ]
    named, depth = list(stems), 0
    while repeated := {name for name, n in Counter(named).items() if n > 1}:
        depth += 1
        named = [
            "/".join([*own[-depth:], stem]) if name in repeated else name
            for name, stem, own in zip(named, stems, folders, strict=True)
        ]
    return named


def _folders(path: Path | str) -> list[str]:
    return path.split("/")[:-1] if isinstance(path, str) else list(path.parent.parts[1:])


# -------------------------------------------------------------------- groups and splits


def cell_groups(metadata: pd.DataFrame, dataset: str) -> tuple[np.ndarray, np.ndarray]:
    """Return each cell's group (donor, else data set) and data set, shape (cells,) each."""
    datasets = np.full(len(metadata), dataset, dtype=object)
    if "dataset_id" in metadata:
        own = read_labels(metadata["dataset_id"]).texts
        datasets = np.where(pd.isna(own), datasets, own)
    groups = datasets
    if "donor_id" in metadata:
        donors = read_labels(metadata["donor_id"]).texts
        unknown = pd.isna(donors)
        donors[unknown] = ""
        groups = np.where(unknown, datasets, "donor " + donors)
    return groups, datasets


def _group_sizes(cells: Cells, name: str) -> dict[str, int]:
    have = {c: cells.metadata_columns[c] for c in ("donor_id", "dataset_id") if c in cells.metadata_columns}
    sizes: dict[str, int] = {} if have else {name: cells.n_cells}
    for start in range(0, cells.n_cells if have else 0, CELLS_AT_ONCE):
        stop = min(start + CELLS_AT_ONCE, cells.n_cells)
        columns = {c: cells.obs.column(column, start, stop) for c, column in have.items()}
        groups, _ = cell_groups(pd.DataFrame(columns, index=range(stop - start)), name)
        for group, n in zip(*np.unique(groups.astype(str), return_counts=True), strict=True):
            sizes[str(group)] = sizes.get(str(group), 0) + int(n)
    return sizes


def draw_split(sizes: Mapping[str, int], seed: int, fractions: Mapping[str, float]) -> Split:
    """Hold out whole donors, else whole data sets, else single cells.

    Groups are taken in an order drawn by the seed until the fraction is reached. A group that would take more than
    twice the fraction is skipped, unless all groups are that large.
    """
    if len(sizes) < 2:
        return Split("cell", seed, dict(fractions), {})
    total = sum(sizes.values())
    names = np.array(sorted(sizes), dtype=object)
    order = names[np.argsort(_uniform(names, seed), kind="stable")]
    held_out: dict[str, str] = {}
    for split in ("validation", "test"):
        taken = 0
        left = [g for g in order if g not in held_out]
        if fractions[split] <= 0 or len(left) < 2:
            continue
        for group in left:
            if taken < fractions[split] * total and taken + sizes[group] <= 2 * fractions[split] * total:
                held_out[group] = split
                taken += sizes[group]
        if not taken:
            held_out[min(left, key=lambda g: (sizes[g], g))] = split
    donors = [g.startswith("donor ") for g in sizes]
    by = "donor_id" if all(donors) else "donor_id, else dataset_id" if any(donors) else "dataset_id"
    return Split(by, seed, dict(fractions), held_out)


def _uniform(names: np.ndarray, seed: int) -> np.ndarray:
    """Return a number in [0, 1) for each name, which depends only on name and seed, shape (names,)."""
    key = f"{seed % 10**16:016d}"
    hashes = pd.util.hash_array(np.asarray(names, dtype=object), hash_key=key, categorize=False)
    return (hashes >> np.uint64(11)).astype(np.float64) / float(1 << 53)


# -------------------------------------------------------------------- units and columns


def parquet_columns(kinds_of_files: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Choose the metadata columns of the Parquet files and their types, the same for all files."""
    kinds: dict[str, set[str]] = {"cell_id": {"O"}, "dataset_id": {"O"}}
    for kinds_of_file in kinds_of_files:
        for name, kind in kinds_of_file.items():
            kinds.setdefault(name, set()).add(kind)
    types = {}
    for name in [c for c in SCHEMA_COLUMNS if c in kinds] + sorted(set(kinds) - set(SCHEMA_COLUMNS)):
        found = kinds[name]
        if name == "is_primary_data" or found == {"b"}:
            types[name] = "bool"
        elif found <= {"i", "u"} and name not in SCHEMA_COLUMNS:
            types[name] = "int64"
        elif found <= {"i", "u", "f"} and name not in SCHEMA_COLUMNS:
            types[name] = "double"
        else:
            types[name] = "string"
    return types


def make_plan(
    paths: Sequence[Path | str],
    options: FileOptions,
    work: Path,
    arguments: Mapping[str, Any],
    *,
    seed: int,
    fractions: Mapping[str, float],
    broken: Mapping[str, str],
    skip_broken: bool,
    check_names: CheckNames | None,
) -> tuple[Plan, list[tuple[list[str], dict[str, Any]]]]:
    """Inspect the files; return the plan, and index and columns of the gene table of each file in it.

    Parameters
    ----------
    work
        Folder of the unfinished run.
    arguments
        Everything else that decides the result; an earlier run with other arguments is not resumed.
    broken
        Files already found to be broken, by name.
    check_names
        Called with index and columns of each gene table; returns why a file's names cannot be used, or None.
    """
    names, broken = unique_names(paths), dict(broken)
    inspected, nothing = list[Inspected](), dict[str, str]()
    for path, name in zip(paths, names, strict=True):
        if name in broken:
            continue
        try:
            inspected.append(inspect_file(path, name, options, work, check_names))
        except NothingSelectedError as error:
            nothing[name] = str(error)
        except READ_ERRORS as error:
            check_environment(error)
            broken[name] = str(error)
    if nothing and not inspected and not broken:
        more = f"; so it is in {len(nothing) - 1:,} further files" if len(nothing) > 1 else ""
        raise NothingSelectedError(f"{next(iter(nothing.values()))}{more}")
    if broken and len(paths) == 1:
        raise CellFileError(broken[names[0]])
    if broken and (not skip_broken or not inspected):
        listed = "\n".join(f"  {name}: {reason}" for name, reason in broken.items())
        raise CellFileError(
            f"{len(broken):,} of {len(paths):,} files cannot be used:\n{listed}"
            + ("" if skip_broken else "\nSkip them with skip_broken=True (--skip-broken).")
        )
    missing = [c for c in options.obs_columns if not any(c in i.file.metadata for i in inspected)]
    if missing:
        raise ValueError(f"no file has a column {', '.join(missing)} in obs")
    sizes: dict[str, int] = {}
    for file in inspected:
        for group, n in file.group_sizes.items():
            sizes[group] = sizes.get(group, 0) + n
    plan = Plan(
        arguments=dict(arguments),
        files=[i.file for i in inspected],
        broken=broken | nothing,
        units=[(n, start, stop) for n, i in enumerate(inspected) for start, stop in i.ranges],
        split=draw_split(sizes, seed, fractions),
        columns=parquet_columns([i.kinds for i in inspected]),
    )
    return plan, [i.genes for i in inspected]


__all__ = [
    "SPLITS",
    "FileOptions",
    "Plan",
    "PlannedFile",
    "Split",
    "cell_groups",
    "conversion_folder",
    "fingerprint",
    "fingerprint_of_ends",
    "make_plan",
    "open_planned",
]
