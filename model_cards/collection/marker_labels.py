"""Labels by marker genes: finer ones where a label leaves types open, and labels that markers contradict.

A rule applies to a cell only if its label allows the rule's types, so a rule narrows a label and never changes it.
Cells without a label get one from the rules of lineages. Values are means of log1p of counts per 10,000 over a list of
markers. Lists and limits are our choice: few cells are named, those that are clear.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


B_NAIVE, B_MEMORY, PLASMA = "CL:0000788", "CL:0000787", "CL:0000786"
CD4_NAIVE, CD4_MEMORY, TREG = "CL:0000895", "CL:0000897", "CL:0000792"
CD8_NAIVE, CD8_MEMORY, MAIT, GAMMA_DELTA = "CL:0000900", "CL:0000909", "CL:0000940", "CL:0000798"
NK, CD14, FCGR3A, CDC, PDC, CD34 = "CL:0000623", "CL:0001054", "CL:0000875", "CL:0000990", "CL:0000784", "CL:0008001"
CD4, CD8 = (CD4_NAIVE, CD4_MEMORY, TREG), (CD8_NAIVE, CD8_MEMORY, MAIT, GAMMA_DELTA)

MARKERS: dict[str, list[str]] = {
    "T": ["CD3D", "CD3E", "CD3G", "TRAC", "TRBC2", "IL7R", "CD2", "CD5"],
    "NK": ["NCAM1", "KLRF1", "KLRD1", "FGFBP2", "GNLY", "SPON2", "NKG7", "PRF1"],
    "B": ["CD79A", "CD79B", "MS4A1", "CD19", "BANK1", "VPREB3"],
    "monocyte": ["CD14", "S100A12", "FCN1", "VCAN", "LYZ", "S100A8", "S100A9", "MNDA"],
    "CD34": ["CD34", "SPINK2", "PRSS57", "SOX4", "AVP", "CDK6", "EGFL7", "SMIM24"],
    "classical": ["CD14", "S100A8", "S100A12", "VCAN", "S100A9", "CSF3R"],
    "non-classical": [
        "FCGR3A", "MS4A7", "CDKN1C", "HES4", "LYPD2", "RHOC", "TCF7L2", "CKB", "SIGLEC10", "VMO1",
    ],
    "cDC": ["FCER1A", "CLEC10A", "CD1C", "ENHO", "CD1E", "NDRG2"],
    "pDC": [
        "LILRA4", "CLEC4C", "IL3RA", "SERPINF1", "PLD4", "TCF4", "IRF7", "SMPD3", "LRRC26", "SCT", "DNASE1L3", "MAP1A",
    ],
    "CD4": ["CD4"],
    "CD8": ["CD8A", "CD8B"],
    "naive": ["CCR7", "LEF1", "TCF7", "SELL", "NOSIP", "PIK3IP1", "MAL", "ACTN1"],
    "memory": [
        "S100A4", "IL32", "GZMK", "CCL5", "NKG7", "GZMA", "ANXA1", "KLRB1", "CST7", "GZMB", "LGALS1", "KLRG1", "ITGB1",
    ],
    "cytotoxic": ["NKG7", "CCL5", "GZMA", "GZMK", "GZMH", "CST7", "GZMB", "PRF1"],
    "regulatory": ["FOXP3", "IL2RA", "CTLA4", "RTKN2", "TIGIT", "IKZF2"],
    "MAIT": ["SLC4A10", "TRAV1-2", "ZBTB16", "NCR3", "KLRB1"],
    "gamma-delta": ["TRDC", "TRDV2", "TRGV9", "TRDV1"],
    "naive B": ["TCL1A", "IGHD", "FCER2", "IL4R", "YBX3"],
    "memory B": ["CD27", "TNFRSF13B", "AIM2", "IGHA1", "IGHG1", "IGHG2", "COCH", "ITGB1"],
}  # fmt: skip
Limits = dict[str, tuple[float, float]]  # list of markers -> its value is above the first and below the second
ANY = np.inf
NOT_MYELOID_OR_B: Limits = {"B": (-ANY, 0.6), "monocyte": (-ANY, 0.6)}


@dataclass(frozen=True)
class Lineage:
    """Types of a lineage, and the limits by which a cell without a fine label belongs to it."""

    types: tuple[str, ...]
    limits: Limits


LINEAGES = {
    "T": Lineage((*CD4, *CD8), {"T": (0.8, ANY), "NK": (-ANY, 0.9)} | NOT_MYELOID_OR_B),
    "NK": Lineage((NK,), {"NK": (1.3, ANY), "T": (-ANY, 0.45)} | NOT_MYELOID_OR_B),
    "B": Lineage((B_NAIVE, B_MEMORY), {"B": (1.0, ANY), "T": (-ANY, 0.6), "NK": (-ANY, 0.6), "monocyte": (-ANY, 0.6)}),
    "monocyte": Lineage(
        (CD14, FCGR3A), {"monocyte": (1.6, ANY), "T": (-ANY, 0.6), "NK": (-ANY, 0.6), "B": (-ANY, 0.6)}
    ),
}


@dataclass(frozen=True)
class Rule:
    """Types of cells of a lineage (of any cells if None) within limits."""

    types: tuple[str, ...]
    lineage: str | None
    limits: Limits = field(default_factory=dict)


RULES = [  # the first that applies counts
    Rule((PDC,), None, {"pDC": (1.0, ANY), "T": (-ANY, 0.5), "B": (-ANY, 0.9), "classical": (-ANY, 0.8)}),
    Rule(
        (CDC,),
        None,
        {"cDC": (0.9, ANY), "classical": (-ANY, 1.1), "T": (-ANY, 0.5), "NK": (-ANY, 0.5), "B": (-ANY, 0.5)},
    ),
    Rule((NK,), "NK"),
    Rule((CD14,), "monocyte", {"classical": (1.8, ANY), "non-classical": (-ANY, 0.35), "cDC": (-ANY, 0.5)}),
    Rule((FCGR3A,), "monocyte", {"non-classical": (1.1, ANY), "classical": (-ANY, 1.3)}),
    Rule((TREG,), "T", {"regulatory": (1.0, ANY), "CD8": (-ANY, 0.3), "cytotoxic": (-ANY, 0.5)}),
    Rule((MAIT,), "T", {"MAIT": (1.2, ANY), "CD4": (-ANY, 0.01)}),
    Rule(
        (GAMMA_DELTA,),
        "T",
        {"gamma-delta": (1.0, ANY), "CD8": (-ANY, 0.3), "CD4": (-ANY, 0.01), "cytotoxic": (0.8, ANY)},
    ),
    Rule(
        (CD8_NAIVE,), "T", {"CD8": (0.6, ANY), "CD4": (-ANY, 0.01), "naive": (0.9, ANY), "cytotoxic": (-ANY, 0.35)}
    ),
    Rule(
        (CD8_MEMORY,),
        "T",
        {"CD8": (0.6, ANY), "CD4": (-ANY, 0.01), "cytotoxic": (1.0, ANY), "MAIT": (-ANY, 0.7),
         "gamma-delta": (-ANY, 0.7)},
    ),
    Rule(CD8, "T", {"CD8": (0.6, ANY), "CD4": (-ANY, 0.01), "cytotoxic": (0.3, ANY)}),
    Rule(
        (CD4_NAIVE,),
        "T",
        {"CD4": (0.01, ANY), "CD8": (-ANY, 0.01), "naive": (1.0, ANY), "memory": (-ANY, 0.45),
         "regulatory": (-ANY, 0.4)},
    ),
    Rule(
        (CD4_MEMORY,),
        "T",
        {"CD4": (0.01, ANY), "CD8": (-ANY, 0.01), "naive": (-ANY, 0.9), "memory": (0.7, ANY),
         "regulatory": (-ANY, 0.4), "cytotoxic": (-ANY, 0.6)},
    ),
    Rule(CD4, "T", {"CD4": (0.01, ANY), "CD8": (-ANY, 0.01), "cytotoxic": (-ANY, 0.6)}),
    Rule((*CD4, *CD8), "T"),
    Rule((B_NAIVE,), "B", {"naive B": (1.2, ANY), "memory B": (-ANY, 0.2)}),
    Rule((B_MEMORY,), "B", {"memory B": (0.7, ANY), "naive B": (-ANY, 0.4)}),
    Rule((B_NAIVE, B_MEMORY), "B"),
    Rule((CD14, FCGR3A), "monocyte"),
]  # fmt: skip
EXPECTED: dict[tuple[str, ...], Limits] = {  # a cell of this label outside of these limits is left out
    (CD34,): {"CD34": (0.25, ANY), "monocyte": (-ANY, 1.2), "B": (-ANY, 1.2), "T": (-ANY, 1.0)},
    (B_NAIVE, B_MEMORY): {"B": (0.5, ANY)},
    (CD14,): {"monocyte": (0.7, ANY)},
}


def marker_labels(
    labels: Sequence[frozenset[str] | None], values: Callable[[list[str]], np.ndarray | None]
) -> tuple[list[frozenset[str] | None], np.ndarray]:
    """Narrow labels by marker genes, and leave out those that they contradict.

    Parameters
    ----------
    labels
        Types that each cell's label allows, None for a cell without a label.
    values
        Mean of log1p of counts per 10,000 over some symbols, shape (cells,); None if fewer than half of them were
        measured. A rule that needs such a value does not apply.

    Returns
    -------
    labels : list
        Types that are left for each cell.
    by_markers : numpy.ndarray
        Whether markers changed the label, bool, shape (cells,).
    """
    score = {name: values(symbols) for name, symbols in MARKERS.items()}
    n_cells = len(labels)
    open_ = np.array([label is None for label in labels], dtype=bool)
    found, changed = list(labels), np.zeros(n_cells, dtype=bool)
    for exactly, limits in EXPECTED.items():
        measured = {name: limit for name, limit in limits.items() if score[name] is not None}
        wrong = _of(labels, frozenset(exactly).__eq__) & ~_within(measured, score, n_cells)
        for i in np.flatnonzero(wrong).tolist():
            found[i], changed[i] = None, True
    done = changed.copy()
    for rule in RULES:
        fits = _within(rule.limits, score, n_cells) & ~done
        if rule.lineage is not None:
            lineage = LINEAGES[rule.lineage]
            inside = _of(labels, frozenset(lineage.types).issuperset)
            fits &= inside | _within(lineage.limits, score, n_cells)
        types = frozenset(rule.types)
        fits &= open_ | (~_of(labels, types.isdisjoint) & ~_of(labels, types.issuperset))
        for i in np.flatnonzero(fits).tolist():
            label = labels[i]
            found[i] = types if label is None else label & types
        done |= fits
        changed |= fits
    return found, changed


def rules_text() -> str:
    """Return all lists, rules and limits as a text, by which a change of them is noticed."""
    return repr((MARKERS, LINEAGES, RULES, EXPECTED))


def _of(labels: Sequence[frozenset[str] | None], holds: Callable[[frozenset[str]], bool]) -> np.ndarray:
    return np.array([label is not None and holds(label) for label in labels], dtype=bool)


def _within(limits: Limits, score: Mapping[str, np.ndarray | None], n_cells: int) -> np.ndarray:
    within = np.ones(n_cells, dtype=bool)
    for name, (above, below) in limits.items():
        value = score[name]
        if value is None:
            return np.zeros(n_cells, dtype=bool)
        within &= (value > above) & (value < below)
    return within


__all__ = ["MARKERS", "RULES", "marker_labels", "rules_text"]
