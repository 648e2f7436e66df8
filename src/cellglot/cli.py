"""The command line: ``cellglot --help``. Commands import what they need when they run."""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cellglot.outputs.caches import use_writable_caches


app = typer.Typer(
    name="cellglot",
    help="Single-cell language models: gene tokens from files of cells, pretraining, fine-tuning, embeddings.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Files = Annotated[list[Path], typer.Argument(help="Files of cells: .h5ad, .zarr, 10x .h5, 10x folder, .loom.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the result.")]
Layer = Annotated[str | None, typer.Option(help="Where the raw counts are: X, raw.X or a layer. Found by default.")]
GeneColumn = Annotated[
    str | None, typer.Option(help="Column of var that holds the genes' ids; 'index' for its index.")
]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a setting.")]
MinCoverage = Annotated[
    float | None, typer.Option(help="Least share of counts that the model's genes must cover; 0.5 by default.")
]
Dtype = Annotated[str | None, typer.Option(help="Of the weights: float32, bfloat16, float16; as stored by default.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist; never an input.")]
Device = Annotated[str | None, typer.Option(help="cuda, mps or cpu; by default the best there is.")]


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        import cellglot

        typer.echo(cellglot.__version__)
        raise typer.Exit


@app.command()
def tokenize(
    files: Files,
    output: Output,
    tokenizer: Annotated[str, typer.Option(help="exceiver or rank-value.")] = "exceiver",
    vocabulary: Annotated[
        Path | None, typer.Option(help="Folder of a tokenizer or model whose vocabulary to use; made anew by default.")
    ] = None,
    gene_table: Annotated[
        Path | None, typer.Option(help="Table of Ensembl ids, symbols and aliases, for files with symbols alone.")
    ] = None,
    genes: Annotated[Path | None, typer.Option(help="Text file with the only genes to keep, one a line.")] = None,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    rename: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN=NAME", help="Carry a column of obs under another name.")
    ] = None,
    obs_column: Annotated[list[str] | None, typer.Option(help="Carry a further column of obs.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Option of the tokenizer, e.g. total=vocabulary.")
    ] = None,
    validation_fraction: Annotated[float, typer.Option(help="Share of cells to hold out.")] = 0.1,
    test_fraction: Annotated[float, typer.Option(help="Share of cells for a final test.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the draw of held-out cells.")] = 0,
    processes: Annotated[int | None, typer.Option(help="At once; by default one for two processors.")] = None,
    skip_broken: Annotated[bool, typer.Option(help="Pass over files that cannot be used; they are named.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Begin anew, whatever is finished.")] = False,
) -> None:
    """Turn files of cells into token Parquet, with vocabulary and statistics. Goes on where it was stopped."""
    from cellglot.inputs import read_text
    from cellglot.tokenization.corpus.tokenize import tokenize_corpus

    corpus = tokenize_corpus(
        files,
        output,
        tokenizer=tokenizer,
        tokenizer_options={k: _value(v) for k, v in _pairs(option, "--option").items()},
        vocabulary=vocabulary,
        gene_table=gene_table,
        genes=None if genes is None else [g.strip() for g in read_text(genes).split("\n") if g.strip()],
        layer=layer,
        gene_column=gene_column,
        rename=_pairs(rename, "--rename"),
        obs_columns=obs_column or [],
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
        seed=seed,
        processes=processes,
        skip_broken=skip_broken,
        overwrite=overwrite,
    )
    typer.echo(corpus.summary())


@app.command()
def pretrain(
    config: Annotated[Path, typer.Option(help="YAML file; those that come with cellglot are found by name.")],
    corpus: Annotated[Path, typer.Option(help="Folder that cellglot tokenize made.")],
    output: Output,
    set_: Set = None,
    resume: Annotated[
        bool, typer.Option(help="Resume from the last checkpoint of the same run, if there is one.")
    ] = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete what an earlier run wrote there, and start from the beginning.")
    ] = False,
) -> None:
    """Pretrain a model. On several GPUs: accelerate launch -m cellglot.training.pretrain with the same options."""
    from cellglot.training.config import load_config
    from cellglot.training.pretraining.pretrain import pretrain as run

    _print_metrics(run(load_config(config, set_ or []), corpus, output, resume=resume, overwrite=overwrite))


@app.command()
def finetune(
    output: Output,
    model: Annotated[
        str | None, typer.Argument(help="Folder or repository of a pretrained model; a new one by default.")
    ] = None,
    cells: Annotated[list[Path] | None, typer.Option(help="File of labelled cells.")] = None,
    corpus: Annotated[Path | None, typer.Option(help="Or a corpus tokenized with the model's vocabulary.")] = None,
    task: Annotated[
        str, typer.Option(help="cell-type (any class of cells), gene (classes of genes) or regression (a value).")
    ] = "cell-type",
    method: Annotated[
        str, typer.Option(help="full (all weights learn), probe (the head alone), or an adapter: lora, dora, ia3.")
    ] = "full",
    labels: Annotated[str, typer.Option(help="Column that holds the classes or values.")] = "cell_type",
    gene_labels: Annotated[
        Path | None, typer.Option(help="For genes: table with genes in the first column, classes in the second.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML file, or the name of one that comes with cellglot; by default that of model and method."
        ),
    ] = None,
    few_shot: Annotated[
        int | None,
        typer.Option(help="LangCell: learn from so many cells of each class, by the texts of the classes."),
    ] = None,
    set_: Set = None,
    resume: Annotated[
        bool, typer.Option(help="Resume from the last checkpoint of the same run, if there is one.")
    ] = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete what an earlier run wrote there, and start from the beginning.")
    ] = False,
) -> None:
    """Fine-tune a model, or train an adapter, on labels of cells or genes; or a LangCell on few cells, by texts."""
    from cellglot.training.config import load_config
    from cellglot.training.families.records import family_of
    from cellglot.training.finetuning.few_shot import few_shot_on
    from cellglot.training.finetuning.finetune import config_name, finetune_on

    if (corpus is None) == (not cells):
        raise ValueError("pass labelled cells by --cells, or their tokens by --corpus")
    if model is None and (config is None or few_shot is not None):
        raise ValueError("name a pretrained model, or the --config of a new one")
    model = None if model is None else _model(model)
    if few_shot is not None and model is not None:
        if (task, method, gene_labels) != ("cell-type", "full", None):
            raise ValueError(
                "--few-shot trains both encoders on cell types: leave --task, --method, --gene-labels out"
            )
        settings = load_config(config or "langcell_few_shot.yaml", set_ or [])
        of_run: dict[str, Any] = {"label_column": labels, "resume": resume, "overwrite": overwrite}
        _print_metrics(few_shot_on(settings, model, cells, corpus, output, few_shot, **of_run))
        return
    settings = load_config(config or config_name(family_of(model).name, method), set_ or [])
    options = {
        "task": task, "method": method, "label_column": labels, "gene_labels": gene_labels, "resume": resume,
        "overwrite": overwrite,
    }  # fmt: skip
    _print_metrics(finetune_on(settings, model, cells, corpus, output, **options))


@app.command()
def embed(
    model: Annotated[str, typer.Argument(help="Folder or repository of a model.")],
    cells: Annotated[Path, typer.Argument(help="File of cells.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write: .h5ad, .parquet or .npy.")],
    plot: Annotated[Path | None, typer.Option(help="Also draw a UMAP: .png, .svg or .pdf.")] = None,
    color: Annotated[str | None, typer.Option(help="Column of obs to colour the plot by.")] = None,
    batch_size: Annotated[int, typer.Option(help="Cells at once.")] = 64,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    min_coverage: Annotated[
        float | None, typer.Option(help="Least share of counts that the model's genes must cover; 0.5 by default.")
    ] = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Embed cells, and draw them."""
    from cellglot.evaluation.embed_file import embed_file

    report = embed_file(
        _model(model),
        cells,
        output,
        plot=plot,
        color=color,
        batch_size=batch_size,
        layer=layer,
        gene_column=gene_column,
        min_coverage=min_coverage,
        device=device,
        overwrite=overwrite,
    )
    typer.echo(report)


@app.command()
def annotate(
    model: Annotated[str, typer.Argument(help="Folder or repository of a LangCell model, classifier or adapter.")],
    cells: Annotated[Path, typer.Argument(help="File of cells.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the annotated cells: .h5ad.")],
    adapter: Annotated[
        str | None, typer.Option(help="Folder or repository of an adapter that was trained on the model.")
    ] = None,
    candidates: Annotated[
        list[str] | None,
        typer.Option(help="Cell types by name, id or synonym, between commas; others stand for themselves."),
    ] = None,
    candidates_file: Annotated[
        Path | None, typer.Option(help="Or one a line; or .json with class -> text, or several texts.")
    ] = None,
    ontology_branch: Annotated[
        str | None, typer.Option(help="All cell types below this one are candidates, e.g. leukocyte.")
    ] = None,
    leaves_only: Annotated[bool, typer.Option("--leaves-only", help="Of the branch only types without subtypes.")] = (
        False
    ),
    in_corpus: Annotated[
        Path | None, typer.Option(help="Of the branch only types that a tokenized corpus has training cells of.")
    ] = None,
    ontology: Annotated[
        str, typer.Option(help="blood (comes with cellglot), a release's date such as 2024-04-05, or a file.")
    ] = "blood",
    template: Annotated[
        list[str] | None,
        typer.Option(
            help="Text of a type, of {name}, {definition}, {synonyms}, {parents}, {id}; several are averaged."
        ),
    ] = None,
    alpha: Annotated[float, typer.Option(help="Weight of similarity; the rest is that of matching.")] = 0.1,
    shortlist: Annotated[
        int | None, typer.Option(help="Match a cell only with so many types, those of the highest similarity.")
    ] = None,
    smooth: Annotated[
        int | None, typer.Option(help="Average scores over a cell and so many neighbours by embedding.")
    ] = None,
    back_off_below: Annotated[
        float | None, typer.Option(help="Predict a parent type where the best gathers a smaller share, e.g. 0.5.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="Column of obs with labels of some cells, by which scores are calibrated.")
    ] = None,
    table: Annotated[Path | None, typer.Option(help="Also write a table: .csv, .tsv or .parquet.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw a UMAP: .png, .svg or .pdf.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Cells at once; 16 with texts, 64 with classes by default.")
    ] = None,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    min_coverage: MinCoverage = None,
    dtype: Dtype = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Annotate cells: by the classes of a trained head, or of an adapter; or by texts of types never trained on."""
    from cellglot.outputs import check_files

    read = [cells, model, adapter, candidates_file, in_corpus, ontology]
    check_files([output, table, plot], read, overwrite=overwrite)
    from cellglot.evaluation.annotation.by_classifier import has_classes, reads_texts
    from cellglot.evaluation.annotation.file import annotate_file

    asked = {
        "--candidates": candidates, "--candidates-file": candidates_file, "--ontology-branch": ontology_branch,
        "--leaves-only": leaves_only, "--in-corpus": in_corpus, "--template": template, "--alpha": alpha != 0.1,
        "--shortlist": shortlist, "--smooth": smooth, "--back-off-below": back_off_below, "--labels": labels,
    }  # fmt: skip
    given, options = [name for name, value in asked.items() if value], {}
    with_classes = adapter is not None or has_classes(_model(model))
    if with_classes and given:
        raise ValueError(
            f"{adapter or model} predicts its own classes: {', '.join(given)} are for LangCell models and texts"
        )
    chosen = None
    if not with_classes and (given or reads_texts(model)):
        chosen = _candidates(
            candidates or [], candidates_file, ontology_branch, leaves_only, in_corpus, ontology, template
        )
        options = {
            "alpha": alpha, "shortlist": shortlist, "smooth": smooth, "back_off_below": back_off_below,
            "labels": labels,
        }  # fmt: skip
    report = annotate_file(
        _model(model),
        cells,
        output,
        chosen,
        adapter=adapter,
        table=table,
        plot=plot,
        batch_size=batch_size or (64 if chosen is None else 16),
        layer=layer,
        gene_column=gene_column,
        min_coverage=min_coverage,
        dtype=_dtype(dtype),
        device=device,
        overwrite=overwrite,
        **options,
    )
    typer.echo(report)


def _candidates(
    names: list[str],
    file: Path | None,
    branch: str | None,
    leaves_only: bool,
    in_corpus: Path | None,
    ontology: str,
    template: list[str] | None,
) -> Any:
    from cellglot.tokenization.ontology.candidates import make_candidates, read_candidates, split_candidates
    from cellglot.training.data.cell_types import open_ontology

    if names and file:
        raise ValueError("pass candidates by --candidates or by --candidates-file, not by both")
    terms = open_ontology(ontology)
    options: dict[str, Any] = {"template": template} if template else {}
    if in_corpus is not None:
        options["among"] = _corpus_types(in_corpus, terms)
    given: Any = read_candidates(file) if file else [name for text in names for name in split_candidates(text, terms)]
    return make_candidates(given, terms, branch=branch, leaves_only=leaves_only, **options)


@app.command()
def query(
    model: Annotated[str, typer.Argument(help="Folder or repository of a LangCell model.")],
    cells: Annotated[Path, typer.Argument(help="Embeddings that cellglot embed or annotate wrote, or cells.")],
    text: Annotated[str, typer.Argument(help="Sentence that describes the cells to find.")],
    top: Annotated[int, typer.Option(help="Cells to show.")] = 10,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the cells with all scores in obs: .h5ad.")
    ] = None,
    table: Annotated[Path | None, typer.Option(help="Write the best cells: .csv, .tsv or .parquet.")] = None,
    batch_size: Annotated[int, typer.Option(help="Cells at once.")] = 64,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    min_coverage: MinCoverage = None,
    dtype: Dtype = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Find the cells that a sentence describes best."""
    from cellglot.evaluation.search.file import query_file

    report = query_file(
        _model(model),
        cells,
        text,
        top=top,
        output=output,
        table=table,
        batch_size=batch_size,
        layer=layer,
        gene_column=gene_column,
        min_coverage=min_coverage,
        dtype=_dtype(dtype),
        device=device,
        overwrite=overwrite,
    )
    typer.echo(report)


@app.command()
def evaluate(
    models: Annotated[
        list[str], typer.Argument(help="Folders or repositories of models, classifiers, adapters; or NAME=FOLDER.")
    ],
    cells: Annotated[Path, typer.Option(help="File of cells.")],
    output: Output,
    tasks: Annotated[
        str | None,
        typer.Option(help="Of clustering,integration,annotation,novel,markers; by default all that can be done."),
    ] = None,
    labels: Annotated[str | None, typer.Option(help="Column of obs with cell types; cell_type by default.")] = None,
    batches: Annotated[str | None, typer.Option(help="Column of obs with batches.")] = None,
    donors: Annotated[
        str | None, typer.Option(help="Column of obs with donors or data sets that are not split.")
    ] = None,
    markers: Annotated[Path | None, typer.Option(help="Table of marker genes: .tsv, .csv or .gmt.")] = None,
    marker_type: Annotated[
        list[str] | None, typer.Option(metavar="LABEL=TYPE", help="Which cell type of the table a label is.")
    ] = None,
    ontology: Annotated[
        str, typer.Option(help="blood (comes with cellglot), a release's date such as 2024-04-05, or a file.")
    ] = "blood",
    baselines: Annotated[bool, typer.Option(help="Put plain baselines in the same table.")] = True,
    seed: Annotated[int, typer.Option(help="Of everything drawn.")] = 0,
    test_fraction: Annotated[float, typer.Option(help="Share of cells (donors) to score annotation on.")] = 0.25,
    shots: Annotated[int, typer.Option(help="Cells of each class for few-shot annotation.")] = 10,
    marker_cells: Annotated[int, typer.Option(help="Cells whose genes are masked one at a time.")] = 50,
    batch_size: Annotated[int, typer.Option(help="Cells at once.")] = 64,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    min_coverage: MinCoverage = None,
    device: Device = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew, whatever is finished.")] = False,
) -> None:
    """Evaluate models beside plain baselines: one JSON, one table, pictures. Goes on where it was stopped."""
    from cellglot.evaluation.benchmark.evaluate import evaluate_models
    from cellglot.training.data.cell_types import open_ontology

    done = evaluate_models(
        _named_models(models),
        cells,
        None if tasks is None else tasks.split(","),
        labels=labels,
        batches=batches,
        donors=donors,
        markers=markers,
        marker_types=_pairs(marker_type, "--marker-type"),
        ontology=open_ontology(ontology),
        with_baselines=baselines,
        output=output,
        overwrite=overwrite,
        layer=layer,
        gene_column=gene_column,
        min_coverage=min_coverage,
        seed=seed,
        test_fraction=test_fraction,
        shots=shots,
        marker_cells=marker_cells,
        batch_size=batch_size,
        device=device,
    )
    typer.echo(f"{done.table()}\n\n{done.record.summary()}\n\n{output}")


def _named_models(given: list[str]) -> Any:
    """Return models by the names that are given before ``=``; without any, as a list that names itself."""
    pairs = [(text.split("=", 1) if "=" in text and not Path(text).exists() else ["", text]) for text in given]
    if not any(name for name, _ in pairs):
        return given
    return {name or Path(source).name: source for name, source in pairs}


def _dtype(name: str | None) -> str | None:
    if name not in (None, "float32", "bfloat16", "float16"):
        raise ValueError(f"--dtype {name!r}: it is float32, bfloat16 or float16")
    return name


def _corpus_types(folder: Path, ontology: Any) -> list[str]:
    from cellglot.tokenization.corpus.corpus import Corpus
    from cellglot.training.data.cell_types import cell_types_of

    tables = cell_types_of(Corpus.open(folder), ontology).tables
    return [] if tables is None else tables.cell_types


@app.command()
def convert(
    system: Annotated[str, typer.Argument(help="exceiver, sccello or langcell.")],
    checkpoint: Annotated[Path, typer.Argument(help="Released file (exceiver) or folder (sccello, langcell).")],
    output: Output,
    token_dictionary: Annotated[
        Path | None, typer.Option(help="scCello, LangCell: released dictionary of tokens, a pickle.")
    ] = None,
    gene_medians: Annotated[
        Path | None, typer.Option(help="scCello, LangCell: released dictionary of the genes' medians, a pickle.")
    ] = None,
    cell_types: Annotated[
        Path | None,
        typer.Option(help="scCello: Cell Ontology ids and their rows, .json or a released pickle."),
    ] = None,
    text_tokenizer: Annotated[
        str | None,
        typer.Option(help="LangCell: folder or repository of the tokenizer of texts; PubMedBERT's as released."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert a released checkpoint into a folder that from_pretrained loads."""
    if system not in ("exceiver", "sccello", "langcell"):
        raise ValueError(f"system {system!r}: exceiver, sccello and langcell are what can be converted")
    if text_tokenizer and system != "langcell":
        raise ValueError("--text-tokenizer is for langcell")
    if system == "langcell" and cell_types:
        raise ValueError("--cell-types is for sccello")
    if system == "exceiver" and (token_dictionary or gene_medians or cell_types):
        raise ValueError("--token-dictionary, --gene-medians and --cell-types are not for exceiver")
    from cellglot.outputs import OutputFolder

    read = [checkpoint, token_dictionary, gene_medians, cell_types, text_tokenizer]
    with OutputFolder(output, "convert", read) as folder:
        folder.refuse_earlier(overwrite)
        if system == "langcell":
            report = _convert_langcell(checkpoint, output, token_dictionary, gene_medians, text_tokenizer)
        elif system == "sccello":
            report = _convert_sccello(checkpoint, output, token_dictionary, gene_medians, cell_types)
        else:
            report = _convert_exceiver(checkpoint, output)
        folder.finish()
    typer.echo(report)


def _convert_exceiver(checkpoint: Path, output: Path) -> str:
    from cellglot.modeling.convert import exceiver as convert_exceiver
    from cellglot.modeling.model_files import check_finite
    from cellglot.tokenization.genes.placeholder_genes import placeholder_tokenizer

    model = convert_exceiver.convert(*convert_exceiver.read_checkpoint(checkpoint))
    check_finite(str(checkpoint), model)
    convert_exceiver.save_converted(model, output)
    placeholder_tokenizer(model.config.num_genes).save_pretrained(output)
    return (
        f"{type(model).__name__} in {output}. Its rows cannot be tied to genes: neither the order of the genes nor "
        "their means and standard deviations were published."
    )


def _convert_sccello(
    checkpoint: Path, output: Path, token_dictionary: Path | None, gene_medians: Path | None, cell_types: Path | None
) -> str:
    from cellglot.inputs import read_json
    from cellglot.modeling.convert import sccello as convert_sccello
    from cellglot.modeling.model_files import check_finite
    from cellglot.tokenization import GeneVocabulary, RankValueTokenizer
    from cellglot.tokenization.gene_vocabulary import read_released_dictionary

    if (token_dictionary is None) != (gene_medians is None):
        raise ValueError("a tokenizer needs both --token-dictionary and --gene-medians")
    rows = None
    if cell_types is not None:
        is_json = cell_types.suffix == ".json"
        given = read_json(cell_types) if is_json else read_released_dictionary(cell_types)
        rows = {str(name): int(row) for name, row in given.items()}
    model = convert_sccello.convert(*convert_sccello.read_checkpoint(checkpoint), cell_types=rows)
    check_finite(str(checkpoint), model)
    config, tokenizer = model.config, None
    if token_dictionary is not None:
        vocabulary = GeneVocabulary.from_released(token_dictionary, gene_medians)
        tokenizer = RankValueTokenizer.from_vocabulary(
            vocabulary, total="vocabulary", model_max_length=config.max_position_embeddings
        )
        if tokenizer.vocab_size != config.vocab_size:
            raise ValueError(
                f"{token_dictionary} gives {tokenizer.vocab_size:,} tokens, but the checkpoint has "
                f"vocab_size={config.vocab_size:,}"
            )
    convert_sccello.save_converted(model, output)
    report = f"{type(model).__name__} in {output}; {len(rows or ()):,} of {config.num_cell_types:,} cell types named."
    if tokenizer is None:
        return f"{report} No tokenizer written: pass --token-dictionary and --gene-medians for one."
    tokenizer.save_pretrained(output)
    return f"{report} Tokenizer of {config.num_genes:,} genes."


def _convert_langcell(
    checkpoint: Path,
    output: Path,
    token_dictionary: Path | None,
    gene_medians: Path | None,
    text_tokenizer: str | None,
) -> str:
    from cellglot.modeling.convert import langcell as convert_langcell
    from cellglot.modeling.loading import load_tokenizer
    from cellglot.modeling.model_files import check_finite
    from cellglot.tokenization import GeneVocabulary, LangCellProcessor, RankValueTokenizer

    given = (token_dictionary, gene_medians, text_tokenizer)
    if any(given) and not all(given):
        raise ValueError("a processor needs all of --token-dictionary, --gene-medians and --text-tokenizer")
    model = convert_langcell.convert(*convert_langcell.read_checkpoint(checkpoint))
    check_finite(str(checkpoint), model)
    report = f"{type(model).__name__} in {output}."
    if not all(given):
        convert_langcell.save_converted(model, output)
        return (
            f"{report} No processor written: pass --token-dictionary, --gene-medians and --text-tokenizer for one "
            "(as released: microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract)."
        )
    texts, config = load_tokenizer(str(text_tokenizer)), model.config
    if len(texts) == config.text_config.vocab_size - 2:  # the release adds two tokens to PubMedBERT's
        texts.add_special_tokens({"bos_token": "[DEC]"})
        texts.add_tokens(["[ENC]"], special_tokens=True)
    genes = RankValueTokenizer.from_vocabulary(
        GeneVocabulary.from_released(token_dictionary, gene_medians),
        model_max_length=config.cell_config.max_position_embeddings,
    )
    for kind, found, size in (
        ("--token-dictionary", genes.vocab_size, config.vocab_size),
        ("--text-tokenizer", len(texts), config.text_config.vocab_size),
    ):
        if found != size:
            raise ValueError(f"{kind} gives {found:,} tokens, but the checkpoint has {size:,}")
    convert_langcell.save_converted(model, output)
    LangCellProcessor(genes, texts).save_pretrained(output)
    return f"{report} Tokenizers of {config.vocab_size - 3:,} genes and {len(texts):,} words."


@app.command()
def publish(
    folder: Annotated[Path, typer.Argument(help="Of a model, an adapter, token data or a metric.")],
    repo: Annotated[str | None, typer.Argument(help="Repository on the Hub, owner/name.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to a folder, to look at.")] = None,
    license: Annotated[str | None, typer.Option(help="The Hub's identifier, such as apache-2.0.")] = None,
    training_data: Annotated[str | None, typer.Option(help="Where the cells come from, in a sentence.")] = None,
    training_data_license: Annotated[str | None, typer.Option(help="Terms of the cells.")] = None,
    dataset: Annotated[list[str] | None, typer.Option(help="Data set on the Hub that the cells come from.")] = None,
    base_model: Annotated[str | None, typer.Option(help="Repository of the model that was fine-tuned.")] = None,
    base: Annotated[
        str | None, typer.Option(help="Folder of an adapter's base model; by default the one that it names.")
    ] = None,
    ontology_release: Annotated[str | None, typer.Option(help="Of the Cell Ontology, if it is not recorded.")] = None,
    title: Annotated[str | None, typer.Option(help="Heading of the card.")] = None,
    card: Annotated[Path | None, typer.Option(help="YAML with more; by default card.yaml in the folder.")] = None,
    evaluation: Annotated[Path | None, typer.Option(help="JSON of cellglot evaluate.")] = None,
    cells: Annotated[Path | None, typer.Option(help="File of cells for the examples; blood by default.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Let everybody see a new repository.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files that are there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and list the files, no more.")] = False,
) -> None:
    """Publish with a card, after a process without cellglot gave the same numbers. Private by default."""
    from cellglot.model_cards.card.details import read_details
    from cellglot.model_cards.publishing import publish as run

    details = read_details(
        folder,
        card,
        license=license,
        training_data=training_data,
        training_data_license=training_data_license,
        datasets=dataset,
        base_model=base_model,
        ontology_release=ontology_release,
        title=title,
    )
    done = run(
        folder,
        repo,
        output=output,
        details=details,
        evaluation=evaluation,
        cells=cells,
        base=base,
        private=not public,
        overwrite=overwrite,
        dry_run=dry_run,
    )
    typer.echo(done.summary())


@app.command()
def demo(
    cells: Annotated[Path | None, typer.Option(help="File of cells; by default 700 blood cells from scanpy.")] = None,
    labels: Annotated[str | None, typer.Option(help="Column of obs that holds the classes.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the result.")] = Path("demo_output"),
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of the training.")] = False,
    seed: Annotated[int, typer.Option(help="Of everything drawn.")] = 0,
) -> None:
    """Go the whole way on real cells: audit, tokens, pretraining, fine-tuning, evaluation, cards, report."""
    import functools

    from cellglot.demo.cards import publish_demo_model
    from cellglot.demo.demo import Demo

    if cells is not None and labels is None:
        raise ValueError("name the column of obs that holds the classes: --labels COLUMN")
    publisher = functools.partial(publish_demo_model, source=None if cells is None else cells.name)
    Demo(cells, labels or "bulk_labels", output, quick, seed, publisher).run()


def _model(name: str) -> str:
    """Return the folder or repository of a model; one that does not exist or holds no model is named in one line."""
    from cellglot.modeling.model_files import check_model_folder

    if Path(name).is_dir():
        if not Path(name, "config.json").exists():
            raise ValueError(f"{name} holds no config.json: it is no folder of a model")
        check_model_folder(name)
        return name
    if name.count("/") != 1:
        raise ValueError(f"{name} is no folder, and no repository of the Hub (owner/name)")
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(name, "config.json")
    except (OSError, ValueError) as error:
        first = str(error).strip().split("\n")[0]
        raise ValueError(f"{name} is no folder, and no repository that can be reached: {first}") from error
    return name


def _pairs(given: list[str] | None, name: str) -> dict[str, str]:
    pairs = {}
    for text in given or []:
        key, separator, value = text.partition("=")
        if not separator:
            raise ValueError(f"{name} {text!r}: write it as KEY=VALUE")
        pairs[key] = value
    return pairs


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _print_metrics(metrics: dict[str, float]) -> None:
    for name, value in metrics.items():
        typer.echo(f"{name}: {value:.4f}")


def main() -> None:
    """Run the command line; errors in what was given are one message, not a trace.

    With ``CELLGLOT_DEBUG=1`` in the environment the trace is shown.
    """
    from cellglot.outputs import exit_on_sigterm

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    use_writable_caches()
    exit_on_sigterm()
    try:
        app(prog_name="cellglot")
    except Exception as error:
        from cellglot.inputs.errors import message_of

        message = message_of(error)
        if message is None or os.environ.get("CELLGLOT_DEBUG", "0") not in ("", "0"):
            raise
        typer.secho(f"error: {message}", fg="red", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
