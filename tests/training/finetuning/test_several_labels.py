"""Fine-tuning for several labels of a cell: by genes that it expresses."""

import json

import anndata as ad
import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

import cellglot
from cellglot.training.metrics import SeveralLabelsMetrics


FEW = ["trainer.max_steps=25", "trainer.learning_rate=1e-2", "trainer.use_cpu=true", "trainer.eval_strategy=no"]


@pytest.fixture(scope="module")
def cells(blood):
    """Cells with a label for each of two genes that they express, some without, some not looked at."""
    cells = blood[:240].copy()
    found = [(np.asarray(cells[:, gene].X.todense()).ravel() > 0) for gene in ("CD74", "NKG7")]
    texts = [
        "|".join(name for name, has in zip(("presents", "kills"), row, strict=True) if has) or "|"
        for row in zip(*found, strict=True)
    ]
    texts[:5] = [None] * 5
    cells.obs = cells.obs.assign(programs=texts, donor_id=np.where(np.arange(240) < 180, "a", "b"))
    cells.obs.loc[cells.obs_names[200], "programs"] = "presents|rare"
    return cells


@pytest.fixture(scope="module")
def tuned(cells, gene_classifiers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned") / "model"
    metrics = cellglot.finetune(
        cells, gene_classifiers["base"], folder, task="multi-label", labels="programs", settings=FEW
    )
    return folder, metrics


def test_labels_are_learned_together(tuned, cells):
    folder, metrics = tuned
    assert metrics["eval_auprc"] > metrics["eval_chance"] + 0.05 and metrics["eval_auroc"] > 0.65
    config = json.loads((folder / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification" and config["id2label"] == {
        "0": "kills",
        "1": "presents",
    }
    model = cellglot.load_model(folder)
    assert model.purpose == "classes of cells, several at the same time" and model.classes == ("kills", "presents")
    with torch.inference_mode():
        logits = model.network(**model.tokenizer(cells[180:], return_tensors="pt")).logits
    assert logits.shape == (60, 2) and (logits.sigmoid().sum(dim=1) - 1).abs().max() > 0.01  # not shares of one
    texts = cells.obs["programs"].astype(str)[180:]
    found = [roc_auc_score(texts.str.contains(name), logits[:, i].numpy()) for i, name in enumerate(model.classes)]
    assert np.mean(found) == pytest.approx(metrics["eval_auroc"], abs=2e-3)


def test_the_record_and_the_summary_say_what_was_left_out(tuned):
    record = json.loads((tuned[0] / "training_run.json").read_text())
    assert record["task"] == "multi-label" and record["cells_without_label"] == 5
    assert record["other_classes"] == {"rare": 1} and record["held_out_cells"] == 60
    assert record["training_cells"] == 175


def test_it_is_no_classifier_of_one_class(tuned, cells, tmp_path):
    with pytest.raises(ValueError, match="does not predict classes of cells"):
        cellglot.annotate(cells, tuned[0])
    found = cellglot.perturb(cells, tuned[0], delete="CD74", max_cells=5, controls=2, permutations=5, device="cpu")
    assert {"change kills", "change presents"} <= set(found.table())


def test_cells_without_labels_are_refused(cells, gene_classifiers, tmp_path):
    none = ad.AnnData(cells.X, obs=cells.obs.assign(programs="|"), var=cells.var)
    with pytest.raises(ValueError, match="the training cells have no labels in 'programs'"):
        cellglot.finetune(
            none, gene_classifiers["base"], tmp_path / "x", task="multi-label", labels="programs", settings=FEW
        )


def test_metrics_are_means_over_labels_that_can_be_scored():
    random = np.random.default_rng(0)
    labels, scores = (random.random((40, 4)) < 0.4).astype(np.float32), random.normal(size=(40, 4))
    labels[:, 2] = 1.0
    labels[3] = np.nan
    metrics = SeveralLabelsMetrics()
    metrics.add(scores[:25], labels[:25])
    metrics.add(scores[25:], labels[25:])
    found, known = metrics.compute(), np.delete(np.arange(40), 3)
    for name, score in (("auprc", average_precision_score), ("auroc", roc_auc_score)):
        expected = np.mean([score(labels[known, c], scores[known, c]) for c in (0, 1, 3)])
        assert found[name] == pytest.approx(expected)
    assert found["chance"] == pytest.approx(labels[known][:, [0, 1, 3]].mean())
    metrics._reset()
    metrics.add(scores[3:4], labels[3:4])
    assert metrics.compute() == {}
