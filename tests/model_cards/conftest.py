import json
import os
from pathlib import Path

import datasets
import pytest
import torch
from filelock import FileLock

from cellglot.training.run import RUN_FILE


DETAILS = {
    "license": "apache-2.0",
    "training_data": "700 blood cells of healthy donors (10x Genomics' PBMC 68k), as scanpy ships them.",
    "training_data_license": "CC BY 4.0",
}
SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
LABELS = ["B cell", "T cell", "monocyte"]


@pytest.fixture(scope="session", autouse=True)
def caches(tmp_path_factory):
    """Keep what `datasets` and `evaluate` cache in a temporary folder, in this process and in those it starts."""
    folder = str(tmp_path_factory.mktemp("datasets"))
    patch = pytest.MonkeyPatch()
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    patch.setitem(os.environ, "HF_DATASETS_CACHE", folder)
    yield
    patch.undo()


@pytest.fixture
def details():
    """What a person adds to a card; fields can be changed."""
    from cellglot.model_cards.card.details import CardDetails

    def make(**changes):
        return CardDetails(**(DETAILS | changes))

    return make


def write_record(system, folder, **more):
    """Write what `save_run` writes, with the numbers of a run of seconds."""
    kind = "ExceiverTokenizer" if system == "exceiver" else "RankValueTokenizer"
    fractions = {"validation": 0.2, "test": 0.0}
    content = {
        "cellglot": "0.1.0",
        "transformers": "5.23.0",
        "torch": "2.13.0",
        "python": "3.11.7",
        "device": "cpu",
        "processes": 1,
        "config": {"model": {"type": system, **SIZES}, "data": {}, "optimizer": {}, "trainer": {"seed": 3}},
        "corpus": {
            "tokenizer": kind,
            "vocab_size": 768,
            "split": {"by": "cell", "seed": 0, "fractions": fractions, "held_out": {}},
            "files": [{"name": "blood", "n_cells": 700, "counts_in": "X"}],
        },
        "training_cells": 552,
        "metrics": {"eval_loss": 1.5, "eval_masked_mse": 1.25, "eval_runtime": 2.0, "epoch": 1.0},
        "log": [{"loss": 2.0, "step": 1}],
    }
    if system != "exceiver":
        content["ontology"] = {"source": "cellglot's blood_lineage.json", "release": "2024-04-05"}
    Path(folder, RUN_FILE).write_text(json.dumps(content | more))


@pytest.fixture
def record():
    return write_record


@pytest.fixture(scope="session")
def folders(vocabulary, cell_text_folder, tmp_path_factory):
    """Models with random weights as training leaves them, by name: tokenizer, code, record."""
    from cellglot import modeling
    from cellglot.tokenization import ExceiverTokenizer, LangCellProcessor, RankValueTokenizer

    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)

    def save(name, model, processing):
        model.save_pretrained(root / name)
        processing.save_pretrained(root / name)
        return root / name

    genes = ExceiverTokenizer.from_vocabulary(vocabulary)
    perceiver = {"vocab_size": genes.vocab_size, "gene_embedding_size": 8, "num_latents": 4, "num_hidden_layers": 1}
    perceiver |= {"hidden_size": 8, "intermediate_size": 16}
    classes = {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}}
    made = {
        "exceiver": save("exceiver", modeling.ExceiverForMaskedExpression(modeling.ExceiverConfig(**perceiver)), genes)
    }
    write_record("exceiver", made["exceiver"])

    config = modeling.ExceiverConfig(**perceiver, **classes, label_cl_ids={"B cell": "CL:0000236"})
    made["classifier"] = save("classifier", modeling.ExceiverForSequenceClassification(config), genes)
    write_record(
        "exceiver", made["classifier"], base_model=str(made["exceiver"]), task="cell-type", method="full",
        label_column="cell_type", held_out_cells=148, metrics={"eval_accuracy": 0.75, "eval_macro_f1": 0.5},
    )  # fmt: skip

    ranks = RankValueTokenizer.from_vocabulary(vocabulary, model_max_length=64)
    config = modeling.ScCelloConfig(
        vocab_size=ranks.vocab_size, max_position_embeddings=64, cell_types=["CL:0000236", "CL:0000084"], **SIZES
    )
    made["sccello"] = save("sccello", modeling.ScCelloForPreTraining(config), ranks)
    write_record("sccello", made["sccello"])

    made["langcell"] = root / "langcell"
    from transformers import AutoModel, AutoProcessor

    model, processor = (kind.from_pretrained(cell_text_folder) for kind in (AutoModel, AutoProcessor))
    assert isinstance(processor, LangCellProcessor)
    save("langcell", model, processor)
    write_record("langcell", made["langcell"])
    return made


@pytest.fixture(scope="session")
def adapter(folders, tmp_path_factory):
    """A LoRA adapter of random weights on the pretrained Exceiver, as fine-tuning leaves it."""
    from transformers import AutoConfig

    from cellglot.modeling import ExceiverForSequenceClassification
    from cellglot.modeling.adapter_folders import weights_fingerprint
    from cellglot.training.finetuning.adapters import put_adapter, save_adapter

    folder = tmp_path_factory.mktemp("adapters") / "blood_lora"
    classes = {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}}
    config = AutoConfig.from_pretrained(folders["exceiver"], **classes)
    torch.manual_seed(0)
    model = ExceiverForSequenceClassification.from_pretrained(folders["exceiver"], config=config)
    tuned = put_adapter(model, "lora", ("decoder", "classifier"))
    with torch.no_grad():
        for name, values in tuned.named_parameters():
            if "lora_B" in name:
                values.normal_(0, 0.1)
    save_adapter(tuned, folder)
    write_record(
        "exceiver", folder, base_model=str(folders["exceiver"]), task="cell-type", method="lora",
        label_column="cell_type", held_out_cells=148, metrics={"eval_accuracy": 0.75},
        base_model_fingerprint=weights_fingerprint(folders["exceiver"]),
    )  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def space_in_browser(gene_classifiers, tmp_path_factory) -> Path:
    """The static Space of the tiny adapter, published to a folder: once for all processes that run tests.

    What is published says nothing of the place of the model, whose weights are the same in all of them.
    """
    from cellglot.model_cards.space.publishing import publish_space

    parent = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        parent = parent.parent
    folder = parent / "space_in_browser"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():  # it is moved there when it is complete
            done = publish_space(gene_classifiers["adapter"], "page", kind="browser", output=folder)
            assert "without cellglot" not in done.summary() and "onnxruntime computed the scores" in done.summary()
    return folder
