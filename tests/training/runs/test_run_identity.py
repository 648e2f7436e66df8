"""What a training folder accepts: the same run resumes or is finished, every other one is refused."""

import dataclasses
import json
import shutil
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.sparse import csr_matrix
from transfer_sets import TRAIN_FILE
from transfer_study import RESULTS_FILE, earlier_results

from cellglot.outputs import OutputError
from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.corpus.tokenize import tokenize_corpus
from cellglot.training.config import load_config
from cellglot.training.finetuning.finetune import finetune
from cellglot.training.pretraining.pretrain import pretrain
from cellglot.training.run import RUN_FILE, training_arguments
from cellglot.training.runs.identity import IDENTITY_FILE, OtherRunError, differences, run_identity
from cellglot.training.runs.output import on_main_process


SHORT = ["trainer.max_steps=4", "trainer.save_strategy=steps", "trainer.save_steps=2", "trainer.eval_strategy=no"]
SHORT += ["trainer.use_cpu=true"]


def made_up_cells(n_cells=48, seed=0):
    random = np.random.default_rng(seed)
    kind = np.arange(n_cells) % 3
    rate = np.where(np.arange(45)[None, :] // 15 == kind[:, None], 4.0, 0.8)
    obs = {"cell_type": np.array(["B cell", "T cell", "monocyte"])[kind], "group": np.array(["x", "y", "z"])[2 - kind]}
    frame = pd.DataFrame(obs | {"age": random.normal(size=n_cells)}, index=[f"c{i}" for i in range(n_cells)])
    genes = [f"ENSG{i:011d}" for i in range(1, 46)]
    return ad.AnnData(csr_matrix(random.poisson(rate).astype(np.float32)), obs=frame, var=pd.DataFrame(index=genes))


def tokenized(folder, cells, **options):
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cells.write_h5ad(folder / "cells.h5ad")
    return tokenize_corpus(
        [folder / "cells.h5ad"],
        folder / "tokens",
        obs_columns=["group", "age"],
        processes=1,
        progress=False,
        **options,
    )


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return tmp_path_factory.mktemp("identity")


@pytest.fixture(scope="module")
def tokens(here):
    return tokenized(here / "a", made_up_cells())


@pytest.fixture(scope="module")
def other_tokens(here, tokens):
    """Other cells, as many, of the same genes."""
    return tokenized(here / "b", made_up_cells(seed=5), vocabulary=tokens.tokenizer_folder)


def tiny(*changes, name="exceiver_tiny.yaml"):
    return load_config(name, [*SHORT, *changes])


def tuning(*changes):
    return load_config("exceiver_finetune.yaml", [*SHORT, *changes])


@pytest.fixture(scope="module")
def model(here, tokens):
    pretrain(tiny(), tokens, here / "model")
    return here / "model"


@pytest.fixture(scope="module")
def classifier(here, tokens, model):
    finetune(tuning(), model, tokens, here / "classifier")
    return here / "classifier"


@pytest.fixture
def copy(model, tmp_path):
    return shutil.copytree(model, tmp_path / "copy")


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def identity(corpus, config, folder, **options):
    return run_identity("finetune", config, corpus, training_arguments(config, folder), **options)


# -------------------------------------------------------------------- what is compared


@pytest.mark.parametrize(
    "change",
    [
        "trainer.learning_rate=0.02", "trainer.seed=3", "trainer.weight_decay=0.5", "trainer.warmup_steps=3",
        "trainer.per_device_train_batch_size=7", "trainer.gradient_accumulation_steps=2", "data.mask_fraction=0.3",
        "model.hidden_size=4", "optimizer.name=adam", "trainer.bf16=true", "trainer.lr_scheduler_type=cosine",
        "finetuning.class_weights=balanced", "data.ontology=2024-04-05",
    ],
)  # fmt: skip
def test_settings_that_change_weights(tokens, tmp_path, change):
    plain, changed = (identity(tokens, config, tmp_path) for config in (tiny(), tiny(change)))
    found = differences(plain, changed)
    name = change.partition("=")[0].replace("per_device_train_batch_size", "cells_per_batch")
    assert len(found) == 1 and name in found[0] and " there, " in found[0]
    assert plain["digest"] != changed["digest"]


@pytest.mark.parametrize(
    "change",
    [
        "trainer.max_steps=40", "trainer.num_train_epochs=9", "trainer.logging_steps=1", "trainer.save_steps=1",
        "trainer.save_total_limit=7", "trainer.dataloader_num_workers=2", "trainer.eval_strategy=epoch",
        "trainer.per_device_eval_batch_size=3", "trainer.enable_jit_checkpoint=true", "trainer.weight_decay=0.0",
        "model.hidden_dropout=0.0", "trainer.run_name=other", "data.thin_counts=null",
    ],
)  # fmt: skip
def test_settings_that_may_differ(tokens, tmp_path, change):
    plain, changed = (identity(tokens, config, tmp_path) for config in (tiny(), tiny(change)))
    assert differences(plain, changed) == []
    assert plain["digest"] == changed["digest"]


def test_a_corpus_counts_by_its_content(tokens, other_tokens, tmp_path):
    moved = Corpus.open(shutil.copytree(tokens.folder, tmp_path / "moved"))
    first, same, other = (identity(c, tiny(), tmp_path) for c in (tokens, moved, other_tokens))
    assert first["digest"] == same["digest"]
    assert [text.partition(":")[0] for text in differences(first, other)] == ["corpus.content"]


def test_a_base_counts_by_weights_and_configuration(tokens, model, tmp_path):
    moved, changed, wider = (shutil.copytree(model, tmp_path / name) for name in ("moved", "changed", "wider"))
    weights = load_file(changed / "model.safetensors")
    weights[next(iter(weights))].view(-1)[0] += 1
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((wider / "config.json").read_text())
    (wider / "config.json").write_text(json.dumps(settings | {"hidden_dropout": 0.5}))
    first, same, other, third = (identity(tokens, tuning(), tmp_path, base=b) for b in (model, moved, changed, wider))
    assert differences(first, same) == []
    assert "base model.weights" in differences(first, other)[0]
    assert "base model.configuration" in differences(first, third)[0]


def test_files_count_by_their_content(tokens, tmp_path):
    (tmp_path / "a.obo").write_text("one")
    (tmp_path / "b.obo").write_text("one")
    (tmp_path / "c.obo").write_text("two")
    one, same, other = (
        identity(tokens, tiny(f"data.ontology={tmp_path / name}.obo"), tmp_path / "out") for name in "abc"
    )
    assert differences(one, same) == []
    assert differences(one, other)[0].startswith("data.ontology: ")


# -------------------------------------------------------------------- what a folder accepts


def test_pretraining_on_other_cells_is_refused(copy, other_tokens):
    before = content(copy)
    with pytest.raises(
        OtherRunError, match=r"contains a run that differs in corpus\.content: \w{12} \(tokens\) there"
    ) as e:
        pretrain(tiny(), other_tokens, copy)
    assert "--overwrite" in str(e.value) and "another folder" in str(e.value)
    assert content(copy) == before


def test_a_checkpoint_alone_is_enough_to_refuse(copy, tokens):
    for name in (
        IDENTITY_FILE,
        RUN_FILE,
        "model.safetensors",
        "config.json",
        "gene_vocab.json",
        "tokenizer_config.json",
    ):
        (copy / name).unlink()
    with pytest.raises(OtherRunError, match=r"checkpoint-\d contains a run .* trainer\.seed: 0 there, 8 now"):
        pretrain(tiny("trainer.seed=8"), tokens, copy)


@pytest.mark.parametrize(
    ("options", "change", "said"),
    [
        ({"label_column": "group"}, [], "labels: 'cell_type' there, 'group' now"),
        ({"method": "lora"}, [], "method: 'full' there, 'lora' now"),
        ({"task": "regression", "label_column": "age"}, [], "task: 'cell-type' there, 'regression' now"),
        ({}, ["finetuning.split=stratified"], "finetuning.split: not set there, 'stratified' now"),
    ],
)
def test_fine_tuning_for_something_else_is_refused(classifier, model, tokens, options, change, said):
    before = content(classifier)
    with pytest.raises(OtherRunError) as error:
        finetune(tuning(*change), model, tokens, classifier, **options)
    assert said in str(error.value)
    assert content(classifier) == before


def test_the_same_run_is_finished(copy, tokens, capsys):
    before, metrics = content(copy), json.loads((copy / RUN_FILE).read_text())["metrics"]
    assert pretrain(tiny("trainer.logging_steps=1"), tokens, copy) == metrics != {}
    assert "finished: there is nothing to do" in capsys.readouterr().out
    assert content(copy) == before


def test_a_longer_run_resumes_and_a_shorter_one_is_refused(copy, tokens, capsys):
    with pytest.raises(ValueError, match="is of step 4, but this run has only 3 steps"):
        pretrain(tiny("trainer.max_steps=3"), tokens, copy)
    pretrain(tiny("trainer.max_steps=6"), tokens, copy)
    assert f"resuming from {copy / 'checkpoint-4'}" in capsys.readouterr().out
    assert json.loads((copy / "checkpoint-6" / "trainer_state.json").read_text())["global_step"] == 6
    for checkpoint in copy.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    with pytest.raises(OtherRunError, match="6 steps, but no checkpoint from which to resume for 8 steps"):
        pretrain(tiny("trainer.max_steps=8"), tokens, copy)


def test_overwriting_deletes_what_was_trained_there_alone(copy, other_tokens, capsys):
    (copy / "notes.txt").write_text("mine")
    (copy / "plots").mkdir()
    (copy / "plots" / "a.png").write_bytes(b"mine")
    before = (copy / "model.safetensors").read_bytes()
    pretrain(tiny("trainer.save_strategy=no"), other_tokens, copy, overwrite=True)
    assert "going on" not in capsys.readouterr().out
    assert (copy / "model.safetensors").read_bytes() != before
    assert not list(copy.glob("checkpoint-*"))
    assert (copy / "notes.txt").read_text() == "mine" and (copy / "plots" / "a.png").read_bytes() == b"mine"


def test_a_model_from_elsewhere_is_no_output(model, tokens, tmp_path):
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    before = content(tmp_path)
    for train in (lambda: pretrain(tiny(), tokens, tmp_path), lambda: finetune(tuning(), model, tokens, tmp_path)):
        with pytest.raises(OutputError, match="choose another folder|Choose another folder"):
            train()
    assert content(tmp_path) == before


# -------------------------------------------------------------------- runs of earlier versions


@pytest.fixture
def earlier(copy):
    for path in [*copy.rglob(IDENTITY_FILE), *copy.glob(".cellglot*")]:
        path.unlink()
    return copy


def test_a_run_of_an_earlier_version_is_compared_by_its_record(earlier, tokens, other_tokens, capsys):
    pretrain(tiny(), tokens, earlier)
    assert "finished" in capsys.readouterr().out
    with pytest.raises(OtherRunError, match=r"trainer\.learning_rate: 0\.001 there, 0\.5 now"):
        pretrain(tiny("trainer.learning_rate=0.5"), tokens, earlier)
    with pytest.raises(OtherRunError, match="base model"):
        finetune(tuning(), other_model(earlier), tokens, earlier)
    wider = tokenized(earlier.parent / "wider", made_up_cells(n_cells=60), vocabulary=tokens.tokenizer_folder)
    with pytest.raises(OtherRunError, match=r"corpus\.files"):
        pretrain(tiny(), wider, earlier)
    pretrain(tiny("trainer.max_steps=5"), tokens, earlier)
    assert "resuming from" in capsys.readouterr().out


def other_model(folder):
    return shutil.copytree(folder, folder.parent / "base")


def test_checkpoints_of_an_earlier_version_alone_are_refused(earlier, tokens):
    (earlier / RUN_FILE).unlink()
    for name in ("model.safetensors", "config.json", "gene_vocab.json", "tokenizer_config.json"):
        (earlier / name).unlink()
    with pytest.raises(OtherRunError, match="does not record what it was trained on.*--overwrite"):
        pretrain(tiny(), tokens, earlier)


# -------------------------------------------------------------------- several processes, studies


def test_all_processes_get_the_answer_of_the_main_one(tmp_path, monkeypatch):
    """Two processes, one after the other: what is broadcast is kept between them."""
    sent = []
    arguments = training_arguments(tiny(), tmp_path)

    def broadcast(values, device=None):
        if sent:
            values[:] = sent[-1]
        else:
            sent.append(list(values))

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast)

    @dataclasses.dataclass
    class Process:
        process_index: int
        world_size: int = 2
        device: torch.device = arguments.device

    def refuse():
        raise OtherRunError("another run")

    for function, answer in ((lambda: 7, 7), (refuse, None)):
        sent.clear()
        for index in (0, 1):
            if answer is not None:
                assert on_main_process(Process(index), function) == answer
                continue
            with pytest.raises(ValueError, match="another run"):
                on_main_process(Process(index), function)


def test_a_study_compares_its_cells(tmp_path):
    output, data = tmp_path / "study", tmp_path / "data"
    (data / TRAIN_FILE).parent.mkdir(parents=True)
    output.mkdir()
    (data / TRAIN_FILE).write_bytes(b"cells")
    assert earlier_results(output, data, None) == {}
    (output / RESULTS_FILE).write_text('{"row": {}}')
    assert earlier_results(output, data, None) == {"row": {}}
    with pytest.raises(ValueError, match="differs in --most: None there, 400 now"):
        earlier_results(output, data, 400)
    (data / TRAIN_FILE).write_bytes(b"other cells")
    with pytest.raises(ValueError, match=f"differs in {TRAIN_FILE}"):
        earlier_results(output, data, None)
    assert earlier_results(output, data, None, overwrite=True) == {}
