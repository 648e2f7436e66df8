"""The command line: ``cellglot --help``. It parses and prints; what a command does is the verb of the same name."""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import cellglot
from cellglot.lists import split_list, split_pairs, split_paths, split_settings, to_dict
from cellglot.outputs.caches import use_writable_caches


app = typer.Typer(
    name="cellglot",
    help="Single-cell language models: tokens, pretraining, fine-tuning, embeddings, cell types.",
    epilog=(
        "Options that take several values take them between commas (--tasks clustering,markers), or are repeated "
        "(--tasks clustering --tasks markers). Put a name that contains a comma in double quotes: "
        "--obs-column '\"age, years\",sex'."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# -------------------------------------------------------------------- options of several commands

Sources = Annotated[
    list[str],
    typer.Argument(
        help="Files of cells: .h5ad, .zarr, 10x .h5, 10x folder, .loom; a folder of them; a SOMA experiment or its "
        "address; census:VERSION for CELLxGENE Census."
    ),
]
Cells = Annotated[Path, typer.Argument(help="File of cells: .h5ad, .zarr, 10x .h5, 10x folder, .loom.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the result.")]
Layer = Annotated[str | None, typer.Option(help="Where the raw counts are: X, raw.X or a layer; found by default.")]
GeneColumn = Annotated[
    str | None, typer.Option(help="Column of var with the ids of genes, or 'index' for its index; found by default.")
]
MinCoverage = Annotated[
    float | None,
    typer.Option(help="Smallest share of the counts that the model's genes have to cover; 0.5 by default."),
]
Dtype = Annotated[
    str | None, typer.Option(help="Type of the weights: float32, bfloat16 or float16; as stored by default.")
]
Device = Annotated[str | None, typer.Option(help="cuda, mps or cpu; by default the fastest that there is.")]
Backend = Annotated[
    str,
    typer.Option(help="torch; or onnx: onnxruntime computes a model that cellglot export wrote, on the CPU."),
]
BatchSize = Annotated[int, typer.Option(help="Number of cells that are computed at once.")]
Ontology = Annotated[
    str,
    typer.Option(
        help="shipped (the Cell Ontology, comes with cellglot), guide (with definitions of cellxgene-ontology-guide), "
        "blood (72 types), the date of a release such as 2024-04-05, or an OBO or OWL file."
    ),
]
Species = Annotated[
    str | None,
    typer.Option(
        help="mouse: genes are read as their human one-to-one orthologs; other: names are taken as they are, for a "
        "vocabulary of another species. Human by default."
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace results that exist. An input is never replaced.")
]
Restart = Annotated[
    bool, typer.Option("--overwrite", help="Delete what an earlier run wrote there, and start from the beginning.")
]
Resume = Annotated[bool, typer.Option(help="Resume from the last checkpoint of the same run, if there is one.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Change a setting of the configuration; several: between commas, or repeated.",
    ),
]
Picture = Annotated[
    Path | None,
    typer.Option("--plot", "--umap", help="Also draw a UMAP: .html (to zoom, hover and colour), .png, .svg or .pdf."),
]


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(cellglot.__version__)
        raise typer.Exit


# -------------------------------------------------------------------- commands


@app.command()
def tokenize(
    files: Sources,
    output: Output,
    tokenizer: Annotated[
        str, typer.Option(help="Kind of tokens: exceiver, or rank-value for scCello and LangCell.")
    ] = "exceiver",
    vocabulary: Annotated[
        Path | None, typer.Option(help="Folder of a tokenizer or model whose vocabulary to use; by default a new one.")
    ] = None,
    gene_table: Annotated[
        Path | None, typer.Option(help="Table of Ensembl ids, symbols and aliases, for files with symbols only.")
    ] = None,
    genes: Annotated[Path | None, typer.Option(help="Text file with the only genes to keep, one a line.")] = None,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    species: Species = None,
    filter_: Annotated[
        str | None,
        typer.Option(
            "--filter",
            help='Which cells to read, by columns of obs: \'tissue == "lung" and not ("cancer" in disease)\'.',
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="Cells that a model was pretrained on: sccello (human, primary, 10x, not cancer)."),
    ] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=NAME",
            help="Carry a column of obs under another name; several: between commas, or repeated.",
        ),
    ] = None,
    obs_column: Annotated[
        list[str] | None, typer.Option(help="Carry a further column of obs; several: between commas, or repeated.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Option of the tokenizer, such as total=vocabulary; several: between commas, or repeated.",
        ),
    ] = None,
    validation_fraction: Annotated[
        float, typer.Option(help="Share of the cells to hold out, for evaluation in training.")
    ] = 0.1,
    test_fraction: Annotated[float, typer.Option(help="Share of the cells to hold out, for a final test.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the draw of held-out cells, and of shuffling.")] = 0,
    shuffle: Annotated[
        bool, typer.Option(help="Shuffle the written cells in a third pass, for corpora larger than memory.")
    ] = False,
    processes: Annotated[
        int | None, typer.Option(help="Number of processes; by default one for two processors.")
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Compute on a Dask cluster: local, local:N for N processes, or the address of a scheduler, such as "
            "tcp://10.0.0.1:8786.",
        ),
    ] = None,
    skip_broken: Annotated[bool, typer.Option(help="Leave out files that cannot be used, and name them.")] = False,
    overwrite: Restart = False,
) -> None:
    """Turn files of cells into token Parquet, with vocabulary and statistics. Resumes a run that was stopped."""
    corpus = cellglot.tokenize(
        files,
        output,
        tokenizer=tokenizer,
        tokenizer_options={key: _value(text) for key, text in _pairs(option, "--option").items()},
        vocabulary=vocabulary,
        gene_table=gene_table,
        genes=genes,
        layer=layer,
        gene_column=gene_column,
        species=species,
        filter=filter_,
        preset=preset,
        rename=_pairs(rename, "--rename"),
        obs_columns=_names(obs_column),
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
        seed=seed,
        shuffle=shuffle,
        processes=processes,
        cluster=cluster,
        skip_broken=skip_broken,
        overwrite=overwrite,
    )
    _say(corpus.summary())


@app.command()
def pretrain(
    config: Annotated[str, typer.Option(help="YAML file, or the name of one that ships with cellglot.")],
    output: Output,
    corpus: Annotated[
        str | None, typer.Option(help="Folder that cellglot tokenize wrote, or its address: hf://datasets/OWNER/NAME.")
    ] = None,
    cells: Annotated[
        list[Path] | None,
        typer.Option(help="Or files of cells, which are tokenized first; several: between commas, or repeated."),
    ] = None,
    set_: Set = None,
    resume: Resume = True,
    overwrite: Restart = False,
) -> None:
    """Pretrain a model. On several GPUs: accelerate launch -m cellglot pretrain with the same options."""
    _print_metrics(
        cellglot.pretrain(
            _cells_or_corpus(cells, corpus),
            config,
            output,
            settings=_settings(set_),
            resume=resume,
            overwrite=overwrite,
        )
    )


@app.command()
def finetune(
    output: Output,
    model: Annotated[
        str | None, typer.Argument(help="Folder or repository of a pretrained model; a new one by default.")
    ] = None,
    cells: Annotated[
        list[Path] | None, typer.Option(help="Files of labelled cells; several: between commas, or repeated.")
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option(help="Or a folder that cellglot tokenize wrote with the model's vocabulary.")
    ] = None,
    task: Annotated[
        str,
        typer.Option(
            help="cell-type (any classes of cells), multi-label (labels between |), gene (classes of genes) or "
            "regression (a value)."
        ),
    ] = "cell-type",
    method: Annotated[
        str, typer.Option(help="full (all weights learn), probe (only the head), or an adapter: lora, dora, ia3.")
    ] = "full",
    labels: Annotated[str, typer.Option(help="Column of obs with the classes or values.")] = "cell_type",
    gene_labels: Annotated[
        Path | None, typer.Option(help="For genes: table with genes in the first column, classes in the second.")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            help="YAML file, or the name of one that ships with cellglot; by default that of model and method."
        ),
    ] = None,
    few_shot: Annotated[
        int | None,
        typer.Option(help="LangCell: learn from this number of cells of each class, by the texts of the classes."),
    ] = None,
    set_: Set = None,
    resume: Resume = True,
    overwrite: Restart = False,
) -> None:
    """Fine-tune a model, or train an adapter, on labels of cells or genes; or a LangCell on few cells, by texts."""
    _print_metrics(
        cellglot.finetune(
            _cells_or_corpus(cells, corpus),
            model,
            output,
            task=task,
            method=method,
            labels=labels,
            gene_labels=gene_labels,
            config=config,
            few_shot=few_shot,
            settings=_settings(set_),
            resume=resume,
            overwrite=overwrite,
        )
    )


@app.command()
def embed(
    model: Annotated[str, typer.Argument(help="Folder or repository of a model, a classifier or an adapter.")],
    cells: Cells,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write: .h5ad, .parquet or .npy.")],
    plot: Picture = None,
    color: Annotated[
        str | None, typer.Option(help="Column of obs that colours the picture; cell types by default.")
    ] = None,
    remove_batch: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column of obs with batches, which Harmony removes from the embeddings."),
    ] = None,
    min_genes: Annotated[
        int | None,
        typer.Option(help="Leave out cells that express fewer genes; scFM-Bench leaves out those below 25."),
    ] = None,
    batch_size: BatchSize = 64,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    species: Species = None,
    min_coverage: MinCoverage = None,
    dtype: Dtype = None,
    device: Device = None,
    backend: Backend = "torch",
    overwrite: Overwrite = False,
) -> None:
    """Embed cells, and draw them."""
    report = cellglot.embed(
        cells,
        model,
        output=output,
        plot=plot,
        color=color,
        remove_batch=remove_batch,
        min_genes=min_genes,
        batch_size=batch_size,
        layer=layer,
        gene_column=gene_column,
        species=species,
        min_coverage=min_coverage,
        dtype=dtype,
        device=device,
        backend=backend,
        overwrite=overwrite,
    )
    _say(report)


@app.command()
def annotate(
    model_and_cells: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL] CELLS",
            help="Name (see cellglot models), folder or repository of a classifier, adapter or LangCell model, by "
            "default the classifier of blood that ships with cellglot; and a file of cells: .h5ad, .zarr, 10x .h5, "
            "10x folder, .loom.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Where to write the annotated cells: .h5ad; by default CELLS_annotated.h5ad here."
        ),
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(help="Folder or repository of an adapter that was trained on the model.")
    ] = None,
    candidates: Annotated[
        list[str] | None,
        typer.Option(
            help="Cell types by name, id or synonym, between commas or repeated; one that the ontology does not know "
            "is its own text."
        ),
    ] = None,
    candidates_file: Annotated[
        Path | None, typer.Option(help="Or a file with one a line; or .json with class -> text, or several texts.")
    ] = None,
    ontology_branch: Annotated[
        str | None, typer.Option(help="All cell types below this one are candidates, e.g. leukocyte.")
    ] = None,
    leaves_only: Annotated[
        bool, typer.Option("--leaves-only", help="Of the branch only types without subtypes.")
    ] = False,
    in_corpus: Annotated[
        Path | None, typer.Option(help="Of the branch only types that a tokenized corpus has training cells of.")
    ] = None,
    ontology: Ontology = "shipped",
    template: Annotated[
        list[str] | None,
        typer.Option(
            help="Text of a type, with {name}, {definition}, {synonyms}, {parents}, {id}. Repeat it for several, "
            "which are averaged; commas belong to the text."
        ),
    ] = None,
    alpha: Annotated[
        float, typer.Option(help="Weight of the similarity of embeddings; the rest is the weight of matching.")
    ] = 0.1,
    shortlist: Annotated[
        int | None, typer.Option(help="Match a cell only with this number of types, those of the highest similarity.")
    ] = None,
    smooth: Annotated[
        int | None, typer.Option(help="Average scores over a cell and this number of neighbours.")
    ] = None,
    back_off_below: Annotated[
        float | None,
        typer.Option(help="Predict a parent type where the best has a smaller share than this, e.g. 0.5."),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="Column of obs with labels of some cells, by which scores are calibrated.")
    ] = None,
    table: Annotated[Path | None, typer.Option(help="Also write a table: .csv, .tsv or .parquet.")] = None,
    plot: Picture = None,
    vote: Annotated[
        bool, typer.Option("--vote", help="Let clusters of cells vote on their type, as CellTypist does.")
    ] = False,
    set_coverage: Annotated[
        float | None,
        typer.Option(
            help="For classifiers with a calibration: share of prediction sets that should hold the true type, 0.8 to "
            "0.95; 0.9 by default."
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Number of cells that are computed at once; 16 with texts, 64 with classes by default."),
    ] = None,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    species: Species = None,
    min_coverage: MinCoverage = None,
    dtype: Dtype = None,
    device: Device = None,
    backend: Annotated[
        str | None,
        typer.Option(
            help="torch; or onnx: onnxruntime computes a model that cellglot export wrote. By default torch; for up "
            "to 20,000 cells the graph of a classifier that ships with one."
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Annotate cells: by the classes of a classifier or an adapter, or by texts of types that were not trained on."""
    if candidates and candidates_file:
        raise ValueError("pass candidates by --candidates or by --candidates-file, not by both")
    if len(model_and_cells) > 2:
        raise ValueError(f"pass a model and a file of cells, not {len(model_and_cells)} names")
    *named, cells = model_and_cells
    if not named and not Path(cells).is_file() and _is_model(cells):
        raise ValueError(f"{cells} is a model: name a file of cells after it")
    report = cellglot.annotate(
        cells,
        named[0] if named else None,
        output=output or Path(f"{Path(cells).stem}_annotated.h5ad"),
        adapter=adapter,
        candidates=candidates_file or (",".join(candidates) if candidates else None),
        ontology_branch=ontology_branch,
        leaves_only=leaves_only,
        in_corpus=in_corpus,
        ontology=ontology,
        template=template,
        alpha=alpha,
        shortlist=shortlist,
        smooth=smooth,
        back_off_below=back_off_below,
        labels=labels,
        table=table,
        plot=plot,
        vote=vote,
        set_coverage=set_coverage,
        batch_size=batch_size,
        layer=layer,
        gene_column=gene_column,
        species=species,
        min_coverage=min_coverage,
        dtype=dtype,
        device=device,
        backend=backend,
        overwrite=overwrite,
    )
    _say(report)


@app.command()
def query(
    model: Annotated[str, typer.Argument(help="Folder or repository of a LangCell model.")],
    cells: Annotated[Path, typer.Argument(help="Embeddings that cellglot embed or annotate wrote, or cells.")],
    text: Annotated[str, typer.Argument(help="Sentence that describes the cells to find.")],
    top: Annotated[int, typer.Option(help="Number of best cells to show.")] = 10,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the cells with all scores in obs: .h5ad.")
    ] = None,
    table: Annotated[Path | None, typer.Option(help="Write the best cells: .csv, .tsv or .parquet.")] = None,
    batch_size: BatchSize = 64,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    species: Species = None,
    min_coverage: MinCoverage = None,
    dtype: Dtype = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Find the cells that a sentence describes best."""
    report = cellglot.query(
        cells,
        text,
        model,
        top=top,
        output=output,
        table=table,
        batch_size=batch_size,
        layer=layer,
        gene_column=gene_column,
        species=species,
        min_coverage=min_coverage,
        dtype=dtype,
        device=device,
        overwrite=overwrite,
    )
    _say(report)


@app.command()
def index(
    cells: Cells,
    model: Annotated[
        str, typer.Option(help="Name, folder or repository of the model that embeds the cells; see cellglot models.")
    ],
    output: Output,
    columns: Annotated[
        list[str] | None,
        typer.Option(help="Columns of obs to keep, between commas or repeated; all by default."),
    ] = None,
    batch_size: BatchSize = 64,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    species: Species = None,
    min_coverage: MinCoverage = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Make a reference of cells, to which cellglot map maps others."""
    report = cellglot.index(
        cells,
        model,
        output,
        columns=_names(columns) or None,
        batch_size=batch_size,
        layer=layer,
        gene_column=gene_column,
        species=species,
        min_coverage=min_coverage,
        device=device,
        overwrite=overwrite,
    )
    _say(report)


@app.command("map")
def map_cells(
    reference: Annotated[
        str, typer.Argument(help="Folder that cellglot index wrote, or a data set of the Hub (owner/name).")
    ],
    cells: Cells,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where to write the cells: .h5ad; by default CELLS_mapped.h5ad here."),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(help="Columns to carry over, between commas or repeated; by default cell types."),
    ] = None,
    k: Annotated[int, typer.Option(help="Number of nearest cells.")] = 30,
    model: Annotated[
        str | None, typer.Option(help="The model that made the reference, if it is not where the reference says.")
    ] = None,
    table: Annotated[Path | None, typer.Option(help="Also write a table of the cells: .csv, .tsv, .parquet.")] = None,
    similar: Annotated[
        Path | None, typer.Option(help="Also write a table of each cell's similar cells: .csv, .tsv, .parquet.")
    ] = None,
    batch_size: BatchSize = 64,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    species: Species = None,
    min_coverage: MinCoverage = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Carry labels and other columns of a reference over to cells, by their nearest cells."""
    report = cellglot.map(
        cells,
        reference,
        output=output or Path(f"{cells.stem}_mapped.h5ad"),
        columns=_names(columns) or None,
        k=k,
        model=model,
        table=table,
        similar=similar,
        batch_size=batch_size,
        layer=layer,
        gene_column=gene_column,
        species=species,
        min_coverage=min_coverage,
        device=device,
        overwrite=overwrite,
    )
    _say(report)


@app.command()
def similar(
    reference: Annotated[
        str, typer.Argument(help="Folder that cellglot index wrote, or a data set of the Hub (owner/name).")
    ],
    cells: Annotated[list[str], typer.Argument(metavar="CELL_ID...", help="Ids of cells of the reference.")],
    k: Annotated[int, typer.Option(help="Number of similar cells for each cell.")] = 15,
    columns: Annotated[
        list[str] | None,
        typer.Option(help="Columns to show, between commas or repeated; by default cell types."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the table, instead of printing it: .csv, .tsv, .parquet."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Find the cells of a reference that are most similar to some of its cells."""
    table = cellglot.similar(
        reference, cells, k=k, columns=_names(columns) or None, output=output, overwrite=overwrite
    )
    _say(table.to_string(index=False) if output is None else f"{output}: {len(table):,} rows")


@app.command()
def perturb(
    model: Annotated[
        str, typer.Argument(help="Name, folder or repository of a model, classifier or adapter; see cellglot models.")
    ],
    cells: Cells,
    delete: Annotated[
        list[str] | None, typer.Option(help="Genes to delete, one at a time; several: between commas, or repeated.")
    ] = None,
    overexpress: Annotated[
        list[str] | None,
        typer.Option(help="Genes to overexpress, one at a time; several: between commas, or repeated."),
    ] = None,
    all_genes: Annotated[
        bool, typer.Option("--all-genes", help="Delete all genes that the cells express, one at a time.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Table to write: .csv, .tsv, .parquet; by default CELLS_perturbed.csv here."
        ),
    ] = None,
    towards: Annotated[
        str | None, typer.Option(help="State, a value of --column: measure the movement towards these cells.")
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="Column of obs with the states of cells; cell_type by default.")
    ] = None,
    cell_type: Annotated[
        str | None,
        typer.Option(help="Value of --column: perturb only these cells. All by default, with --towards all others."),
    ] = None,
    controls: Annotated[int, typer.Option(help="Number of control genes, matched in expression, for each gene.")] = 50,
    permutations: Annotated[int, typer.Option(help="Number of permutations for the p-value of each gene.")] = 1000,
    max_cells: Annotated[
        int | None, typer.Option(help="Perturb at most this number of cells, drawn by --seed; all by default.")
    ] = None,
    seed: Seed = 0,
    batch_size: BatchSize = 64,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    species: Species = None,
    min_coverage: MinCoverage = None,
    dtype: Dtype = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Delete or overexpress genes, and measure how the embedding and the classes of cells change."""
    found = cellglot.perturb(
        cells,
        model,
        delete=_names(delete) or None,
        overexpress=_names(overexpress) or None,
        all_genes=all_genes,
        output=output or Path(f"{cells.stem}_perturbed.csv"),
        towards=towards,
        column=column,
        cell_type=cell_type,
        controls=controls,
        permutations=permutations,
        max_cells=max_cells,
        seed=seed,
        batch_size=batch_size,
        layer=layer,
        gene_column=gene_column,
        species=species,
        min_coverage=min_coverage,
        dtype=dtype,
        device=device,
        overwrite=overwrite,
    )
    _say(str(found))


@app.command()
def genes(
    model: Annotated[
        str, typer.Argument(help="Name, folder or repository of a model, classifier or adapter; see cellglot models.")
    ],
    cells: Annotated[
        Path | None,
        typer.Argument(help="File of cells, for embeddings in cells and attention: .h5ad, .zarr, 10x, .loom."),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File for the embeddings, .parquet; other results beside it.")
    ] = Path("genes.parquet"),
    neighbours: Annotated[int, typer.Option(help="Find so many nearest genes of each.")] = 0,
    gene_sets: Annotated[Path | None, typer.Option(help="Score sets of genes, such as Reactome's: .gmt.")] = None,
    set_genes: Annotated[str, typer.Option(help="Least and most genes of a set that is scored.")] = "10,500",
    permutations: Annotated[int, typer.Option(help="Number of random sets of like expression for each set.")] = 1000,
    attention: Annotated[
        bool, typer.Option("--attention", help="Sum attention between genes over the cells, and draw the strongest.")
    ] = False,
    edges: Annotated[int, typer.Option(help="Number of pairs of genes to keep, those of most attention.")] = 100_000,
    min_cells: Annotated[
        int,
        typer.Option(help="Neighbours, sets and attention are of genes that the model reads in so many cells."),
    ] = 10,
    column: Annotated[
        str | None, typer.Option(help="Column of obs with the states of cells; cell_type by default.")
    ] = None,
    cell_type: Annotated[str | None, typer.Option(help="Value of --column: use only these cells.")] = None,
    max_cells: Annotated[
        int | None, typer.Option(help="Use at most this number of cells, drawn by --seed; all by default.")
    ] = None,
    seed: Seed = 0,
    batch_size: BatchSize = 64,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    species: Species = None,
    min_coverage: MinCoverage = None,
    dtype: Dtype = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Embed genes: as a model learned them and as it reads them in cells; neighbours, gene sets, attention."""
    bounds = [part.strip() for part in set_genes.split(",")]
    if len(bounds) != 2 or not all(part.isdigit() for part in bounds):
        raise ValueError(f"--set-genes {set_genes}: two numbers, such as 10,500")
    found = cellglot.genes(
        model,
        cells,
        output=output,
        neighbours=neighbours,
        gene_sets=gene_sets,
        set_genes=(int(bounds[0]), int(bounds[1])),
        permutations=permutations,
        attention=attention,
        edges=edges,
        min_cells=min_cells,
        column=column,
        cell_type=cell_type,
        max_cells=max_cells,
        seed=seed,
        batch_size=batch_size,
        layer=layer,
        gene_column=gene_column,
        species=species,
        min_coverage=min_coverage,
        dtype=dtype,
        device=device,
        overwrite=overwrite,
    )
    _say(str(found))


@app.command()
def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Folders or repositories of models, classifiers, adapters, or files of embeddings; or NAME=THESE."
        ),
    ],
    output: Output,
    cells: Annotated[Path | None, typer.Option(help="File of cells; not needed for drug response alone.")] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            help="clustering, integration, annotation, novel, retrieval, markers, gene-sets, pathways, perturbation, "
            "drug-response, between commas or repeated; by default all that can be done."
        ),
    ] = None,
    labels: Annotated[str | None, typer.Option(help="Column of obs with cell types; cell_type by default.")] = None,
    batches: Annotated[str | None, typer.Option(help="Column of obs with batches.")] = None,
    donors: Annotated[
        str | None, typer.Option(help="Column of obs with donors or data sets, which are not split.")
    ] = None,
    markers: Annotated[Path | None, typer.Option(help="Table of marker genes: .tsv, .csv or .gmt.")] = None,
    marker_type: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL=TYPE",
            help="Cell type of the table that a label means; several: between commas, or repeated.",
        ),
    ] = None,
    gene_sets: Annotated[Path | None, typer.Option(help="Sets of genes, such as pathways: .gmt.")] = None,
    perturbations: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of obs with the knocked-out gene of each cell.")
    ] = None,
    control: Annotated[str, typer.Option(help="Value of --perturbations in cells without a knock-out.")] = "control",
    drug_response: Annotated[
        Path | None,
        typer.Option(help="Folder of cell lines and drugs: expression.parquet, drugs.tsv, response.tsv."),
    ] = None,
    drug_values: Annotated[
        str,
        typer.Option(
            help="Expression of the cell lines: log2 (of TPM + 1), linear, relative (ranks of microarrays or "
            "z-scores) or auto."
        ),
    ] = "auto",
    ontology: Ontology = "shipped",
    judge: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="JUDGE",
            help="Let a package of the field score the same embeddings: scib-metrics, cz-benchmarks; between commas, "
            "or repeated.",
        ),
    ] = None,
    without_batches: Annotated[
        bool,
        typer.Option("--remove-batch", help="Also score each embedding of which Harmony removed the --batches."),
    ] = False,
    baselines: Annotated[bool, typer.Option(help="Evaluate plain baselines, too.")] = True,
    seed: Seed = 0,
    test_fraction: Annotated[
        float, typer.Option(help="Share of the cells (or donors) on which annotation is scored.")
    ] = 0.25,
    shots: Annotated[int, typer.Option(help="Number of cells of each class for annotation by few cells.")] = 10,
    marker_cells: Annotated[
        int, typer.Option(help="Number of cells whose genes are masked, one at a time, to score marker genes.")
    ] = 50,
    retrieval_cells: Annotated[
        int, typer.Option(help="Number of labelled cells for which texts are searched, and the other way round.")
    ] = 1000,
    perturbation_cells: Annotated[
        int, typer.Option(help="Number of control cells, and most cells of each knock-out.")
    ] = 150,
    batch_size: BatchSize = 64,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    species: Species = None,
    min_coverage: MinCoverage = None,
    device: Device = None,
    overwrite: Restart = False,
) -> None:
    """Evaluate models and plain baselines: one JSON, one table, pictures. Resumes a run that was stopped."""
    done = cellglot.evaluate(
        _named_models(models),
        cells,
        output=output,
        tasks=_names(tasks) or None,
        labels=labels,
        batches=batches,
        donors=donors,
        markers=markers,
        marker_types=_pairs(marker_type, "--marker-type"),
        gene_sets=gene_sets,
        perturbations=perturbations,
        control=control,
        drug_response=drug_response,
        drug_values=drug_values,
        ontology=ontology,
        judges=_names(judge),
        without_batches=without_batches,
        baselines=baselines,
        seed=seed,
        test_fraction=test_fraction,
        shots=shots,
        marker_cells=marker_cells,
        retrieval_cells=retrieval_cells,
        perturbation_cells=perturbation_cells,
        batch_size=batch_size,
        layer=layer,
        gene_column=gene_column,
        species=species,
        min_coverage=min_coverage,
        device=device,
        overwrite=overwrite,
    )
    _say(f"{done.table()}\n\n{done.record.summary()}\n\n{output}")


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
        typer.Option(
            help="LangCell: folder or repository of the tokenizer of texts; the release was trained with PubMedBERT's."
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert a released checkpoint into a folder that from_pretrained loads."""
    from cellglot.verbs.conversion import convert as run

    report = run(
        system,
        checkpoint,
        output,
        token_dictionary=token_dictionary,
        gene_medians=gene_medians,
        cell_types=cell_types,
        text_tokenizer=text_tokenizer,
        overwrite=overwrite,
    )
    _say(report)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Name, folder or repository of a model, a classifier or an adapter.")],
    output: Output,
    format: Annotated[str, typer.Option(help="onnx; or openproblems: a component of its label projection.")] = "onnx",
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            help="Type of the stored weights: float32 (default), float16, int8; several: between commas, or repeated."
        ),
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(help="Folder or repository of an adapter that was trained on the model.")
    ] = None,
    cells: Annotated[
        Path | None,
        typer.Option(help="File of cells on which results are compared; by default blood cells, if they fit."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Export a model as ONNX graphs, for runtimes without PyTorch and for browsers; compared with PyTorch at once."""
    exported = cellglot.export(
        model,
        output,
        format=format,
        dtype=_names(dtype) or "float32",
        adapter=adapter,
        cells=cells,
        overwrite=overwrite,
    )
    _say(f"{exported.summary()}\n{output}")


@app.command()
def publish(
    folder: Annotated[
        Path, typer.Argument(help="Folder of a model, an adapter, token data, a reference or a metric.")
    ],
    repo: Annotated[str | None, typer.Argument(help="Repository on the Hub, owner/name.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to a folder, to look at the result.")
    ] = None,
    license: Annotated[str | None, typer.Option(help="Identifier of the Hub, such as apache-2.0.")] = None,
    training_data: Annotated[str | None, typer.Option(help="Where the cells come from, in a sentence.")] = None,
    training_data_license: Annotated[str | None, typer.Option(help="Terms of the cells.")] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(help="Data set on the Hub that the cells come from; several: between commas, or repeated."),
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Repository of the model that was fine-tuned, or that made the reference.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Folder of an adapter's base model; by default the one that it names.")
    ] = None,
    ontology_release: Annotated[
        str | None, typer.Option(help="Release of the Cell Ontology, if the folder does not record it.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Heading of the card.")] = None,
    card: Annotated[
        Path | None, typer.Option(help="YAML with these and more facts; by default card.yaml in the folder.")
    ] = None,
    evaluation: Annotated[
        Path | None, typer.Option(help="JSON that cellglot evaluate wrote; by default the one in the folder.")
    ] = None,
    cells: Annotated[
        Path | None, typer.Option(help="File of cells for the examples of the card; blood cells by default.")
    ] = None,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Add the model as ONNX graphs (float32, float16), for browsers and CPUs.")
    ] = False,
    public: Annotated[bool, typer.Option("--public", help="Let everybody see a new repository.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the files of an earlier publication.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and list the files, without publishing.")
    ] = False,
    space: Annotated[
        str | None,
        typer.Option(
            help="Publish a Space that annotates cells with the model: owner/name on the Hub, or a name and --output."
        ),
    ] = None,
    browser: Annotated[
        bool,
        typer.Option("--browser", help="With --space: a page in which the model runs in the visitor's own browser."),
    ] = False,
) -> None:
    """Publish with a card, after a process without cellglot returned the same numbers. Private by default."""
    done = cellglot.publish(
        folder,
        repo,
        output=output,
        license=license,
        training_data=training_data,
        training_data_license=training_data_license,
        datasets=_names(dataset),
        base_model=base_model,
        base=base,
        ontology_release=ontology_release,
        title=title,
        card=card,
        evaluation=evaluation,
        cells=cells,
        onnx=onnx,
        private=not public,
        overwrite=overwrite,
        dry_run=dry_run,
        space=space,
        browser=browser,
    )
    _say(done.summary())


@app.command("app")
def serve_page(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Name (see cellglot models), folder or repository of a classifier, adapter or LangCell model; by "
            "default the classifier of blood that ships with cellglot."
        ),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen at; by default only this machine can open the page.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port; by default the first free one from 7860 on.")] = None,
    most_cells: Annotated[
        int | None, typer.Option(help="Cells that are annotated of a file, else a random sample; 20,000 by default.")
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    browser: Annotated[
        bool, typer.Option("--browser", help="Serve the page in which a classifier runs in the browser itself.")
    ] = False,
) -> None:
    """Serve a page that annotates cells: drop a file, see types, map and reasons, download the result."""
    from cellglot.verbs.app import app as run

    run(model, host=host, port=port, most_cells=most_cells, open_browser=open_browser, browser=browser)


@app.command()
def demo(
    cells: Annotated[Path | None, typer.Option(help="File of cells; by default 700 blood cells from scanpy.")] = None,
    labels: Annotated[str | None, typer.Option(help="Column of obs with the classes.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the result.")] = Path("demo_output"),
    quick: Annotated[bool, typer.Option("--quick", help="Train a tenth of the steps.")] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Pretrain all three models from the start: about ten minutes.")
    ] = False,
    seed: Seed = 0,
) -> None:
    """Label real cells by a model that ships, adapt it to their own labels, evaluate, publish, write a report."""
    from cellglot.demo.run import run_demo

    run_demo(cells, labels, output, quick, full, seed)


@app.command()
def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print all facts as JSON.")] = False,
) -> None:
    """List the models that ship with cellglot: what they know, size, scores, licence."""
    found = cellglot.models()
    typer.echo(found.to_json() if as_json else str(found))


# -------------------------------------------------------------------- parsing


def _names(given: list[str] | None) -> list[str]:
    """Return the names of an option that takes several."""
    return [name.strip() for text in given or [] for name in split_list(text) if name.strip()]


def _pairs(given: list[str] | None, name: str) -> dict[str, str]:
    return to_dict([pair for text in given or [] for pair in split_pairs(text)], name)


def _settings(given: list[str] | None) -> list[str]:
    return [pair for text in given or [] for pair in split_settings(text)]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _cells_or_corpus(cells: list[Path] | None, corpus: str | Path | None) -> Any:
    """Return files of cells, or the folder of a corpus: one of them has to be given."""
    if (corpus is None) == (not cells):
        raise ValueError("pass cells by --cells, or their tokens by --corpus")
    if corpus is None:
        return [path for given in cells or [] for path in split_paths(str(given))]
    from cellglot.verbs.corpora import open_corpus

    return open_corpus(corpus)


def _is_model(name: str) -> bool:
    """Whether a name is that of a model of the collection, or a folder that contains a model."""
    from cellglot.modeling.collection import shipped_models

    return name in shipped_models() or Path(name, "config.json").is_file()


def _named_models(given: list[str]) -> Any:
    """Return models by the names that are given before ``=``; without any, as a list that names itself."""
    pairs = [(text.split("=", 1) if "=" in text and not Path(text).exists() else ["", text]) for text in given]
    if not any(name for name, _ in pairs):
        return given
    return {name or Path(source).name: source for name, source in pairs}


# -------------------------------------------------------------------- printing


def _say(text: str) -> None:
    """Print, in a distributed run only in its main process."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(text)


def _print_metrics(metrics: dict[str, float]) -> None:
    from cellglot.training.run import leave_group

    leave_group()
    if metrics:
        _say("\n".join(f"{name}: {value:.4f}" for name, value in metrics.items()))


def main() -> None:
    """Run the command line; errors in what was given are one message, not a trace.

    With ``CELLGLOT_DEBUG=1`` in the environment the trace is shown.
    """
    try:
        _run()
    except SystemExit as end:
        status = end.code or 0
        if isinstance(status, int) and "cellglot.inputs.network" in sys.modules:
            from cellglot.inputs.network import end_now

            end_now(status)  # if a read that was given up is still in progress; else it returns
        raise


def _run() -> None:
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
