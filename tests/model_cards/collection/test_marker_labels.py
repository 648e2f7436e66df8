"""Labels that marker genes narrow or contradict."""

import numpy as np

from cellglot.model_cards.collection import marker_labels as by_markers


T = frozenset((*by_markers.CD4, *by_markers.CD8))
QUIET = dict.fromkeys(by_markers.MARKERS, 0.0)


def narrowed(labels, *cells, unmeasured=()):
    """Labels of cells that are given by the value of each list of markers."""
    cells = [QUIET | cell for cell in cells]
    lists = {tuple(symbols): name for name, symbols in by_markers.MARKERS.items()}

    def values(symbols):
        name = lists[tuple(symbols)]
        return None if name in unmeasured else np.array([cell[name] for cell in cells])

    return by_markers.marker_labels(labels, values)


def test_a_label_that_leaves_types_open_is_narrowed_and_never_changed():
    naive = {"T": 1.5, "CD8": 1.0, "naive": 1.2}
    b_cell = frozenset({by_markers.B_NAIVE, by_markers.B_MEMORY})
    b_like = naive | {"B": 1.0}
    labels, changed = narrowed([T, T, b_cell, frozenset({by_markers.NK})], naive, {"T": 1.5}, b_like, naive)
    assert labels == [{by_markers.CD8_NAIVE}, T, b_cell, {by_markers.NK}]
    assert changed.tolist() == [True, False, False, False]


def test_cells_without_a_label_get_that_of_their_lineage():
    labels, changed = narrowed([None] * 4, {"NK": 2.0}, {"monocyte": 2.0}, {"T": 1.2}, {"T": 1.2, "B": 1.2})
    assert labels == [{by_markers.NK}, {by_markers.CD14, by_markers.FCGR3A}, T, None]
    assert changed.tolist() == [True, True, True, False]


def test_cells_that_markers_contradict_lose_their_label():
    stem = frozenset({by_markers.CD34})
    labels, changed = narrowed([stem] * 3, {"CD34": 1.0}, {"CD34": 1.0, "monocyte": 2.0}, {})
    assert labels == [stem, None, None] and changed.tolist() == [False, True, True]


def test_rules_that_need_markers_that_were_not_measured_do_not_apply():
    labels, changed = narrowed([T, None], {"T": 1.5, "CD8": 1.0, "naive": 1.2}, {"T": 1.5}, unmeasured={"CD8", "B"})
    assert labels == [T, None] and not changed.any()
