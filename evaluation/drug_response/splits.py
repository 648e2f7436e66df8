"""Training and test pairs of cell lines and drugs: random pairs, lines held out, drugs held out, both."""

from dataclasses import dataclass

import numpy as np

from cellglot.evaluation.drug_response.folder import DrugResponse


PAIRS, LINES, DRUGS, BOTH = "random pairs", "lines held out", "drugs held out", "both held out"
SPLITS = (PAIRS, LINES, DRUGS, BOTH)
PAIR_FRACTION = 0.05  # of DeepCDR and scCello
HELD_FRACTION = 0.2


@dataclass
class PairSplit:
    """Training and test pairs.

    Parameters
    ----------
    name
        One of `SPLITS`.
    train, test
        Masks, shape (pairs,); pairs in neither are left out.
    note
        How the pairs were split, as a sentence.
    """

    name: str
    train: np.ndarray
    test: np.ndarray
    note: str

    @property
    def lines_are_new(self) -> bool:
        """Whether test lines have no training pair."""
        return self.name in (LINES, BOTH)


def split_pairs(data: DrugResponse, name: str, seed: int = 0) -> PairSplit:
    """Split the pairs.

    ``"random pairs"`` is the protocol of DeepCDR, which scCello follows: 5% of the pairs of each cancer type, drawn at
    random; lines without a type are left out. Both line and drug of nearly every test pair are in training.
    ``"lines held out"`` holds out a fifth of the lines, ``"drugs held out"`` a fifth of the structures, with all
    measurements of a structure, and ``"both held out"`` the pairs of such lines and drugs; it trains on the
    pairs that have neither.

    Parameters
    ----------
    name
        One of `SPLITS`.

    Raises
    ------
    ValueError
        If the split does not exist, or one part has no pairs.
    """
    random = np.random.default_rng(seed)
    if name == PAIRS:
        split = _by_type(data, random)
    elif name in SPLITS:
        new_line, lines = _held_out(data.line, random)
        new_drug, drugs = _held_out(np.unique(data.structures, return_inverse=True)[1][data.drug], random)
        split = {
            LINES: PairSplit(name, ~new_line, new_line, f"{lines} cell lines"),
            DRUGS: PairSplit(name, ~new_drug, new_drug, f"{drugs} structures of drugs"),
            BOTH: PairSplit(
                name,
                ~(new_line | new_drug),
                new_line & new_drug,
                f"{lines} cell lines and {drugs} structures of drugs",
            ),
        }[name]
        split.note += " are held out"
    else:
        raise ValueError(f"unknown split {name!r}: splits are {', '.join(SPLITS)}")
    if not split.train.any() or not split.test.any():
        raise ValueError(f"{data.name}: {name} leaves no pairs to train or to test: there are too few lines or drugs")
    return split


def _by_type(data: DrugResponse, random: np.random.Generator) -> PairSplit:
    types, typed = data.types[data.line], data.types[data.line] != ""
    note = "5% of the pairs of each cancer type are held out"
    if not typed.any():
        typed = np.ones(len(data), dtype=bool)
        note = "5% of the pairs are held out; cancer types are unknown"
    elif not typed.all():
        lost = len(set(data.line[~typed].tolist()))
        note += f"; {lost:,} lines without a type ({int((~typed).sum()):,} pairs) are left out"
    test = np.zeros(len(data), dtype=bool)
    for name in np.unique(types[typed].astype(str)):
        mine = np.flatnonzero(typed & (types == name))
        test[random.permutation(mine)[: round(PAIR_FRACTION * len(mine))]] = True
    return PairSplit(PAIRS, typed & ~test, test, note)


def _held_out(groups: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, str]:
    """Hold out a fifth of the groups, at least one; returns the mask of pairs and ``"116 of 580"``."""
    names = np.unique(groups)
    held = random.permutation(names)[: max(round(HELD_FRACTION * len(names)), 1)]
    return np.isin(groups, held), f"{len(held):,} of {len(names):,}"


__all__ = ["BOTH", "DRUGS", "LINES", "PAIRS", "SPLITS", "PairSplit", "split_pairs"]
