"""Publishing as a whole. Some tests start a process without cellglot, others do that part in this process."""

import json
import shutil
from unittest.mock import create_autospec

import pytest
import torch
from datasets import load_dataset
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file

from cellglot.model_cards import publishing
from cellglot.model_cards.checks.clean_process import DifferentNumbersError, NotLoadableError
from cellglot.model_cards.kinds import folder_kind
from cellglot.model_cards.publishing import publish
from cellglot.modeling.adapters import merge_adapter, weights_fingerprint
from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.training.run import RUN_FILE


@pytest.fixture
def hub():
    api = create_autospec(HfApi, instance=True)
    api.repo_exists.return_value = False
    api.create_commit.return_value.commit_url = "https://huggingface.co/owner/name/commit/1"
    return api


@pytest.fixture
def copied(folders, tmp_path):
    """Copy a model's folder, to be changed."""

    def copy(name):
        shutil.copytree(folders[name], tmp_path / "source" / name)
        return tmp_path / "source" / name

    return copy


# -------------------------------------------------------------------- with a process without cellglot


def test_a_classifier_is_loaded_by_a_stranger_and_uploaded(folders, details, hub):
    done = publish(folders["classifier"], "owner/blood_classifier", details=details(), api=hub)
    assert done.place == "https://huggingface.co/owner/name/commit/1"
    assert hub.create_repo.call_args.kwargs["private"] is True
    loaded = {name: module.split(".")[0] for name, module in done.loaded.items()}
    assert loaded == dict.fromkeys(
        ["AutoTokenizer", "AutoModel", "AutoModelForMaskedLM", "AutoModelForPreTraining",
         "AutoModelForSequenceClassification", "pipeline cell-embedding", "pipeline cell-type-annotation"],
        "transformers_modules",
    )  # fmt: skip
    assert done.compared > 1000
    uploaded = {o.path_in_repo for o in hub.create_commit.call_args.args[1]}
    assert uploaded == set(done.files)
    assert {
        "README.md",
        "model.safetensors",
        "examples.json",
        "training_config.yaml",
        "pipeline_cell_embedding.py",
    } <= uploaded


def test_an_adapter_is_loaded_by_a_stranger(adapter, folders, details, either_process, tmp_path):
    done = publish(adapter, output=tmp_path / "blood_lora", details=details(base_model="owner/blood_base"))
    assert done.loaded["PeftModel"].endswith("ExceiverForSequenceClassification")
    assert done.compared > 20
    config = json.loads((tmp_path / "blood_lora" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "owner/blood_base"
    assert sum(done.files[name] for name in ("adapter_model.safetensors", "adapter_config.json")) < 50_000
    assert str(folders["exceiver"]) not in "".join(p.read_text() for p in (tmp_path / "blood_lora").glob("*.json"))


@pytest.mark.long
@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize("of_the_hub", [True, False])
def test_a_merged_adapter_names_its_base_without_further_details(
    adapter, folders, details, repository, tmp_path, of_the_hub
):
    source, merged = tmp_path / "source", tmp_path / "merged"
    shutil.copytree(adapter, source)
    record = json.loads((source / RUN_FILE).read_text())
    record["base_model_fingerprint"] = weights_fingerprint(folders["exceiver"])
    (source / RUN_FILE).write_text(json.dumps(record))
    base = "lab/base" if of_the_hub else str(folders["exceiver"])
    commit = repository(folders["exceiver"], "lab/base") if of_the_hub else None
    recorded = {"base_model_name_or_path": base, "revision": commit}
    settings = json.loads((source / "adapter_config.json").read_text()) | recorded
    (source / "adapter_config.json").write_text(json.dumps(settings))
    merge_adapter(source, output=merged)
    origin = {"base_model": base, "base_model_revision": commit, "merged": True}
    assert json.loads((merged / RUN_FILE).read_text()) == record | origin
    publish(merged, output=tmp_path / "blood", details=details(base_model="lab/base"))
    card = (tmp_path / "blood" / "README.md").read_text()
    assert "base_model_relation: merge\n" in card and "base_model: lab/base\n" in card
    assert "merged with an adapter from [lab/base]" in card
    assert "cellglot finetune lab/base --method lora" in card and "merge_adapter('adapter', output='blood')" in card
    if of_the_hub:
        publish(merged, output=tmp_path / "again", details=details())
        assert "base_model_relation: merge\n" in (tmp_path / "again" / "README.md").read_text()


@pytest.mark.parametrize(("published_as", "kept"), [("lab/base", True), ("owner/copy", False)])
def test_an_adapter_keeps_the_revision_of_the_repository_it_was_trained_on(
    adapter, folders, details, repository, no_process, tmp_path, published_as, kept
):
    commit = repository(folders["exceiver"], "lab/base")
    source, target = tmp_path / "source", tmp_path / "blood_lora"
    shutil.copytree(adapter, source)
    recorded = {"base_model_name_or_path": "lab/base", "revision": commit}
    settings = json.loads((source / "adapter_config.json").read_text()) | recorded
    (source / "adapter_config.json").write_text(json.dumps(settings))
    publish(source, output=target, details=details(base_model=published_as))
    found = json.loads((target / "adapter_config.json").read_text())
    assert (found["base_model_name_or_path"], found["revision"]) == (published_as, commit if kept else "main")
    assert (f"revision `{commit}`" in (target / "README.md").read_text()) == kept


def test_a_data_set_is_streamed_by_a_stranger(corpus, details, either_process, tmp_path):
    done = publish(corpus.folder, output=tmp_path / "tokens", details=details())
    assert done.kind == "dataset" and done.compared > 5000
    streamed = load_dataset(str(tmp_path / "tokens"), streaming=True)
    assert {split: sum(1 for _ in rows) for split, rows in streamed.items()} == {"train": 552, "validation": 148}
    assert Corpus.open(tmp_path / "tokens").n_cells("train") == 552


def test_code_that_needs_cellglot_is_found(folders, details, tmp_path, monkeypatch):
    def spoil(folder):
        code = folder / "modeling_exceiver.py"
        code.write_text(code.read_text() + "\nimport cellglot\n")

    monkeypatch.setattr(publishing, "scan_folder", spoil)
    with pytest.raises(NotLoadableError, match="does not load in a process without cellglot, nothing was published"):
        publish(folders["exceiver"], output=tmp_path / "new", details=details())
    assert not (tmp_path / "new").exists()


# -------------------------------------------------------------------- checks in this process


def test_other_numbers_stop_publishing(folders, details, hub, monkeypatch, no_process):
    def spoil(folder):
        weights = load_file(folder / "model.safetensors")
        name = next(n for n in weights if n.endswith("classifier.3.weight"))
        save_file(weights | {name: weights[name] + 0.1}, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(publishing, "scan_folder", spoil)
    message = r"AutoModelForSequenceClassification: logits differs by 0\.\d+ \(values up to"
    with pytest.raises(DifferentNumbersError, match=message):
        publish(folders["classifier"], "owner/name", details=details(), api=hub)
    hub.create_repo.assert_not_called()
    hub.create_commit.assert_not_called()


@pytest.mark.usefixtures("no_process")
def test_a_dry_run_lists_and_writes_nothing(folders, details, hub, tmp_path):
    done = publish(folders["sccello"], "owner/name", details=details(), api=hub, dry_run=True, output=tmp_path / "new")
    assert done.place == "" and done.files["model.safetensors"] > 1000
    assert "dry run: nothing was published" in done.summary() and "model.safetensors" in done.summary()
    assert hub.method_calls == [] and list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize(
    ("name", "settings", "shown", "task", "more", "options"),
    [
        (
            "ForTokenClassification",
            {"id2label": {0: "dosage sensitive", 1: "other"}},
            "labelling genes, in the context",
            "gene",
            {"gene_labels": {"file": "my genes.csv", "sha256": "0" * 64}},
            "--task gene --gene-labels 'my genes.csv' --config",
        ),
        (
            "ForSequenceClassification",
            {"num_labels": 1, "problem_type": "regression"},
            "predicts a value of each cell",
            "regression",
            {"label_column": "age"},
            "--task regression --labels age --config",
        ),
    ],
)
def test_heads_for_genes_and_for_values(
    folders, details, record, tmp_path, name, settings, shown, task, more, options
):
    from transformers import AutoConfig, AutoTokenizer

    from cellglot import modeling

    config = AutoConfig.from_pretrained(folders["sccello"], **settings)
    torch.manual_seed(0)
    getattr(modeling, f"ScCello{name}")(config).save_pretrained(tmp_path / "tuned")
    record("sccello", tmp_path / "tuned", base_model="owner/base", task=task, method="full", **more)
    AutoTokenizer.from_pretrained(folders["sccello"]).save_pretrained(tmp_path / "tuned")
    publish(tmp_path / "tuned", output=tmp_path / "new", details=details())
    card = (tmp_path / "new" / "README.md").read_text()
    assert shown in card and f"cellglot finetune owner/base {options} " in card
    cells = json.loads((tmp_path / "new" / "examples.json").read_text())["cells"]
    if "id2label" in settings:
        assert all(label.split(": ")[1] in ("dosage sensitive", "other") for cell in cells for label in cell["scores"])
        assert all(label.split(": ")[0] in cell["cell"] for cell in cells for label in cell["scores"])
    else:
        assert [len(cell["first_values"]) for cell in cells] == [1, 1, 1]


@pytest.mark.usefixtures("no_process")
def test_a_model_whose_genes_are_unknown(details, tmp_path):
    from cellglot.modeling import ExceiverConfig, ExceiverForMaskedExpression
    from cellglot.tokenization.genes.placeholder_genes import placeholder_tokenizer

    torch.manual_seed(0)
    sizes = {"gene_embedding_size": 8, "hidden_size": 8, "num_latents": 4, "num_hidden_layers": 1}
    config = ExceiverConfig(vocab_size=102, intermediate_size=16, gene_order_known=False, **sizes)
    ExceiverForMaskedExpression(config).save_pretrained(tmp_path / "converted")
    placeholder_tokenizer(100).save_pretrained(tmp_path / "converted")
    done = publish(tmp_path / "converted", output=tmp_path / "new", details=details())
    card = (tmp_path / "new" / "README.md").read_text()
    assert "The genes of this model are not known" in card and "have no training record" in card
    assert done.compared > 50 and "examples.json" not in done.files


# -------------------------------------------------------------------- bad input


def test_a_card_without_licence_or_terms_of_the_data(folders, details, tmp_path):
    for field, option in (("license", "--license"), ("training_data_license", "--training-data-license")):
        with pytest.raises(ValueError, match=f"card is not complete, nothing was published.*{field}, .*{option}"):
            publish(folders["exceiver"], output=tmp_path / "new", details=details(**{field: None}))


def test_a_model_without_record_needs_its_training_data_and_ontology(copied, details, tmp_path):
    folder = copied("sccello")
    (folder / "training_run.json").unlink()
    with pytest.raises(
        ValueError, match=r"training_data, where .*--training-data.*ontology_release, .*--ontology-release"
    ):
        publish(folder, output=tmp_path / "new", details=details(training_data=None))


def test_a_folder_that_is_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty cannot be published: it has neither config\.json"):
        folder_kind(tmp_path / "empty")
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        folder_kind(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"model_type": "bert"}', "model type 'bert' is unsupported; there are exceiver"),
        ("{", "is not JSON"),
    ],
)
def test_a_folder_of_another_model(details, tmp_path, config, message):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(config)
    with pytest.raises(ValueError, match=message):
        publish(tmp_path / "bert", output=tmp_path / "new", details=details())


@pytest.mark.parametrize(
    ("missing", "what"), [("model.safetensors", "weights"), ("gene_vocab.json", "gene tokenizer")]
)
def test_a_model_that_is_not_whole(copied, details, tmp_path, missing, what):
    folder = copied("exceiver")
    (folder / missing).unlink()
    with pytest.raises(ValueError, match=f"has no {what}"):
        publish(folder, output=tmp_path / "new", details=details())


def test_a_repository_that_exists(folders, details, hub):
    hub.repo_exists.return_value = True
    hub.list_repo_files.return_value = ["README.md", "model.safetensors"]
    with pytest.raises(ValueError, match="the model repository owner/name exists: .* --overwrite"):
        publish(folders["exceiver"], "owner/name", details=details(), api=hub)


def test_an_adapter_whose_base_is_a_folder(adapter, details, tmp_path):
    with pytest.raises(
        ValueError, match="a folder of this machine, which others do not have: .* --base-model owner/name"
    ):
        publish(adapter, output=tmp_path / "new", details=details())


def test_an_adapter_without_base(adapter, details, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    (folder / "training_run.json").unlink()
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="has no base model: pass it with --base-model owner/name"):
        publish(folder, output=tmp_path / "new", details=details())


def test_a_pickle_and_a_secret_in_the_folder(copied, details, tmp_path):
    folder = copied("exceiver")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"contains pytorch_model\.bin: a pickle"):
        publish(folder, output=tmp_path / "new", details=details())
    (folder / "pytorch_model.bin").unlink()
    record = json.loads((folder / "training_run.json").read_text())
    record["config"]["trainer"]["hub_token"] = "hf_" + "aB3" * 11
    (folder / "training_run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"training_config\.yaml, line \d+: a token of the Hub"):
        publish(folder, output=tmp_path / "new", details=details())
    assert not (tmp_path / "new").exists()


def test_cells_that_the_model_does_not_know(folders, details, tmp_path, random_counts):
    import anndata

    cells = anndata.AnnData(random_counts(5, 30))
    cells.var_names = [f"GENE{i}" for i in range(30)]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(ValueError, match="do not match the model .*: pass a file of its cells with --cells"):
        publish(folders["exceiver"], output=tmp_path / "new", details=details(), cells=tmp_path / "cells.h5ad")


def test_nowhere_to_publish_to(folders, details):
    with pytest.raises(ValueError, match="name a repository"):
        publish(folders["exceiver"], details=details())
