"""``cellglot publish``: stage, describe, clean, check as a stranger, and upload."""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi

from cellglot.model_cards.card.details import CardDetails
from cellglot.model_cards.card.render import size_text
from cellglot.model_cards.checks.clean_process import compare, visit_as_stranger
from cellglot.model_cards.content_scan import scan_folder
from cellglot.model_cards.kinds import folder_kind
from cellglot.model_cards.prepare.staging import Prepared
from cellglot.model_cards.upload import check_repository, upload
from cellglot.outputs import OutputFolder, share
from cellglot.outputs.processes import own_mark
from cellglot.outputs.writing import remove_leftover_folders


SCRATCH = ".publishing"
OPENED_BY = ("config.json", "adapter_config.json", "manifest.json")
REPO_TYPES = {"model": "model", "adapter": "model", "dataset": "dataset", "metric": "space"}


@dataclass
class Published:
    """What was published.

    Parameters
    ----------
    kind
        ``model``, ``adapter``, ``dataset`` or ``metric``.
    place
        Address of the commit, or the folder; ``""`` after a dry run.
    files
        File -> bytes.
    left_out
        Files of the source that stayed behind.
    cleaned
        File -> paths of this machine that were shortened in it.
    compared
        Numbers that a process without cellglot gave as well.
    loaded
        What that process loaded -> the class.
    """

    kind: str
    place: str
    files: dict[str, int]
    left_out: list[str] = field(default_factory=list)
    cleaned: dict[str, list[str]] = field(default_factory=dict)
    compared: int = 0
    loaded: Mapping[str, str] = field(default_factory=dict)

    def summary(self) -> str:
        """Say what was published, what was checked and what stayed behind."""
        lines = [f"{size_text(size):>10}  {name}" for name, size in self.files.items()]
        lines.append(f"{size_text(sum(self.files.values())):>10}  in {len(self.files)} files")
        if self.left_out:
            lines.append(f"left out: {', '.join(self.left_out)}")
        for name, paths in self.cleaned.items():
            lines.append(f"{name}: {len(paths)} paths of this machine shortened to their last part")
        lines.append(
            f"a process without cellglot loaded {', '.join(self.loaded) or 'the data'} and gave the same "
            f"{self.compared:,} numbers"
        )
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
    private: bool = True,
    overwrite: bool = False,
    dry_run: bool = False,
    api: HfApi | None = None,
) -> Published:
    """Publish a model, an adapter, a token data set or a metric, after a check in a process without cellglot.

    Parameters
    ----------
    folder
        What ``cellglot pretrain``, ``finetune`` or ``tokenize`` wrote, or the folder of a metric.
    repo
        ``owner/name`` on the Hub.
    output
        Folder to write to where there is no `repo`; as well, where there is one.
    details
        What only people know, such as the licence; by default that of ``card.yaml`` in the folder.
    evaluation
        JSON of ``cellglot evaluate``; by default ``evaluation.json`` in the folder, where it is.
    cells
        File of cells for the card's examples and the check; by default blood cells that come with scanpy.
    base
        Folder or repository where an adapter's base model is; by default the one that the adapter names.
    private
        Whether only the owner sees a new repository.
    overwrite
        Replace the files of a repository that exists, or those of an earlier publication in a folder; other files of
        a folder stay.
    dry_run
        Do everything but the last step.
    api
        Client of the Hub.

    Returns
    -------
    Published
        Where it is, and what was done.

    Raises
    ------
    OutputError
        If `output` is or holds an input, is a repository or home, or holds files of somebody else at names to write.
    ValueError
        If the folder is none that can be published, the card is not complete, there is a pickle or a secret in it, the
        repository or the folder exists, or a process without cellglot gives other numbers.
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
        _check_output(Path(output), given, overwrite)
    near = _near(output, dry_run)
    if near is not None:
        near.mkdir(parents=True, exist_ok=True)
        remove_leftover_folders(near, SCRATCH)
    with tempfile.TemporaryDirectory(dir=near, prefix=f"{SCRATCH}-{own_mark()}-") as scratch:
        # The last part of the path is the name of the repository, as it is in the examples of the card.
        name = repo or (Path(output).name if output is not None else folder.resolve().name)
        target = Path(scratch, name.split("/")[-1])
        target.mkdir()
        prepared = _prepare(kind)(
            folder, target, repo=name, details=details, evaluation=evaluation, cells=cells, base=base
        )
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
            _move(target, Path(output), given)
            done.place = done.place or str(output)
    return done


def _prepare(kind: str) -> Callable[..., Prepared]:
    from cellglot.model_cards.prepare.dataset import prepare_dataset
    from cellglot.model_cards.prepare.metric import prepare_metric
    from cellglot.model_cards.prepare.model import prepare_adapter, prepare_model

    return {
        "model": prepare_model,
        "adapter": prepare_adapter,
        "dataset": prepare_dataset,
        "metric": prepare_metric,
    }[kind]


def _near(output: str | Path | None, dry_run: bool) -> Path | None:
    """Return the folder beside an output, on the same disk; None for a temporary one."""
    if output is None:
        return None
    parent = Path(output).resolve().parent
    return parent if not dry_run or parent.is_dir() else None


def _check_output(output: Path, given: list[str | Path | None], overwrite: bool) -> None:
    """Refuse a folder that must not be written to, before any work."""
    folder = OutputFolder(output, "publish", given, names=["README.md"])
    folder.check()
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise ValueError(f"{output} exists and is not empty: choose another folder, or replace it by --overwrite")
    if output.is_dir() and any(output.iterdir()) and not folder.holds_earlier_result():
        raise ValueError(f"{output} is no published folder: it is not replaced, choose another one")


def _move(staged: Path, output: Path, given: list[str | Path | None]) -> None:
    """Put staged files into their folder, in place of those of an earlier publication; what opens it comes last."""
    names = [path.relative_to(staged).as_posix() for path in sorted(staged.rglob("*")) if path.is_file()]
    with OutputFolder(output, "publish", given, names=names) as folder:
        folder.clear()
        for name in sorted(names, key=lambda name: name in OPENED_BY):
            target = output / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if (staged / name).stat().st_nlink == 1:  # others are shards of the corpus
                share(staged / name)
            shutil.move(staged / name, target)
        folder.finish()


__all__ = ["Published", "publish"]
