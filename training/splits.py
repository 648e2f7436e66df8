"""Which cells a model is fine-tuned on and which are held out: as the corpus says, or drawn by class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cellglot.tokenization.corpus import Corpus


SPLITS = ("corpus", "stratified")


@dataclass
class Part:
    """Some cells of a corpus.

    Parameters
    ----------
    splits
        Splits of the corpus that the cells are of.
    chosen
        Whether each cell of these splits, one split after the other, is among them; shape (cells,).
    """

    splits: tuple[str, ...]
    chosen: np.ndarray


@dataclass
class Division:
    """Cells for training, cells held out, and cells for a final test.

    Parameters
    ----------
    by
        What they were divided by, in words.
    train, held_out, test
        The parts, None where there are no such cells.
    """

    by: str
    train: Part
    held_out: Part | None
    test: Part | None

    def parts(self) -> list[Part]:
        """Give the parts that there are."""
        return [part for part in (self.train, self.held_out, self.test) if part is not None]


def check_split(corpus: Corpus, how: str) -> None:
    """Refuse a way to divide cells that there is not, or that would put one donor's cells on both sides.

    Parameters
    ----------
    corpus
        The corpus.
    how
        ``"corpus"`` or ``"stratified"``.

    Raises
    ------
    ValueError
        If it is so.
    """
    if how not in SPLITS:
        raise ValueError(f"finetuning.split {how!r}: it is one of {', '.join(SPLITS)}")
    by = corpus.manifest["split"]["by"]
    if how == "stratified" and by != "cell":
        raise ValueError(
            f"{corpus.folder} holds cells out by {by}; finetuning.split=stratified would put cells of one donor or "
            "data set on both sides: leave it out"
        )


def divide(corpus: Corpus, how: str, strata: Sequence[Any], seed: int) -> Division:
    """Divide the cells of a corpus.

    Parameters
    ----------
    corpus
        The corpus.
    how
        ``"corpus"``: as it was tokenized, by donor, else data set, else cell. ``"stratified"``: of every stratum the
        corpus's share of held-out cells is drawn anew, at least one cell where there are two, never the last.
    strata
        Stratum of each cell for training and validation, in this order, None for cells of none.
    seed
        Of the draw.
    """
    check_split(corpus, how)
    test = Part(("test",), np.ones(corpus.n_cells("test"), dtype=bool)) if corpus.n_cells("test") else None
    n_train, n_validation = corpus.n_cells("train"), corpus.n_cells("validation")
    if how == "corpus":
        held_out = Part(("validation",), np.ones(n_validation, dtype=bool)) if n_validation else None
        return Division(corpus.manifest["split"]["by"], Part(("train",), np.ones(n_train, dtype=bool)), held_out, test)
    drawn = draw_by_stratum(strata, float(corpus.manifest["split"]["fractions"]["validation"]), seed)
    both = tuple(split for split, n in (("train", n_train), ("validation", n_validation)) if n)
    held_out = Part(both, drawn) if drawn.any() else None
    return Division("cell, stratified by label: there are no donors or data sets", Part(both, ~drawn), held_out, test)


def draw_by_stratum(strata: Sequence[Any], fraction: float, seed: int) -> np.ndarray:
    """Draw a share of every stratum, at least one where there are two and never all; shape (items,), bool.

    Parameters
    ----------
    strata
        Stratum of each item; None counts as one of its own.
    fraction
        Share to draw.
    seed
        Of the draw.
    """
    drawn = np.zeros(len(strata), dtype=bool)
    if fraction <= 0:
        return drawn
    random = np.random.default_rng([seed, 2])
    _, numbers = np.unique([str(s) for s in strata], return_inverse=True)
    for stratum in range(int(numbers.max(initial=-1)) + 1):
        rows = np.flatnonzero(numbers == stratum)
        wanted = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        drawn[random.permutation(rows)[:wanted]] = True
    return drawn


__all__ = ["SPLITS", "Division", "Part", "check_split", "divide", "draw_by_stratum"]
