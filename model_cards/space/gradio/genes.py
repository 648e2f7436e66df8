"""Names of a file's genes, to be completed while a visitor types."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cellglot.tokenization.gene_names import bare_id
from cellglot.tokenization.gene_vocabulary import NAME_COLUMNS, column_key
from cellglot.tokenization.genes.tables import human_genes


MOST_OFFERED = 12


class GeneNames:
    """Symbols of genes, as far as the file or the table of human genes has them, else their names in the file.

    Parameters
    ----------
    var
        The table of genes.
    """

    def __init__(self, var: pd.DataFrame):
        self.index = [str(name) for name in var.index]
        self.symbols = _symbols(self.index, var)
        self._folded = [name.casefold() for name in self.symbols]
        self._ids = [name.casefold() for name in self.index]

    def find(self, name: str) -> int | None:
        """Return the number of a gene of this symbol or name, in any case; None if there is none."""
        text = str(name).strip().casefold()
        for names in (self._folded, self._ids):
            if text in names:
                return names.index(text)
        return None

    def complete(self, beginning: str, most: int = MOST_OFFERED) -> list[str]:
        """Return symbols that begin with a text, the shortest first, then those that contain it."""
        text = str(beginning).strip().casefold()
        if not text:
            return []
        first = [i for i, name in enumerate(self._folded) if name.startswith(text)]
        first.sort(key=lambda i: (len(self.symbols[i]), self.symbols[i]))
        if len(first) < most:
            taken = set(first)
            first += [i for i, name in enumerate(self._folded) if text in name and i not in taken]
            taken = set(first)
            first += [i for i, name in enumerate(self._ids) if name.startswith(text) and i not in taken]
        return list(dict.fromkeys(self.symbols[i] for i in first))[:most]


def _symbols(index: Sequence[str], var: pd.DataFrame) -> list[str]:
    named = next((c for usual in NAME_COLUMNS for c in var.columns if column_key(str(c)) == usual), None)
    if named is not None:
        given = [str(name) for name in var[named]]
        return [name if name and name != "nan" else own for name, own in zip(given, index, strict=True)]
    ids = [bare_id(name) for name in index]
    if not any(ids):
        return list(index)
    table = human_genes()
    return [
        (table.symbol(gene) or name) if gene is not None and gene in table else name
        for gene, name in zip(ids, index, strict=True)
    ]


def as_bytes(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Return values between 0 and the highest as codes 0 to 254, and the highest."""
    high = float(values.max(initial=0.0))
    return np.round(values / max(high, 1e-12) * 254).astype(np.uint8), high


__all__ = ["GeneNames", "as_bytes"]
