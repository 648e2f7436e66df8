"""Checkpoints of a run: each is complete or does not exist, and records its run."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from cellglot.outputs import share, write_json
from cellglot.training.runs.identity import IDENTITY_FILE, read_identity


STOPPED_FILE = "stopped.json"
_NAME = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
_UNFINISHED = re.compile(rf"\.{PREFIX_CHECKPOINT_DIR}-(\d+)\.part")


def checkpoint_name(step: int) -> str:
    """Return the name of a checkpoint's folder."""
    return f"{PREFIX_CHECKPOINT_DIR}-{step}"


def unfinished_folder(output: str | Path, step: int) -> Path:
    """Return the temporary folder in which a checkpoint is written."""
    return Path(output) / f".{checkpoint_name(step)}.part"


def checkpoint_folders(output: str | os.PathLike) -> list[Path]:
    """Return the folders of checkpoints, also of incomplete ones, ordered by step."""
    output = Path(output)
    if not output.is_dir():
        return []
    found = [p for p in output.iterdir() if _NAME.fullmatch(p.name) and p.is_dir() and not p.is_symlink()]
    return sorted(found, key=_step)


def last_checkpoint(output: str | os.PathLike) -> str | None:
    """Return the last complete checkpoint in a folder, None if there is none.

    A complete checkpoint has its state, which is written last, and all files with their recorded sizes.
    """
    for folder in reversed(checkpoint_folders(output)):
        if _is_whole(folder):
            return str(folder)
    return None


def remove_unfinished(output: str | Path) -> None:
    """Remove checkpoints that a killed run was writing."""
    output = Path(output)
    for path in output.iterdir() if output.is_dir() else ():
        if _UNFINISHED.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def seal(folder: str | Path, identity: Mapping[str, Any]) -> None:
    """Write to a checkpoint the identity of its run, from `run_identity`, and the sizes of its files."""
    folder = Path(folder)
    files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    for path in files.values():
        share(path)
    sizes = {name: path.stat().st_size for name, path in files.items() if name != IDENTITY_FILE}
    write_json(folder / IDENTITY_FILE, {**identity, "files": sizes})


def put_in_place(folder: Path, target: Path) -> None:
    """Move a checkpoint to `target`, and remove an earlier one of the same step."""
    earlier = target.with_name(f".{target.name}.part") / "earlier"
    if target.is_dir():
        os.replace(target, earlier)
    os.replace(folder, target)
    shutil.rmtree(earlier.parent, ignore_errors=True)


def rotate(output: str | Path, limit: int | None, best: str | None) -> None:
    """Delete the oldest checkpoints beyond `limit` (None or 0: no limit), but never the last written or the best."""
    if not limit:
        return
    own = [p for p in checkpoint_folders(output) if read_identity(p) is not None]
    own.sort(key=lambda p: (p / IDENTITY_FILE).stat().st_mtime_ns)
    kept = {own[-1].name, *([Path(best).name] if best else [])} if own else set()
    spare = [p for p in own if p.name not in kept]
    for path in spare[: max(len(own) - max(limit, len(kept)), 0)]:
        shutil.rmtree(path, ignore_errors=True)


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _is_whole(folder: Path) -> bool:
    try:
        state = json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        if not isinstance(state["global_step"], int):
            return False
        identity = read_identity(folder)
        sizes = {} if identity is None else identity.get("files") or {}
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


__all__ = [
    "STOPPED_FILE",
    "checkpoint_folders",
    "checkpoint_name",
    "last_checkpoint",
    "put_in_place",
    "remove_unfinished",
    "rotate",
    "seal",
    "unfinished_folder",
]
