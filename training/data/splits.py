"""Which cells a model is fine-tuned on and which are held out: as the corpus says, or drawn by class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.training.data.dataset import cells_with_genes


SPLITS = ("corpus", "stratified")


@dataclass
class Part:
    """Some cells of a corpus.

    Parameters
    ----------
    chosen
        Whether each cell of these splits, one split after the other, is among them; shape (cells,).
    without_genes
        Cells that are not among them because they express no gene of the vocabulary.
    """

    splits: tuple[str, ...]
    chosen: np.ndarray
    without_genes: int = 0


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
        """Return the parts that there are."""
        return [part for part in (self.train, self.held_out, self.test) if part is not None]


def check_split(corpus: Corpus, how: str) -> None:
    """Refuse a way to divide cells that there is not, or that would put one donor's cells on both sides.

    Parameters
    ----------
    how
        ``"corpus"`` or ``"stratified"``.
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
    """Divide the cells of a corpus, those without genes left out.

    Parameters
    ----------
    how
        ``"corpus"``: as it was tokenized, by donor, else data set, else cell. ``"stratified"``: of every stratum the
        corpus's share of held-out cells is drawn anew, at least one cell where there are two, never the last.
    strata
        Stratum of each cell for training and validation, in this order, None for cells of none.
    """
    check_split(corpus, how)
    test = _whole(corpus, ("test",))
    n_train, n_validation = corpus.n_cells("train"), corpus.n_cells("validation")
    if how == "corpus":
        train = _whole(corpus, ("train",)) or Part(("train",), np.ones(0, dtype=bool))
        return Division(corpus.manifest["split"]["by"], train, _whole(corpus, ("validation",)), test)
    both = tuple(split for split, n in (("train", n_train), ("validation", n_validation)) if n)
    share = float(corpus.manifest["split"]["fractions"]["validation"])
    expressed = cells_with_genes(corpus, both)
    if expressed is None:
        expressed = np.ones(len(strata), dtype=bool)
    drawn = np.zeros(len(strata), dtype=bool)
    drawn[expressed] = draw_by_stratum([s for s, e in zip(strata, expressed, strict=True) if e], share, seed)
    held_out = Part(both, drawn) if drawn.any() else None
    train = Part(both, ~drawn & expressed, int((~expressed).sum()))
    return Division("cell, stratified by label: there are no donors or data sets", train, held_out, test)


def _whole(corpus: Corpus, splits: tuple[str, ...]) -> Part | None:
    """Return all cells of some splits that express a gene; None where there are no cells."""
    n_cells = sum(map(corpus.n_cells, splits))
    if not n_cells:
        return None
    expressed = cells_with_genes(corpus, splits)
    if expressed is None:
        return Part(splits, np.ones(n_cells, dtype=bool))
    return Part(splits, expressed, int((~expressed).sum()))


def draw_by_stratum(strata: Sequence[Any], fraction: float, seed: int) -> np.ndarray:
    """Draw a share of every stratum, at least one where there are two and never all; shape (items,), bool.

    Parameters
    ----------
    strata
        Stratum of each item; None counts as one of its own.
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
