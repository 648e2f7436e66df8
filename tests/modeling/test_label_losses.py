"""Heads of all models: classes with weights, values in their unit."""

import math

import pytest
import torch
from torch import nn

from cellglot.modeling import (
    ExceiverForSequenceClassification,
    LangCellForSequenceClassification,
    LangCellForTokenClassification,
    ScCelloForSequenceClassification,
    ScCelloForTokenClassification,
)
from cellglot.modeling.label_losses import squared_error_terms


OF_CELLS = {
    "exceiver_config": ExceiverForSequenceClassification,
    "langcell_config": LangCellForSequenceClassification,
    "sccello_config": ScCelloForSequenceClassification,
}
OF_GENES = {"langcell_config": LangCellForTokenClassification, "sccello_config": ScCelloForTokenClassification}


@pytest.fixture
def make(request):
    def make(model_class, name, **fields):
        torch.manual_seed(0)
        return model_class(request.getfixturevalue(name)(**fields)).eval()

    return make


def make_batch(name, cells=4, genes=9):
    random = torch.Generator().manual_seed(0)
    batch = {"input_ids": torch.randint(2, 39, (cells, genes), generator=random)}
    if name == "exceiver_config":
        batch["expression_values"] = torch.randn(cells, genes, generator=random) + 1
    else:
        batch["input_ids"][:, 0] = 41
    return batch


@pytest.mark.parametrize("name", OF_CELLS)
def test_a_value_is_given_in_its_unit_and_the_loss_is_standardised(make, name):
    fields = {"num_labels": 1, "problem_type": "regression"}
    plain = make(OF_CELLS[name], name, **fields)
    scaled = make(OF_CELLS[name], name, **fields, target_mean=50.0, target_std=20)
    batch, labels = make_batch(name), torch.tensor([40.0, 70.0, math.nan, 55.0])
    with torch.no_grad():
        standardised = plain(**batch).logits
        given = scaled(**batch, labels=labels)
    assert torch.allclose(given.logits, standardised * 20 + 50, atol=1e-4) and given.logits.shape == (4, 1)
    wanted = (labels - 50) / 20
    errors = (standardised[:, 0] - wanted)[~labels.isnan()].square()
    assert given.loss.item() == pytest.approx(errors.mean().item(), rel=1e-5)
    with torch.no_grad():
        share = scaled(**batch, labels=labels, num_items_in_batch=torch.tensor(8)).loss
    if name == "exceiver_config":
        assert given.regression_loss == given.loss and given.classification_loss is None
    assert share.item() == pytest.approx(errors.mean().item() * 4 / 8, rel=1e-5), "a missing value is an item, too"


@pytest.mark.parametrize("name", OF_CELLS)
def test_labels_have_weights(make, name):
    model, batch = make(OF_CELLS[name], name, num_labels=3), make_batch(name)
    labels, weights = torch.tensor([0, 2, -100, 1]), torch.tensor([0.5, 2.0, 9.0, 0.0])
    with torch.no_grad():
        given = model(**batch, labels=labels, label_weights=weights)
        alone = model(**batch, labels=torch.full((4,), -100))
    terms = torch.nn.functional.cross_entropy(given.logits, labels, reduction="none")
    assert given.loss.item() == pytest.approx((0.5 * terms[0] + 2 * terms[1]).item() / 3, rel=1e-5)
    assert alone.loss.item() == 0, "no label, no loss"


@pytest.mark.parametrize("name", OF_GENES)
def test_labels_of_genes_have_weights(make, name):
    model, batch = make(OF_GENES[name], name, num_labels=3), make_batch(name)
    labels = (batch["input_ids"] % 3).masked_fill(batch["input_ids"] > 30, -100)
    weights = torch.tensor([1.0, 0.25, 3.0])[labels.clamp(min=0)]
    with torch.no_grad():
        given = model(**batch, labels=labels, label_weights=weights)
    terms = torch.nn.functional.cross_entropy(given.logits.transpose(1, 2), labels, reduction="none")
    expected = (terms * weights).sum() / (labels >= 0).sum()
    assert given.logits.shape == (4, 9, 3)
    assert given.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_missing_values_leave_no_trace_in_gradients():
    predicted = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    terms = squared_error_terms(predicted, torch.tensor([0.0, math.nan, 5.0]), 2.0)
    terms.total.backward()
    assert terms.total.item() == pytest.approx(0.25 + 1.0) and int(terms.count) == 2
    assert predicted.grad.tolist() == pytest.approx([0.5, 0.0, -1.0])


@pytest.mark.parametrize("name", OF_CELLS)
def test_what_labels_mean_travels_in_the_configuration(make, name, tmp_path):
    fields = {"label_cl_ids": {"B": "CL:0000236"}, "target_mean": 3.5, "target_std": 2}
    model = make(OF_CELLS[name], name, num_labels=1, problem_type="regression", **fields)
    model.save_pretrained(tmp_path)
    loaded = OF_CELLS[name].from_pretrained(tmp_path).config
    assert {key: getattr(loaded, key) for key in fields} == fields
    assert loaded.problem_type == "regression"


@pytest.mark.parametrize("name", OF_CELLS)
def test_a_set_of_classes_learns_their_summed_probability(make, name):
    model, batch = make(OF_CELLS[name], name, num_labels=3), make_batch(name)
    sets = torch.tensor([[True, True, False], [False, False, True], [False] * 3, [True] * 3])
    given = model(**batch, labels=sets)
    chances = given.logits.softmax(-1)
    wanted = -(chances * sets).sum(1).log()[[0, 1, 3]]
    assert given.loss.item() == pytest.approx(wanted.mean().item(), abs=1e-5) and wanted[2].abs() < 1e-5
    given.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    one = model(**batch, labels=torch.tensor([2, 0, 1, 1])).loss
    same = model(**batch, labels=nn.functional.one_hot(torch.tensor([2, 0, 1, 1]), 3).bool()).loss
    assert same.item() == pytest.approx(one.item(), rel=1e-6)
    halves = [model(**{k: v[i : i + 2] for k, v in batch.items()}, labels=sets[i : i + 2]).loss for i in (0, 2)]
    assert all(half.isfinite() for half in halves)
