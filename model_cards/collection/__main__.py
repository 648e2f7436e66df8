"""``python -m cellglot.model_cards.collection NAME --data FOLDER``: build a model of the collection again."""

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def run(
    name: Annotated[str, typer.Argument(help="Name of a recipe, such as blood-exceiver, or a YAML file.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder that the paths of the recipe's data sets begin at.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the build; collection_build/NAME by default.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Train a few steps on few cells, to try it out.")] = False,
    install: Annotated[
        bool, typer.Option("--install", help="Put the finished model among those that ship with the package.")
    ] = False,
    code: Annotated[
        bool, typer.Option("--code", help="Build nothing: copy the present code into a model that ships.")
    ] = False,
    graph: Annotated[
        bool, typer.Option("--graph", help="Build nothing: write the graph of a classifier that ships again.")
    ] = False,
    network: Annotated[
        Path | None,
        typer.Option(
            help="Of a base: folder of an earlier model of the recipe, whose network is kept. Its linear latent and "
            "the scores are made again."
        ),
    ] = None,
    evaluations: Annotated[
        Path | None,
        typer.Option(
            help="Build nothing: put the records of evaluations in this folder (docs/evaluation/records) on the card "
            "of a model that ships."
        ),
    ] = None,
) -> None:
    """Build a model of the collection. Finished steps are kept, and are not repeated when it is called again."""
    from cellglot.model_cards.collection.builds import build
    from cellglot.model_cards.collection.evaluations import kept_records, lines, put_evaluations, read_records
    from cellglot.model_cards.endpoint.staging import stage_endpoint
    from cellglot.model_cards.prepare.staging import stage_code
    from cellglot.modeling.collection import collection_folder, model_path

    if code:
        copied = [*stage_code(model_path(name)), *stage_endpoint(model_path(name))]
        typer.echo(f"{model_path(name)}: {', '.join(copied)}")
        return
    if graph:
        from cellglot.model_cards.collection.graphs import add_graph

        typer.echo(str(add_graph(Path(model_path(name)))))
        return
    if evaluations is not None:
        typer.echo(lines(name, put_evaluations(Path(model_path(name)), read_records(evaluations))))
        return
    if data is None:
        raise ValueError("name the folder of the data sets by --data")
    folder = output or Path("collection_build", Path(name).stem)
    finished = build(name, data, folder, quick, network)
    if install:
        check_base(finished)
        target = collection_folder() / finished.name
        earlier = kept_records(target)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(finished, target, ignore=shutil.ignore_patterns(".*"))
        finished = target
        if earlier:
            typer.echo(lines(target.name, put_evaluations(target, earlier)))
    typer.echo(str(finished))


def check_base(finished: Path) -> None:
    """Refuse to ship a base that loses to principal components.

    Raises
    ------
    RecipeError
        If its record says so.
    """
    from cellglot.inputs import read_json
    from cellglot.model_cards.collection.build import RECORD_FILE
    from cellglot.model_cards.collection.recipe import RecipeError

    if not read_json(finished / RECORD_FILE).get("better_than_principal_components", True):
        raise RecipeError(
            f"{finished} loses to principal components on laboratories that it did not see: it is not installed. "
            "Change the recipe, and build again"
        )


def main() -> None:
    """Run the command; errors in what was given are one message."""
    from cellglot.inputs.errors import message_of

    try:
        app(prog_name="python -m cellglot.model_cards.collection")
    except Exception as error:
        message = message_of(error)
        if message is None:
            raise
        typer.secho(f"error: {message}", fg="red", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
