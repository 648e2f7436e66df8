"""Labels at several levels: which classes they give, and what each label means in terms of them."""

import numpy as np
import pytest

from cellglot.tokenization.ontology.cell_ontology import CellOntology
from cellglot.training.data.label_collators import LabelSetCollator, sampling_weights
from cellglot.training.data.label_levels import label_levels


BLOOD = CellOntology.blood()
COUNTS = {
    "T cell": 50, "CD4-positive, alpha-beta T cell": 30, "CD8-positive, alpha-beta T cell": 20, "B cell": 40,
    "CL:0000236": 5, "monocyte": 25, "CD14+ Monocyte": 3, "odd": 12, "T cell | natural killer cell": 7,
    "natural killer cell": 11,
}  # fmt: skip


def meant(levels, label):
    return [levels.classes[i] for i in np.flatnonzero(levels.sets[label])]


def test_classes_are_the_finest_types_with_enough_cells():
    levels = label_levels(COUNTS, BLOOD, fewest=10)
    cd4, cd8 = BLOOD.name("CL:0000624"), BLOOD.name("CL:0000625")
    assert set(levels.classes) == {cd4, cd8, "B cell", "monocyte", "odd", "natural killer cell"}
    assert levels.ids["B cell"] == "CL:0000236" and "odd" not in levels.ids
    assert set(meant(levels, "T cell")) == {cd4, cd8}  # a coarser label: all below it
    assert meant(levels, "CL:0000236") == meant(levels, "B cell") == ["B cell"]  # two texts of one type
    assert meant(levels, "CD14+ Monocyte") == ["monocyte"]  # too few cells: the class above
    assert set(meant(levels, "T cell | natural killer cell")) == {cd4, cd8, "natural killer cell"}
    assert not levels.unused


def test_a_type_with_one_class_below_stays_a_class():
    levels = label_levels({"T cell": 20, "CD4-positive, alpha-beta T cell": 20, "B cell": 20}, BLOOD)
    assert "T cell" in levels.classes
    assert set(meant(levels, "T cell")) == {"T cell", BLOOD.name("CL:0000624")}
    assert meant(levels, "CD4-positive, alpha-beta T cell") == [BLOOD.name("CL:0000624")]


def test_types_without_a_class_are_named():
    levels = label_levels({"B cell": 20, "monocyte": 20, "platelet": 3}, BLOOD, others=["erythrocyte", "leukocyte"])
    assert levels.unused == ["platelet", "erythrocyte"]
    assert meant(levels, "leukocyte") == ["B cell", "monocyte"]


def test_classes_can_be_given():
    levels = label_levels(COUNTS, BLOOD, classes=["CL:0000084", "B cell", "monocyte"])
    assert levels.classes == ["B cell", "T cell", "monocyte"]
    assert meant(levels, "CD8-positive, alpha-beta T cell") == ["T cell"]
    assert "odd" in levels.unused and "natural killer cell" in levels.unused
    with pytest.raises(ValueError, match="no training cell has a label for the classes erythrocyte"):
        label_levels(COUNTS, BLOOD, classes=["B cell", "T cell", "erythrocyte"])
    with pytest.raises(ValueError, match=r"give 1 classes with 10 .*\(CL:0000236\): classification needs two"):
        label_levels({"B cell": 20, "monocyte": 2}, BLOOD)


def test_batches_have_sets_of_classes():
    sets = np.array([[True, True, False], [False, False, True]])
    collator = LabelSetCollator(lambda examples: {}, sets, np.array([1.0, 3.0]))
    batch = collator([{"label": n, "part": 0, "cell": i} for i, n in enumerate((1, 0, None))])
    assert batch["labels"].tolist() == [[False, False, True], [True, True, False], [False] * 3]
    assert batch["truth"].tolist() == [1, 0, -100] and batch["loss_weights"].tolist() == [3.0, 1.0, 1.0]


def test_how_often_labels_are_drawn():
    labels, groups = np.array([0] * 16 + [1] * 4 + [0] * 4), np.array([0] * 20 + [1] * 4)
    assert np.allclose(sampling_weights(labels, groups, 0.0), 1 / 24)
    even = sampling_weights(labels, groups, 1.0)
    assert [even[labels == 1].sum(), even[groups == 1].sum()] == pytest.approx([1 / 3, 1 / 3])
    root = sampling_weights(labels, groups, 0.5)
    assert root[:16].sum() == pytest.approx(4 / 8) and root.sum() == pytest.approx(1)
    shared = sampling_weights(labels, groups, 0.5, {1: 0.1, 7: 0.3})
    assert shared[labels == 1].sum() == pytest.approx(0.1) and shared.sum() == pytest.approx(1)
