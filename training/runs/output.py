"""The output folder of a training run: its run, its checkpoints, and the final model."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from cellglot.outputs import OutputError, OutputFolder, same_file, share, write_json
from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.training.config import TrainingConfig
from cellglot.training.runs.checkpoints import checkpoint_folders, last_checkpoint, remove_unfinished
from cellglot.training.runs.identity import (
    IDENTITY_FILE,
    OtherRunError,
    check_same_run,
    read_identity,
    recorded_differences,
    refuse_differences,
    run_length,
)


RUN_FILE = "training_run.json"
MODEL_FILES = (
    "config.json", "model.safetensors", "model.safetensors.index.json", "adapter_config.json",
    "adapter_model.safetensors", "gene_vocab.json", "tokenizer_config.json", "pytorch_model.bin",
)  # fmt: skip
SAVING = ".model.part"


class TrainingOutput:
    """The output of one training run, as a context that is entered before any work.

    On entering, the main process checks the folder, and all processes get the result. If the folder contains the same
    run, this run resumes it. If it contains another run, or a model that was not trained there, it is refused.

    Parameters
    ----------
    kind
        ``"pretrain"`` or ``"finetune"``.
    identity
        Returns the identity of the run, from `run_identity`; called only on the main process.
    trainer_of
        Makes the trainer's arguments from a configuration, for the comparison with a run of an earlier version.
    inputs
        Further files and folders that are read.
    resume
        Resume from the last checkpoint of the same run, if there is one; else start from the beginning.
    overwrite
        Delete what an earlier run wrote, and nothing else, and start from the beginning.

    Attributes
    ----------
    record : dict or None
        Record of the run if it is finished and there is nothing to do.

    Raises
    ------
    ValueError
        On entering, if the folder may not be written to or contains something else; the message has the differences.
    """

    def __init__(
        self,
        folder: str | Path,
        kind: str,
        arguments: TrainingArguments,
        identity: Callable[[], dict[str, Any]],
        *,
        config: TrainingConfig,
        corpus: Corpus,
        base: str | Path | None = None,
        trainer_of: Callable[[TrainingConfig], TrainingArguments],
        inputs: Iterable[str | Path | None] = (),
        resume: bool = True,
        overwrite: bool = False,
    ):
        self.folder, self.arguments, self.config = Path(folder), arguments, config
        read = [base, *inputs]
        if not same_file(corpus.folder, self.folder / "corpus"):  # where `finetune` tokenizes files of cells
            read.append(corpus.folder)
        self._own = OutputFolder(folder, kind, read)
        self._identify, self.corpus, self.base, self._trainer_of = identity, corpus, base, trainer_of
        self.resume, self.overwrite = resume, overwrite
        self.identity: dict[str, Any] = {}
        self.checkpoint: str | None = None
        self.record: dict[str, Any] | None = None
        self._stack = ExitStack()

    def __enter__(self) -> "TrainingOutput":
        try:
            self.identity, self.checkpoint, self.record = on_main_process(self.arguments, self._look)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    # ---------------------------------------------------------------- reading the folder

    def _look(self) -> tuple[dict[str, Any], str | None, dict[str, Any] | None]:
        if not self.overwrite:
            check_no_other_model(self.folder)
        self._own.check()
        identity = self._identify()
        if not self.overwrite:
            self._compare(identity)
            checkpoint, record = last_checkpoint(self.folder), _json(self.folder / RUN_FILE)
            if self.resume and record and self._is_finished(record, identity, checkpoint):
                return identity, checkpoint, record
        self._stack.enter_context(self._own)
        remove_unfinished(self.folder)
        shutil.rmtree(self.folder / SAVING, ignore_errors=True)
        if self.overwrite:
            self._own.clear()
        return identity, last_checkpoint(self.folder) if self.resume else None, None

    def _compare(self, identity: Mapping[str, Any]) -> None:
        """Refuse a folder with another run, or with a checkpoint of another run."""
        there = read_identity(self.folder)
        if there is not None:
            check_same_run(there, identity, self.folder)
        unknown = []
        for folder in checkpoint_folders(self.folder):
            of_checkpoint = read_identity(folder)
            if of_checkpoint is not None:
                check_same_run(of_checkpoint, identity, folder)
            elif (folder / "trainer_state.json").exists():
                unknown.append(folder)
        record = _json(self.folder / RUN_FILE)
        if record and there is None:
            found = recorded_differences(record, identity, self.corpus, self._trainer_of, self.base)
            refuse_differences(self.folder, found)
        elif unknown and there is None:
            raise OtherRunError(
                f"{unknown[-1]} is of an earlier version of cellglot and does not record what it was trained on. "
                "Choose another folder for the result, or delete that run and start again with --overwrite "
                "(overwrite=True)"
            )

    def _is_finished(self, record: Mapping[str, Any], identity: Mapping[str, Any], checkpoint: str | None) -> bool:
        """Whether the run is finished, has its last checkpoint, and has the length of the new run."""
        there = read_identity(self.folder) or {}
        finished, length = there.get("finished"), there.get("length") or _recorded_length(record, self._trainer_of)
        if there and finished is None:
            return False
        steps = {int(p.name.rpartition("-")[2]) for p in checkpoint_folders(self.folder)}
        had = set((finished or {}).get("checkpoints", []))
        if checkpoint is not None and had and max(had) not in steps:
            return False
        if length == identity["length"]:
            return True
        if checkpoint is None:
            raise OtherRunError(
                f"{self.folder} contains this run, finished with {_length(length)}, but no checkpoint from which to "
                f"resume for {_length(identity['length'])}. Choose another folder for the result, or start again with "
                "--overwrite (overwrite=True)"
            )
        return False

    # ---------------------------------------------------------------- writing

    def begin(self) -> None:
        """Write the identity of the run to the folder, before the first checkpoint."""
        if self.arguments.process_index == 0:
            write_json(self.folder / IDENTITY_FILE, self.identity)

    def finish(self, save: Callable[[str], None], record: Mapping[str, Any]) -> None:
        """Write the model, then the record: a folder with a record is complete.

        Parameters
        ----------
        save
            Writes the model to a folder; every process calls it.
        record
            Record of the run, without NaN or infinite numbers.
        """
        main, staged = self.arguments.process_index == 0, self.folder / SAVING
        if main:
            shutil.rmtree(staged, ignore_errors=True)
        _wait(self.arguments)
        try:
            save(str(staged))
            _wait(self.arguments)
            if main:
                (self.folder / RUN_FILE).unlink(missing_ok=True)
                _move(staged, self.folder)
                write_json(self.folder / RUN_FILE, record, default=str)
                steps = sorted(int(p.name.rpartition("-")[2]) for p in checkpoint_folders(self.folder))
                write_json(self.folder / IDENTITY_FILE, self.identity | {"finished": {"checkpoints": steps}})
                self._own.finish()
        finally:
            if main:
                shutil.rmtree(staged, ignore_errors=True)
        _wait(self.arguments)


def check_no_other_model(folder: str | Path) -> None:
    """Refuse a folder with a model that was not trained there."""
    folder = Path(folder)
    found = [name for name in MODEL_FILES if (folder / name).exists()]
    made_here = read_identity(folder) is not None or bool(_json(folder / RUN_FILE))
    if found and not made_here:
        raise OutputError(
            f"{folder} contains a model ({', '.join(found[:3])}) that was not trained there: choose another folder "
            "for the result"
        )


def on_main_process(arguments: TrainingArguments, function: Callable[[], Any]) -> Any:
    """Call a function on the main process; all processes get its result (which has to be picklable) or its error."""
    if arguments.world_size == 1 or not torch.distributed.is_initialized():
        return function()
    answer: list[Any] = [None, None]
    failure: Exception | None = None
    if arguments.process_index == 0:
        try:
            answer[0] = function()
        except Exception as error:  # noqa: BLE001 (the others wait for an answer)
            failure, answer[1] = error, str(error)
    device = arguments.device if arguments.device.type == "cuda" else None
    torch.distributed.broadcast_object_list(answer, device=device)
    if failure is not None:
        raise failure
    if answer[1] is not None:
        raise ValueError(answer[1])
    return answer[0]


def _wait(arguments: TrainingArguments) -> None:
    if arguments.world_size > 1 and torch.distributed.is_initialized():
        torch.distributed.barrier()


def _move(staged: Path, folder: Path) -> None:
    """Move files to their place, with the permissions of the umask."""
    for path in sorted(p for p in staged.rglob("*") if p.is_file()):
        target = folder / path.relative_to(staged)
        target.parent.mkdir(parents=True, exist_ok=True)
        share(path)
        os.replace(path, target)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _recorded_length(
    record: Mapping[str, Any], trainer_of: Callable[[TrainingConfig], TrainingArguments]
) -> dict[str, Any]:
    given = trainer_of(TrainingConfig(trainer=dict((record.get("config") or {}).get("trainer") or {})))
    return run_length(given)


def _length(length: Mapping[str, Any]) -> str:
    steps = length["max_steps"]
    return f"{steps:,} steps" if steps > 0 else f"{length['num_train_epochs']:g} epochs"


__all__ = ["RUN_FILE", "TrainingOutput", "check_no_other_model", "on_main_process"]
