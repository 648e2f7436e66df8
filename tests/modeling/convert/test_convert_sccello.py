import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from cellglot.modeling import ScCelloForMaskedLM, ScCelloForPreTraining
from cellglot.modeling.convert.sccello import CheckpointError, convert, read_checkpoint, save_converted


GRADIENTS = {
    "affine_projection.weight": "affine_projection.weight",
    "bert.embeddings.word_embeddings.weight": "sccello.embeddings.word_embeddings.weight",
    "bert.encoder.layer.0.attention.self.query.weight": "sccello.layers.0.self_attn.q_proj.weight",
    "cell_cls.predictions.dense_2.weight": "cell_head.fc2.weight",
    "cls.predictions.dense_1.weight": "gene_head.fc1.weight",
    "learned_centroid.weight": "prototypes.weight",
}
LOSSES = ("masked_gene_loss", "relational_alignment_loss", "coherence_loss", "regularization_loss")


@pytest.fixture
def released(golden):
    folder = golden / "sccello"
    return json.loads((folder / "config.json").read_text()), load_file(folder / "reference_weights.safetensors")


def error(value, reference):
    return float((value.detach() - reference).abs().max() / reference.abs().max())


def without_dropout(model):
    model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def check_golden(model, golden):
    """Compare with the released code, complete outputs in evaluation and the shorter way of training."""
    inputs, expected = (
        load_file(golden / "sccello/inputs.safetensors"),
        load_file(golden / "sccello/outputs.safetensors"),
    )
    batch = {name: inputs[name] for name in ("input_ids", "attention_mask", "labels")}
    batch["cell_type_ids"] = inputs["cell_type"]
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        for training in (False, True):
            model.train(training).zero_grad()
            given = model(**batch)
            compared = {name: given[name] for name in (*LOSSES, "cell_representation")}
            compared["total_loss"] = given.loss
            if not training:
                compared["last_hidden_state"] = given.last_hidden_state
                scores = expected["prediction_scores"][batch["labels"] != -100]
                assert error(given.logits, scores) < 1e-5
            for name, value in compared.items():
                assert error(value, expected[name]) < 1e-5, (implementation, training, name)
            given.loss.backward()
            parameters = dict(model.named_parameters())
            for name, ours in GRADIENTS.items():
                gradient = parameters[ours].grad
                assert error(gradient, expected[f"grad.{name}"][: len(gradient)]) < 1e-5, (implementation, name)
    model.eval()


def test_golden_numbers(released, golden, tmp_path):
    model = without_dropout(convert(*released))
    assert isinstance(model, ScCelloForPreTraining)
    check_golden(model, golden)
    model.save_pretrained(tmp_path)
    check_golden(ScCelloForPreTraining.from_pretrained(tmp_path), golden)
    inputs, expected = (
        load_file(golden / "sccello/inputs.safetensors"),
        load_file(golden / "sccello/outputs.safetensors"),
    )
    masked = ScCelloForMaskedLM.from_pretrained(tmp_path)
    given = masked(inputs["input_ids"], inputs["attention_mask"], labels=inputs["labels"])
    assert error(given.logits, expected["prediction_scores"]) < 1e-5
    assert error(given.loss, expected["masked_gene_loss"]) < 1e-5


def test_what_is_taken_over_and_what_is_not(released):
    config, weights = released
    model = convert(config | {"strange": 1}, weights)
    assert model.config.num_cell_types == 7
    assert model.config.cell_types == [None] * 7
    assert model.config.tau == 0.05
    assert torch.equal(model.similarity_levels, weights["ctgraph_sim"])
    assert torch.equal(model.ancestor_mask.int(), weights["cell_type_ancestor_mask"])
    ours = model.sccello.embeddings.position_embeddings.weight
    legacy = sum(weights[f"bert.embeddings.{n}_embeddings.weight"] for n in ("tf_class", "tf_superclass", "expbin"))
    assert torch.allclose(ours, weights["bert.embeddings.position_embeddings.weight"] + legacy)
    assert not any("binary" in name for name in model.state_dict())


def test_names_of_cell_types(released):
    config, weights = released
    model = convert(config, weights, cell_types={"CL:0000236": 2, "CL:0000084": 5})
    assert model.config.cell_types == [None, None, "CL:0000236", None, None, "CL:0000084", None]
    assert model.config.cell_type_ids(["CL:0000084"]) == [5]
    with pytest.raises(CheckpointError, match="CL:0000236 is said to be row 7, but there are 7 cell types"):
        convert(config, weights, cell_types={"CL:0000236": 7})
    with pytest.raises(CheckpointError, match="both said to be row 1"):
        convert(config, weights, cell_types={"CL:0000236": 1, "CL:0000084": 1})


def test_without_tables_the_model_asks_for_them(released):
    config, weights = released
    del config["num_cell_types"], weights["ctgraph_sim"], weights["cell_type_ancestor_mask"]
    model = convert(config, weights)
    assert model.config.num_cell_types == 600
    with pytest.raises(ValueError, match="model.set_ontology"):
        model(torch.tensor([[59, 3]]), cell_type_ids=torch.tensor([0]))
    named = convert(config, weights, cell_types={"CL:0000236": 3})
    assert named.config.num_cell_types == 4


def test_unknown_weights_are_named(released, caplog):
    config, weights = released
    with caplog.at_level("WARNING"):
        convert(config, weights | {"extra.weight": torch.ones(1)})
    assert "extra.weight" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, w: c.pop("hidden_size"), "configuration lacks hidden_size"),
        (lambda c, w: w.pop("learned_centroid.weight"), "lacks learned_centroid.weight"),
        (lambda c, w: w.pop("affine_projection.bias"), r"missing \['affine_projection.bias'\]"),
        (lambda c, w: c.update(num_hidden_layers=3), r"missing \['sccello.layers.2"),
        (lambda c, w: c.update(vocab_size=61), r"word_embeddings.weight has shape \(60, 32\)"),
        (lambda c, w: c.update(num_cell_types=8), r"ancestor_mask has shape \(7, 7\)|similarity_levels has shape"),
    ],
)
def test_weights_that_do_not_fit(released, change, message):
    config, weights = released
    change(config, weights)
    with pytest.raises(CheckpointError, match=message):
        convert(config, weights)


# -------------------------------------------------------------------- folders


def write_released(folder, released, kind="bin"):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(released[0]))
    if kind == "bin":
        torch.save(released[1], folder / "pytorch_model.bin")
    else:
        save_file(released[1], folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_released_folders(released, golden, tmp_path, kind):
    model = without_dropout(convert(*read_checkpoint(write_released(tmp_path / "released", released, kind))))
    check_golden(model, golden)
    save_converted(model, tmp_path / "ours")
    assert "0 of its 7 prototypes are named" in (tmp_path / "ours/README.md").read_text()


class Dangerous:
    def __reduce__(self):
        return os.system, ("true",)


def test_folders_that_are_none(released, tmp_path):
    with pytest.raises(CheckpointError, match="no config.json"):
        read_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="neither model.safetensors nor pytorch_model.bin"):
        read_checkpoint(tmp_path)
    torch.save({"x": Dangerous()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be read safely"):
        read_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="cannot be read safely"):
        read_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{cut")
    with pytest.raises(CheckpointError, match="config.json is not readable JSON"):
        read_checkpoint(tmp_path)


@pytest.mark.long
def test_the_command_line_writes_model_and_tokenizer(released, tmp_path):
    folder, ours = write_released(tmp_path / "released", released), tmp_path / "ours"
    genes = [f"ENSG{n:011d}" for n in range(57)]
    with open(tmp_path / "tokens.pkl", "wb") as file:
        pickle.dump({"<pad>": 0, "<mask>": 1} | {g: n + 2 for n, g in enumerate(genes)}, file)
    with open(tmp_path / "medians.pkl", "wb") as file:
        pickle.dump(dict.fromkeys(genes, 1.5), file)
    (tmp_path / "types.json").write_text(json.dumps({"CL:0000236": 0}))
    command = [sys.executable, "-m", "cellglot.cli", "convert", "sccello", str(folder), "-o", str(ours)]
    options = ["--token-dictionary", str(tmp_path / "tokens.pkl"), "--gene-medians", str(tmp_path / "medians.pkl")]
    done = subprocess.run(
        [*command, *options, "--cell-types", str(tmp_path / "types.json")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "1 of 7 cell types named" in done.stdout
    from transformers import AutoModelForPreTraining, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(ours), AutoModelForPreTraining.from_pretrained(ours)
    assert tokenizer.vocab_size == model.config.vocab_size
    special = ("pad_token_id", "mask_token_id", "cls_token_id")
    assert [getattr(tokenizer, n) for n in special] == [getattr(model.config, n) for n in special]
    assert (tokenizer.total, tokenizer.model_max_length) == ("vocabulary", 28)
    one_of_two = subprocess.run([*command, *options[:2]], capture_output=True, text=True, check=False)
    assert "needs both --token-dictionary and --gene-medians" in one_of_two.stderr
