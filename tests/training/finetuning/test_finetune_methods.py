"""Every method on every model: what learns, that it learns, and that what was saved is what was trained."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score

from cellglot import modeling
from cellglot.modeling.adapters import load_with_adapter, merge_adapter
from cellglot.outputs import MANIFEST_FILE
from cellglot.tokenization import ExceiverTokenizer, LangCellProcessor, RankValueTokenizer, tokenize_corpus
from cellglot.training.choices import METHODS
from cellglot.training.config import TrainingConfig
from cellglot.training.data.dataset import CellDataset
from cellglot.training.data.gene_embeddings import initialize_gene_embeddings
from cellglot.training.data.labels import read_column
from cellglot.training.data.splits import divide
from cellglot.training.families.records import FAMILIES
from cellglot.training.finetuning.finetune import finetune
from cellglot.training.run import RUN_FILE
from cellglot.training.runs.identity import IDENTITY_FILE


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
MODELS = ("exceiver", "langcell", "sccello")
ADAPTERS = ("lora", "dora", "ia3")
# Every method on classes of cells; on the other tasks one that trains all weights and one that does not.
RUNS = [(m, "cell-type", method) for m in MODELS for method in METHODS]
RUNS += [(m, t, x) for m in MODELS for t in FAMILIES[m].model_classes for x in ("full", "lora") if t != "cell-type"]


def quick(model, task, method):
    """Whether a run is one of `make test`: all methods on one model, on the others LoRA, and one of all weights."""
    return method == "lora" or (task == "cell-type" and (model == "exceiver" or method == "full"))


def marked(runs):
    return [pytest.param(*run, marks=[] if quick(*run) else pytest.mark.long) for run in runs]


LENGTH = 64


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny tensors are computed by one thread: waiting for others takes longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def corpora(vocabulary, blood, tmp_path_factory):
    """Two kinds of cells as tokens of each model, and with them a value that genes tell."""
    folder, kinds = tmp_path_factory.mktemp("tokens"), {"CD14+ Monocyte": "CD14+ Monocyte", "CD19+ B": "B cell"}
    cells = blood[blood.obs["cell_type"].isin(kinds)].copy()
    types = cells.obs["cell_type"].astype(str).map(kinds)
    lysozyme = np.log1p(cells[:, "LYZ"].X.toarray().ravel())
    programs = np.where(types == "B cell", "presents", "|") + np.where(lysozyme > 1, "|digests", "")
    cells.obs = pd.DataFrame(
        {"cell_type": types, "lysozyme": 100 + 20 * lysozyme, "programs": programs}, index=cells.obs_names
    )
    cells.write_h5ad(folder / "cells.h5ad")
    options = {"obs_columns": ["lysozyme", "programs"], "validation_fraction": 0.2, "processes": 1, "progress": False}
    ranks = RankValueTokenizer.from_vocabulary(
        vocabulary, add_cls_token=True, model_max_length=LENGTH, return_expression_values=True
    )
    made = {}
    for tokenizer, names in ((ExceiverTokenizer.from_vocabulary(vocabulary), ["exceiver"]), (ranks, MODELS[1:])):
        corpus = tokenize_corpus([folder / "cells.h5ad"], folder / names[0], tokenizer=tokenizer, **options)
        made |= dict.fromkeys(names, corpus)
    return made


@pytest.fixture(scope="module")
def bases(corpora, vocabulary, cell_text_folder, tmp_path_factory):
    """Tiny models with random layers, dropout, and gene embeddings that know of co-expression."""
    folder, texts = (
        tmp_path_factory.mktemp("bases"),
        LangCellProcessor.from_pretrained(cell_text_folder).text_tokenizer,
    )
    ranks = RankValueTokenizer.from_vocabulary(vocabulary, add_cls_token=True, model_max_length=LENGTH)
    size = {"vocab_size": ranks.vocab_size}
    wide = SMALL | {"hidden_dropout_prob": 0.1, "max_position_embeddings": LENGTH, "pooling": "mean"}
    torch.manual_seed(0)
    models = {
        "exceiver": modeling.ExceiverForMaskedExpression(
            modeling.ExceiverConfig(
                **SMALL, vocab_size=len(vocabulary.genes) + 2, gene_embedding_size=8, num_latents=6, hidden_dropout=0.1
            )
        ),
        "langcell": modeling.LangCellModel(
            modeling.LangCellConfig(
                cell_config=wide | size, text_config=SMALL | {"vocab_size": len(texts)}, projection_dim=8
            )
        ),
        "sccello": modeling.ScCelloForMaskedLM(modeling.ScCelloConfig(**wide, **size)),
    }
    tokenizers = {
        "exceiver": ExceiverTokenizer.from_vocabulary(vocabulary),
        "langcell": LangCellProcessor(ranks, texts),
        "sccello": ranks,
    }
    for name in MODELS:
        initialize_gene_embeddings(models[name].get_input_embeddings(), corpora[name])
        models[name].save_pretrained(folder / name)
        tokenizers[name].save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def genes(vocabulary):
    """Genes with two classes: ribosomal proteins and others of that number."""
    symbols = [vocabulary.symbol(g) for g in vocabulary.genes]
    ribosomal = [s for s in symbols if s.startswith(("RPL", "RPS"))]
    others = [s for s in symbols if s.startswith(("HLA", "IFI", "CD"))]
    return dict.fromkeys(ribosomal, "ribosomal") | dict.fromkeys(others, "other")


def settings(model, method, **finetuning):
    """Three epochs of six steps, five for Exceiver, which comes off slowly."""
    rate = {"full": 5e-3, "probe": 3e-2}.get(method, 1e-2) * (3 if model == "exceiver" else 1)
    trainer = {
        "max_steps": 30 if model == "exceiver" else 18,
        "learning_rate": rate,
        "per_device_train_batch_size": 32,
        "logging_steps": 1,
        "eval_strategy": "no",
        "save_strategy": "no",
        "use_cpu": True,
        "seed": 0,
    }
    return TrainingConfig(trainer=trainer, finetuning=finetuning)


@pytest.fixture(scope="module")
def run(bases, corpora, genes, tmp_path_factory):
    """Fine-tune once for all tests that look at the result: folder, metrics, record."""
    done = {}

    def run(model, task, method):
        if (model, task, method) not in done:
            folder = tmp_path_factory.mktemp("tuned") / f"{model}-{task}-{method}"
            options = {
                "cell-type": {},
                "regression": {"label_column": "lysozyme"},
                "multi-label": {"label_column": "programs"},
                "gene": {"gene_labels": genes},
            }[task]
            split = {"split": "stratified"} if task == "cell-type" else {}
            config = settings(model, method, **split)
            metrics = finetune(config, bases / model, corpora[model], folder, task=task, method=method, **options)
            done[model, task, method] = folder, metrics, json.loads((folder / RUN_FILE).read_text())
        return done[model, task, method]

    return run


def batch_of(corpora, model, config):
    """Some cells as the model takes them."""
    corpus = corpora[model]
    collator = FAMILIES[model].collators(corpus.tokenizer(), config, FAMILIES[model].finetuning_data(), corpus, 0)[1]
    batch = collator(CellDataset(corpus, "train").__getitems__(list(range(6))))
    return {k: v for k, v in batch.items() if k != "labels"}


def load(folder, method, model, task):
    if method in ADAPTERS:
        return load_with_adapter(folder)
    return FAMILIES[model].model_class(task).from_pretrained(folder).eval()


@pytest.mark.parametrize(("model", "task", "method"), marked(RUNS))
def test_it_learns_what_it_is_meant_to(run, bases, corpora, model, task, method):
    folder, metrics, facts = run(model, task, method)
    losses = [entry["loss"] for entry in facts["log"] if "loss" in entry]
    assert np.isfinite(losses).all() and np.mean(losses[-6:]) < 0.97 * np.mean(losses[:6])
    tuned = load(folder, method, model, task)
    heads = FAMILIES[model].heads
    before = load_file(bases / model / "model.safetensors")
    base = tuned.get_base_model() if isinstance(tuned, PeftModel) else tuned
    plain = {
        n.replace("base_layer.", ""): p for n, p in base.named_parameters() if "lora_" not in n and "ia3_" not in n
    }
    moved = {n for n, p in plain.items() if n in before and not torch.equal(p, before[n])}
    moved = {n for n in moved if "original_module" not in n}
    of_encoder = {n for n in moved if n.split(".")[0] not in heads}
    assert bool(of_encoder) == (method == "full"), "all else leaves the base model's weights alone"
    trained = facts["trained_parameters"]
    everything = sum(p.numel() for p in FAMILIES[model].model_class(task)(base.config).parameters())
    assert (trained == everything) == (method == "full") and trained <= everything
    with torch.no_grad():
        logits = tuned(**batch_of(corpora, model, tuned.config)).logits
    assert logits.isfinite().all() and float(logits.std()) > 0


@pytest.mark.parametrize(("model", "task", "method"), marked(r for r in RUNS if r[2] in ADAPTERS))
def test_an_adapter_is_small_and_merges(run, bases, corpora, model, task, method, tmp_path):
    folder, _, facts = run(model, task, method)
    names = {p.name for p in folder.iterdir() if p.is_file()}
    code = {f"configuration_{model}.py", "model_pipelines.py"}
    table = {"gene_labels.json"} if task == "gene" else set()  # genes and classes were given as a mapping
    of_run = {RUN_FILE, IDENTITY_FILE, MANIFEST_FILE}
    adapter = {"adapter_config.json", "adapter_model.safetensors", "config.json"}
    assert {name for name in names if not name.endswith(".py")} == adapter | of_run | table
    assert code <= names
    saved = json.loads((folder / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == facts["base_model"] == str(bases / model)
    assert len(facts["base_model_fingerprint"]) == 32
    held = load_file(folder / "adapter_model.safetensors")
    assert sum(t.numel() for t in held.values()) == facts["trained_parameters"]
    tuned = load_with_adapter(folder)
    batch = batch_of(corpora, model, tuned.config)
    with torch.no_grad():
        expected = tuned(**batch).logits
        merged = merge_adapter(folder)
        assert torch.allclose(merged(**batch).logits, expected, atol=1e-4)
        merged.save_pretrained(tmp_path)
        plain = FAMILIES[model].model_class(task).from_pretrained(tmp_path).eval()
        assert torch.allclose(plain(**batch).logits, expected, atol=1e-4)
    assert not any("lora" in n or "ia3" in n for n, _ in plain.named_parameters())


@pytest.mark.parametrize("model", MODELS)
def test_cells_are_divided_by_class_where_there_are_no_donors(run, corpora, model):
    folder, _, facts = run(model, "cell-type", "lora")
    names = np.array(read_column(corpora[model], ("train", "validation"), "cell_type"), dtype=object)
    held_out = divide(corpora[model], "stratified", names.tolist(), 0).held_out.chosen
    assert facts["divided_by"].startswith("cell, stratified by label: there are no donors")
    assert facts["held_out_cells"] == held_out.sum() == round(0.2 * len(names))
    for part in (held_out, ~held_out):
        assert abs(np.mean(names[part] == "B cell") - np.mean(names == "B cell")) < 0.01
    assert run(model, "regression", "lora")[2]["divided_by"] == "cell", "as the corpus was, unless asked otherwise"


@pytest.mark.parametrize(("model", "task", "method"), marked(RUNS))
def test_the_saved_result_has_the_metrics_of_the_record(run, corpora, genes, model, task, method):
    folder, metrics, facts = run(model, task, method)
    corpus, tuned, kind = corpora[model], load(folder, method, model, task), FAMILIES[model]
    column = {"regression": "lysozyme", "multi-label": "programs"}.get(task, "cell_type")
    splits = ("train", "validation") if task == "cell-type" else ("validation",)
    labels = read_column(corpus, splits, column)
    chosen = divide(corpus, "stratified", labels, 0).held_out.chosen if task == "cell-type" else None
    cells = CellDataset(corpus, splits, keep=chosen)
    collator = kind.collators(corpus.tokenizer(), tuned.config, FAMILIES[model].finetuning_data(), corpus, 0)[1]
    batch = {k: v for k, v in collator(cells.__getitems__(list(range(len(cells))))).items() if k != "labels"}
    with torch.no_grad():
        logits = tuned(**batch).logits
    names = tuned.config.id2label
    if task == "cell-type":
        truth = np.array(labels, dtype=object)[chosen]
        found = np.mean(np.array([names[i] for i in logits.argmax(1).tolist()], dtype=object) == truth)
        assert found == pytest.approx(metrics["eval_accuracy"])
        assert tuned.config.label_cl_ids == {"B cell": "CL:0000236", "CD14+ Monocyte": "CL:0001054"}
        assert facts["label_cl_ids"] == tuned.config.label_cl_ids and metrics["eval_accuracy"] > 0.5
    elif task == "regression":
        values, predicted = np.array(labels), logits[:, 0].numpy()
        assert np.mean((values - predicted) ** 2) == pytest.approx(metrics["eval_mse"], rel=1e-4)
        assert np.corrcoef(values, predicted)[0, 1] == pytest.approx(metrics["eval_pearson"], rel=1e-4)
        assert metrics["eval_pearson"] > 0.3 and 50 < predicted.mean() < 200
    elif task == "multi-label":
        assert [names[i] for i in range(len(names))] == ["digests", "presents"]
        truth = [[name in str(text).split("|") for name in ("digests", "presents")] for text in labels]
        precision = average_precision_score(truth, logits.numpy())
        assert precision == pytest.approx(metrics["eval_auprc"], rel=1e-4) and precision > metrics["eval_chance"] + 0.1
    else:
        symbols = {
            i: corpus.tokenizer().vocabulary.symbol(g) for g, i in corpus.tokenizer().vocabulary.token_ids.items()
        }
        away = facts["held_out_genes"]
        assert set(away.items()) <= set(genes.items()) and {"ribosomal", "other"} == set(away.values())
        of_gene: dict[str, list] = {}
        for token, scores in zip(batch["input_ids"].flatten().tolist(), logits.softmax(-1).flatten(0, 1), strict=True):
            if symbols[token] in away:
                of_gene.setdefault(symbols[token], []).append(scores)
        right = [names[int(torch.stack(rows).mean(0).argmax())] == away[g] for g, rows in of_gene.items()]
        assert np.mean(right) == pytest.approx(metrics["eval_accuracy"])
        assert sum(facts["genes_of_each_class"].values()) + len(away) == len(genes)
