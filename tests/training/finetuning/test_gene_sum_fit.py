"""Gene sums fitted by themselves: a penalised regression, with labels that leave classes open."""

import numpy as np
import pytest
import torch
from scipy.sparse import random as random_matrix
from sklearn.linear_model import LogisticRegression

from cellglot.modeling.label_losses import label_set_terms
from cellglot.training.finetuning.gene_sum_fit import GeneSumSettings, fit_regression


CELLS, GENES, CLASSES, PENALTY = 300, 40, 4, 0.02


def cells_and_scores():
    random = np.random.default_rng(0)
    features = random_matrix(CELLS, GENES, 0.3, format="csr", dtype=np.float32, random_state=1)
    features.data *= 3
    scores = features @ random.normal(size=(GENES, CLASSES)) + random.gumbel(size=(CELLS, CLASSES))
    return features, scores


def test_one_class_a_cell_gives_logistic_regression():
    features, scores = cells_and_scores()
    classes = scores.argmax(axis=1)
    weight, bias = fit_regression(features, np.eye(CLASSES, dtype=bool)[classes], PENALTY, 500)
    expected = LogisticRegression(C=1 / (PENALTY * CELLS), max_iter=5000, tol=1e-8).fit(features, classes)
    assert np.allclose(weight, expected.coef_.T, atol=2e-3)
    assert np.allclose(bias - bias.mean(), expected.intercept_ - expected.intercept_.mean(), atol=2e-3)


def test_open_labels_have_the_loss_of_training():
    features, scores = cells_and_scores()
    sets = scores >= np.sort(scores, axis=1)[:, -2:-1]  # two classes are left open
    sets[::3] = np.eye(CLASSES, dtype=bool)[scores[::3].argmax(axis=1)]
    weight, bias = (
        torch.from_numpy(v).double().requires_grad_() for v in fit_regression(features, sets, PENALTY, 500)
    )
    terms = label_set_terms(torch.from_numpy(features.toarray()).double() @ weight + bias, torch.from_numpy(sets))
    (terms.mean() + PENALTY / 2 * weight.square().sum()).backward()
    assert weight.grad.abs().max() < 1e-3 and bias.grad.abs().max() < 1e-3
    assert weight.detach().abs().max() > 0.05


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 1.2}, "share 1.2: it is a share from 0 to 1"),
        ({"as_they_are": -0.1}, "as_they_are -0.1: it is a share from 0 to 1"),
        ({"cells": 0}, "cells 0: it is a number of 1 or more"),
        ({"penalty": -1}, "penalty -1: it is 0 or more"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        GeneSumSettings(**settings)
