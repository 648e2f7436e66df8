"""Publication of a Space: its files are built, scanned and tried in a process of their own, then uploaded."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi

from cellglot.model_cards.card.details import read_details
from cellglot.model_cards.content_scan import scan_folder
from cellglot.model_cards.kinds import folder_kind
from cellglot.model_cards.publishing import SCRATCH, Published, check_output, move_files, scratch_parent
from cellglot.model_cards.space.facts import SpaceFacts
from cellglot.model_cards.upload import check_repository, upload
from cellglot.modeling.any_model import describe_model
from cellglot.modeling.collection import read_collection
from cellglot.outputs.processes import own_mark


@dataclass(frozen=True)
class SpaceKind:
    """A kind of Space.

    Parameters
    ----------
    sdk
        As the Hub calls it.
    build
        Writes the files of a model's Space into an empty folder.
    check
        Tries the built folder; returns the number of values that were equal to those of the model here.
    checked
        What `check` does, as the beginning of a sentence.
    code
        Folder of the package's own code, which is not scanned for secrets of the model's owner, and is listed as one.
    """

    sdk: str
    build: Callable[[Path, Path, SpaceFacts], None]
    check: Callable[[Path, Path], int]
    checked: str = ""
    code: str = "cellglot"


def space_kinds() -> dict[str, SpaceKind]:
    """Return the kinds of Spaces by name."""
    from cellglot.model_cards.space.browser import building as browser
    from cellglot.model_cards.space.gradio import building as gradio

    return {
        "gradio": SpaceKind("gradio", gradio.build_space, gradio.check_space, gradio.CHECKED),
        "browser": SpaceKind("static", browser.build_space, browser.check_space, browser.CHECKED),
    }


def publish_space(
    model: str | Path,
    space: str,
    *,
    kind: str = "gradio",
    output: str | Path | None = None,
    license: str | None = None,
    title: str | None = None,
    models: Sequence[str] = (),
    private: bool = True,
    overwrite: bool = False,
    dry_run: bool = False,
    api: HfApi | None = None,
) -> Published:
    """Publish a Space that annotates cells with a model; it carries the model and the code that runs it.

    Parameters
    ----------
    model
        Folder of a classifier, an adapter, or a LangCell model.
    space
        ``owner/name`` on the Hub; or a name alone, with `output`.
    kind
        A key of `space_kinds`.
    output
        Folder to write the Space's files to, instead of the Hub or in addition to it.
    license
        Of the model; by default that of its card or of the collection.
    title
        Heading of the card.
    models
        Repositories of the model.
    private, overwrite, dry_run, api
        As for `cellglot.model_cards.publishing.publish`.

    Returns
    -------
    Published

    Raises
    ------
    ValueError
        If the model does not annotate cells, the repository or the folder exists, a file contains a secret, or the
        Space does not return the labels that the model returns here.
    """
    model = Path(model)
    _check_model(model)
    to_hub = "/" in space
    if not to_hub and output is None and not dry_run:
        raise ValueError(
            f"{space!r} is a name without an owner: write owner/name, or name a folder by output (--output)"
        )
    made = space_kinds()[kind]
    api = api or HfApi()
    if to_hub and not dry_run:
        check_repository(api, space, "space", overwrite)
    if output is not None:
        check_output(Path(output), [model], overwrite)
    name = space.split("/")[-1]
    facts = SpaceFacts(
        name,
        _name_of(model),
        title or f"Which cells are these? {_name_of(model)}",
        _license(model, license),
        tuple(models),
    )
    parent = scratch_parent(output, dry_run)
    with tempfile.TemporaryDirectory(dir=parent, prefix=f"{SCRATCH}-{own_mark()}-") as scratch:
        target = Path(scratch, name)
        target.mkdir()
        made.build(model, target, facts)
        scan_folder(target, without=[made.code])
        compared = made.check(model, target)
        done = Published("space", "", _listed(target, made.code), compared=compared, checked=made.checked)
        if dry_run:
            return done
        if to_hub:
            done.place = upload(api, target, space, "space", private=private, overwrite=overwrite, space_sdk=made.sdk)
        if output is not None:
            move_files(target, Path(output), [model])
            done.place = done.place or str(output)
    return done


def _check_model(model: Path) -> None:
    kind = folder_kind(model)
    if kind not in ("model", "adapter"):
        raise ValueError(f"{model} is not a model (found: {kind}): a Space annotates cells with a model or an adapter")
    what = describe_model(model)
    if what.purpose not in ("classes of cells", "cells and texts"):
        raise ValueError(
            f"{model} is for {what.purpose}: a Space annotates cells, by a classifier, an adapter or a LangCell model "
            "with its texts"
        )


def _name_of(model: Path) -> str:
    return model.resolve().name


def _license(model: Path, given: str | None) -> str:
    if given:
        return given
    shipped = next((known.license for known in read_collection() if Path(known.path) == model), "")
    return shipped or read_details(model).license or ""


def _listed(folder: Path, code: str) -> dict[str, int]:
    """Return file -> bytes; the files of a folder of code are one entry."""
    sizes: dict[str, int] = {}
    counts: dict[str, int] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            parts = path.relative_to(folder).parts
            key = f"{parts[0]}/" if len(parts) > 1 and parts[0] == code else "/".join(parts)
            sizes[key] = sizes.get(key, 0) + path.stat().st_size
            counts[key] = counts.get(key, 0) + 1
    return {name if counts[name] == 1 else f"{name} ({counts[name]:,} files)": size for name, size in sizes.items()}


__all__ = ["SpaceKind", "publish_space", "space_kinds"]
