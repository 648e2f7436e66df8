"""``cellglot publish``: stage files, write the card, scan, check in a clean process, upload."""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi

from cellglot.model_cards.card.details import CardDetails, read_details
from cellglot.model_cards.card.render import size_text
from cellglot.model_cards.checks.clean_process import compare, visit_as_stranger
from cellglot.model_cards.content_scan import scan_folder
from cellglot.model_cards.kinds import folder_kind
from cellglot.model_cards.prepare.staging import Prepared, Source
from cellglot.model_cards.upload import check_repository, upload
from cellglot.outputs import OutputFolder, share
from cellglot.outputs.processes import own_mark
from cellglot.outputs.writing import remove_leftover_folders


SCRATCH = ".publishing"
_NO_GRAPHS = {"adapter": "merge the adapter by cellglot export MODEL --adapter FOLDER"}
OPENED_BY = ("config.json", "adapter_config.json", "manifest.json", "reference.json")
REPO_TYPES = {"model": "model", "adapter": "model", "dataset": "dataset", "metric": "space", "index": "dataset"}


@dataclass
class Published:
    """Result of `publish`.

    Parameters
    ----------
    kind
        ``model``, ``adapter``, ``dataset``, ``index``, ``metric`` or ``space``.
    place
        Address of the commit, or the folder; ``""`` after a dry run.
    files
        File -> bytes.
    left_out
        Files of the source that were not published.
    cleaned
        File -> paths of this machine that were shortened in it.
    compared
        Number of values that were equal where they were computed again: in a process without cellglot, or as `checked`
        says.
    loaded
        Object that this process loaded -> its class.
    checked
        Who computed the values again, if it was not a process without cellglot: the beginning of a sentence.
    """

    kind: str
    place: str
    files: dict[str, int]
    left_out: list[str] = field(default_factory=list)
    cleaned: dict[str, list[str]] = field(default_factory=dict)
    compared: int = 0
    loaded: Mapping[str, str] = field(default_factory=dict)
    checked: str = ""

    def summary(self) -> str:
        """Summarise the published files, the checks and the files that were not published."""
        lines = [f"{size_text(size):>10}  {name}" for name, size in self.files.items()]
        lines.append(f"{size_text(sum(self.files.values())):>10}  in {len(self.files)} files")
        if self.left_out:
            lines.append(f"left out: {', '.join(self.left_out)}")
        for name, paths in self.cleaned.items():
            lines.append(f"{name}: {len(paths)} paths of this machine shortened to their last part")
        checked = self.checked or f"a process without cellglot loaded {', '.join(self.loaded) or 'the data'}"
        values = "values" if self.checked else "numbers"
        lines.append(f"{checked} and returned the same {self.compared:,} {values}")
        lines.append(f"{self.kind} in {self.place}" if self.place else "dry run: nothing was published")
        return "\n".join(lines)


def publish(
    folder: str | Path,
    repo: str | None = None,
    *,
    output: str | Path | None = None,
    details: CardDetails | None = None,
    evaluation: str | Path | None = None,
    cells: str | Path | None = None,
    base: str | Path | None = None,
    onnx: bool = False,
    private: bool = True,
    overwrite: bool = False,
    dry_run: bool = False,
    api: HfApi | None = None,
) -> Published:
    """Publish a model, an adapter, a token data set or a metric, after a check in a process without cellglot.

    Parameters
    ----------
    folder
        Folder of ``cellglot pretrain``, ``finetune`` or ``tokenize``, or of a metric.
    repo
        ``owner/name`` on the Hub.
    output
        Folder to write to, instead of `repo` or in addition.
    details
        Details such as the licence; by default those of ``card.yaml`` in the folder.
    evaluation
        JSON of ``cellglot evaluate``; by default ``evaluation.json`` in the folder, if it exists.
    cells
        File of cells for the card's examples and the check; by default blood cells of scanpy.
    base
        Folder or repository of an adapter's base model; by default the one in the adapter's configuration.
    onnx
        Add the model as ONNX graphs with weights of float32 and float16, compared with PyTorch, in ``onnx/``.
    private
        Whether only the owner sees a new repository.
    overwrite
        Replace the files of an existing repository, or those of an earlier publication in a folder; other files of a
        folder stay.
    dry_run
        Do all steps except the last one.
    api
        Client of the Hub.

    Returns
    -------
    Published

    Raises
    ------
    OutputError
        If `output` is or contains an input, is a repository or home, or has other files with the names of outputs.
    ValueError
        If the folder cannot be published, the card is not complete, a file is a pickle or contains a secret, the
        repository or the folder exists, or a process without cellglot returns other numbers.
    """
    folder = Path(folder)
    kind = folder_kind(folder)
    if repo is None and output is None and not dry_run:
        raise ValueError("name a repository (owner/name), or a folder by output (--output)")
    api = api or HfApi()
    if repo is not None and not dry_run:
        check_repository(api, repo, REPO_TYPES[kind], overwrite)
    given = [folder, evaluation, cells, base]
    if output is not None:
        check_output(Path(output), given, overwrite)
    name = repo or (Path(output).name if output is not None else folder.resolve().name)
    if onnx and kind != "model":
        raise ValueError(
            f"{folder} is not a whole model, and onnx (--onnx) is for models: {_NO_GRAPHS.get(kind, kind)}"
        )
    source = Source(folder, name, details or read_details(folder), evaluation, cells, base, onnx)
    parent = scratch_parent(output, dry_run)
    with tempfile.TemporaryDirectory(dir=parent, prefix=f"{SCRATCH}-{own_mark()}-") as scratch:
        # The last part of the path is the name of the repository, as in the examples of the card.
        target = Path(scratch, name.split("/")[-1])
        target.mkdir()
        prepared = _prepare(kind, source, target)
        scan_folder(target)
        after = visit_as_stranger(prepared.job | {"folder": str(target)})
        compared = compare(prepared.before, after)
        staged = prepared.staged
        done = Published(kind, "", staged.files, staged.left_out, staged.cleaned.paths, compared, after.loaded)
        if dry_run:
            return done
        if repo is not None:
            done.place = upload(api, target, repo, REPO_TYPES[kind], private=private, overwrite=overwrite)
        if output is not None:
            move_files(target, Path(output), given)
            done.place = done.place or str(output)
    return done


def check_output(output: Path, given: list[str | Path | None], overwrite: bool) -> None:
    """Refuse an output folder before any work."""
    folder = OutputFolder(output, "publish", given, names=["README.md"])
    folder.check()
    if output.is_dir() and any(output.iterdir()):
        if not overwrite:
            raise ValueError(f"{output} is not empty: choose another folder, or replace it with --overwrite")
        if not folder.holds_earlier_result():
            raise ValueError(f"{output} is not a published folder and is not replaced: choose another folder")


def scratch_parent(output: str | Path | None, dry_run: bool) -> Path | None:
    """Return the folder for temporary files: next to the output, on the same disk; None for the system's."""
    if output is None or (dry_run and not Path(output).resolve().parent.is_dir()):
        return None
    parent = Path(output).resolve().parent
    parent.mkdir(parents=True, exist_ok=True)
    remove_leftover_folders(parent, SCRATCH)
    return parent


def _prepare(kind: str, source: Source, target: Path) -> Prepared:
    from cellglot.model_cards.prepare import dataset, index, metric, model

    by_kind = {
        "model": model.prepare_model,
        "adapter": model.prepare_adapter,
        "dataset": dataset.prepare_dataset,
        "metric": metric.prepare_metric,
        "index": index.prepare_index,
    }
    return by_kind[kind](source, target)


def move_files(staged: Path, output: Path, given: list[str | Path | None]) -> None:
    """Move staged files to the output, replacing those of an earlier publication; the files that open it come last."""
    names = [path.relative_to(staged).as_posix() for path in sorted(staged.rglob("*")) if path.is_file()]
    with OutputFolder(output, "publish", given, names=names) as folder:
        folder.clear()
        for name in sorted(names, key=lambda name: name in OPENED_BY):
            target = output / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if (staged / name).stat().st_nlink == 1:  # linked files are shards of the corpus
                share(staged / name)
            shutil.move(staged / name, target)
        folder.finish()


__all__ = ["SCRATCH", "Published", "check_output", "move_files", "publish", "scratch_parent"]
