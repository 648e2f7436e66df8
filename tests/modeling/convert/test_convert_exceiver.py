import json
import os
import pathlib

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cellglot.modeling import ExceiverForMaskedExpression, ExceiverForSequenceClassification
from cellglot.modeling.convert.exceiver import CheckpointError, convert, read_checkpoint, save_converted


# The golden numbers are float32 themselves; of the published classifier they lie up to 1.6e-4 (relative to the
# largest value) from the float64 truth, and ours nearer. Hence values are compared relative to the largest.
TOLERANCE = 1e-4


def check_golden(model, folder):
    """Compare both modes with the released code's outputs, under both implementations of attention."""
    inputs, expected = load_file(folder / "inputs.safetensors"), load_file(folder / "outputs.safetensors")
    expressed, n_genes = inputs["expressed"], inputs["background_values"].numel()
    width = int(expressed.sum(1).max())
    ids = torch.full((len(expressed), width), n_genes)
    values, masked = torch.zeros(len(expressed), width), torch.zeros(len(expressed), width, dtype=torch.bool)
    for cell, row in enumerate(expressed):
        genes = row.nonzero()[:, 0]
        ids[cell, : len(genes)] = genes
        values[cell, : len(genes)] = inputs["gene_values"][cell, genes]
        masked[cell, : len(genes)] = inputs["gene_ids"][cell, genes] == n_genes
    batch = {
        "input_ids": ids,
        "expression_values": values,
        "masked_genes": masked,
        "query_ids": inputs["query_gene_ids"],
        "background_values": inputs["background_values"],
    }
    classifies = isinstance(model, ExceiverForSequenceClassification)
    labels = {"expression_labels" if classifies else "labels": inputs["target_values"]}
    if classifies:
        labels["labels"] = inputs["class_labels"]
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        for mode, prefix in (("exclude", "exclude"), ("bias", "additive")):
            model.config.unexpressed_genes = mode
            with torch.no_grad():
                given = model(**batch, **labels)
            compared = {
                "latent": given.last_hidden_state,
                "predicted_expression": given.predicted_expression,
                "mse_loss": given.expression_loss if classifies else given.loss,
            }
            if classifies:
                compared |= {"class_logits": given.logits, "class_loss": given.classification_loss}
            for name, value in compared.items():
                reference = expected[f"{prefix}.{name}"]
                error = float((value - reference).abs().max() / reference.abs().max())
                assert error < TOLERANCE, (implementation, mode, name, error)


@pytest.fixture
def released(golden):
    folder = golden / "exceiver" / "random"
    return json.loads((folder / "config.json").read_text()), load_file(folder / "reference_weights.safetensors")


def test_golden_numbers(released, golden, tmp_path):
    model = convert(*released)
    assert isinstance(model, ExceiverForSequenceClassification)
    check_golden(model, golden / "exceiver" / "random")
    model.save_pretrained(tmp_path)
    check_golden(ExceiverForSequenceClassification.from_pretrained(tmp_path), golden / "exceiver" / "random")


def test_without_a_class_head_it_is_a_model_of_masked_expression(released, golden):
    hyperparameters, weights = released
    del hyperparameters["classify_dim"]
    weights = {n: w for n, w in weights.items() if not n.startswith("mlp_classify.")}
    weights["gene_emb.weight"] = weights["gene_emb.weight"][:91]
    model = convert(hyperparameters, weights)
    assert isinstance(model, ExceiverForMaskedExpression)
    check_golden(model, golden / "exceiver" / "random")
    assert not model.exceiver.gene_embedding.weight[91].any()


@pytest.mark.reference
@pytest.mark.parametrize(
    ("name", "model_class"),
    [("exceiver", ExceiverForMaskedExpression), ("exceiver_classifier", ExceiverForSequenceClassification)],
)
def test_published_checkpoints(reference_data, tmp_path, name, model_class):
    folder = reference_data / "checkpoints" / name
    model = convert(*read_checkpoint(next(folder.glob("*.ckpt"))))
    assert isinstance(model, model_class)
    check_golden(model, folder / "golden")
    save_converted(model, tmp_path)
    loaded = model_class.from_pretrained(tmp_path)
    assert loaded.config.unexpressed_genes == model.config.unexpressed_genes
    assert loaded.config.gene_order_known is False
    check_golden(loaded, folder / "golden")


def test_a_converted_model_says_what_is_not_known(released, tmp_path):
    model = convert(*released)
    assert model.config.unexpressed_genes == "bias"
    assert model.config.gene_order_known is False
    assert model.exceiver.background_values.isnan().all()
    save_converted(model, tmp_path)
    assert "cannot be tied to genes" in (tmp_path / "README.md").read_text()
    with pytest.raises(ValueError, match="pass background_values"):
        model(torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, w: h.pop("seq_dim"), "hyper-parameters lack seq_dim"),
        (lambda h, w: w.pop("mlp.0.bias"), r"missing \['expression_head.0.bias'\]"),
        (lambda h, w: w.update(strange=torch.ones(2)), r"unknown \['strange'\]"),
        (lambda h, w: w.update(query_emb=torch.ones(3, 16)), r"latent_queries has shape \(3, 16\)"),
        (lambda h, w: h.update(num_layers=3), r"missing \['exceiver.layers.2"),
    ],
)
def test_weights_that_do_not_fit(released, change, message):
    hyperparameters, weights = released
    change(hyperparameters, weights)
    with pytest.raises(CheckpointError, match=message):
        convert(hyperparameters, weights)


class Dangerous:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize("content", [{"hyper_parameters": {"x": Dangerous()}, "state_dict": {}}, {"epoch": 1}])
def test_checkpoints_that_ask_for_more_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "bad.ckpt")
    with pytest.raises(CheckpointError, match="bad.ckpt (cannot be read|is not a released Exceiver checkpoint)"):
        read_checkpoint(tmp_path / "bad.ckpt")


def test_damaged_and_missing_checkpoints(tmp_path):
    (tmp_path / "cut.ckpt").write_bytes(b"PK\x03\x04" + b"x" * 100)
    with pytest.raises(CheckpointError, match="cut.ckpt"):
        read_checkpoint(tmp_path / "cut.ckpt")
    with pytest.raises(CheckpointError, match="does not exist"):
        read_checkpoint(tmp_path / "none.ckpt")


def test_paths_in_checkpoints_are_admitted(released, tmp_path):
    hyperparameters, weights = released
    content = {"hyper_parameters": hyperparameters | {"logs": pathlib.PosixPath("a/b")}, "state_dict": weights}
    torch.save(content, tmp_path / "good.ckpt")
    model = convert(*read_checkpoint(tmp_path / "good.ckpt"))
    assert model.config.vocab_size == 92
    assert np.isfinite(model.exceiver.gene_embedding.weight.detach().numpy()).all()
