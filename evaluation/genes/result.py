"""What `cellglot.genes` found: embeddings of genes, neighbours, gene sets, attention."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from cellglot.evaluation.genes.attention import GeneEdges
from cellglot.tokenization.gene_report import GeneReport


STATIC, CONTEXTUAL = "static", "contextual"
SHOWN = 10  # rows of the summary


@dataclass
class GeneEmbeddings:
    """Embeddings of the genes of a model, in the order of its vocabulary.

    Parameters
    ----------
    model
        Name of the model.
    genes
        One row for each gene, indexed by its id: ``symbol``; with cells also ``cells``, in which the model reads the
        gene, and ``mean_expression``, of counts scaled to 10,000 in each cell.
    static
        The embeddings that the model learned, float32, shape (genes, size).
    contextual
        Mean state of each gene over the cells in which the model reads it, NaN without such cells, float32, shape
        (genes, size of a state); None without cells.
    states_from
        What a state is: ``"hidden states"``, of Exceiver ``"decoder"`` or ``"latents"``; None without cells.
    neighbours
        Nearest genes; None if they were not asked for. ``embedding`` is ``"static"`` or ``"contextual"``; other
        columns as for `cellglot.evaluation.genes.neighbours.neighbour_table`.
    gene_sets
        Scores of gene sets, or None; ``embedding``, and columns as for
        `cellglot.evaluation.genes.gene_sets.score_sets`.
    attention
        The strongest attention between genes, or None.
    report
        Genes matched and lost in the cells; None without cells.
    cells
        The cells, in words.
    notes
        What has to be known: how expression was matched, sets that were left out, batches of an earlier run.
    written
        Files that were written.
    """

    model: str
    genes: pd.DataFrame
    static: np.ndarray
    contextual: np.ndarray | None = None
    states_from: str | None = None
    neighbours: pd.DataFrame | None = None
    gene_sets: pd.DataFrame | None = None
    attention: GeneEdges | None = None
    report: GeneReport | None = None
    cells: str = ""
    notes: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.genes)

    def embeddings(self) -> dict[str, np.ndarray]:
        """Return the embeddings by name: ``"static"``, and with cells ``"contextual"``."""
        found = {STATIC: self.static}
        return found if self.contextual is None else found | {CONTEXTUAL: self.contextual}

    def table(self) -> pd.DataFrame:
        """Return `genes` with a column for each embedding, an array of each gene; None where it has none."""
        table = self.genes.copy()
        for name, values in self.embeddings().items():
            known = np.isfinite(values).all(axis=1)
            table[name] = pd.Series(
                [row if has else None for row, has in zip(values, known, strict=True)], table.index
            )
        return table

    def summary(self) -> str:
        """Summarise what was found."""
        lines = [f"{self.model}: {len(self):,} genes, static embeddings of size {self.static.shape[1]:,}"]
        if self.contextual is not None:
            known = int((self.genes["cells"] > 0).sum())
            lines.append(
                f"contextual embeddings ({self.states_from}) of {known:,} genes in {self.cells}, size "
                f"{self.contextual.shape[1]:,}"
            )
        if self.neighbours is not None:
            lines.append(f"neighbours: {len(self.neighbours):,} pairs")
        if self.gene_sets is not None:
            lines += _of_sets(self.gene_sets)
        if self.attention is not None:
            lines.append(self.attention.summary())
        lines += self.notes
        lines += [] if self.report is None else [self.report.summary()]
        return "\n".join([*lines, *self.written])

    def __str__(self) -> str:
        return self.summary()


def _of_sets(table: pd.DataFrame) -> list[str]:
    lines = []
    for name, rows in table.groupby("embedding", sort=False):
        significant = "" if rows["fdr"].isna().all() else f", {(rows['fdr'] < 0.05).mean():.1%} with an FDR below 5%"
        lines.append(
            f"{len(rows):,} gene sets, {name} embeddings: AUROC {rows['auroc_matched'].mean():.3f} against genes of "
            f"the same expression, {rows['auroc'].mean():.3f} against all; average precision "
            f"{rows['auprc'].mean():.3f} (chance {rows['auprc_chance'].mean():.3f}){significant}"
        )
        best = rows.sort_values(["fdr", "auroc_matched"], ascending=[True, False]).head(SHOWN)
        shown = best[["set", "genes", "similarity", "random_similarity", "fdr", "auroc_matched"]]
        lines.append(shown.to_string(index=False, float_format=lambda value: f"{value:.3g}"))
    return lines


__all__ = ["CONTEXTUAL", "STATIC", "GeneEmbeddings"]
