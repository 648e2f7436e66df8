"""Training cells with fewer counts and genes, drawn again in every epoch, to make a model robust."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from huggingface_hub.dataclasses import strict

from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.corpus.sources import read_columns, read_parquet
from cellglot.tokenization.tokenization_gene_expression import GeneExpressionTokenizer
from cellglot.training.data.expression import is_standardized
from cellglot.training.data.panels import Panels, panels_of


Example = Mapping[str, Any]
_STREAM = 1  # makes these draws independent of those of masked genes


@dataclass
class RankValueCounts:
    """Counts of rank-value tokens: values are log1p of counts scaled to a sum, the order is that of relative counts.

    Parameters
    ----------
    weights
        1 / median of the gene of each token id, 0 for special tokens, shape (vocabulary,).
    target_sum
        Sum to which the counts of a cell were scaled.
    """

    weights: np.ndarray = field(repr=False)
    target_sum: float

    def counts(self, example: Example) -> tuple[np.ndarray, np.ndarray]:
        """Return genes and counts, shape (genes,) each, in the order of the tokens, without special tokens."""
        tokens = np.asarray(example["input_ids"])
        genes = self.weights[tokens] > 0
        values = np.asarray(example["expression_values"], dtype=np.float64)[genes]
        return tokens[genes], _from_log(values, example["expression_total"], self.target_sum)

    def encode(self, example: Example, tokens: np.ndarray, counts: np.ndarray) -> dict[str, Any]:
        """Rank genes as the tokenizer does: by count over median, ties by the smaller token id, ``<cls>`` first."""
        order = np.lexsort((tokens, -counts * self.weights[tokens]))
        old = np.asarray(example["input_ids"])
        values = np.log1p(counts * (self.target_sum / max(float(counts.sum()), 1.0)))
        special = old[: int(len(old) > 0 and self.weights[old[0]] == 0)]
        return {
            "input_ids": np.concatenate([special, tokens[order]]),
            "expression_values": np.concatenate([np.zeros(len(special)), values[order]]).astype(np.float32),
        }


@dataclass
class StandardizedCounts:
    """Counts of Exceiver's tokens: values are standardised log1p of counts scaled to a sum, clipped, plus 1.

    Parameters
    ----------
    means, stds
        Statistics of the gene of each token id, shape (vocabulary,).
    """

    means: np.ndarray = field(repr=False)
    stds: np.ndarray = field(repr=False)
    target_sum: float
    clip: float

    def counts(self, example: Example) -> tuple[np.ndarray, np.ndarray]:
        """Return genes and counts, shape (genes,) each, in the order of the tokens."""
        tokens, values = np.asarray(example["input_ids"]), np.asarray(example["expression_values"])
        logs = (values.astype(np.float64) - 1.0) * self.stds[tokens] + self.means[tokens]
        counts = _from_log(logs, example["expression_total"], self.target_sum)
        counts[values >= np.float32(self.clip + 1.0)] = example["clipped_counts"]
        return tokens, counts

    def encode(self, example: Example, tokens: np.ndarray, counts: np.ndarray) -> dict[str, Any]:
        """Standardise as the tokenizer does, with the new total of the cell."""
        logs = np.log1p(counts * (self.target_sum / max(float(counts.sum()), 1.0)))
        values = np.minimum((logs - self.means[tokens]) / self.stds[tokens], self.clip) + 1.0
        return {"input_ids": tokens, "expression_values": values.astype(np.float32)}


CountEncoding = RankValueCounts | StandardizedCounts


def _from_log(values: np.ndarray, total: float, target_sum: float) -> np.ndarray:
    """Return counts from log1p of scaled counts; with float32 this is exact up to about a million."""
    return np.rint(np.expm1(values) * (float(total) / target_sum))


@dataclass
class Thinning:
    """Removes counts and genes from training cells; draws depend only on seed, epoch and cell.

    For each cell two chances are drawn: that a count is kept (a binomial draw for each gene), as if the cell had been
    sequenced less deeply, and that a gene is removed, as if it had not been measured. The remaining counts are
    tokenized like other cells. Held-out cells (without an epoch), and cells that would lose all genes, are not
    changed. Genes that the tokenizer cut off are not restored.

    If some classes were sequenced more deeply than others, keeping a share of the counts (`keep`) preserves this
    difference, and a model can use it. Thinning to a number that does not depend on the cell (`to`) removes it.

    Parameters
    ----------
    counts
        Conversion between counts and tokens; None if counts are not changed.
    keep
        Range of the chance that a count is kept.
    to
        Range of the number of counts to which a cell is thinned, drawn on a logarithmic scale; a cell with fewer
        counts is not thinned. None for no limit.
    drop
        Range of the chance that a gene is removed.
    special_ids
        Tokens that are not genes.
    panels
        Genes of the data sets, for cells that keep only those of another one; None to keep all.
    """

    counts: CountEncoding | None
    keep: tuple[float, float] = (1.0, 1.0)
    to: tuple[float, float] | None = None
    drop: tuple[float, float] = (0.0, 0.0)
    special_ids: tuple[int, ...] = ()
    seed: int = 0
    panels: Panels | None = None

    def __call__(self, example: Example) -> Example:
        """Return an example of `cellglot.training.data.dataset.CellDataset` with fewer counts and genes."""
        if example["epoch"] < 0 or not len(example["input_ids"]):
            return example
        random = np.random.default_rng([self.seed, example["epoch"] + 1, example["cell"], _STREAM])
        keep, drop = random.uniform(*self.keep), random.uniform(*self.drop)
        number = None if self.to is None else np.exp(random.uniform(*np.log(self.to)))
        if self.counts is None:
            return self._with_fewer_tokens(example, drop, random)
        tokens, counts = self.counts.counts(example)
        if number is not None:
            keep *= min(1.0, number / max(float(counts.sum()), 1.0))
        left = random.binomial(counts.astype(np.int64), keep)
        left[random.random(len(left)) < drop] = 0
        if self.panels is not None:
            left[~self.panels.keeps(tokens, random)] = 0
        kept = left > 0
        if not kept.any():
            return example
        return {**example, **self.counts.encode(example, tokens[kept], left[kept].astype(np.float64))}

    def _with_fewer_tokens(self, example: Example, drop: float, random: np.random.Generator) -> Example:
        tokens = np.asarray(example["input_ids"])
        special = np.isin(tokens, self.special_ids)
        kept = special | (random.random(len(tokens)) >= drop)
        if not (kept & ~special).any():
            return example
        names = [name for name in ("input_ids", "expression_values") if name in example]
        return {**example, **{name: np.asarray(example[name])[kept] for name in names}}


Amount = int | float | list | tuple | bool | None


@strict
@dataclass(kw_only=True)
class ThinningSettings:
    """Keys of the section ``data`` that remove counts and genes from training cells.

    Each is a number, or a pair: the range from which a number is drawn for each cell. By default nothing is removed.

    Parameters
    ----------
    thin_counts
        Share of the counts of a cell to keep.
    thin_to_median
        Number of counts to which a cell is thinned, in units of the median over the training cells.
    drop_tokens
        Share of the genes of a cell to remove.
    swap_panels
        Chance of a cell to keep only the genes of another data set of the corpus, see `Panels`.
    panel_column
        Column of the corpus that names the data set of each cell.
    panel_weights
        Data set -> how often its genes are drawn, relative to 1 for the others.
    variable_panels
        Numbers of genes: the panels of this number of most variable genes of each data set are drawn as well.
    """

    thin_counts: Amount = None
    thin_to_median: Amount = None
    drop_tokens: Amount = None
    swap_panels: float | int = 0.0
    panel_column: str = "dataset_id"
    panel_weights: dict[str, float | int] | None = None
    variable_panels: list[int] | None = None

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        self.keep = _range("thin_counts", self.thin_counts, "a share from above 0 to 1", lambda x: 0 < x <= 1)
        what = "a multiple above 0 of the median cell's counts"
        self.to = _range("thin_to_median", self.thin_to_median, what, lambda x: x > 0)
        if not 0 <= self.swap_panels <= 1:
            raise ValueError(f"swap_panels {self.swap_panels!r}: it is a chance from 0 to 1")
        if any(weight < 0 for weight in (self.panel_weights or {}).values()):
            raise ValueError(f"panel_weights {self.panel_weights!r}: weights are not negative")
        if any(number < 1 for number in self.variable_panels or ()):
            raise ValueError(f"variable_panels {self.variable_panels!r}: numbers of genes are 1 or more")
        self.drop = _range("drop_tokens", self.drop_tokens, "a share from 0 to below 1", lambda x: 0 <= x < 1)


def thinning_of(
    settings: ThinningSettings, tokenizer: GeneExpressionTokenizer, corpus: Corpus, seed: int
) -> Thinning | None:
    """Return the thinning that `settings` describe, None for none; refuse a corpus without the values for it."""
    keep, to, drop = settings.keep or (1.0, 1.0), settings.to, settings.drop or (0.0, 0.0)
    panels = None
    if settings.swap_panels:
        weights, variable = settings.panel_weights, settings.variable_panels or ()
        panels = panels_of(corpus, settings.swap_panels, settings.panel_column, weights, variable)
    if keep == (1.0, 1.0) and to is None and drop == (0.0, 0.0) and panels is None:
        return None
    special = tuple(tokenizer.vocabulary.token_ids[token] for token in tokenizer.vocabulary.special_tokens)
    encoding = None
    if keep != (1.0, 1.0) or to is not None or panels is not None:
        totals = _totals(corpus)
        to = None if to is None else (to[0] * float(np.median(totals)), to[1] * float(np.median(totals)))
        encoding = count_encoding(tokenizer, corpus)
    return Thinning(encoding, keep, to, drop, special, seed, panels)


def count_encoding(tokenizer: GeneExpressionTokenizer, corpus: Corpus) -> CountEncoding:
    """Return the conversion between counts and tokens of a corpus that has the vocabulary of `tokenizer`."""
    scaled_to: Any = corpus.tokenizer()
    vocabulary = tokenizer.vocabulary

    def by_token(values: np.ndarray, otherwise: float) -> np.ndarray:
        spread = np.full(vocabulary.vocab_size, otherwise)
        spread[vocabulary.gene_token_ids] = values
        return spread

    if is_standardized(tokenizer):
        assert vocabulary.means is not None and vocabulary.stds is not None
        stds = np.where(vocabulary.stds == 0, 1.0, vocabulary.stds)
        return StandardizedCounts(
            by_token(vocabulary.means, 0.0), by_token(stds, 1.0), scaled_to.target_sum, scaled_to.clip
        )
    assert vocabulary.medians is not None
    return RankValueCounts(by_token(1.0 / vocabulary.medians, 0.0), scaled_to.target_sum)


def _totals(corpus: Corpus) -> np.ndarray:
    """Return the totals of the training cells with counts, as the tokenizer recorded them."""
    names = read_columns(corpus.shards("train")[0])
    if "expression_values" not in names:
        raise ValueError(
            f"{corpus.folder} has no expression values, which thinning of counts needs: tokenize with "
            "--option return_expression_values=true, or set data.thin_counts=null and data.thin_to_median=null"
        )
    if "expression_total" not in names:
        raise ValueError(
            f"{corpus.folder} has no totals of cells, which thinning of counts needs: tokenize again, or set "
            "data.thin_counts=null and data.thin_to_median=null"
        )
    shards = [read_parquet(shard, ["expression_total"]) for shard in corpus.shards("train")]
    totals = np.concatenate([shard["expression_total"].to_numpy() for shard in shards])
    return totals[totals > 0]


def _range(name: str, given: Any, what: str, fits: Callable[[float], bool]) -> tuple[float, float] | None:
    """Return a number or a pair of numbers as a pair; None for none."""
    if given is None or given is False:
        return None
    pair = given if isinstance(given, list | tuple) else [given, given]
    numbers = len(pair) == 2 and all(isinstance(x, int | float) and not isinstance(x, bool) for x in pair)
    if not numbers or not all(fits(x) for x in pair) or pair[0] > pair[1]:
        raise ValueError(f"{name} {given!r}: it is {what}, or a pair of these, the smaller first")
    return float(pair[0]), float(pair[1])


__all__ = ["CountEncoding", "RankValueCounts", "StandardizedCounts", "Thinning", "ThinningSettings", "thinning_of"]
