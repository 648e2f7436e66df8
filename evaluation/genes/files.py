"""Files of the embeddings of genes: names beside the output, and their contents."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cellglot.evaluation.drawing import drawing
from cellglot.evaluation.genes.result import GeneEmbeddings
from cellglot.evaluation.output import write_table
from cellglot.outputs import atomic


@dataclass(frozen=True)
class GeneFiles:
    """Files of a result.

    Parameters
    ----------
    embeddings
        ``.parquet``: a row for each gene.
    neighbours
        ``NAME_neighbours.parquet``, or None.
    gene_sets
        ``NAME_gene_sets.csv``, or None.
    attention
        ``NAME_attention.parquet``, or None.
    plot
        ``NAME_attention.png``, or None.
    """

    embeddings: Path
    neighbours: Path | None = None
    gene_sets: Path | None = None
    attention: Path | None = None
    plot: Path | None = None

    @classmethod
    def beside(cls, output: Path, neighbours: bool, gene_sets: bool, attention: bool) -> "GeneFiles":
        """Name the files of what is asked for.

        Raises
        ------
        ValueError
            If `output` does not end in ``.parquet``.
        """
        if output.suffix != ".parquet":
            raise ValueError(f"{output}: embeddings of genes are written as .parquet")

        def named(end: str, wanted: bool) -> Path | None:
            return output.with_name(f"{output.stem}_{end}") if wanted else None

        return cls(
            output,
            named("neighbours.parquet", neighbours),
            named("gene_sets.csv", gene_sets),
            named("attention.parquet", attention),
            named("attention.png", attention),
        )

    def all(self) -> list[Path]:
        """Return the files."""
        every = (self.embeddings, self.neighbours, self.gene_sets, self.attention, self.plot)
        return [path for path in every if path is not None]

    @property
    def unfinished(self) -> Path:
        """The folder of the sums of an unfinished run."""
        return self.embeddings.with_name(f"{self.embeddings.name}.unfinished")

    def write(self, found: GeneEmbeddings) -> None:
        """Write a result."""
        for table, path in ((found.neighbours, self.neighbours), (found.gene_sets, self.gene_sets)):
            if table is not None and path is not None:
                write_table(table.set_index("embedding"), path)
                found.written.append(str(path))
        if found.attention is not None and self.attention is not None:
            write_table(found.attention.edges.set_index("from_gene"), self.attention)
            found.written.append(str(self.attention))
        if found.attention is not None and self.plot is not None:
            self._draw(found, self.plot)
        _write_embeddings(found, self.embeddings)
        found.written.insert(0, str(self.embeddings))

    @staticmethod
    def _draw(found: GeneEmbeddings, path: Path) -> None:
        with drawing(path, shlex.split(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))):
            from cellglot.evaluation import plots  # imports matplotlib
            from cellglot.evaluation.genes.attention_plot import attention_plot

            assert found.attention is not None
            figure = attention_plot(found.attention, f"{Path(found.model).name}: strongest attention, {found.cells}")
            plots.save_figure(figure, str(path))
            found.written.append(str(path))


def _write_embeddings(found: GeneEmbeddings, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(found.genes)
    for name, values in found.embeddings().items():
        known = np.isfinite(values).all(axis=1)
        filled = np.where(known[:, None], values, np.float32(0))
        rows = pa.FixedSizeListArray.from_arrays(pa.array(filled.reshape(-1)), values.shape[1], mask=pa.array(~known))
        table = table.append_column(name, rows)
    with atomic(path) as temporary:
        pq.write_table(table, temporary)


def read_gene_embeddings(path: Path, embedding: str) -> tuple[list[str], np.ndarray]:
    """Read the genes and one of the embeddings of a written file; NaN for genes without one.

    Raises
    ------
    ValueError
        If the file has no such embedding.
    """
    frame = pd.read_parquet(path)
    if embedding not in frame:
        raise ValueError(f"{path} has no {embedding!r} embeddings; it has {', '.join(map(str, frame.columns))}")
    rows = frame[embedding]
    size = len(next(row for row in rows if row is not None))
    values = np.stack([np.full(size, np.nan, np.float32) if row is None else np.asarray(row) for row in rows])
    return [str(gene) for gene in frame.index], values


__all__ = ["GeneFiles", "read_gene_embeddings"]
