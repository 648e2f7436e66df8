"""Turn files of cells into statistics, a vocabulary and token Parquet, in several processes; resumable."""

import hashlib
import inspect
import json
import logging
import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

import cellglot
from cellglot.inputs import read_json
from cellglot.outputs import OutputFolder, check_environment, write_json, write_text
from cellglot.progress import progress_bars
from cellglot.tokenization.corpus.check import (
    MOST_MANIFEST_BYTES,
    CorpusError,
    SourceMarks,
    is_whole,
    same_plan,
    vocabulary_digest,
)
from cellglot.tokenization.corpus.cluster import Cluster, check_cluster, open_cluster
from cellglot.tokenization.corpus.concurrency import Helpers, end_with_parent, one_later
from cellglot.tokenization.corpus.corpus import MANIFEST, WORK, Corpus
from cellglot.tokenization.corpus.folders import find_sources
from cellglot.tokenization.corpus.gene_statistics import CorpusStatistics
from cellglot.tokenization.corpus.genes import (
    named_columns,
    refuse_mouse,
    refuse_numbers,
    unused_ids,
    vocabulary_notes,
)
from cellglot.tokenization.corpus.plan import FileOptions, Plan, conversion_folder, make_plan, open_planned
from cellglot.tokenization.corpus.shuffling import is_shuffled, shuffle_shards
from cellglot.tokenization.corpus.worker import BrokenFileError, Job, Worker, work_on
from cellglot.tokenization.families import tokenizers
from cellglot.tokenization.gene_vocabulary import VOCABULARY_FILE, GeneMatch, GeneVocabulary
from cellglot.tokenization.genes.gene_catalogue import GeneNames, gene_catalogue, read_gene_table
from cellglot.tokenization.genes.species import check_species
from cellglot.tokenization.genes.tables import HumanGenes, human_genes
from cellglot.tokenization.reading.filters import with_preset
from cellglot.tokenization.reading.matrices import READ_ERRORS
from cellglot.tokenization.tokenization_gene_expression import GeneCoverageError, GeneExpressionTokenizer


TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
logger = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 30.0
UNITS_FOR_A_HELPER = 8  # a process takes seconds to start


def default_processes() -> int:
    """Return half the number of processors: each process also has threads that read and write."""
    return max((os.cpu_count() or 1) // 2, 1)


def tokenize_corpus(
    files: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    *,
    tokenizer: str | GeneExpressionTokenizer = "exceiver",
    tokenizer_options: Mapping[str, Any] | None = None,
    vocabulary: str | os.PathLike | GeneVocabulary | None = None,
    gene_table: str | os.PathLike | None = None,
    genes: Sequence[str] | None = None,
    layer: str | None = None,
    gene_column: str | None = None,
    rename: Mapping[str, str] | None = None,
    obs_columns: Sequence[str] = (),
    species: str | None = None,
    filter: str | None = None,
    preset: str | None = None,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.0,
    seed: int = 0,
    shuffle: bool = False,
    processes: int | None = None,
    cluster: str | None = None,
    skip_broken: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Corpus:
    """Turn files of cells into token Parquet.

    A first pass over the training cells computes the statistics and the vocabulary; a second pass over all cells
    writes the shards. A run that was stopped resumes if it is started again with the same arguments, and writes the
    same bytes.

    Parameters
    ----------
    files
        Files and other sources that `read_cells` reads; folders of them, see `find_sources`.
    output
        Folder for ``data/*.parquet``, ``tokenizer/`` and ``manifest.json``.
    tokenizer
        ``"exceiver"`` or ``"rank-value"``, or a tokenizer, which is used unchanged.
    tokenizer_options
        Options of the tokenizer's class.
    vocabulary
        A vocabulary, or a folder with one (a tokenizer or a model). By default it is made from the files.
    gene_table
        Table of Ensembl ids, symbols and aliases for files that have only symbols, in place of the table of human
        genes that comes with cellglot.
    genes
        Ids or names of genes: all others are left out.
    layer, gene_column, rename
        See `read_cells` and the tokenizers; the same for all files.
    obs_columns
        Columns of obs to keep in addition to those of the CELLxGENE schema.
    species
        ``"mouse"``: genes are read as their human one-to-one orthologs. ``"other"``: names are taken as they are. By
        default human; files of mouse are refused if a new vocabulary is made.
    filter
        Which cells to read, by columns of obs, as for `read_cells`. Files without such cells are left out; the
        manifest lists them.
    preset
        ``"sccello"``: the cells that scCello was pretrained on (human, primary, 10x, not cancer). A filter besides
        chooses among them.
    validation_fraction, test_fraction
        Share of cells to hold out: whole donors, else whole data sets, else single cells.
    seed
        Seed of the draw of held-out cells, and of the order of shuffled ones.
    shuffle
        Shuffle the cells when all are written: a third pass in bounded memory, with temporary files as large as the
        shards. Reading the shards one after the other is then reading cells in any order.
    processes
        Number of processes; by default one for every two processors.
    cluster
        Where the passes over the cells are computed: ``"local"`` or ``"local:N"`` for N processes of this machine that
        Dask starts, or the address of a Dask scheduler (``"tcp://10.0.0.1:8786"``), whose workers see the same
        folders. The work of a worker that ends is done by others; the result is the same, byte for byte.
    skip_broken
        Skip files that cannot be read or are not raw counts; the manifest lists them.
    overwrite
        Delete an earlier result or unfinished run, also one with the same arguments.
    progress
        Show progress bars.

    Returns
    -------
    Corpus
        The result.

    Raises
    ------
    CellFileError
        If files are broken; lists all of them.
    GeneCoverageError
        If the vocabulary covers too little of a file.
    CorpusError
        If the folder contains another corpus or run.
    OSError
        If the folder cannot be written to.
    ValueError
        If there are no files, a file is given twice, or an option is invalid.
    """
    check_species(species)
    output, filter = Path(output), with_preset(filter, preset)
    if cluster is not None:
        check_cluster(cluster)
    if not files:
        raise ValueError("no files of cells given")
    ready, kinds = tokenizer if isinstance(tokenizer, GeneExpressionTokenizer) else None, tokenizers()
    if ready is not None:
        tokenizer = next(name for name, kind in kinds.items() if isinstance(ready, kind))
        vocabulary = ready.vocabulary
    if tokenizer not in kinds:
        raise ValueError(f"tokenizer {tokenizer!r}: it is one of {', '.join(kinds)}")
    if not (0 <= validation_fraction < 1 and 0 <= test_fraction < 1 and validation_fraction + test_fraction < 1):
        raise ValueError("validation_fraction and test_fraction must be at least 0, and together below 1")
    paths = find_sources(files)
    given = [
        *(p for p in paths if isinstance(p, Path)),
        gene_table,
        None if isinstance(vocabulary, GeneVocabulary) else vocabulary,
    ]
    loaded = None if vocabulary is None else _load_vocabulary(vocabulary)
    arguments: dict[str, Any] = {
        "tokenizer": tokenizer,
        "tokenizer_options": _known(kinds[tokenizer], tokenizer_options or {}) if ready is None else _options(ready),
        "vocabulary": None if loaded is None else _digest(loaded.to_dict()),
        "gene_table": None if gene_table is None else _digest(vars(read_gene_table(Path(gene_table)))),
        "genes": None if genes is None else _digest(sorted(genes)),
        "cellglot": cellglot.__version__,
    }
    if species is not None:
        arguments["species"] = species
    if filter is not None:
        arguments["filter"] = filter
    if shuffle:
        arguments["shuffle"] = True
    run = _Run(
        paths=paths,
        folder=OutputFolder(output, "tokenize", given),
        tokenizer_class=kinds[tokenizer],
        options=FileOptions(layer, gene_column, dict(rename or {}), tuple(obs_columns), species, filter),
        arguments=arguments,
        seed=seed,
        fractions={"validation": validation_fraction, "test": test_fraction},
        processes=processes or default_processes(),
        cluster=cluster,
        skip_broken=skip_broken,
        show=progress,
        vocabulary=loaded,
        gene_table=None if gene_table is None else Path(gene_table),
        genes=genes,
    )
    with run.folder:
        run.prepare(overwrite)
        while True:
            try:
                return run.finish()
            except BrokenFileError as error:
                if not skip_broken:
                    raise CorpusError(
                        f"{error}\nSkip it with skip_broken=True (--skip-broken); this changes the result of the "
                        "other files."
                    ) from error
                run.skip(error)


def _options(tokenizer: GeneExpressionTokenizer) -> dict[str, Any]:
    """Return the options of a tokenizer, without its vocabulary."""
    files = tokenizer.vocab_files_names
    plain = {k: v for k, v in tokenizer.init_kwargs.items() if isinstance(v, str | int | float) and k not in files}
    left_out = ("name_or_path", "tokenizer_class", "backend", "is_local", "local_files_only")
    return {k: v for k, v in plain.items() if k not in left_out}


def _known(tokenizer_class: type[GeneExpressionTokenizer], options: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse options that a tokenizer does not have."""
    known = {p for c in (tokenizer_class, GeneExpressionTokenizer) for p in inspect.signature(c).parameters}
    known -= {"vocab_file", "stats_file", "vocabulary", "kwargs"}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(
            f"{tokenizer_class.__name__} has no option {', '.join(unknown)}; its options: {', '.join(sorted(known))}"
        )
    return dict(options)


def _load_vocabulary(vocabulary: str | os.PathLike | GeneVocabulary) -> GeneVocabulary:
    if isinstance(vocabulary, GeneVocabulary):
        return vocabulary
    folder = Path(vocabulary)
    nested = folder / "tokenizer"
    return GeneVocabulary.load(nested if (nested / VOCABULARY_FILE).exists() else folder)


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


@dataclass
class _Run:
    """One run of `tokenize_corpus`: plans, resumes an earlier run, and finishes."""

    paths: list[Path | str]
    folder: OutputFolder
    tokenizer_class: type[GeneExpressionTokenizer]
    options: FileOptions
    arguments: dict[str, Any]
    seed: int
    fractions: dict[str, float]
    processes: int
    cluster: str | None
    skip_broken: bool
    show: bool
    vocabulary: GeneVocabulary | None
    gene_table: Path | None
    genes: Sequence[str] | None

    def __post_init__(self) -> None:
        self.output, self.work = self.folder.path, self.folder.path / WORK
        self.plan: Plan
        self.sources: SourceMarks
        self.gene_tables: list[tuple[list[str], dict[str, Any]]]
        self._helpers: Helpers | None = None
        self._cluster: Cluster | None = None

    # ---------------------------------------------------------------- planning

    def prepare(self, overwrite: bool) -> None:
        """Plan, and compare with an earlier plan in the folder."""
        for name in self.folder.own:
            if name.endswith(".tmp"):  # of a killed run of an earlier version
                self.folder.remove(name)
        self.work.mkdir(parents=True, exist_ok=True)
        broken_file = self.work / "broken.json"
        broken = read_json(broken_file) if broken_file.exists() else {}
        self._make_plan(broken)
        earlier = self._earlier_plan()
        if earlier is not None and (overwrite or not same_plan(earlier, self.plan)):
            if not overwrite:
                changed = sorted(k for k in earlier if earlier[k] != self.plan.to_dict().get(k))
                raise CorpusError(
                    f"{self.output} contains a corpus or an unfinished run with other {', '.join(changed)}: choose "
                    "another folder, or overwrite=True (--overwrite)"
                )
            if self.vocabulary is not None and not self.skip_broken:
                self._check_coverage(self._tokenizer(self.vocabulary))  # before the earlier corpus is deleted
            self._clear()
            self._make_plan({})
        write_json(self.work / "plan.json", self.plan.to_dict())

    def _make_plan(self, broken: Mapping[str, str]) -> None:
        check_names = None
        if self.vocabulary is None:  # their names become genes of a new one
            table = GeneNames() if self.gene_table is None else read_gene_table(self.gene_table)
            check_names = refuse_numbers(set(table.symbols.values()).union(*table.aliases.values()))
            if self.options.species is None:
                check_names = refuse_mouse(check_names)
        self.plan, self.gene_tables = make_plan(
            self.paths,
            self.options,
            self.work,
            self.arguments,
            seed=self.seed,
            fractions=self.fractions,
            broken=broken,
            skip_broken=self.skip_broken,
            check_names=check_names,
        )
        self.sources = SourceMarks(self.plan)

    def _earlier_plan(self) -> dict[str, Any] | None:
        for path in (self.work / "plan.json", self.output / MANIFEST):
            if path.exists():
                content = read_json(path, most_bytes=MOST_MANIFEST_BYTES)
                return content["plan"] if path.name == MANIFEST else content
        return None

    def _clear(self) -> None:
        self.folder.clear()
        self.work.mkdir(parents=True, exist_ok=True)

    def skip(self, error: BrokenFileError) -> None:
        """Plan again without a file that turned out to be broken, and delete what depends on it."""
        broken = self.plan.broken | {error.name: error.reason} | error.more
        self._clear()
        write_json(self.work / "broken.json", broken)
        self._make_plan(broken)
        write_json(self.work / "plan.json", self.plan.to_dict())

    # ---------------------------------------------------------------- the passes

    def finish(self) -> Corpus:
        """Run the passes that are not finished."""
        if (self.output / MANIFEST).exists():
            self.folder.remove(WORK)
            corpus = Corpus.open(self.output)
            self.folder.finish()
            return corpus
        with progress_bars(shown=self.show) as bars, self._processes():
            if not (self.output / "tokenizer" / TOKENIZER_CONFIG_FILE).exists():
                self._make_tokenizer(bars)
            tokenizer = self.tokenizer_class.from_pretrained(self.output / "tokenizer")
            records = self._write_tokens(bars, tokenizer)
            manifest = self._manifest(records, tokenizer)
            if self.arguments.get("shuffle"):
                manifest["shards"] = shuffle_shards(self.output, self.work, manifest["shards"], self.seed)
            self.sources.check()
        write_text(self.output / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False))
        self.folder.remove(WORK)
        self.folder.finish()
        return Corpus(self.output, manifest)

    def _make_tokenizer(self, bars: Progress) -> None:
        tokenizer = self._tokenizer(
            self._vocabulary_from_statistics(bars) if self.vocabulary is None else self.vocabulary
        )
        unfinished = self.work / "tokenizer"
        tokenizer.save_pretrained(unfinished)
        finished = self.output / "tokenizer"
        finished.mkdir(exist_ok=True)
        for path in sorted(unfinished.iterdir(), key=lambda path: path.name == TOKENIZER_CONFIG_FILE):
            path.replace(finished / path.name)  # the configuration last: with it the tokenizer is complete

    def _tokenizer(self, vocabulary: GeneVocabulary) -> GeneExpressionTokenizer:
        return self.tokenizer_class.from_vocabulary(vocabulary, **self.arguments["tokenizer_options"])

    def _vocabulary_from_statistics(self, bars: Progress) -> GeneVocabulary:
        gene_names = None if self.gene_table is None else read_gene_table(self.gene_table)
        tables = [named_columns(table, self.options.gene_column) for table in self.gene_tables]
        catalogue = gene_catalogue(tables, gene_names, self.genes, self._human_genes())
        if self._helpers is not None or self._cluster is not None:
            catalogue.save(self.work / "catalogue")
        statistics = self._statistics(bars, catalogue)
        seen = np.flatnonzero(statistics.detected)
        if not len(seen):
            raise CorpusError("no training cell has counts on any gene")
        kept = [catalogue.genes[i] for i in seen]
        return GeneVocabulary.from_statistics(
            kept,
            medians=statistics.medians()[seen],
            means=statistics.mean[seen],
            stds=statistics.std[seen],
            symbols=catalogue.symbols,
            aliases=catalogue.aliases,
            metadata={
                "training_cells": statistics.n_cells,
                "files": [f.name for f in self.plan.files],
                "genes_without_counts": len(catalogue.genes) - len(kept),
            },
        )

    def _human_genes(self) -> HumanGenes | None:
        """Return the table of human genes, unless another table is given or names are taken as they are."""
        return human_genes() if self.gene_table is None and self.options.species != "other" else None

    def _statistics(self, bars: Progress, catalogue: GeneVocabulary) -> CorpusStatistics:
        done, merged = 0, CorpusStatistics(len(catalogue.genes))
        earlier = sorted(self.work.glob("statistics-*.npz"))
        if earlier:
            done = int(earlier[-1].stem.split("-")[1])
            merged = CorpusStatistics.load(earlier[-1], len(catalogue.genes))
        units = self.plan.units
        task = bars.add_task("statistics", total=_cells(units), completed=_cells(units[:done]))
        job = self._job(self.work / "catalogue", None)
        saved = time.monotonic()
        pieces = [("statistics", (unit,)) for unit in self.plan.units[done:]]
        for unit, state in enumerate(self._in_order(job, pieces, catalogue, merged), start=done):
            merged.merge(state)
            bars.advance(task, _cells([units[unit]]))
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                latest = self.work / f"statistics-{unit + 1:06d}.npz"
                merged.save(latest)
                for old in self.work.glob("statistics-*.npz"):
                    if old != latest:
                        old.unlink()
                saved = time.monotonic()
        return merged

    def _write_tokens(self, bars: Progress, tokenizer: GeneExpressionTokenizer) -> list[dict[str, Any]]:
        self._check_coverage(tokenizer)
        records = {n: r for n in range(len(self.plan.units)) if (r := self._earlier_record(n)) is not None}
        units = self.plan.units
        task = bars.add_task("tokens", total=_cells(units), completed=_cells([units[n] for n in records]))
        job = self._job(self.output / "tokenizer", self.tokenizer_class)
        missing = [n for n in range(len(self.plan.units)) if n not in records]
        pieces = [("tokens", (self.plan.units[n], n)) for n in missing]
        for number, record in zip(missing, self._in_order(job, pieces, tokenizer), strict=True):
            records[number] = record
            bars.advance(task, _cells([units[number]]))
        return [json.loads(json.dumps(records[n])) for n in sorted(records)]

    def _earlier_record(self, unit: int) -> dict[str, Any] | None:
        path = self.work / "units" / f"{unit:06d}.json"
        if not path.exists():
            return None
        record = read_json(path)
        return (
            record
            if is_shuffled(self.work) or all(is_whole(self.output, shard) for shard in record["shards"])
            else None
        )

    def _check_coverage(self, tokenizer: GeneExpressionTokenizer) -> None:
        """Refuse a file if a given vocabulary covers too little of a sample of its cells, before the long pass."""
        if self.vocabulary is None:
            return
        refused: dict[str, str] = {}
        for file in self.plan.files:
            try:
                with open_planned(file.path, self.options, conversion_folder(self.work, file.fingerprint)) as cells:
                    columns = tokenizer.gene_columns(cells.counts, self.options.gene_column)
                    rows = cells.counts.rows(0, min(64, cells.n_cells))
                    columns.see(rows.data, rows.indices, np.flatnonzero(~columns.known[rows.indices]))
                    report = columns.match.report()
                    report.counts = columns.counts_seen
                    report.counts_covered = columns.counts_seen - float(columns.counts_lost.sum())
                    tokenizer.check_coverage(report, counts=cells.counts)
            except GeneCoverageError as error:
                refused[file.name] = str(error)
            except READ_ERRORS as error:
                check_environment(error)
                raise BrokenFileError(file.name, str(error)) from error
        if refused and self.skip_broken:
            raise BrokenFileError(*next(iter(refused.items())), more=refused)
        if refused:
            hint = "\nSkip them with skip_broken=True (--skip-broken)." if len(self.plan.files) > 1 else ""
            raise GeneCoverageError("\n".join(refused.values()) + hint)

    def _job(self, vocabulary: Path, tokenizer_class: type[GeneExpressionTokenizer] | None) -> Job:
        plan = self.plan
        return Job(
            files=plan.files,
            options=self.options,
            split=plan.split,
            columns=plan.columns,
            work=str(self.work),
            output=str(self.output),
            vocabulary=str(vocabulary),
            tokenizer_class=tokenizer_class,
        )

    @contextmanager
    def _processes(self) -> Iterator[None]:
        """Start helper processes for both passes if there is enough work, or connect to a cluster."""
        if self.cluster is not None:
            with open_cluster(self.cluster, self.processes) as self._cluster:
                try:
                    yield
                finally:
                    self._cluster = None
            return
        helpers = min(self.processes - 1, len(self.plan.units) // UNITS_FOR_A_HELPER)
        if helpers < 1:
            yield
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(helpers, context, initializer=end_with_parent) as pool:
            self._helpers = Helpers(pool, helpers)
            try:
                yield
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
                self._helpers = None

    def _in_order(
        self,
        job: Job,
        pieces: Sequence[tuple[str, tuple[Any, ...]]],
        genes: GeneVocabulary | GeneExpressionTokenizer,
        histogram: CorpusStatistics | None = None,
    ) -> Iterator[Any]:
        """Do pieces of work, in several processes if there are helpers, and yield their results in order.

        Without helpers, this process counts directly into `histogram`. With a cluster, it only collects.
        """
        if self._cluster is not None:
            yield from self._cluster.map(job, pieces)
            return
        alone = self._helpers is None
        units = [arguments[0] for _, arguments in pieces] if alone else None
        worker = Worker(job, genes, histogram if alone else None, units)

        def here(piece: tuple[str, tuple[Any, ...]]) -> Any:
            method, arguments = piece
            return getattr(worker, method)(*arguments)

        try:
            if self._helpers is None and job.tokenizer_class is not None:
                yield from one_later(worker.start_tokens(*arguments) for _, arguments in pieces)
            elif self._helpers is None:
                yield from map(here, pieces)
            else:
                yield from self._helpers.map(here, lambda piece: (work_on, job, *piece), pieces)
        except BrokenProcessPool as error:
            raise CorpusError(
                "a process was killed, perhaps because memory was full: run again with fewer processes, to resume"
            ) from error
        finally:
            worker.close()

    # ---------------------------------------------------------------- the manifest

    def _manifest(self, records: list[dict[str, Any]], tokenizer: GeneExpressionTokenizer) -> dict[str, Any]:
        plan = self.plan.to_dict()
        files = []
        for number, file in enumerate(self.plan.files):
            own = [r for r in records if r["file"] == number]
            files.append(
                {
                    "name": file.name,
                    "n_cells": file.n_cells,
                    "counts_in": file.counts_in,
                    "notes": file.notes,
                    "duplicate_names": file.duplicate_names,
                    "report": self._file_report(tokenizer, number, own),
                }
            )
        lengths: dict[int, int] = {}
        for record in records:
            for length, n in record["lengths"].get("train", {}).items():
                lengths[int(length)] = lengths.get(int(length), 0) + n
        return {
            "format_version": 1,
            "tokenizer": self.tokenizer_class.__name__,
            "vocab_size": tokenizer.vocab_size,
            "vocabulary_digest": vocabulary_digest(tokenizer.vocabulary),
            **self._vocabulary_notes(tokenizer),
            "split": plan["split"],
            "median_length": _weighted_median(lengths),
            "shards": [shard for record in records for shard in record["shards"]],
            "files": files,
            "broken": plan["broken"],
            "plan": plan,
        }

    def _match(self, tokenizer: GeneExpressionTokenizer, number: int) -> GeneMatch:
        return tokenizer.vocabulary.resolve(*named_columns(self.gene_tables[number], self.options.gene_column))

    def _vocabulary_notes(self, tokenizer: GeneExpressionTokenizer) -> dict[str, Any]:
        """Describe a vocabulary made from these files, and warn about files that share few genes."""
        if self.vocabulary is not None:
            return {}
        tokens = {}
        for number, file in enumerate(self.plan.files):
            match = self._match(tokenizer, number)
            tokens[file.name] = np.unique(match.token_ids[match.known])
        notes = vocabulary_notes(tokenizer.vocabulary, tokens)
        if self.options.gene_column is None:
            tables = zip(self.plan.files, self.gene_tables, strict=True)
            notes["warnings"] += [w for file, table in tables for w in unused_ids(file.name, *table)]
        for warning in notes["warnings"]:
            logger.warning(warning)
        return {"vocabulary": notes}

    def _file_report(self, tokenizer: GeneExpressionTokenizer, number: int, records: list[dict]) -> dict[str, Any]:
        match = self._match(tokenizer, number)
        report = match.report()
        report.left_out = dict(self.plan.files[number].left_out)
        report.note = self.plan.files[number].feature_note
        lost = np.zeros(len(match.token_ids))
        for record in records:
            for name, n in record["report"].items():
                setattr(report, name, getattr(report, name) + n)
            report.counts += record["counts_seen"]
            for column, n in record["counts_lost"].items():
                lost[int(column)] += n
        report.counts_covered = report.counts - float(lost.sum())
        order = [int(i) for i in np.argsort(-lost, kind="stable")[:10] if lost[i] > 0]
        report.largest_losses = [(str(match.names[i]), float(lost[i])) for i in order]
        report.counts_in = self.plan.files[number].counts_in
        return report.to_dict()


def _cells(units: Sequence[tuple[int, int, int]]) -> int:
    return sum(stop - start for _, start, stop in units)


def _weighted_median(lengths: Mapping[int, int]) -> float:
    """Return the median of lengths, given how often each occurs; 0 without any."""
    if not lengths:
        return 0.0
    values = np.array(sorted(lengths))
    ends = np.cumsum([lengths[int(v)] for v in values])
    middle = [(ends[-1] - 1) // 2, ends[-1] // 2]
    return float(values[np.searchsorted(ends, middle, side="right")].mean())


__all__ = ["default_processes", "tokenize_corpus"]
