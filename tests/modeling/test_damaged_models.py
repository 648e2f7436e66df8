"""Damaged and hostile models and adapters: every loader refuses them, names the file, and counts what is missing."""

import json
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, pipeline

from cellglot import modeling
from cellglot.evaluation.annotation.by_classifier import load_classifier
from cellglot.evaluation.benchmark.models import load_evaluated_model
from cellglot.evaluation.embed_file import embed_file
from cellglot.evaluation.embedding import embed_cells
from cellglot.inputs import InputError
from cellglot.modeling.adapters import load_with_adapter
from cellglot.modeling.loading import load_model, load_tokenizer
from cellglot.modeling.model_files import ModelFileError, check_model_folder, check_pattern
from cellglot.training.families.records import FAMILIES
from cellglot.training.finetuning.network import pretrained_network


CLASSES = {
    "exceiver": "ExceiverForMaskedExpression",
    "langcell": "LangCellModel",
    "sccello": "ScCelloForMaskedLM",
}


@pytest.fixture
def saved(request, tmp_path):
    """Save a tiny model of a type."""

    def make(name):
        torch.manual_seed(0)
        config = request.getfixturevalue(f"{name}_config")()
        getattr(modeling, CLASSES[name])(config).save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


def rewrite(folder, change, name="model.safetensors"):
    weights = {k: v.clone().contiguous() for k, v in change(load_file(folder / name)).items()}
    (folder / name).unlink()
    save_file(weights, folder / name, metadata={"format": "pt"})


def set_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def with_infinity(part):
    """Make the first values of some weights infinite."""

    def change(weights):
        first = torch.tensor([0])
        return {k: v.index_fill(0, first, float("inf")) if part in k else v for k, v in weights.items()}

    return change


def encoder_half(weights):
    kept = sorted(weights)
    return {k: weights[k] for i, k in enumerate(kept) if i % 2 or "layers" not in k}


DAMAGE = {
    "prefix": (lambda w: {f"module.{k}": v for k, v in w.items()}, r"lacks \d+ of the \d+ weights.*module\."),
    "half": (encoder_half, r"lacks \d+ of the \d+ weights"),
    "nan": (lambda w: {k: v * float("nan") for k, v in w.items()}, r"not finite numbers.* in \d+ weights"),
    "one infinity": (with_infinity("fc1.weight"), "not finite numbers"),
    "shape": (lambda w: {k: v[:-1] if "fc1" in k else v for k, v in w.items()}, "fc1|size|shape"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", CLASSES)
def test_weights_that_are_not_those_of_the_model(saved, name, damage):
    folder, (change, message) = saved(name), DAMAGE[damage]
    load_model(AutoModel, folder)
    rewrite(folder, change)
    with pytest.raises(ValueError, match=message) as error:
        load_model(AutoModel, folder)
    assert str(folder) in str(error.value)


VERBS = {
    "embed": lambda folder, cells, out: embed_file(folder, cells, out / "e.npy", progress=False),
    "annotate": lambda folder, cells, out: load_classifier(folder),
    "evaluate": lambda folder, cells, out: load_evaluated_model(folder),
    "finetune": lambda folder, cells, out: pretrained_network(FAMILIES["sccello"], "cell-type", {}, folder, {}),
    "pipeline": lambda folder, cells, out: pipeline("cell-embedding", model=str(folder)),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("damage", ["prefix", "nan"])
def test_every_verb_refuses_weights_that_are_missing_or_no_numbers(
    gene_classifiers, blood_file, tmp_path, verb, damage
):
    folder = tmp_path / "classifier"
    shutil.copytree(gene_classifiers["classifier"], folder)
    change, message = DAMAGE[damage]
    rewrite(folder, change)
    with pytest.raises(ValueError, match=message):
        VERBS[verb](folder, blood_file, tmp_path)
    assert not (tmp_path / "e.npy").exists()


def test_a_new_head_is_allowed_where_it_is_trained(gene_classifiers):
    pretrained_network(FAMILIES["sccello"], "cell-type", {}, gene_classifiers["base"], {"num_labels": 3})
    with pytest.raises(ModelFileError, match="lacks 2 of the"):
        load_model(modeling.ScCelloForSequenceClassification, gene_classifiers["base"])


def test_results_that_are_no_numbers_stop_the_run(gene_classifiers, blood):
    model, tokenizer = load_model(AutoModel, gene_classifiers["base"]), load_tokenizer(gene_classifiers["base"])
    embed_cells(model, tokenizer, blood[:3], progress=False)
    with torch.no_grad():
        for parameter in model.layers[0].parameters():
            parameter.fill_(3e38)
    with pytest.raises(ValueError, match=r"pooler output of \d of 3 cells .* is not finite"):
        embed_cells(model, tokenizer, blood[:3], progress=False)


FILES = {
    "cut weights": ("model.safetensors", lambda b: b[: len(b) // 2]),
    "cut head": ("model.safetensors", lambda b: b[:20]),
    "empty weights": ("model.safetensors", lambda b: b""),
    "endless head": ("model.safetensors", lambda b: (1 << 62).to_bytes(8, "little") + b[8:]),
    "longer weights": ("model.safetensors", lambda b: b + b"x"),
    "no JSON": ("config.json", lambda b: b[:-20]),
    "a list": ("config.json", lambda b: b"[]"),
    "deep": ("config.json", lambda b: b"[" * 100_000),
    "no text": ("config.json", lambda b: b"\xff\xfe" + b),
    "tokenizer": ("tokenizer_config.json", lambda b: b[:-9]),
    "vocabulary": ("gene_vocab.json", lambda b: b[: len(b) // 2]),
    "statistics": ("gene_stats.safetensors", lambda b: b[: len(b) // 2]),
}


@pytest.mark.parametrize("kind", FILES)
def test_damaged_files_are_named(gene_classifiers, tmp_path, kind):
    folder, (name, change) = tmp_path / "base", FILES[kind]
    shutil.copytree(gene_classifiers["base"], folder)
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    with pytest.raises(ValueError, match=name):
        load_tokenizer(folder), load_model(AutoModel, folder)


CONFIGURATIONS = {
    "layers": {"num_hidden_layers": 10**9},
    "width": {"hidden_size": 10**6},
    "genes": {"vocab_size": 2**31 - 1},
    "classes": {"num_labels": 10**9},
    "negative": {"hidden_size": -16},
    "text": {"num_hidden_layers": "many"},
    "file": {"vocab_file": "../../secrets.json"},
}


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_configurations_that_cannot_be_are_refused_before_anything_is_built(gene_classifiers, tmp_path, kind):
    folder = tmp_path / "base"
    shutil.copytree(gene_classifiers["base"], folder)
    set_json(folder / "config.json", **CONFIGURATIONS[kind])
    start = time.monotonic()
    with pytest.raises(ModelFileError, match=r"config\.json"):
        load_model(AutoModel, folder)
    assert time.monotonic() - start < 2


def test_statistics_and_ids_that_cannot_be(gene_classifiers, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(gene_classifiers["base"], folder)
    rewrite(
        folder,
        lambda w: {k: v.index_fill(0, torch.tensor([1]), float("inf")) for k, v in w.items()},
        "gene_stats.safetensors",
    )
    with pytest.raises(ValueError, match=r"gene_stats\.safetensors.* of 1 of [\d,]+ genes is not a finite number"):
        load_tokenizer(folder)
    vocabulary = json.loads((folder / "gene_vocab.json").read_text())
    for wrong in (10**12, 1.5, "7", None):
        vocabulary["token_ids"][next(iter(vocabulary["token_ids"]))] = wrong
        (folder / "gene_vocab.json").write_text(json.dumps(vocabulary))
        with pytest.raises(ValueError, match=r"gene_vocab\.json is not a gene vocabulary"):
            load_tokenizer(folder)


def test_files_named_outside_of_the_folder_are_not_read(saved, tmp_path):
    folder = saved("sccello")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    for name, message in (
        ("../elsewhere.safetensors", "outside of its folder"),
        (str(tmp_path / "elsewhere.safetensors"), "outside of its folder"),
        ("link.safetensors", "leads out of the folder"),
    ):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(weights, name)}))
        if name.startswith("link"):
            (folder / name).symlink_to(tmp_path / "elsewhere.safetensors")
        for load in (load_model, lambda auto, place: auto.from_pretrained(place)):
            with pytest.raises(ValueError, match=message):
                load(AutoModel, folder)


def test_pickles_are_not_read(saved):
    folder = saved("exceiver")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    for load in (load_model, lambda auto, place: auto.from_pretrained(place)):
        with pytest.raises(ValueError, match=r"pytorch_model\.bin is a pickle"):
            load(AutoModel, folder)


def test_code_of_another_repository_is_named_and_not_run(gene_classifiers, tmp_path, caplog):
    folder = tmp_path / "base"
    shutil.copytree(gene_classifiers["base"], folder)
    foreign = {"AutoModel": "some/body--modeling_evil.Evil", "AutoConfig": "some/body--modeling_evil.EvilConfig"}
    set_json(folder / "config.json", auto_map=foreign)
    assert type(load_model(AutoModel, folder)) is modeling.ScCelloModel


# -------------------------------------------------------------------- adapters

ADAPTERS = {
    "backtracking": ({"target_modules": "(a+)+$"}, "target_modules"),
    "alternatives": ({"target_modules": r"(\w|\w\w)+x"}, "target_modules"),
    "many": ({"target_modules": ".*.*.*.*.*x"}, "target_modules"),
    "no pattern": ({"target_modules": "("}, "target_modules"),
    "ranks": ({"rank_pattern": {"(.*)*x": 4}}, "rank_pattern"),
    "rank": ({"r": 10**9}, "adapter_config.json: r is"),
    "no rank": ({"r": "8"}, "adapter_config.json: r is"),
    "imports": ({"megatron_config": {}, "megatron_core": "os"}, "megatron_config"),
    "other": ({"peft_type": "PROMPT_TUNING"}, "PROMPT_TUNING"),
    "base": ({"base_model_name_or_path": 3}, "base_model_name_or_path"),
    "modules": ({"modules_to_save": "classifier.*"}, "modules_to_save is 'classifier"),
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_settings_of_adapters_that_cannot_be(gene_classifiers, tmp_path, kind):
    folder, (changes, message) = tmp_path / "adapter", ADAPTERS[kind]
    shutil.copytree(gene_classifiers["adapter"], folder)
    set_json(folder / "adapter_config.json", **changes)
    start = time.monotonic()
    with pytest.raises(ValueError, match=message):
        load_with_adapter(folder)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("kind", ["half", "prefix", "nan", "cut", "pickle"])
def test_weights_of_adapters(gene_classifiers, tmp_path, kind):
    folder, name = tmp_path / "adapter", "adapter_model.safetensors"
    shutil.copytree(gene_classifiers["adapter"], folder)
    if kind == "cut":
        (folder / name).write_bytes((folder / name).read_bytes()[:-9])
    elif kind == "pickle":
        torch.save(load_file(folder / name), folder / "adapter_model.bin")
        (folder / name).unlink()
    else:
        halves = {"half": lambda w: {k: w[k] for i, k in enumerate(sorted(w)) if i % 2}}
        rewrite(folder, (halves | {k: v[0] for k, v in DAMAGE.items() if k != "half"})[kind], name)
    with pytest.raises(ValueError, match="adapter"):
        load_with_adapter(folder)


def test_patterns_of_real_adapters_are_read():
    for pattern in (r".*\.(q|v)_proj", r"layers\.\d+\.(self_attn\.[qkvo]_proj|fc[12])", "all-linear", r"a{2}b?.*c+"):
        check_pattern(pattern, "target_modules")


def test_errors_of_libraries_name_the_folder(saved):
    folder = saved("langcell")
    set_json(folder / "config.json", cell_config=["not", "a", "mapping"])
    with pytest.raises((InputError, ModelFileError, OSError), match=str(folder)):
        load_model(AutoModel, folder)


def test_whole_folders_pass(saved):
    for name in CLASSES:
        check_model_folder(saved(name))
