"""``publish``: a folder with its card to the Hub, after a check by a process without cellglot."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cellglot.model_cards.kinds import folder_kind
from cellglot.modeling.collection import in_collection
from cellglot.verbs.cells import as_path, or_none
from cellglot.verbs.corpora import as_files


if TYPE_CHECKING:
    from anndata import AnnData

    from cellglot.model_cards import Published


def publish(
    folder: str | os.PathLike,
    repo: str | None = None,
    *,
    output: str | os.PathLike | None = None,
    license: str | None = None,
    training_data: str | None = None,
    training_data_license: str | None = None,
    datasets: Sequence[str] = (),
    base_model: str | None = None,
    base: str | os.PathLike | None = None,
    ontology_release: str | None = None,
    title: str | None = None,
    card: str | os.PathLike | None = None,
    evaluation: str | os.PathLike | None = None,
    cells: "str | os.PathLike | AnnData | None" = None,
    onnx: bool = False,
    private: bool = True,
    overwrite: bool = False,
    dry_run: bool = False,
    space: str | None = None,
    browser: bool = False,
) -> "Published":
    """Publish a model, an adapter, a corpus, a reference or a metric with a card.

    Before that, a process without cellglot loads the folder, and must compute the same numbers.

    Parameters
    ----------
    folder
        Folder that `cellglot.pretrain`, `finetune`, `tokenize` or `index` wrote, or that of a metric; or the
        name of a model of the collection.
    repo
        Repository on the Hub, ``owner/name``.
    output
        Folder to write to, instead of `repo` or in addition to it.
    license
        Identifier of the Hub, such as ``"apache-2.0"``.
    training_data
        Where the cells come from, in a sentence.
    training_data_license
        Terms of the cells.
    datasets
        Data sets on the Hub that the cells come from.
    base_model
        Repository of the model that was fine-tuned, or that made the reference.
    base
        Folder of an adapter's base model; by default the one that the adapter names.
    ontology_release
        Release of the Cell Ontology, if the folder does not record it.
    title
        Heading of the card.
    card
        YAML file with these and more fields; by default ``card.yaml`` in the folder.
    evaluation
        ``evaluation.json`` of `cellglot.evaluate`; by default the one in the folder.
    cells
        Cells for the examples of the card: a file, or an AnnData; by default blood cells that ship with scanpy.
    onnx
        Add a model as ONNX graphs with weights of float32 and float16 in ``onnx/``, as `cellglot.export` makes them.
    private
        Whether only you see a new repository.
    overwrite
        Replace the files of an earlier publication.
    dry_run
        Check everything and list the files, without publishing.
    space
        Publish a Space that annotates cells with the model, ``owner/name`` on the Hub; or a name alone, with `output`.
        The Space carries the model and the code that runs it. With `repo`, the model is published there first, and the
        Space's card links to it.
    browser
        Publish a static Space: a page in which a classifier runs in the visitor's own browser, without a server, so
        that no cell leaves the visitor's machine.

    Returns
    -------
    Published
        Where it is, its files, what was checked; ``print(published.summary())``.

    Raises
    ------
    ValueError
        If the card is not complete, the folder cannot be published or contains a secret, or a process without cellglot
        computes other numbers.

    Examples
    --------
    >>> import cellglot
    >>> facts = {"license": "mit", "training_data": "Blood of one donor.", "training_data_license": "CC BY 4.0"}
    >>> published = cellglot.publish("model", dry_run=True, **facts)
    >>> published.kind
    'model'
    """
    folder = in_collection(folder) or folder
    folder_kind(as_path(folder))
    if browser and space is None:
        raise ValueError("browser is for a Space: name it by space (--space owner/name)")
    if space is not None:
        if repo is not None and output is not None:
            raise ValueError("output is that of the model or of the Space: publish them by two calls")
        if repo is not None:
            publish(
                folder, repo, license=license, training_data=training_data,
                training_data_license=training_data_license, datasets=datasets,
                base_model=base_model, base=base, ontology_release=ontology_release, title=title,
                card=card, evaluation=evaluation, cells=cells, onnx=onnx, private=private, overwrite=overwrite,
                dry_run=dry_run,
            )  # fmt: skip
        elif onnx:
            raise ValueError("onnx is for a model: name its repository, too, or leave onnx (--onnx) out")
        from cellglot.model_cards.space.publishing import publish_space

        return publish_space(
            as_path(folder), space, kind="browser" if browser else "gradio", output=or_none(output), license=license,
            title=title if repo is None else None, models=[] if repo is None else [repo],
            private=private, overwrite=overwrite, dry_run=dry_run,
        )  # fmt: skip
    if repo is None and output is None and not dry_run:
        raise ValueError("name a repository (owner/name), or a folder by output (--output)")
    from cellglot.model_cards.card.details import read_details

    base = None if base is None else in_collection(base) or base
    details = read_details(
        as_path(folder),
        or_none(card),
        license=license,
        training_data=training_data,
        training_data_license=training_data_license,
        datasets=list(datasets),
        base_model=base_model,
        ontology_release=ontology_release,
        title=title,
    )
    from cellglot.model_cards.publishing import publish as run

    with as_files([] if cells is None else cells) as (files, _):
        return run(
            as_path(folder),
            repo,
            output=or_none(output),
            details=details,
            evaluation=or_none(evaluation),
            cells=files[0] if files else None,
            base=None if base is None else os.fspath(base),
            onnx=onnx,
            private=private,
            overwrite=overwrite,
            dry_run=dry_run,
        )


__all__ = ["publish"]
