"""Signals, checkpoints that cannot be written, and numbers that are none: what a training leaves behind."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.sparse import csr_matrix
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from typer.testing import CliRunner

from cellglot.cli import app
from cellglot.outputs import sha256
from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.corpus.tokenize import tokenize_corpus
from cellglot.training.config import load_config
from cellglot.training.data.dataset import CellDataset, DamagedCellError, EpochSampler
from cellglot.training.finetuning.finetune import finetune
from cellglot.training.pretraining.pretrain import pretrain
from cellglot.training.run import RUN_FILE
from cellglot.training.runs import stopping
from cellglot.training.runs.checkpoints import checkpoint_folders, last_checkpoint, rotate, seal
from cellglot.training.runs.finite import NonFiniteError, non_finite_weights
from cellglot.training.runs.stopping import StopRequest
from cellglot.training.trainer import CellTrainer


CELLS, GENES = 60, 45


def made_up_cells(empty=0, seed=0):
    random = np.random.default_rng(seed)
    kind = np.arange(CELLS) % 3
    rate = np.where(np.arange(GENES)[None, :] // 15 == kind[:, None], 4.0, 0.8)
    counts = np.vstack([random.poisson(rate), np.zeros((empty, GENES))]).astype(np.float32)
    names = [*np.array(["B cell", "T cell", "monocyte"])[kind], *["debris"] * empty]
    obs = pd.DataFrame({"cell_type": names}, index=[f"c{i}" for i in range(len(counts))])
    return ad.AnnData(csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"ENSG{i:011d}" for i in range(1, 46)]))


def tokenized(folder, cells, **options):
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cells.write_h5ad(folder / "cells.h5ad")
    return tokenize_corpus([folder / "cells.h5ad"], folder / "tokens", processes=1, progress=False, **options)


RANKS = {
    "tokenizer": "rank-value",
    "tokenizer_options": {"add_cls_token": True, "return_expression_values": True},
}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return tmp_path_factory.mktemp("stopping")


@pytest.fixture(scope="module")
def tokens(here):
    return tokenized(here / "exceiver", made_up_cells())


@pytest.fixture(scope="module")
def ranks(here):
    return tokenized(here / "ranks", made_up_cells(), **RANKS)


STEPS = ["trainer.use_cpu=true", "trainer.logging_steps=2", "trainer.per_device_train_batch_size=16"]


def tiny(*changes, name="exceiver_tiny.yaml"):
    """Six steps, four an epoch, with dropout."""
    return load_config(name, [*STEPS, "trainer.max_steps=6", "model.hidden_dropout=0.1", *changes])


class Signal(TrainerCallback):
    """Sends a signal to this process at the end of a step, or in the middle of an evaluation after it."""

    def __init__(self, step, number=signal.SIGTERM, evaluating=False):
        self.step, self.number, self.evaluating = step, number, evaluating

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step and not self.evaluating:
            os.kill(os.getpid(), self.number)

    def on_prediction_step(self, args, state, control, **kwargs):
        if state.global_step == self.step and self.evaluating:
            self.evaluating = False
            os.kill(os.getpid(), self.number)


def weights(folder, name="model.safetensors"):
    return load_file(folder / name)


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def assert_unfinished(folder, *steps):
    names = {p.name for p in folder.iterdir()}
    assert {f"checkpoint-{step}" for step in steps} == {name for name in names if "checkpoint" in name}
    assert not names & {"model.safetensors", "adapter_model.safetensors", "config.json", RUN_FILE}


# -------------------------------------------------------------------- signals


@pytest.fixture(scope="module")
def whole(here, tokens):
    pretrain(tiny(), tokens, here / "whole")
    return here / "whole"


@pytest.mark.parametrize("step", [3, 4])
def test_sigterm_leaves_a_checkpoint_that_resumes_to_the_same_weights(tokens, whole, tmp_path, step):
    """In the middle of an epoch, and at its end, where held-out cells are evaluated."""
    with pytest.raises(SystemExit) as ended:
        pretrain(tiny(), tokens, tmp_path, callbacks=[Signal(step)])
    assert ended.value.code == 143
    assert_unfinished(tmp_path, step)
    pretrain(tiny(), tokens, tmp_path)
    assert_same(weights(tmp_path), weights(whole))
    logs = [json.loads((folder / RUN_FILE).read_text())["log"] for folder in (tmp_path, whole)]
    evaluated = [[entry["eval_loss"] for entry in log if "eval_loss" in entry] for log in logs]
    assert evaluated[0] == evaluated[1]


@pytest.fixture
def interruptible():
    """SIGINT raises KeyboardInterrupt, also in a process that was started with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_sigint_is_the_same_and_handlers_are_given_back(tokens, whole, tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        pretrain(tiny("trainer.save_strategy=no"), tokens, tmp_path, callbacks=[Signal(2, signal.SIGINT)])
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert_unfinished(tmp_path, 2)
    pretrain(tiny("trainer.save_strategy=no"), tokens, tmp_path)
    assert_same(weights(tmp_path), weights(whole))


@pytest.mark.parametrize(("step", "evaluating"), [(4, False), (6, True)])
def test_the_best_state_is_kept_across_a_stop(tokens, whole, here, tmp_path, step, evaluating):
    """A stop between a step and its evaluation, and one within the evaluation."""
    best = ["finetuning.patience=3", "trainer.eval_strategy=steps", "trainer.eval_steps=2", "trainer.save_steps=2"]
    config = load_config(
        "exceiver_finetune.yaml",
        [*STEPS, *best, "trainer.save_strategy=steps", "trainer.max_steps=6", "trainer.per_device_eval_batch_size=2"],
    )
    if not (here / "tuned").exists():
        finetune(config, whole, tokens, here / "tuned", method="lora")
    with pytest.raises(SystemExit):
        finetune(config, whole, tokens, tmp_path, method="lora", callbacks=[Signal(step, evaluating=evaluating)])
    assert json.loads((tmp_path / f"checkpoint-{step}" / "stopped.json").read_text()) == {"evaluation_is_due": True}
    finetune(config, whole, tokens, tmp_path, method="lora")
    assert_same(*(weights(folder, "adapter_model.safetensors") for folder in (tmp_path, here / "tuned")))
    records = [json.loads((folder / RUN_FILE).read_text()) for folder in (tmp_path, here / "tuned")]
    for name in ("best_step", "best_metric", "metrics"):
        timeless = [
            {k: v for k, v in r[name].items() if not k.endswith(("runtime", "second"))}
            if name == "metrics"
            else r[name]
            for r in records
        ]
        assert timeless[0] == timeless[1]


@pytest.mark.long
def test_a_stop_in_the_last_evaluation(tokens, tmp_path):
    """Nothing is saved of the end of the training yet: a checkpoint is."""
    config = tiny("trainer.eval_strategy=no", "trainer.save_strategy=no", "trainer.per_device_eval_batch_size=2")
    with pytest.raises(SystemExit):
        pretrain(config, tokens, tmp_path, callbacks=[Signal(6, evaluating=True)])
    assert_unfinished(tmp_path, 6)
    pretrain(config, tokens, tmp_path)
    assert_same(weights(tmp_path), weights(tmp_path / "checkpoint-6"))


@pytest.mark.long
def test_averaged_weights_survive_a_stop(tokens, whole, here, tmp_path):
    config = load_config(
        "exceiver_finetune.yaml",
        [*STEPS, "finetuning.average_weights=0.6", "trainer.max_steps=5", "trainer.eval_strategy=no"],
    )
    finetune(config, whole, tokens, here / "averaged", method="probe")
    with pytest.raises(SystemExit):
        finetune(config, whole, tokens, tmp_path, method="probe", callbacks=[Signal(4)])
    finetune(config, whole, tokens, tmp_path, method="probe")
    assert_same(weights(tmp_path), weights(here / "averaged"))


def test_the_command_ends_with_143(tokens, tmp_path, monkeypatch):
    """Also where the trainer's own checkpoint on SIGTERM is asked for."""
    begin = CellTrainer.begin_steps
    monkeypatch.setattr(CellTrainer, "begin_steps", lambda self: self.add_callback(Signal(2)) or begin(self))
    settings = [*STEPS, "trainer.max_steps=50", "trainer.eval_strategy=no", "trainer.enable_jit_checkpoint=true"]
    command = ["pretrain", "--config", "exceiver_tiny.yaml", "--corpus", str(tokens.folder), "-o", str(tmp_path / "m")]
    done = CliRunner().invoke(app, [*command, *(word for s in settings for word in ("--set", s))])
    assert done.exit_code == 143, done.output
    (checkpoint,) = checkpoint_folders(tmp_path / "m")
    assert_unfinished(tmp_path / "m", int(checkpoint.name.split("-")[1]))
    assert last_checkpoint(tmp_path / "m") == str(checkpoint)


def test_a_second_signal_ends_at_once(monkeypatch):
    sent, clock = [], [100.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(stopping.signal, "signal", lambda number, handler: sent.append((number, handler)))
    monkeypatch.setattr(stopping.os, "kill", lambda process, number: sent.append((process, number)))
    request = StopRequest()
    request._note(signal.SIGTERM, None)
    clock[0] += 0.2  # a launcher passes on what the process got itself
    request._note(signal.SIGTERM, None)
    assert request.signal == signal.SIGTERM and sent == []
    clock[0] += 2
    request._note(signal.SIGINT, None)
    assert sent == [(signal.SIGINT, signal.SIG_DFL), (os.getpid(), signal.SIGINT)]


TERMINATED = """
import os, signal, sys
from cellglot import cli
from cellglot.tokenization.corpus.worker import Worker

def end(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGTERM)
    raise AssertionError("the signal was not noticed")

Worker.start_tokens = end
sys.argv = ["cellglot", "tokenize", sys.argv[1], "-o", sys.argv[2], "--processes", "1"]
cli.main()
"""


@pytest.mark.long
def test_tokenizing_ends_with_143_and_goes_on_later(tokens, here, tmp_path):
    cells, output = here / "exceiver" / "cells.h5ad", tmp_path / "tokens"
    command = [sys.executable, "-c", TERMINATED, str(cells), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 143, done.stderr[-2000:]
    assert not (output / "manifest.json").exists() and not list(output.rglob("*.tmp"))
    again = tokenize_corpus([cells], output, processes=1, progress=False)
    assert [sha256(s) for s in again.shards("train")] == [sha256(s) for s in tokens.shards("train")]


# -------------------------------------------------------------------- checkpoints


def test_a_full_disk_leaves_the_last_checkpoint(tokens, whole, tmp_path, monkeypatch):
    written = []
    save = torch.save

    def fail(content, path, *args, **kwargs):
        written.append(path)
        if "checkpoint-4" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        save(content, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", fail)
    config = tiny("trainer.save_strategy=steps", "trainer.save_steps=2")
    with pytest.raises(
        OSError, match=r"checkpoint-4 could not be written \(.*No space left.*checkpoint-2. Check disk space"
    ):
        pretrain(config, tokens, tmp_path)
    assert_unfinished(tmp_path, 2)
    monkeypatch.undo()
    pretrain(config, tokens, tmp_path)
    assert_same(weights(tmp_path), weights(whole))


@pytest.mark.parametrize("damage", ["cut", "no state"])
def test_a_damaged_checkpoint_is_passed_over(whole, tokens, tmp_path, damage, capsys):
    config = tiny("trainer.save_strategy=steps", "trainer.save_steps=2")
    with pytest.raises(SystemExit):
        pretrain(config, tokens, tmp_path, callbacks=[Signal(4)])
    last = tmp_path / "checkpoint-4"
    if damage == "cut":
        (last / "optimizer.pt").write_bytes((last / "optimizer.pt").read_bytes()[:100])
    else:
        (last / "trainer_state.json").unlink()
    (tmp_path / ".checkpoint-5.part").mkdir()
    pretrain(config, tokens, tmp_path)
    assert f"resuming from {tmp_path / 'checkpoint-2'}" in capsys.readouterr().out
    assert_same(weights(tmp_path), weights(whole))
    assert not (tmp_path / ".checkpoint-5.part").exists()


def test_only_own_checkpoints_give_way(tmp_path):
    for step in (1, 2, 3, 9):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    for step in (1, 2, 3):
        seal(tmp_path / f"checkpoint-{step}", {"format_version": 1, "parts": {}, "names": {}, "length": {}})
    rotate(tmp_path, 1, str(tmp_path / "checkpoint-1"))
    assert [p.name for p in checkpoint_folders(tmp_path)] == ["checkpoint-1", "checkpoint-3", "checkpoint-9"]


@pytest.mark.long
def test_parts_of_the_loss_after_a_resume(ranks, tmp_path):
    """Each part is a mean over the steps since the last log, of the resumed run as well."""
    name = "sccello_tiny.yaml"
    config = load_config(name, [*STEPS, "trainer.max_steps=8", "trainer.eval_strategy=no", "trainer.logging_steps=4"])
    pretrain(config, ranks, tmp_path / "whole")
    with pytest.raises(SystemExit):
        pretrain(config, ranks, tmp_path / "parts", callbacks=[Signal(4)])
    pretrain(config, ranks, tmp_path / "parts")
    logs = [json.loads((tmp_path / n / RUN_FILE).read_text())["log"] for n in ("whole", "parts")]
    entries = [next(e for e in log if e["step"] == 8 and "loss" in e) for log in logs]
    for part in ("loss", "masked_gene_loss", "coherence_loss", "relational_alignment_loss", "regularization_loss"):
        assert entries[0][part] == pytest.approx(entries[1][part], rel=1e-5)


# -------------------------------------------------------------------- numbers that are none


def damaged(corpus, folder, column, value, row=7):
    """A copy of a corpus with one value of a training cell changed, whose manifest has no digest of it."""
    shutil.copytree(corpus.folder, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    shard = next(s for s in manifest["shards"] if s["split"] == "train")
    path = folder / shard["file"]
    table = pq.read_table(path)
    values = table[column].to_pylist()
    values[row][2] = value
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, pa.array(values, table.schema.field(column).type)), path)
    shard["bytes"] = path.stat().st_size
    for digest in set(shard) - {"file", "split", "cells", "tokens", "bytes"}:  # as earlier versions wrote it
        del shard[digest]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Corpus.open(folder), path


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_a_value_that_is_none_is_named_by_shard_and_row(tokens, tmp_path, value):
    corpus, shard = damaged(tokens, tmp_path / "tokens", "expression_values", value)
    with pytest.raises(
        DamagedCellError, match=rf"{shard.name}, row 7: expression_values contains NaN or infinite values"
    ):
        pretrain(tiny(), corpus, tmp_path / "model")
    assert_unfinished(tmp_path / "model")


@pytest.mark.long
def test_an_id_beyond_the_vocabulary_is_named_also_by_other_processes(tokens, tmp_path):
    corpus, shard = damaged(tokens, tmp_path / "tokens", "input_ids", 4000)
    cells = CellDataset(corpus, "train")
    loader = DataLoader(
        cells, 16, sampler=EpochSampler(cells.lengths, 16, 0), num_workers=1, collate_fn=list,
        multiprocessing_context="spawn",
    )  # fmt: skip
    with pytest.raises(DamagedCellError) as error:
        list(loader)
    assert str(error.value).startswith(f"{shard}, row 7: input_ids has ids outside the 47 of the vocabulary")


@pytest.mark.parametrize("name", ["exceiver_tiny.yaml", "sccello_tiny.yaml"])
def test_a_training_that_diverges_saves_no_model(tokens, ranks, tmp_path, name):
    corpus = tokens if name.startswith("exceiver") else ranks
    wild = ["trainer.learning_rate=1e38", "trainer.max_grad_norm=0", "trainer.save_strategy=steps"]
    config = load_config(name, [*STEPS, *wild, "trainer.save_steps=1"])
    with pytest.raises(
        NonFiniteError, match=r"step \d: the (loss|norm of the gradients) is|after step 1: NaN"
    ) as error:
        pretrain(config, corpus, tmp_path)
    assert "learning_rate" in str(error.value)
    assert not {p.name for p in tmp_path.iterdir()} & {"model.safetensors", RUN_FILE}
    for checkpoint in checkpoint_folders(tmp_path):
        assert all(torch.isfinite(w).all() for w in weights(checkpoint).values())


def test_a_base_that_is_none_is_not_trained(whole, tokens, tmp_path):
    base = shutil.copytree(whole, tmp_path / "base")
    content = weights(base)
    name = "exceiver.latent_queries"
    content[name].view(-1)[3] = float("nan")
    save_file(content, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"(?i)nan|finite"):
        finetune(load_config("exceiver_finetune.yaml", STEPS), base, tokens, tmp_path / "tuned")
    assert not (tmp_path / "tuned" / "model.safetensors").exists()


def test_weights_that_are_none_are_found():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2).half())
    assert non_finite_weights(model) == []
    with torch.no_grad():
        model[0].weight.fill_(3e38)  # their sum overflows, they are finite
        assert non_finite_weights(model) == []
        model[1].bias[1] = float("-inf")
        model[0].bias[0] = float("nan")
    assert non_finite_weights(model) == ["0.bias", "1.bias"]


# -------------------------------------------------------------------- cells without genes


@pytest.fixture(scope="module")
def unfiltered(here):
    return {
        "exceiver": tokenized(here / "unfiltered", made_up_cells(empty=150)),
        "ranks": tokenized(here / "unfiltered-ranks", made_up_cells(empty=150), **RANKS),
    }


@pytest.mark.parametrize("name", ["exceiver", "sccello", "langcell"])
def test_pretraining_leaves_empty_cells_out(unfiltered, tmp_path, name, capsys):
    corpus = unfiltered["exceiver" if name == "exceiver" else "ranks"]
    pretrain(load_config(f"{name}_tiny.yaml", [*STEPS, "trainer.max_steps=1"]), corpus, tmp_path)
    assert "150 of 210 cells express no gene of the vocabulary" in capsys.readouterr().out
    record = json.loads((tmp_path / RUN_FILE).read_text())
    assert record["cells_without_genes"] == 150
    assert record["training_cells"] <= CELLS


@pytest.mark.long
@pytest.mark.parametrize("split", ["corpus", "stratified"])
def test_fine_tuning_knows_no_class_of_empty_cells(unfiltered, whole, tmp_path, split, capsys):
    config = load_config("sccello_finetune.yaml", [*STEPS, "trainer.max_steps=1", f"finetuning.split={split}"])
    pretrain(load_config("sccello_tiny.yaml", [*STEPS, "trainer.max_steps=1"]), unfiltered["ranks"], tmp_path / "base")
    finetune(config, tmp_path / "base", unfiltered["ranks"], tmp_path / "tuned")
    assert "150 of 210 cells express no gene of the vocabulary" in capsys.readouterr().out
    record = json.loads((tmp_path / "tuned" / RUN_FILE).read_text())
    assert record["classes"] == ["B cell", "T cell", "monocyte"]
    assert record["training_cells"] + record["held_out_cells"] == CELLS
    assert record["cells_without_genes"] == 150


def test_a_corpus_of_empty_cells_says_so(unfiltered):
    none = np.arange(unfiltered["ranks"].n_cells("train")) < 0
    keep = np.array([length == 1 for length in lengths(unfiltered["ranks"])])
    with pytest.raises(ValueError, match=r"no train cell of .* expresses a gene; \d+ of \d+ express no gene"):
        CellDataset(unfiltered["ranks"], "train", keep=keep)
    with pytest.raises(ValueError, match=r"no train cell of .* expresses a gene$"):
        CellDataset(unfiltered["ranks"], "train", keep=none)


def lengths(corpus):
    return np.concatenate([pq.read_table(s, columns=["length"])["length"].to_numpy() for s in corpus.shards("train")])
