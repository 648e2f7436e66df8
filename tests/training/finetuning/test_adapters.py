"""Adapters as others get them: on which base, swapped, in a process without cellglot."""

import json
import shutil
import warnings

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from cellglot import modeling
from cellglot.modeling.adapter_folders import cached_revision, holds_adapter
from cellglot.modeling.adapters import (
    add_adapter,
    load_with_adapter,
    merge_adapter,
    read_adapter,
    use_adapter,
    weights_fingerprint,
)
from cellglot.training.choices import ADAPTERS
from cellglot.training.families.records import FAMILIES
from cellglot.training.finetuning.adapters import adapter_config, put_adapter, save_adapter


MODELS = sorted(FAMILIES)
TASKS = [(model, task) for model in MODELS for task in FAMILIES[model].model_classes if task != "regression"]
# Of other tasks, test_finetune_methods.py saves, loads and merges what it trained by LoRA.
MARKED = [pytest.param(*t, marks=[] if t[1] == "cell-type" else pytest.mark.long) for t in TASKS]
BASES = {
    "exceiver": modeling.ExceiverForMaskedExpression,
    "langcell": modeling.LangCellModel,
    "sccello": modeling.ScCelloForMaskedLM,
}


@pytest.fixture
def base(request, tmp_path):
    """Save a tiny pretrained model with random weights."""

    def make(model, folder="base", seed=0, **changes):
        torch.manual_seed(seed)
        BASES[model](request.getfixturevalue(f"{model}_config")(**changes)).save_pretrained(tmp_path / folder)
        return tmp_path / folder

    return make


@pytest.fixture
def trained(tmp_path):
    """Save an adapter whose weights are random, as if it had been trained; gives its folder and what it predicts."""

    def make(base, model, task="cell-type", method="lora", names=("B", "T", "NK"), folder="adapter", seed=0):
        kind = FAMILIES[model]
        model_class = kind.model_class(task)
        labels = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
        plain = model_class.from_pretrained(base, **labels, label_cl_ids={names[0]: "CL:0000236"})
        adapted = put_adapter(plain, method, kind.heads).eval()
        torch.manual_seed(seed)
        with torch.no_grad():
            for weight in adapted.parameters():
                if weight.requires_grad:
                    weight.add_(0.2 * torch.randn_like(weight))
        save_adapter(adapted, tmp_path / folder)
        record = {"base_model": str(base), "base_model_fingerprint": weights_fingerprint(base)}
        (tmp_path / folder / "training_run.json").write_text(json.dumps(record))
        return tmp_path / folder, predictions(adapted, model)

    return make


def batch_of(model):
    random = torch.Generator().manual_seed(0)
    batch = {"input_ids": torch.randint(2, 39, (3, 8), generator=random)}
    if model == "exceiver":
        return batch | {"expression_values": torch.randn(3, 8, generator=random) + 1}
    batch["input_ids"][:, 0] = 41
    return batch


def predictions(adapted, model):
    with torch.no_grad():
        return adapted(**batch_of(model)).logits


@pytest.mark.parametrize("method", ADAPTERS)
@pytest.mark.parametrize(("model", "task"), MARKED)
def test_saved_is_loaded_and_merged(base, trained, model, task, method, tmp_path):
    folder, expected = trained(base(model), model, task, method)
    read = read_adapter(folder)
    assert (read.method, read.model_class) == (method, FAMILIES[model].model_class(task))
    assert holds_adapter(folder) and not holds_adapter(tmp_path / "base")
    loaded = load_with_adapter(folder)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert torch.allclose(predictions(loaded, model), expected, atol=1e-6)
    assert loaded.config.id2label == {0: "B", 1: "T", 2: "NK"}
    merge_adapter(folder).save_pretrained(tmp_path / "merged")
    merged = read.model_class.from_pretrained(tmp_path / "merged").eval()
    assert torch.allclose(predictions(merged, model), expected, atol=1e-4)
    assert merged.config.label_cl_ids == {"B": "CL:0000236"}
    plain, again = ({p.name for p in (tmp_path / f).iterdir()} for f in ("merged", "base"))
    of_bases = {"pipeline_fill_gene_expression.py", "pipeline_cell_text_matching.py"}  # tasks of pretraining heads
    assert plain - of_bases == again - of_bases, "a merged model has the files of any other"


@pytest.mark.parametrize("model", MODELS)
def test_the_presets_reach_every_block_of_attention(base, model):
    """The Perceiver's cross attention included; of the others, the feed-forward blocks too; heads learn whole."""
    kind = FAMILIES[model]
    plain = kind.model_class("cell-type").from_pretrained(base(model), num_labels=3)
    encoder = plain.get_submodule(kind.encoder)
    linear = {n for n, m in encoder.named_modules() if isinstance(m, torch.nn.Linear)}
    expected = {n for n in linear if "_attn." in n} if model == "exceiver" else linear
    heads = kind.heads
    adapted = put_adapter(plain, "lora", heads)
    changed = {n.split(".lora_A")[0] for n, _ in adapted.named_parameters() if ".lora_A" in n}
    assert changed == {f"base_model.model.{kind.encoder}.{n}" for n in expected}
    assert any("cross_attn" in n for n in changed) == (model == "exceiver")
    learning = {n.split(".")[2] for n, p in adapted.named_parameters() if p.requires_grad and "lora" not in n}
    assert learning == set(heads)


def test_settings_of_adapters():
    config = adapter_config("dora", "sccello", ("classifier",), {"rank": 4, "dropout": 0.1})
    assert (config.r, config.lora_alpha, config.lora_dropout, config.use_dora) == (4, 8, 0.1, True)
    for method, settings, message in (
        ("adalora", {}, "method 'adalora': the adapters are lora, dora, ia3"),
        ("ia3", {"rank": 4}, "'rank' does not exist"),
        ("lora", {"ranks": 4}, "is 'rank' meant"),
        ("lora", {"rank": 0}, "finetuning.rank 0: it is a whole number, at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            adapter_config(method, "sccello", ("classifier",), settings)


# -------------------------------------------------------------------- the base model


def test_the_wrong_base_is_refused_and_both_are_named(base, trained, tmp_path):
    right = base("sccello", "right")
    folder, _ = trained(right, "sccello")
    others = {
        "other weights": (base("sccello", "weights", seed=1), r"whose weights \(\w{12}\) differ"),
        "other sizes": (base("sccello", "sizes", hidden_size=8), "which has hidden_size=8 instead of 16"),
        "other model": (base("langcell", "langcell"), r"\(langcell\): they are models of different types"),
    }
    for other, message in others.values():
        with pytest.raises(ValueError, match=message) as error:
            load_with_adapter(folder, other)
        assert str(right) in str(error.value) and str(other) in str(error.value) and str(folder) in str(error.value)
    shutil.copytree(right, tmp_path / "moved")
    assert isinstance(load_with_adapter(folder, tmp_path / "moved"), PeftModel)
    shutil.rmtree(right)
    with pytest.raises(ValueError, match=r"was trained on .*right \(sccello, weights \w+\); there is no .*: pass it"):
        load_with_adapter(folder)


def test_the_revision_of_a_repository_is_recorded(base, trained, repository, tmp_path):
    commit = repository(base("sccello"), "lab/base")
    assert cached_revision("lab/base") == commit and cached_revision(tmp_path / "base") is None
    plain = modeling.ScCelloForSequenceClassification.from_pretrained("lab/base")
    adapted = put_adapter(plain, "lora", ("classifier",))
    save_adapter(adapted, tmp_path / "adapter")
    read = read_adapter(tmp_path / "adapter")
    assert (read.base, read.revision) == ("lab/base", commit)
    repository(base("sccello", "later", seed=1), "lab/base", "f" * 40)  # main goes on
    loaded = load_with_adapter(tmp_path / "adapter")
    torch.testing.assert_close(predictions(loaded, "sccello"), predictions(adapted.eval(), "sccello"))


def test_what_is_no_adapter(base, trained, tmp_path):
    with pytest.raises(ValueError, match=r"base has no adapter_config.json: it is not an adapter"):
        load_with_adapter(base("sccello"))
    folder, _ = trained(tmp_path / "base", "sccello")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertForSequenceClassification"]}))
    with pytest.raises(ValueError, match="is for BertForSequenceClassification, which is not one of cellglot's"):
        load_with_adapter(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="has no config.json"):
        load_with_adapter(folder)


def test_the_fingerprint_is_that_of_tensors_not_of_files(base, tmp_path):
    folder = base("sccello")
    before, weights = weights_fingerprint(folder), load_file(folder / "model.safetensors")
    names = sorted(weights)
    (tmp_path / "parts").mkdir()
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in files.items():
        save_file({n: weights[n] for n in held}, tmp_path / "parts" / file, metadata={"format": "pt", "more": "x"})
    index = {"weight_map": {n: file for file, held in files.items() for n in held}}
    (tmp_path / "parts" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert weights_fingerprint(tmp_path / "parts") == before
    weights[names[0]][0] += 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert weights_fingerprint(folder) != before
    with pytest.raises(ValueError, match=r"has no model.safetensors"):
        weights_fingerprint(tmp_path)


# -------------------------------------------------------------------- several on one base


@pytest.mark.parametrize("model", MODELS)
def test_two_adapters_are_swapped_on_one_base(base, trained, model):
    first, of_first = trained(base(model), model)
    names = ("monocyte", "B", "T", "NK", "platelet")
    second, of_second = trained(first.parent / "base", model, method="dora", names=names, folder="second", seed=1)
    adapted = load_with_adapter(first, name="first")
    add_adapter(adapted, second, "second")
    assert torch.allclose(predictions(adapted, model), of_first, atol=1e-6), "the one before stays in use"
    for _ in range(2):
        use_adapter(adapted, "second")
        assert torch.allclose(predictions(adapted, model), of_second, atol=1e-6)
        assert list(adapted.config.id2label.values()) == list(names)
        assert adapted.config.label_cl_ids == {"monocyte": "CL:0000236"}
        use_adapter(adapted, "first")
        assert torch.allclose(predictions(adapted, model), of_first, atol=1e-6)
        assert adapted.config.num_labels == 3
    assert not any(p.requires_grad for p in adapted.parameters())
    with pytest.raises(ValueError, match="no adapter 'third': first, second"):
        use_adapter(adapted, "third")
    with pytest.raises(ValueError, match="has an adapter 'second' already"):
        add_adapter(adapted, second, "second")


def test_no_warning_of_others_code(base, trained):
    """PEFT reads an attribute that transformers has renamed."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        first, _ = trained(base("sccello"), "sccello")
        second, _ = trained(first.parent / "base", "sccello", folder="second", seed=1)
        adapted = load_with_adapter(first)
        add_adapter(adapted, second, "second")
        merge_adapter(adapted)
        modeling.ScCelloForSequenceClassification.from_pretrained(first)
        with pytest.raises(FutureWarning, match="is_gradient_checkpointing"):
            _ = adapted.get_base_model().is_gradient_checkpointing


def test_peft_alone_swaps_adapters_of_the_same_classes(base, trained):
    first, of_first = trained(base("sccello"), "sccello")
    second, of_second = trained(first.parent / "base", "sccello", folder="second", seed=1)
    adapted = load_with_adapter(first)
    adapted.load_adapter(second, adapter_name="second")
    adapted.set_adapter("second")
    assert torch.allclose(predictions(adapted, "sccello"), of_second, atol=1e-6)
    adapted.set_adapter("default")
    assert torch.allclose(predictions(adapted, "sccello"), of_first, atol=1e-6)


def test_adapters_that_cannot_share_a_model(base, trained):
    right = base("sccello")
    first, _ = trained(right, "sccello")
    genes, _ = trained(right, "sccello", "gene", folder="genes")
    elsewhere, _ = trained(base("sccello", "other", seed=1), "sccello", folder="elsewhere")
    scaled, _ = trained(right, "sccello", method="ia3", folder="scaled")
    adapted = load_with_adapter(first)
    with pytest.raises(ValueError, match=r"they differ in method \(ia3, lora\)"):
        add_adapter(adapted, scaled, "scaled")
    with pytest.raises(ValueError, match=r"they differ in class \(ScCelloForTokenClassification, ScCelloFor"):
        add_adapter(adapted, genes, "genes")
    with pytest.raises(ValueError, match=r"elsewhere was trained on .*other.*, but .*adapter on .*base.*: load them"):
        add_adapter(adapted, elsewhere, "elsewhere")
    config = json.loads((genes / "config.json").read_text()) | {"pooling": "mean"}
    config["architectures"] = ["ScCelloForSequenceClassification"]
    (genes / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="cannot share a model: they differ in pooling"):
        add_adapter(adapted, genes, "genes")


# -------------------------------------------------------------------- without cellglot

STRANGER = """
import os, pathlib
import peft, torch, transformers
from safetensors.torch import load_file, save_file
torch.set_num_threads(1)
for base, adapter, kind in arguments:
    config = transformers.AutoConfig.from_pretrained(adapter, trust_remote_code=True)
    auto, auto_peft = getattr(transformers, kind), getattr(peft, kind.replace("AutoModel", "AutoPeftModel"))
    model = auto.from_pretrained(base, config=config, trust_remote_code=True)
    folder, name = os.path.split(adapter)
    loaded = {
        "peft": peft.PeftModel.from_pretrained(model, adapter),
        "auto": auto.from_pretrained(adapter, trust_remote_code=True),
        "revision": auto.from_pretrained(pathlib.Path(adapter), revision="main", trust_remote_code=True),
        "subfolder": auto.from_pretrained(folder, adapter_kwargs={"subfolder": name}, trust_remote_code=True),
        "auto_peft": auto_peft.from_pretrained(adapter, num_labels=3, trust_remote_code=True),
    }
    for way, model in loaded.items():
        plain = model.get_base_model() if isinstance(model, peft.PeftModel) else model
        assert type(plain).__module__.startswith("transformers_modules"), way
        with torch.no_grad():
            loaded[way] = model.eval()(**load_file(adapter + "/batch.safetensors")).logits
        assert way == "auto_peft" or list(model.config.id2label.values()) == ["B", "T", "NK"], way
    save_file(loaded, adapter + "/given.safetensors")
"""


@pytest.mark.long
def test_a_process_without_cellglot_gives_the_same_numbers(base, trained, stranger, tmp_path):
    jobs, expected = [], {}
    for model, task in TASKS:
        folder = tmp_path / f"{model}-base"
        if not folder.exists():
            base(model, folder.name)
        adapter, logits = trained(folder, model, task, ADAPTERS[len(jobs) % 3], folder=f"{model}-{task}")
        save_file(batch_of(model), adapter / "batch.safetensors")
        kind = "Token" if task == "gene" else "Sequence"
        jobs.append((str(folder), str(adapter), f"AutoModelFor{kind}Classification"))
        expected[adapter] = logits
    stranger(STRANGER, *jobs)
    for adapter, logits in expected.items():
        given = load_file(adapter / "given.safetensors")
        assert len(given) == 5
        for way, found in given.items():
            torch.testing.assert_close(found, logits, rtol=1e-5, atol=1e-6, msg=f"{adapter.name}: {way}")


# -------------------------------------------------------------------- where the base is


@pytest.mark.parametrize(("model", "method"), [("sccello", "dora"), ("exceiver", "lora"), ("langcell", "ia3")])
def test_base_and_adapter_are_moved_together(base, trained, model, method, tmp_path, monkeypatch):
    """The base by a relative name: from the working directory, the adapter's folder, or one above it."""
    monkeypatch.chdir(tmp_path)
    base(model)
    folder, expected = trained("base", model, method=method)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "base"
    kind = read_adapter(folder).model_class
    (tmp_path / "elsewhere" / "adapters").mkdir(parents=True)
    (tmp_path / "base").rename(tmp_path / "elsewhere" / "base")
    folder = folder.rename(tmp_path / "elsewhere" / "adapters" / "one")
    for place, name in ((tmp_path, folder), (folder.parent, "one"), (folder.parent.parent, "adapters/one")):
        monkeypatch.chdir(place)
        for loaded in (kind.from_pretrained(name), load_with_adapter(name)):
            assert torch.allclose(predictions(loaded, model), expected, atol=1e-6)
        assert weights_fingerprint(read_adapter(name).base) == weights_fingerprint(tmp_path / "elsewhere" / "base")
    loaded = kind.from_pretrained(folder.parent, subfolder="one")
    assert torch.allclose(predictions(loaded, model), expected, atol=1e-6)
    assert loaded.config.name_or_path == str(folder)
    (tmp_path / "elsewhere" / "base").rename(tmp_path / "hidden")
    with pytest.raises(ValueError, match=r"was trained on the folder base, which is neither in the working directory"):
        kind.from_pretrained(folder)


def test_adapters_of_earlier_versions_load(base, trained, tmp_path):
    """They name no task and hold no code of the model."""
    folder, expected = trained(base("sccello"), "sccello")
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["task_type"] == "SEQ_CLS"
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"task_type": None}))
    config = json.loads((folder / "config.json").read_text())
    del config["custom_pipelines"]
    (folder / "config.json").write_text(json.dumps(config))
    for code in folder.glob("*.py"):
        code.unlink()
    for loaded in (load_with_adapter(folder), modeling.ScCelloForSequenceClassification.from_pretrained(folder)):
        assert torch.allclose(predictions(loaded, "sccello"), expected, atol=1e-6)
