"""How much one visitor may ask for. Every limit is stated on the page."""

from dataclasses import dataclass
from typing import Any


MEGABYTE = 1 << 20


class TooLargeError(ValueError):
    """A visitor's file is over a limit; the message names the limit."""


@dataclass(frozen=True)
class Limits:
    """Limits of one visit.

    Parameters
    ----------
    file_bytes
        Of all files that are dropped together.
    text_bytes
        Of a pasted table.
    cells
        Cells that are annotated; of a larger file a random sample is.
    file_cells
        Cells of a file that is sampled.
    genes
        Genes of a file.
    values
        Values of the matrix: stored ones, or all of a dense one.
    candidates
        Cell types that texts are compared with.
    idle_seconds
        After this time without use, everything of a visit is deleted.
    """

    file_bytes: int = 250 * MEGABYTE
    text_bytes: int = 5 * MEGABYTE
    cells: int = 20_000
    file_cells: int = 2_000_000
    genes: int = 200_000
    values: int = 1_000_000_000
    candidates: int = 300
    idle_seconds: int = 3_600

    def check_bytes(self, size: int) -> None:
        """Refuse files that are too large together."""
        if size > self.file_bytes:
            raise TooLargeError(
                f"The file has {size / MEGABYTE:,.0f} MB; this page takes at most {self.file_bytes // MEGABYTE:,} MB. "
                "Annotate it on your own machine by: cellglot annotate CELLS"
            )

    def check_text(self, text: str) -> None:
        """Refuse a pasted text that is too long."""
        if len(text.encode("utf-8", "replace")) > self.text_bytes:
            raise TooLargeError(
                f"The pasted table has more than {self.text_bytes // MEGABYTE:,} MB: drop it as a file instead"
            )

    def check_shape(self, counts: Any) -> None:
        """Refuse a matrix whose declared size is too large, before it is read.

        Parameters
        ----------
        counts
            The opened `CountMatrix`.
        """
        n_cells, n_genes = counts.n_cells, counts.n_genes
        told = f"The file declares {n_cells:,} cells x {n_genes:,} genes"
        if n_genes > self.genes:
            raise TooLargeError(f"{told}; this page takes at most {self.genes:,} genes")
        if n_cells > self.file_cells:
            raise TooLargeError(
                f"{told}; this page takes at most {self.file_cells:,} cells, of which it takes a sample"
            )
        stored = counts.n_stored
        size = n_cells * n_genes if stored is None else stored
        if size > self.values:
            kind = "values" if stored is None else "stored values"
            raise TooLargeError(f"{told}, {size:,} {kind}; this page reads at most {self.values:,}")


__all__ = ["Limits", "TooLargeError"]
