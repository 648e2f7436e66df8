"""Evaluation of models and baselines on labelled cells: all tasks, written as JSON, table and pictures."""

import os
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from cellglot.evaluation import plots
from cellglot.evaluation.batch_removal import check_batches, check_harmony
from cellglot.evaluation.benchmark import figures as evaluation_plots
from cellglot.evaluation.benchmark.drug_response import DrugJobs
from cellglot.evaluation.benchmark.embedding_file import EmbeddingFile
from cellglot.evaluation.benchmark.jobs import BASELINES, HARMONY, JobMaker, Settings
from cellglot.evaluation.benchmark.models import EvaluatedModel, load_evaluated_model
from cellglot.evaluation.benchmark.perturbation import PerturbationJobs
from cellglot.evaluation.benchmark.record import FILE, EvaluationRecord, models_in
from cellglot.evaluation.benchmark.results import Table, markdown_table
from cellglot.evaluation.benchmark.runner import Runner
from cellglot.evaluation.benchmark.tasks import (
    DRUG_RESPONSE,
    GENE_SETS,
    PATHWAYS,
    PERTURBATION,
    RETRIEVAL,
    TASKS,
    check_tasks,
)
from cellglot.evaluation.drawing import drawing
from cellglot.evaluation.endings import is_embedding_file
from cellglot.evaluation.judges.names import CZ, SCIB, check_judges
from cellglot.evaluation.judges.scib import check_scib
from cellglot.evaluation.labelled_cells import LabelledCells, open_labelled_cells
from cellglot.evaluation.perturbation.knock_outs import CONTROL
from cellglot.evaluation.scores.marker_table import read_marker_table
from cellglot.modeling.model_names import resolve_model
from cellglot.outputs import OutputFolder, sha256, write_text
from cellglot.tokenization.ontology.cell_ontology import CellOntology


TABLE, FIGURE = "evaluation.md", "scores.png"
COLOURED_BY = ("cell type", "batch", "cell")


@dataclass
class Evaluation:
    """Result of an evaluation.

    Parameters
    ----------
    record
        Content of the JSON.
    folder
        Folder of JSON, table and pictures; None if nothing was written.
    """

    record: EvaluationRecord
    folder: Path | None = None

    @property
    def results(self) -> Table:
        """Row of the table -> model -> result."""
        return self.record.results

    def table(self) -> str:
        """Return the table of all models, as Markdown."""
        return markdown_table(self.results, self.record.columns, list(BASELINES))

    def __str__(self) -> str:
        return self.table()


def evaluate_models(
    models: Sequence[str | Path | EvaluatedModel] | Mapping[str, str | Path],
    cells: Any = None,
    tasks: Iterable[str] | None = None,
    *,
    labels: str | None = None,
    batches: str | None = None,
    donors: str | None = None,
    markers: str | Path | Mapping[str, Sequence[str]] | None = None,
    marker_types: Mapping[str, str] | None = None,
    gene_sets: str | Path | Mapping[str, Sequence[str]] | None = None,
    perturbations: str | None = None,
    control: str = CONTROL,
    drug_response: str | Path | None = None,
    drug_values: str = "auto",
    ontology: CellOntology | None = None,
    judges: Iterable[str] = (),
    without_batches: bool = False,
    with_baselines: bool = True,
    output: str | Path | None = None,
    overwrite: bool = False,
    layer: str | None = None,
    species: str | None = None,
    gene_column: str | None = None,
    min_coverage: float | None = None,
    **settings: Any,
) -> Evaluation:
    """Evaluate models and baselines on labelled cells.

    The cells of a model are embedded once for all tasks. ``evaluation.json`` is written after each task; another
    call with the same cells computes only the results that are missing there.

    Parameters
    ----------
    models
        Folders or repositories of pretrained models, classifiers or adapters (as a list or name -> folder), loaded
        models, or files of embeddings of the cells (``.h5ad``, ``.parquet``, ``.npy``).
    cells
        File, or AnnData; None for drug response alone.
    tasks
        Of ``"clustering"``, ``"integration"``, ``"annotation"``, ``"novel"``, ``"retrieval"``, ``"markers"``,
        ``"gene-sets"``, ``"pathways"``, ``"perturbation"``, ``"drug-response"``; by default all for which labels,
        batches, markers, gene sets, perturbations and a folder of drug response are given.
    labels, batches, donors
        Columns of obs, as for `cellglot.evaluation.labelled_cells.open_labelled_cells`.
    markers
        Table of marker genes (see `cellglot.evaluation.scores.marker_table.read_marker_table`), or cell type -> genes.
    marker_types
        Label -> cell type of `markers`, if names and ontology do not match them.
    gene_sets
        Sets of genes such as pathways: a ``.gmt``, or name -> genes.
    perturbations, control
        Column of obs with the gene that is knocked out in each cell, and its value in cells without a knock-out.
    drug_response
        Folder of cell lines and drugs (see `cellglot.evaluation.drug_response.folder.read_drug_response`).
    drug_values
        What its expression values are: ``"auto"``, ``"log2"``, ``"linear"`` or ``"relative"`` (see
        `cellglot.evaluation.drug_response.line_expression.line_cells`).
    ontology
        For labels; by default the blood lineage of the package.
    judges
        ``"scib-metrics"``, ``"cz-benchmarks"``: packages that score the same embeddings by their own code.
    without_batches
        Also score each embedding of which Harmony removed the batches, as "NAME + Harmony": clustering, integration
        and judges.
    output
        Folder for ``evaluation.json``, ``evaluation.md``, ``scores.png`` and a UMAP for each model, as pictures and as
        a page to zoom, hover and colour.
    with_baselines
        Score plain baselines beside the models.
    overwrite
        Delete the files of an earlier evaluation in the folder; other files stay.
    layer, species
        Where the counts are, and of which species, as for `cellglot.tokenization.read_cells`.
    gene_column, min_coverage
        As for the tokenizers.
    **settings
        Fields of `cellglot.evaluation.benchmark.jobs.Settings`: ``seed``, ``draws``, ``test_fraction``, ``shots``,
        ``marker_cells``, ``retrieval_cells``, ``perturbation_cells``, ``batch_size``, ``device``, ``progress``.

    Returns
    -------
    Evaluation
        Results of all models in the record.

    Raises
    ------
    OutputError
        If `output` contains an input, is a repository or home, or has other files with the names of outputs.
    ValueError
        If a task, model or column does not exist, or the folder has an evaluation of other cells.
    """
    start = time.perf_counter()
    chosen = Settings(**settings)
    named = _named(models)
    for source in named.values():
        if not isinstance(source, EvaluatedModel) and not is_embedding_file(source):
            resolve_model(source)
    terms = CellOntology.shipped() if ontology is None else ontology
    drugs = None if drug_response is None else DrugJobs.open(drug_response, drug_values, chosen.seed, chosen.draws)
    alone = cells is None
    if alone and drugs is None:
        raise ValueError("pass cells, or a folder of drug response (drug_response)")
    data = open_labelled_cells(
        drugs.cells() if drugs is not None and alone else cells,
        labels=labels,
        batches=batches,
        donors=donors,
        layer=layer,
        species=species,
        gene_column=gene_column,
        min_coverage=min_coverage,
    )
    asked = None if tasks is None else list(tasks)
    wanted = _tasks(asked, data, markers, drugs, cells, gene_sets, perturbations) + _judges(judges, data, alone)
    files = {n: EmbeddingFile.read(Path(s), data) for n, s in named.items() if is_embedding_file(s)}  # type: ignore[arg-type]
    if without_batches:
        _check_batches(data)
    table, marker_facts = _markers(markers, marker_types)
    knock_outs = None
    if PERTURBATION in wanted:
        given_cells = (data, str(perturbations), control, chosen.perturbation_cells)
        knock_outs = PerturbationJobs.open(*given_cells, chosen.seed, chosen.draws)
    jobs = JobMaker(data, chosen, terms, table, dict(marker_types or {}), drugs, _gene_sets(gene_sets), knock_outs)
    folder = None if output is None else Path(output)
    conditions = data.facts() | {"layer": layer, "gene_column": gene_column, "min_coverage": min_coverage}
    conditions |= {} if species is None else {"species": species}
    if alone and drugs is not None:
        conditions |= {"source": str(drug_response), "cell_lines_alone": True}
    gene_facts = {} if jobs.genes is None else jobs.genes.settings()
    facts = {"markers": marker_facts, GENE_SETS: gene_facts, PATHWAYS: gene_facts}
    facts |= {} if drugs is None else {DRUG_RESPONSE: drugs.settings()}
    facts |= {} if knock_outs is None else {PERTURBATION: knock_outs.settings()}
    console = Console(stderr=True, quiet=not chosen.progress, highlight=False)

    def settings_of(task: str) -> dict[str, Any]:
        return chosen.of_task(task, facts)

    jobs.judge.say = console.print
    if CZ in wanted:
        jobs.judge.python()  # its environment is made before the cells are embedded
    given = [source for source in (cells, markers, gene_sets, drug_response) if isinstance(source, str | os.PathLike)]
    given += [str(named[name]) for name in files]
    with ExitStack() as stack:
        own = None
        if folder is not None:
            own = stack.enter_context(OutputFolder(folder, "evaluate", given, names=_file_names(folder, named)))
            if overwrite:
                own.clear()
        record = EvaluationRecord.open(folder, conditions | {"ontology": terms.metadata}, overwrite)
        record.begin({"tasks": wanted} | _plain_settings(chosen), jobs.split)
        genes = None if alone else evaluation_plots.MapGenes(data.cells, data.labels)
        runner = Runner(jobs, wanted, settings_of, record, console, genes, without_batches, asked or ())
        for name, source in named.items():
            if name in files:
                runner.file(files[name], name)
                continue
            model = source
            if not isinstance(model, EvaluatedModel):
                model = load_evaluated_model(model, name=name, batch_size=chosen.batch_size, device=chosen.device)
            runner.model(model, name)
            del model
        for name in BASELINES if with_baselines else ():
            runner.baseline(name)
        record.finish(time.perf_counter() - start)
        result = Evaluation(record, folder)
        if folder is not None and own is not None:
            _write(result, data, folder)
            own.finish()
    return result


def _file_names(folder: Path, models: Iterable[str]) -> list[str]:
    """Return the names of all files that this evaluation and an earlier one in the folder write."""
    given = set(models)
    every = {*given, *(name + HARMONY for name in given), *models_in(folder), *BASELINES}
    return [FILE, TABLE, FIGURE, *_pictures(every), *sorted(map(evaluation_plots.map_file, every))]


def _pictures(models: Iterable[str]) -> list[str]:
    return sorted(evaluation_plots.umap_file(name, by) for name in models for by in COLOURED_BY)


# -------------------------------------------------------------------- arguments


def _named(
    models: Sequence[str | Path | EvaluatedModel] | Mapping[str, str | Path],
) -> dict[str, str | Path | EvaluatedModel]:
    """Name models by the shortest distinct ends of their paths."""
    if isinstance(models, Mapping):
        named: dict[str, str | Path | EvaluatedModel] = dict(models)
    elif isinstance(models, str | os.PathLike):
        raise TypeError(f"models={str(models)!r} must be a list")
    else:
        named = {}
        paths = [str(m).rstrip("/").split("/") for m in models if not isinstance(m, EvaluatedModel)]
        for model in models:
            name = model.name if isinstance(model, EvaluatedModel) else _shortest_end(str(model), paths)
            if name in named:
                raise ValueError(f"two models have the name {name!r}: pass models as {{name: folder}}")
            named[name] = model
    taken = sorted(set(named) & set(BASELINES))
    if taken:
        raise ValueError(f"{taken[0]!r} is the name of a baseline: pass another name for the model")
    doubled = [name for name in named if name + HARMONY in named]
    if doubled:
        raise ValueError(f"{doubled[0] + HARMONY!r} is the name of {doubled[0]!r} without batches: pass another name")
    return named


def _shortest_end(path: str, paths: list[list[str]]) -> str:
    parts = path.rstrip("/").split("/")
    others = [p for p in paths if p != parts]
    least = next((n for n in range(1, len(parts)) if all(p[-n:] != parts[-n:] for p in others)), len(parts))
    return "/".join(parts[-least:])


def _judges(names: Iterable[str], data: LabelledCells, alone: bool) -> list[str]:
    """Return the judges, after a look at what they need."""
    judges = check_judges(names)
    if judges and (alone or (data.labels is None and data.batches is None)):
        raise ValueError(f"{judges[0]} needs cells with cell types or batches: pass cells with labels or batches")
    if SCIB in judges:
        check_scib()
    if CZ in judges and data.labels is None:
        raise ValueError(f"{CZ} needs cell types: pass the column of obs with the cell types (labels)")
    return judges


def _check_batches(data: LabelledCells) -> None:
    """Refuse to begin where Harmony cannot remove the batches."""
    if data.batches is None:
        raise ValueError("batches cannot be removed without batches: pass the column of obs with batches (batches)")
    check_harmony()
    check_batches(data.batches, str(data.batch_column), data.source)


def _tasks(
    tasks: Iterable[str] | None,
    data: LabelledCells,
    markers: Any,
    drugs: Any,
    cells: Any,
    gene_sets: Any,
    perturbations: str | None,
) -> list[str]:
    if tasks is None:
        if cells is None:
            return [DRUG_RESPONSE]
        missing = {
            "clustering": data.labels is None,
            "integration": data.batches is None,
            "annotation": data.labels is None,
            "novel": data.labels is None,
            RETRIEVAL: data.labels is None,
            "markers": data.labels is None or markers is None,
            GENE_SETS: gene_sets is None,
            PATHWAYS: gene_sets is None,
            PERTURBATION: perturbations is None,
            DRUG_RESPONSE: drugs is None,
        }
        chosen = [task for task in TASKS if not missing[task]]
        if not chosen:
            raise ValueError(
                f"{data.source} has no column of cell types: pass a column of obs as labels or batches; obs has "
                f"{', '.join(data.cells.obs.names) or 'none'}"
            )
        return chosen
    return check_tasks(tasks, markers, drugs, cells, gene_sets, perturbations)


def _markers(markers: Any, types: Mapping[str, str] | None) -> tuple[dict[str, list[str]] | None, dict[str, Any]]:
    if markers is None:
        return None, {}
    if isinstance(markers, Mapping):
        table = {str(name): list(genes) for name, genes in markers.items()}
        return table, {"marker_table": table, "marker_types": dict(types or {})}
    facts = {"marker_table": Path(markers).name, "marker_table_sha256": sha256(markers)}
    return read_marker_table(markers), facts | {"marker_types": dict(types or {})}


def _gene_sets(given: Any) -> dict[str, list[str]] | None:
    if given is None or isinstance(given, Mapping):
        return None if given is None else {str(name): [str(gene) for gene in genes] for name, genes in given.items()}
    return read_marker_table(given)


def _plain_settings(settings: Settings) -> dict[str, Any]:
    return {name: value if isinstance(value, int | float) else str(value) for name, value in vars(settings).items()}


def _write(result: Evaluation, data: LabelledCells, folder: Path) -> None:
    held = f"{data.cells.name}: {len(data):,} cells, {len(data.classes()):,} cell types"
    record = result.record
    if record.content["data"].get("cell_lines_alone"):
        held = f"{Path(record.content['data']['source']).name}: {len(data):,} cell lines"
    pictures = [name for name in _pictures(record.columns) if (folder / name).exists()]
    text = f"# Evaluation on {held}\n\n{result.table()}\n\n{record.summary()}\n\n![scores]({FIGURE})\n"
    maps = [name for name in map(evaluation_plots.map_file, record.columns) if (folder / name).exists()]
    if maps:
        text += f"\nMaps of the cells, to zoom, hover and colour: {', '.join(f'[{n}]({n})' for n in maps)}\n"
    text += "".join(f"\n![{name.removesuffix('.png')}]({name})\n" for name in pictures)
    write_text(folder / TABLE, text)
    with drawing(folder / FIGURE, shlex.split(record.content["command"])):
        figure = evaluation_plots.scores_plot(result.results, record.columns, list(BASELINES), held)
        plots.save_figure(figure, str(folder / FIGURE))


__all__ = ["Evaluation", "evaluate_models"]
