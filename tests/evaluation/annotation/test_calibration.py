"""Prediction sets, broader types and novelty, on cells drawn around class centres."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cellglot import CellOntology
from cellglot.evaluation.annotation.calibration import HeldOutCells, allowed_classes, fit_calibration
from cellglot.modeling.annotation_calibration import CALIBRATION_FILE, AnnotationCalibration, CalibrationError


TYPES = {
    "CD4 T": "CL:0000624", "CD8 T": "CL:0000625", "NK": "CL:0000623", "B": "CL:0000236", "monocyte": "CL:0000576",
    "platelet": "CL:0000233",
}  # fmt: skip
CLASSES, IDS = list(TYPES), list(TYPES.values())
SIZE = 12


@pytest.fixture(scope="module")
def ontology():
    return CellOntology.blood()


CENTRES = np.random.default_rng(0).normal(size=(len(CLASSES), SIZE)).astype(np.float32)
CENTRES[1] = CENTRES[0] + 0.3 * CENTRES[1]  # CD4 and CD8 T cells are alike


def embedded(numbers, rng, shift=0.15, spread=0.8):
    """Cells around the centres of their classes, shifted as a laboratory shifts them."""
    return (CENTRES[numbers] + rng.normal(size=(len(numbers), SIZE)) * spread + rng.normal(size=SIZE) * shift).astype(
        np.float32
    )


def logits_of(x, sharpness=4.0):
    return -sharpness * ((x[:, None] - CENTRES) ** 2).sum(axis=2)


def laboratory(name, seed, n_cells=400):
    rng = np.random.default_rng(seed)
    numbers = rng.integers(0, len(CLASSES), n_cells)
    x = embedded(numbers, rng)
    training = embedded(rng.integers(0, len(CLASSES), 600), rng, shift=0)
    allowed = np.eye(len(CLASSES), dtype=bool)[numbers]
    return HeldOutCells(logits_of(x), x, allowed, [name] * n_cells, training)


@pytest.fixture(scope="module")
def fitted(ontology):
    held_out = [laboratory(f"laboratory {number}", number) for number in range(6)]
    return fit_calibration(held_out, held_out[0].training_embedding, CLASSES, IDS, ontology, n_references=200)


def decide(fitted, x, **options):
    return fitted.decide(logits_of(x), fitted.reference.distances(x), **options)


def test_sets_hold_the_true_type_in_new_laboratories(fitted):
    coverage = {level: [] for level in (0.8, 0.9, 0.95)}
    for seed in range(20, 30):
        cells = laboratory("new", seed)
        for level, found in coverage.items():
            sets = decide(fitted, cells.embedding, level=level).sets
            found.append((sets & cells.allowed).any(axis=1).mean())
    means = {level: np.mean(found) for level, found in coverage.items()}
    assert all(level - 0.03 <= means[level] <= level + 0.05 for level in (0.9, 0.95)), means
    assert means[0.8] > 0.8  # the most likely class, which is in every set, is right more often
    for measured in fitted.facts["coverage"]:
        assert abs(measured["left_out"] - means[measured["level"]]) < 0.05 and len(measured["data_sets"]) == 6
    assert fitted.temperature > 1.5  # logits were too sure of themselves


def test_sets_grow_with_the_coverage_and_are_never_empty(fitted):
    x = laboratory("new", 40).embedding
    sizes = [decide(fitted, x, level=level).sets.sum(axis=1) for level in (0.8, 0.85, 0.9, 0.95)]
    assert all((small <= large).all() for small, large in zip(sizes, sizes[1:], strict=False))
    assert sizes[0].min() == 1 and sizes[-1].mean() > sizes[0].mean()
    with pytest.raises(ValueError, match="set coverage 99%: this model was calibrated for 80% to 95%"):
        decide(fitted, x, level=0.99)


def test_cells_between_two_types_back_off_to_the_type_above_both(fitted):
    x = np.tile((CENTRES[0] + CENTRES[1]) / 2, (3, 1))  # as likely the one as the other
    said = fitted.columns(decide(fitted, x))
    assert {*said["prediction_set"][0].split("; ")} == {"CD4 T", "CD8 T"}
    assert said["broader_type"] == ["mature alpha-beta T cell"] * 3 or "T cell" in said["broader_type"][0]
    assert said["broader_type_ontology_term_id"][0].startswith("CL:") and said["cell_type"][0] in ("CD4 T", "CD8 T")
    clear = fitted.columns(decide(fitted, CENTRES[3:4]))
    assert clear["prediction_set"] == ["B"] and clear["broader_type"] == [None] and clear["confidence"][0] > 0.9


def test_probabilities_of_a_parent_are_the_sum_of_those_below(fitted, ontology):
    t_cell = fitted.terms.index("CL:0000084")
    assert [CLASSES[i] for i in np.flatnonzero(fitted.below[t_cell])] == ["CD4 T", "CD8 T"]
    sizes = fitted.below.sum(axis=1)
    assert (np.diff(sizes) >= 0).all() and sizes[-1] == len(CLASSES) and (sizes == len(CLASSES)).sum() == 1
    for term, below in zip(fitted.terms, fitted.below, strict=True):
        expected = [term == cell_type or term in ontology.ancestors(cell_type) for cell_type in IDS]
        assert below.tolist() == expected


def test_far_cells_are_novel_and_known_ones_are_not(fitted):
    rng = np.random.default_rng(7)
    far = (rng.normal(size=(50, SIZE)) * 4).astype(np.float32)
    found = decide(fitted, far)
    assert (found.novelty > 0.99).mean() > 0.95 and (~found.assigned).mean() > 0.95
    said = fitted.columns(found)
    assert set(said["cell_type"]) <= {"unassigned", *CLASSES} and "unlike the cells of training" in said["reason"]
    assert all((name == "unassigned") == (reason is not None) == (not ok) for name, reason, ok in zip(
        said["cell_type"], said["reason"], said["assigned"], strict=True
    ))  # fmt: skip
    known = decide(fitted, laboratory("new", 41).embedding)
    assert known.assigned.mean() > 0.9 and 0.3 < known.novelty.mean() < 0.7


def test_reasons_of_cells_without_genes_or_with_few(fitted):
    x = np.repeat(CENTRES[3:4], 3, axis=0)
    logits, distances = logits_of(x), fitted.reference.distances(x)
    logits[2], distances[2] = np.nan, np.nan
    said = fitted.columns(fitted.decide(logits, distances, np.array([900, 3, 0])))
    assert said["cell_type"] == ["B", "unassigned", "unassigned"] and said["best_class"] == ["B", "B", None]
    assert said["reason"] == [
        None, "too few genes of the model are expressed", "no gene of the model is expressed",
    ]  # fmt: skip
    assert said["prediction_set"][2] is None and np.isnan(said["confidence"][2]) and np.isnan(said["novelty"][2])


def test_a_class_for_foreign_cells_is_in_no_set(ontology):
    classes, ids = [*CLASSES[:5], "other"], [*IDS[:5], None]
    held_out = [laboratory(f"laboratory {number}", number) for number in range(3)]
    made = fit_calibration(held_out, held_out[0].training_embedding, classes, ids, ontology, foreign=["other"])
    x = CENTRES[[0, 5]]
    found = decide(made, x)
    assert not found.sets[:, 5].any() and not decide(made, laboratory("new", 3).embedding).sets[:, 5].any()
    assert made.columns(found)["reason"] == [None, "like cells of other tissues"]
    assert (
        min(made.facts["unassigned"]["foreign"].values()) > 0.8 > max(made.facts["unassigned"]["known_types"].values())
    )


def test_labels_of_any_level_are_right_for_what_is_above_or_below(ontology):
    cell_types = ["CL:0000624", "CL:0000625", "CL:0000084", "CL:0000236", None]  # CD4 T, CD8 T, T, B, odd
    naive = "CL:0000895"  # naive CD4 T
    labels = ["CL:0000084", naive, "CL:0000236", ["CL:0000625", "CL:0000236"], None, "CL:0000542", "CL:0000233"]
    assert allowed_classes(labels, cell_types, ontology).astype(int).tolist() == [
        [1, 1, 1, 0, 0], [1, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 1, 1, 1, 0], [0] * 5, [1, 1, 1, 1, 0], [0] * 5,
    ]  # fmt: skip
    assert allowed_classes([], cell_types, ontology).shape == (0, 5)


def test_classes_that_a_fold_did_not_know_fit_nothing(ontology):
    held_out = [laboratory(f"laboratory {number}", number) for number in range(3)]
    held_out[0].logits[:, 3] = -np.inf
    made = fit_calibration(held_out, held_out[0].training_embedding, CLASSES, IDS, ontology)
    right = held_out[0].allowed[:, 3].sum()
    assert made.facts["cells"] == 1200 - right and "laboratory 0" in made.facts["unassigned"]["foreign"]


def test_a_calibration_is_read_as_it_was_written(fitted, tmp_path):
    path = fitted.save(tmp_path)
    assert path.name == CALIBRATION_FILE and [p.name for p in tmp_path.iterdir()] == [CALIBRATION_FILE]
    again = AnnotationCalibration.load(tmp_path)
    x = laboratory("new", 50).embedding
    before, after = decide(fitted, x), decide(again, x)
    for name in ("best", "sets", "broader", "reason", "probabilities", "novelty"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
    assert again.facts == fitted.facts and again.terms == fitted.terms
    assert AnnotationCalibration.load(tmp_path.parent) is None
    with pytest.raises(CalibrationError, match="belongs to a model of other classes"):
        again.check("m", CLASSES[::-1])
    with pytest.raises(CalibrationError, match="embeddings of size 12, and these have 8"):
        again.check("m", CLASSES, 8)


def _cut(path):
    path.write_bytes(path.read_bytes()[:200])


def _without_text(path):
    save_file(load_file(path), path)


def _changed(**fields):
    def damage(path):
        from safetensors import safe_open

        with safe_open(path, "np") as file:
            named = json.loads(file.metadata()["calibration"])
        save_file(load_file(path), path, {"calibration": json.dumps(named | fields)})

    return damage


DAMAGE = {
    "cut short": _cut, "no text": _without_text, "a later version": _changed(version=2),
    "fewer classes": _changed(classes=["B"]), "no temperature": _changed(temperature=0), "text": _changed(scale="far"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_named(fitted, tmp_path, damage):
    damage(fitted.save(tmp_path))
    with pytest.raises(CalibrationError, match=f"{CALIBRATION_FILE} is not a readable calibration"):
        AnnotationCalibration.load(tmp_path)


def test_what_cannot_be_fitted_is_said(ontology):
    one = laboratory("one", 0)
    fit = lambda held_out, **options: fit_calibration(  # noqa: E731
        held_out, one.training_embedding, CLASSES, IDS, ontology, **options
    )
    with pytest.raises(ValueError, match="no held-out cells"):
        fit([])
    with pytest.raises(ValueError, match="foreign classes that are no classes of the model: other"):
        fit([one], foreign=["other"])
    unknown = HeldOutCells(one.logits, one.embedding, one.allowed & False, one.data_sets, one.training_embedding)
    with pytest.raises(ValueError, match="no data set has 20 cells whose type is among the classes"):
        fit([unknown])
    short = HeldOutCells(one.logits[:, 1:], one.embedding, one.allowed, one.data_sets, one.training_embedding)
    with pytest.raises(ValueError, match=r"400 cells of 6 classes, but logits have the shape \(400, 5\)"):
        fit([short])
    few = HeldOutCells(one.logits, one.embedding, one.allowed, one.data_sets, one.training_embedding[:3])
    with pytest.raises(ValueError, match="3 training embeddings are too few"):
        fit([few])
