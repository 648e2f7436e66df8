"""The tables of genes that ship with the package: what names mean which gene."""

from collections.abc import Mapping
from functools import cache, cached_property
from pathlib import Path

from cellglot.packed_tables import unpack, unpacked_ids


HUMAN_FILE = Path(__file__).with_name("human_genes.zz")
MOUSE_FILE = Path(__file__).with_name("mouse_genes.zz")


class HumanGenes:
    """Names of human genes: Ensembl id, symbol, earlier symbols, aliases.

    A name means, in this order, the gene whose symbol it is, the gene whose earlier symbol it is, the gene whose alias
    it is; a name that several genes have in the same way is ambiguous, and means none.

    Parameters
    ----------
    columns
        As `unpack` returns them.
    facts
        What the table was made from.

    Attributes
    ----------
    ids : list of str
        Ensembl ids, sorted.
    symbols : list of str
        Symbol of each gene, empty where it has none.
    coding : list of bool
        Whether each gene codes for a protein.
    """

    def __init__(self, columns: Mapping[str, list[str]], facts: Mapping[str, str]):
        self.facts = dict(facts)
        self.ids = unpacked_ids(columns["id"], "ENSG")
        self.symbols = columns["symbol"]
        self.coding = [c == "1" for c in columns["coding"][0]]
        self._earlier, self._aliases, self._retired = columns["earlier"], columns["aliases"], columns["retired"]

    @cached_property
    def _row(self) -> dict[str, int]:
        return {gene: row for row, gene in enumerate(self.ids)}

    @cached_property
    def _by_name(self) -> dict[str, str | tuple[str, ...]]:
        known: dict[str, str | tuple[str, ...]] = {}
        for column in (self.symbols, self._earlier, self._aliases):
            found: dict[str, str | tuple[str, ...]] = {}
            for gene, cell in zip(self.ids, column, strict=True):
                for name in cell.split("|") if cell else ():
                    others = found.get(name, ())
                    found[name] = (*((others,) if isinstance(others, str) else others), gene) if others else gene
            known = found | known
        return known

    @cached_property
    def _present(self) -> dict[str, str]:
        """Retired ids -> the present ones."""
        pairs = [(gene, cell) for gene, cell in zip(self.ids, self._retired, strict=True) if cell]
        return {f"ENSG{int(number):011d}": gene for gene, cell in pairs for number in cell.split("|")}

    def __len__(self) -> int:
        """Return the number of genes."""
        return len(self.ids)

    def __contains__(self, gene: object) -> bool:
        return gene in self._row

    def find(self, name: str) -> tuple[str, ...]:
        """Return the ids of the genes that a name means: several where it is ambiguous, none where it is unknown."""
        found = self._by_name.get(name, ())
        return (found,) if isinstance(found, str) else found

    def present_id(self, gene: str) -> str | None:
        """Return the id that took the place of a retired one, None where there is none."""
        return self._present.get(gene)

    def names(self) -> list[str]:
        """Return all names that mean a gene, or several."""
        return list(self._by_name)

    def retired_ids(self) -> dict[str, str]:
        """Return the retired ids -> the present ones."""
        return dict(self._present)

    def symbol(self, gene: str) -> str:
        """Return the symbol of an id, empty where it has none or is not in the table."""
        row = self._row.get(gene)
        return "" if row is None else self.symbols[row]

    def earlier_names(self, gene: str) -> list[str]:
        """Return the earlier symbols of an id that mean this gene alone."""
        row = self._row.get(gene)
        names = [] if row is None or not self._earlier[row] else self._earlier[row].split("|")
        return [name for name in names if self.find(name) == (gene,)]

    def earlier_ids(self, gene: str) -> list[str]:
        """Return the retired ids in whose place an id came."""
        row = self._row.get(gene)
        cell = "" if row is None else self._retired[row]
        return [f"ENSG{int(number):011d}" for number in cell.split("|")] if cell else []

    def coding_ids(self) -> list[str]:
        """Return the ids of all genes that code for a protein, sorted."""
        return [gene for gene, coding in zip(self.ids, self.coding, strict=True) if coding]


@cache
def human_genes() -> HumanGenes:
    """Return the table of human genes that ships with the package; it is read once, when it is asked for."""
    facts, columns = unpack(HUMAN_FILE)
    return HumanGenes(columns, facts)


class MouseGenes:
    """Mouse genes with exactly one human ortholog, which has no other ortholog in mouse.

    Parameters
    ----------
    columns
        As `unpack` returns them.

    Attributes
    ----------
    by_id, by_symbol : dict
        Ensembl id, or symbol, of a mouse gene -> Ensembl id of the human gene.
    """

    def __init__(self, columns: Mapping[str, list[str]]):
        human = [f"ENSG{int(number):011d}" for number in columns["human"]]
        self.by_id = dict(zip(unpacked_ids(columns["id"], "ENSMUSG"), human, strict=True))
        symbols = columns["symbol"]
        seen: dict[str, list[str]] = {}
        for symbol, gene in zip(symbols, human, strict=True):
            seen.setdefault(symbol, []).append(gene)
        self.by_symbol = {symbol: genes[0] for symbol, genes in seen.items() if symbol and len(genes) == 1}


@cache
def mouse_genes() -> MouseGenes:
    """Return the one-to-one orthologs of mouse and human that ship with the package; they are read once."""
    return MouseGenes(unpack(MOUSE_FILE)[1])


__all__ = ["HUMAN_FILE", "MOUSE_FILE", "HumanGenes", "MouseGenes", "human_genes", "mouse_genes"]
