"""Bulk expression of cell lines as cells that our tokenizers read."""

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from cellglot.evaluation.drug_response.folder import DrugResponse
from cellglot.tokenization.count_matrix import open_counts


# What the values are; "auto" finds it out.
VALUES = ("auto", "log2", "linear", "relative")
# 10,000, to which scCello scales, times 1,000: tokenizers read whole numbers, and these are exact in float32.
TOTAL = 1e7
_LARGEST_LOG2, _LARGEST_Z = 25.0, 10.0
_SMALLEST_FLOOR = 1.0  # microarrays have a background above it in every gene; log2(TPM + 1) is 0 where there is none


def check_values(values: str) -> None:
    """Raise if a kind of values does not exist."""
    if values not in VALUES:
        raise ValueError(f"unknown values of expression {values!r}: they are {', '.join(VALUES)}")


def kind_of_values(expression: np.ndarray) -> str:
    """Return what values look like: ``"log2"`` of value + 1, ``"linear"``, ``"microarray"`` or ``"z-scores"``.

    Parameters
    ----------
    expression
        Shape (lines, genes).
    """
    smallest, largest = float(expression.min()), float(expression.max())
    if smallest < 0:
        return "z-scores"
    if largest > _LARGEST_LOG2:
        return "linear"
    return "microarray" if smallest > _SMALLEST_FLOOR else "log2"


def line_cells(data: DrugResponse, tokenizer: Any = None, values: str = "auto") -> AnnData:
    """Return the lines as cells with whole numbers in place of counts.

    Linear values and 2 ** value - 1 of ``"log2"`` are scaled to a total of 1e7 in each line. Tokens depend on shares
    of a line's total only, so this is what scCello's scaling to 10,000 gives, rounded to a thousandth.

    Parameters
    ----------
    tokenizer
        Of the model, for ``"relative"``, which is not a measurement: a gene's value in a line relative to its mean and
        standard deviation over all lines is put on the scale of the tokenizer's corpus. Rank tokens are then in the
        order of these z-scores; Exceiver reads them as its standardised values.
    values
        ``"auto"``, ``"log2"`` (of TPM + 1 or the like), ``"linear"`` or ``"relative"``.

    Raises
    ------
    ValueError
        If the values are z-scores or those of a microarray, and ``"relative"`` was not chosen.
    """
    check_values(values)
    kind = kind_of_values(data.expression) if values == "auto" else values
    linear = data.expression.astype(np.float64)
    if kind == "relative":
        linear = _relative(linear, data.genes, tokenizer)
    elif kind in ("z-scores", "microarray") or (kind == "linear" and linear.min() < 0):
        seen = "values below 0, as z-scores have" if linear.min() < 0 else (
            f"values from {linear.min():.3g} to {linear.max():.3g}, as logarithms of microarrays (RMA) have"
        )  # fmt: skip
        raise ValueError(
            f"the expression of {data.name} has {seen}: models need counts or TPM, in which 0 is no expression. Pass "
            "such a table; or choose relative ranks (drug_values='relative', --drug-values relative), which order the "
            "genes of a line by how far each is from its mean over the lines"
        )
    elif kind == "log2":
        if linear.max() > _LARGEST_LOG2:
            raise ValueError(f"the expression of {data.name} has values up to {linear.max():.4g}: it is not log2")
        linear = np.exp2(linear) - 1
    linear = np.maximum(linear, 0)
    totals = linear.sum(axis=1)
    if not (totals > 0).all():
        raise ValueError(f"line {data.lines[int(np.argmin(totals))]!r} of {data.name} expresses no gene")
    counts = np.rint(linear * (TOTAL / totals)[:, None]).astype(np.float32)
    obs = pd.DataFrame({"cancer_type": [str(t) for t in data.types]}, index=pd.Index(data.lines))
    return AnnData(counts, obs=obs, var=pd.DataFrame(index=pd.Index(data.genes)))


def standardised(values: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
    """Return values minus the mean, over the standard deviation of each column; constant columns are 0.

    Parameters
    ----------
    values
        Shape (lines, features).
    rows
        Lines of which mean and deviation are taken; by default all.
    """
    known = np.asarray(values if rows is None else values[rows], dtype=np.float64)
    deviation = known.std(axis=0)
    scale = np.where(deviation > 1e-9 * (1 + np.abs(known).max(axis=0)), deviation, np.inf)
    return (np.asarray(values, dtype=np.float64) - known.mean(axis=0)) / scale


def _relative(values: np.ndarray, genes: list[str], tokenizer: Any) -> np.ndarray:
    """Put z-scores over the lines on the scale of the tokenizer's corpus; genes that it does not know are left out."""
    z = np.clip(standardised(values), -_LARGEST_Z, _LARGEST_Z)
    if tokenizer is None:
        return np.exp2(z)
    columns = tokenizer.gene_columns(open_counts(np.ones((1, len(genes)), dtype=np.float32), genes))
    known, tokens = columns.known, columns.token_ids
    made = np.zeros_like(z)
    if columns.weights is not None:  # one over the gene's median: ranked by z
        made[:, known] = np.exp2(z[:, known]) / columns.weights[known]
    else:
        made[:, known] = np.expm1(columns.means[tokens[known]] + columns.stds[tokens[known]] * z[:, known])
    return made


__all__ = ["VALUES", "check_values", "kind_of_values", "line_cells", "standardised"]
