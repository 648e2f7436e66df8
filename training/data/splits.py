"""The division of cells for fine-tuning: that of the corpus, or drawn by class."""

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
    splits
        Splits of the corpus.
    chosen
        Whether each cell of these splits, in this order, belongs to the part; shape (cells,).
    without_genes
        Number of cells that were left out because they express no gene of the vocabulary.
    """

    splits: tuple[str, ...]
    chosen: np.ndarray
    without_genes: int = 0


@dataclass
class Division:
    """Cells for training, held-out cells, and cells for a final test; None for a part without cells.

    Parameters
    ----------
    by
        What the cells were divided by, as text.
    """

    by: str
    train: Part
    held_out: Part | None
    test: Part | None

    def parts(self) -> list[Part]:
        """Return the parts with cells."""
        return [part for part in (self.train, self.held_out, self.test) if part is not None]


def divide(corpus: Corpus, how: str, strata: Sequence[Any], seed: int) -> Division:
    """Divide the cells of a corpus; cells without genes are left out.

    Parameters
    ----------
    how
        ``"corpus"``: as the corpus was tokenized, by donor, else data set, else cell. ``"stratified"``: draw the share
        of held-out cells again in each stratum, as `draw_by_stratum` does.
    strata
        Stratum of each cell for training and validation, in this order; None for cells without one.
    """
    by = corpus.manifest["split"]["by"]
    if how not in SPLITS:
        raise ValueError(f"finetuning.split {how!r}: it is one of {', '.join(SPLITS)}")
    if how == "stratified" and by != "cell":
        raise ValueError(
            f"{corpus.folder} holds out cells by {by}; finetuning.split=stratified would put cells of one donor or "
            "data set into both parts: remove this setting"
        )
    test = _whole(corpus, ("test",))
    n_train, n_validation = corpus.n_cells("train"), corpus.n_cells("validation")
    if how == "corpus":
        train = _whole(corpus, ("train",)) or Part(("train",), np.ones(0, dtype=bool))
        return Division(by, train, _whole(corpus, ("validation",)), test)
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
    """Return the cells of some splits that express a gene; None if there are no cells."""
    n_cells = sum(map(corpus.n_cells, splits))
    if not n_cells:
        return None
    expressed = cells_with_genes(corpus, splits)
    if expressed is None:
        return Part(splits, np.ones(n_cells, dtype=bool))
    return Part(splits, expressed, int((~expressed).sum()))


def draw_by_stratum(strata: Sequence[Any], fraction: float, seed: int) -> np.ndarray:
    """Draw a share of each stratum, at least one of two items and never all; shape (items,), bool.

    Items whose stratum is None are one further stratum.
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


__all__ = ["SPLITS", "Division", "Part", "divide", "draw_by_stratum"]
