"""A fourth family of models: a file with its network, a record in each layer, and every verb knows it."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

import cellglot
from cellglot.evaluation.annotation.by_classifier import load_classifier
from cellglot.evaluation.benchmark.models import load_evaluated_model
from cellglot.evaluation.embed_file import embed_file
from cellglot.model_cards.card import facts
from cellglot.model_cards.card.details import CardDetails
from cellglot.model_cards.publishing import publish
from cellglot.modeling import families as networks
from cellglot.tokenization import families as inputs
from cellglot.tokenization import tokenize_corpus
from cellglot.training.config import TrainingConfig
from cellglot.training.data.dataset import CellDataset
from cellglot.training.data.rank_value_collator import rank_value_collator
from cellglot.training.data.thinning import ThinningSettings
from cellglot.training.families import rank_value, records
from cellglot.training.families.family import AdapterPreset, TrainedFamily
from cellglot.training.families.recipe import Recipe, new_configuration
from cellglot.training.finetuning.finetune import finetune, finetune_on
from cellglot.training.pretraining.pretrain import pretrain


CODE = Path(__file__).parent / "fourth_family" / "modeling_bag.py"
TRAINER = {
    "max_steps": 3, "per_device_train_batch_size": 32, "eval_strategy": "no", "save_strategy": "no", "use_cpu": True,
}  # fmt: skip


def bag_recipe(model, data, corpus, seed):
    tokenizer = rank_value.tokenizer_of(corpus, "Bag")
    network = sys.modules["fourth_family.modeling_bag"].BagForPreTraining
    made = network(new_configuration(network.config_class, model, tokenizer))
    collator = rank_value_collator(tokenizer, mask_fraction=0.2, seed=seed, max_length=64)
    saved = rank_value.saved_tokenizer(tokenizer, made.config)
    return Recipe(
        made,
        saved,
        CellDataset(corpus, "train"),
        None,
        collator,
        lambda prediction, compute_result=True: {},
        "a bag of genes",
    )


@pytest.fixture(scope="module")
def bag():
    """Load the toy's file, and add its record to every layer."""
    spec = importlib.util.spec_from_file_location("fourth_family.modeling_bag", CODE)
    module = importlib.util.module_from_spec(spec)
    layers = networks.FAMILIES, inputs.FAMILIES, records.FAMILIES, facts.SYSTEMS
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        for name in ("BagModel", "BagForPreTraining", "BagForSequenceClassification"):
            getattr(module, name).register_for_auto_class("AutoModel" + name[3:].removeprefix("Model"))
        module.BagConfig.register_for_auto_class()
        networks.FAMILIES.add(networks.ModelFamily(name="bag", configs=(module.BagConfig,), encoder="bag"))
        inputs.FAMILIES.add(
            inputs.TokenizerFamily(
                name="bag",
                kind="rank-value",
                tokenizer="RankValueTokenizer",
                corpus_options={"add_cls_token": True, "return_expression_values": True},
            )
        )
        records.FAMILIES.add(
            TrainedFamily(
                name="bag",
                pretraining_data=ThinningSettings,
                recipe=bag_recipe,
                model_classes={"cell-type": module.BagForSequenceClassification},
                heads=("classifier",),
                head_reads="pooler_output",
                adapters=AdapterPreset(low_rank=r"bag\.embed_tokens", scaled=r"(?!)", inner=r"(?!)"),
                **(rank_value.RANK_VALUE | {"gene_scale": lambda config: 1.0}),
            )
        )
        words = {name: [name] for name in ("uses", "not_for", "as_published", "our_choice", "tags")}
        facts.SYSTEMS.add(
            facts.System(
                name="bag", title="Bag of genes", family="a mean", summary="The mean of genes.", citation="@misc{bag}",
                paper="https://example.org", needs_ontology=False, **words,
            )
        )  # fmt: skip
        cellglot.register_auto_classes()
        yield module
        for layer in layers:
            del layer["bag"]


@pytest.fixture(scope="module")
def trained(bag, blood, tmp_path_factory):
    """Take the toy through tokenize, pretrain and finetune; gives the folder of the results."""
    folder = tmp_path_factory.mktemp("bag")
    blood[:200].write_h5ad(folder / "cells.h5ad")
    options = {"tokenizer": "rank-value", "tokenizer_options": {"return_expression_values": True}}
    corpus = tokenize_corpus([folder / "cells.h5ad"], folder / "corpus", processes=1, progress=False, **options)
    config = TrainingConfig(model={"type": "bag", "hidden_size": 4}, trainer=TRAINER)
    pretrain(config, corpus, folder / "pretrained")
    labelled = TrainingConfig(trainer=TRAINER, finetuning={"unlikely_labels": "unchecked"})
    for method in ("full", "lora"):
        finetune(labelled, folder / "pretrained", corpus, folder / method, method=method)
    new = TrainingConfig(model=config.model, trainer=TRAINER, data={"initialize_gene_embeddings": True})
    finetune_on(new, None, [folder / "cells.h5ad"], None, folder / "new")
    return folder


@pytest.mark.parametrize("name", ["pretrained", "full", "lora", "new"])
def test_it_embeds_cells(trained, name):
    output = trained / f"{name}.npy"
    assert "200 cells" in embed_file(trained / name, trained / "cells.h5ad", output, progress=False)
    assert np.load(output).shape == (200, 4) and np.isfinite(np.load(output)).all()


@pytest.mark.parametrize("name", ["full", "lora", "new"])
def test_it_classifies_cells(trained, bag, name):
    model, tokenizer = load_classifier(trained / name)
    assert "CD19+ B" in model.config.id2label.values() and tokenizer.vocab_size > 700
    evaluated = load_evaluated_model(trained / name, device="cpu")
    assert evaluated.facts["model_type"] == "bag" and len(evaluated.classes) == len(model.config.id2label)


def test_it_is_published_with_a_card_after_a_check_without_cellglot(trained, either_process, tmp_path):
    details = CardDetails(license="mit", training_data="Blood cells.", training_data_license="cc-by-4.0")
    done = publish(trained / "full", output=tmp_path / "card", details=details, cells=trained / "cells.h5ad")
    card = (tmp_path / "card" / "README.md").read_text()
    assert "Bag of genes" in card and "The mean of genes." in card and "CD19+ B" in card
    assert done.compared and {"modeling_bag.py", "tokenization_rank_value.py"} <= set(done.files)


def test_a_family_that_is_not_there_is_named_with_those_that_are(tmp_path):
    with pytest.raises(ValueError, match=r"model.type: model type 'sack' is unsupported; there are .*exceiver"):
        records.FAMILIES.of("sack", "model.type")
