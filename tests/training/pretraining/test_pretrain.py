import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer
from typer.testing import CliRunner

from cellglot.cli import app
from cellglot.modeling import ExceiverForMaskedExpression
from cellglot.tokenization import ExceiverTokenizer
from cellglot.tokenization.corpus.corpus import Corpus, CorpusError
from cellglot.tokenization.corpus.tokenize import tokenize_corpus
from cellglot.training.data.collators import ExceiverCollator
from cellglot.training.data.dataset import CellDataset
from cellglot.training.data.gene_embeddings import co_expression_vectors
from cellglot.training.metrics import MaskedExpressionMetrics
from cellglot.training.pretraining.pretrain import pretrain
from cellglot.training.run import RUN_FILE, check_vocabulary


def copy_of(corpus, folder):
    shutil.copytree(corpus.folder, folder)
    return Corpus.open(folder)


def test_the_record_of_a_run(pretrained, corpus):
    record = json.loads((pretrained / RUN_FILE).read_text())
    losses = [entry["loss"] for entry in record["log"] if "loss" in entry]
    assert len(losses) == 5 and np.isfinite(losses).all()
    assert record["training_cells"] == corpus.n_cells("train") == 552
    assert record["num_masked"] == int(0.15 * corpus.manifest["median_length"])
    assert record["config"]["model"]["hidden_dropout"] == 0.1
    assert record["corpus"]["files"] == [{"name": "blood", "n_cells": 700, "counts_in": "X"}]
    assert record["processes"] == 1
    evaluated = [entry for entry in record["log"] if "eval_explained_variance" in entry]
    assert [e["step"] for e in evaluated] == [4, 5]
    assert evaluated[1]["eval_masked_mse"] < evaluated[0]["eval_masked_mse"]
    assert record["metrics"]["eval_explained_variance"] == evaluated[-1]["eval_explained_variance"]


def test_metrics_are_those_of_the_saved_model_on_held_out_cells(pretrained, corpus):
    model = ExceiverForMaskedExpression.from_pretrained(pretrained)
    record = json.loads((pretrained / RUN_FILE).read_text())
    cells = CellDataset(corpus, "validation")
    collator = ExceiverCollator(model.config.pad_token_id, record["num_masked"], seed=0)
    metrics = MaskedExpressionMetrics()
    for cell in range(len(cells)):
        batch = collator([cells[cell]])
        with torch.no_grad():
            metrics.add(model(**batch).predicted_expression.numpy(), batch["labels"].numpy())
    for name, value in metrics.compute().items():
        assert record["metrics"][f"eval_{name}"] == pytest.approx(value, rel=1e-4)


@pytest.mark.long
@pytest.mark.parametrize(
    ("eval_steps", "best", "steps"), [(2, False, [2, 4]), (3, False, [3, 4]), (2, True, [2, 4, 4])]
)
def test_the_saved_model_is_evaluated_once(corpus, tiny_training, tmp_path, eval_steps, best, steps):
    """A model that is the best of several, not the last, is evaluated again."""
    settings = [
        "max_steps=4",
        "save_strategy=steps",
        "eval_strategy=steps",
        f"eval_steps={eval_steps}",
        f"save_steps={eval_steps}",
    ]
    settings += [f"load_best_model_at_end={str(best).lower()}"]
    metrics = pretrain(tiny_training(*(f"trainer.{s}" for s in settings)), corpus, tmp_path / "model")
    log = json.loads((tmp_path / "model" / RUN_FILE).read_text())["log"]
    evaluated = [entry for entry in log if "eval_loss" in entry]
    assert [entry["step"] for entry in evaluated] == steps
    assert metrics == {name: value for name, value in evaluated[-1].items() if name != "step"}


def test_the_folder_is_ready_for_the_hub(pretrained):
    names = {path.name for path in pretrained.iterdir()}
    assert {"model.safetensors", "config.json", "gene_vocab.json", "gene_stats.safetensors"} <= names
    assert {"modeling_exceiver.py", "configuration_exceiver.py", "tokenization_exceiver.py"} <= names
    assert {path.suffix for path in pretrained.iterdir()} == {".safetensors", ".json", ".py"}
    assert not any("optimizer" in n or "scheduler" in n or "training_args" in n for n in names)
    config = json.loads((pretrained / "config.json").read_text())
    assert config["auto_map"]["AutoModelForMaskedLM"] == "modeling_exceiver.ExceiverForMaskedExpression"
    assert config["architectures"] == ["ExceiverForMaskedExpression"]


def test_the_folder_loads(pretrained, corpus, blood):
    model, info = ExceiverForMaskedExpression.from_pretrained(pretrained, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    assert isinstance(tokenizer, ExceiverTokenizer)
    assert tokenizer.vocab_size == model.config.vocab_size == corpus.manifest["vocab_size"]
    assert np.allclose(model.exceiver.background_values, tokenizer.background_values)
    output = AutoModel.from_pretrained(pretrained)(**tokenizer(blood[:3], return_tensors="pt"))
    assert output.pooler_output.shape == (3, 64) and output.pooler_output.isfinite().all()


def test_gene_embeddings_start_from_the_corpus(corpus, tiny_training, tmp_path):
    settings = ["trainer.max_steps=1", "trainer.learning_rate=1e-9", "data.initialize_gene_embeddings=true"]
    pretrain(tiny_training(*settings), corpus, tmp_path / "model")
    rows = load_file(tmp_path / "model" / "model.safetensors")["exceiver.gene_embedding.weight"]
    assert torch.allclose(rows[:-2], torch.from_numpy(co_expression_vectors(corpus, 8)), atol=1e-6)
    assert not rows[-2].any()


def test_a_model_smaller_than_the_vocabulary(exceiver_config, corpus):
    model = ExceiverForMaskedExpression(exceiver_config(num_attention_heads=4, vocab_size=766))
    with pytest.raises(
        ValueError, match=r"token ids up to 766, but the model's vocab_size is 766.*--vocabulary MODEL"
    ):
        check_vocabulary(model, corpus)
    check_vocabulary(ExceiverForMaskedExpression(exceiver_config(num_attention_heads=4, vocab_size=767)), corpus)


def test_a_damaged_shard_is_named(corpus, tmp_path, capsys, tiny_training):
    folder = copy_of(corpus, tmp_path / "corpus").folder
    shard = sorted((folder / "data").rglob("*.parquet"))[0]
    whole = shard.read_bytes()
    middle = len(whole) // 2
    for damaged, message in (
        (whole[:middle], "was cut short or changed"),
        (whole[:-8] + b"\0" * 8, "does not match the manifest"),
        (None, "is missing"),
    ):
        shard.unlink() if damaged is None else shard.write_bytes(damaged)
        with pytest.raises(CorpusError, match=message) as error:
            pretrain(tiny_training(), folder, tmp_path / "model")
        assert str(shard) in str(error.value)
    assert not (tmp_path / "model").exists()


def test_a_folder_without_corpus(tmp_path, tiny_training, pretrained):
    for folder in (tmp_path / "nothing", pretrained):
        with pytest.raises(CorpusError, match="contains no corpus"):
            pretrain(tiny_training(), folder, tmp_path / "model")


def test_tokens_of_another_tokenizer(blood_file, tiny_training, tmp_path):
    corpus = tokenize_corpus([blood_file], tmp_path / "ranks", tokenizer="rank-value", processes=1, progress=False)
    with pytest.raises(ValueError, match="was tokenized by RankValueTokenizer, but Exceiver needs ExceiverTokenizer"):
        pretrain(tiny_training(), corpus, tmp_path / "model")


def test_cells_with_few_genes_are_left_out_and_counted(corpus, tiny_training, tmp_path, capsys):
    table = pq.read_table(corpus.shards("train")[0])
    lengths = table["length"].to_numpy()
    fraction = float(np.median(lengths) * 0.5 / corpus.manifest["median_length"])
    settings = [f"data.mask_fraction={fraction}", "trainer.max_steps=1", "trainer.per_device_train_batch_size=8"]
    pretrain(tiny_training(*settings), corpus, tmp_path / "model")
    record = json.loads((tmp_path / "model" / RUN_FILE).read_text())
    assert record["cells_left_out"] == (lengths < 2 * record["num_masked"]).sum() > 0
    assert record["training_cells"] + record["cells_left_out"] == 552
    assert (
        f"fewer than {2 * record['num_masked']} expressed genes: {record['cells_left_out']}" in capsys.readouterr().out
    )


def test_a_corpus_without_held_out_cells(corpus, tiny_training, tmp_path):
    folder = tmp_path / "corpus"
    whole = copy_of(corpus, folder)
    whole.manifest["shards"] = [s for s in whole.manifest["shards"] if s["split"] == "train"]
    small = ["trainer.max_steps=1", "trainer.per_device_train_batch_size=8"]
    with pytest.raises(ValueError, match="has no held-out cells to evaluate on: set trainer.eval_strategy=no"):
        pretrain(tiny_training(*small, "trainer.eval_strategy=epoch"), whole, tmp_path / "model")
    assert pretrain(tiny_training(*small), whole, tmp_path / "model") == {}
    assert ExceiverForMaskedExpression.from_pretrained(tmp_path / "model").config.vocab_size == 767


def test_the_command_prints_the_metrics(corpus, tiny_training, tmp_path):
    settings = tiny_training("trainer.max_steps=1", "trainer.per_device_train_batch_size=8", as_text=True)
    config = tmp_path / "run.yaml"
    config.write_text("model:\n  type: exceiver\n  num_latents: 4\n  num_hidden_layers: 1\n  intermediate_size: 8\n")
    files = ["--config", str(config), "--corpus", str(corpus.folder), "--output", str(tmp_path / "model")]
    done = CliRunner().invoke(app, ["pretrain", *files, "--set", ",".join(settings)])
    metrics = json.loads((tmp_path / "model" / RUN_FILE).read_text())["metrics"]
    assert f"eval_explained_variance: {metrics['eval_explained_variance']:.4f}" in done.output


def test_token_ids_beyond_the_model_are_refused_by_it(pretrained):
    model = ExceiverForMaskedExpression.from_pretrained(pretrained)
    ids = torch.tensor([[3, 900]])
    with pytest.raises(ValueError, match="900"):
        model(input_ids=ids, expression_values=torch.ones(1, 2), query_ids=ids[:, :1])
