"""Read tables of gene names, and collect the genes of the files of a corpus."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cellglot.inputs import read_table
from cellglot.tokenization.gene_names import (
    NameCleaner,
    bare_id,
    genomes_of,
    in_mouse_case,
    is_number,
    species_of,
    split_id,
    unique_spellings,
    without_genome,
)
from cellglot.tokenization.gene_vocabulary import (
    NAME_COLUMNS,
    GeneVocabulary,
    column_key,
    name_sources,
    read_released_dictionary,
)
from cellglot.tokenization.genes.tables import HumanGenes


_SPIKE_IN = re.compile(r"^ERCC[-_]\d{5}$")
_SYMBOL_COLUMNS = ("symbol", "approved_symbol", "gene_symbol", "gene_name", "name", "feature_name", "hgnc_symbol")
_ALIAS_COLUMNS = ("alias_symbol", "prev_symbol", "previous_symbols", "alias_symbols", "aliases", "synonyms", "alias")


class GeneNames:
    """Symbols and aliases of genes by Ensembl id."""

    def __init__(self) -> None:
        self.symbols: dict[str, str] = {}
        self.aliases: dict[str, list[str]] = {}

    def add(self, gene: str, name: str) -> None:
        """Add a name of a gene: the first one is its symbol, others are aliases."""
        if name and self.symbols.setdefault(gene, name) != name and name not in self.aliases.setdefault(gene, []):
            self.aliases[gene].append(name)


def read_gene_table(path: Path) -> GeneNames:
    """Read gene names from a table with a column of Ensembl ids, or from the released dictionary of names.

    Parameters
    ----------
    path
        Tab- or comma-separated (plain or compressed), with columns such as ``ensembl_gene_id``, ``symbol``,
        ``alias_symbol``, ``prev_symbol`` of HGNC and BioMart, in which ``|`` separates aliases; or Geneformer's
        ``gene_name_id_dict.pkl``.
    """
    names = GeneNames()
    if path.suffix == ".pkl":
        for name, gene in read_released_dictionary(path).items():
            names.add(str(gene), str(name))
        return names
    table = read_table(path, sep=None, engine="python", dtype=str, keep_default_na=False, comment="#").fillna("")
    columns = {re.sub(r"[^a-z0-9]+", "_", str(c).lower()).strip("_"): c for c in table.columns}
    ids = next((c for c in table.columns if table[c].map(bare_id).notna().mean() > 0.5), None)
    symbols = next((columns[c] for c in _SYMBOL_COLUMNS if c in columns and columns[c] != ids), None)
    if ids is None or symbols is None:
        missing = "Ensembl gene ids" if ids is None else f"symbols (one of {', '.join(_SYMBOL_COLUMNS)})"
        raise ValueError(f"{path} has no column of {missing}; its columns are {', '.join(map(str, table.columns))}")
    others = [columns[c] for c in _ALIAS_COLUMNS if c in columns]
    for row in table[[ids, symbols, *others]].itertuples(index=False):
        gene = bare_id(row[0].strip())
        if gene is not None:
            for cell in row[1:]:
                for name in cell.split("|"):
                    names.add(gene, name.strip())
    return names


def gene_catalogue(
    tables: Sequence[tuple[Sequence[str], Mapping[str, Any] | None]],
    gene_names: GeneNames | None = None,
    only: Iterable[str] | None = None,
    human: HumanGenes | None = None,
) -> GeneVocabulary:
    """Return a vocabulary of the genes of a corpus, in alphabetical order, without statistics.

    A gene is named by the Ensembl id of its file, or of another file or table in which a single gene has its name, or
    of the one human gene of that name. A name of several genes is ambiguous and left out later; another name is kept,
    and cleaned if its meaning is certain (`cellglot.tokenization.gene_names`). Spike-ins (ERCC) and numbers are not
    genes.

    Parameters
    ----------
    tables
        Index and columns of the gene table of each file.
    gene_names
        From `read_gene_table`.
    only
        Ids or names of the genes to keep.
    human
        Table of human genes. Retired ids are read as the present ones. Genes of the catalogue get its symbols, and
        its unambiguous earlier symbols and retired ids as aliases, so that tokenizers know them without the table.
    """
    names = GeneNames()
    own: set[str] = set()
    if gene_names is not None:
        names.symbols.update(gene_names.symbols)
        names.aliases.update({gene: list(aliases) for gene, aliases in gene_names.aliases.items()})
    for index, columns in tables:
        for found_id, name in _named_ids(index, columns):
            gene = (human.present_id(found_id) if human is not None else None) or found_id
            own.add(gene)
            names.add(gene, name)
    known = _catalogue(own | set(names.symbols), names)
    genes = set(own)
    unnamed = []
    for index, columns in tables:
        match = known.resolve(index, columns)
        genes.update(known.tokens[int(t)] for t in match.token_ids[match.known])
        unnamed.append(_unnamed(index, columns, (~match.known & ~match.ambiguous).nonzero()[0].tolist()))
    if human is not None and species_of(known.genes) != "mouse":
        found, unnamed = _human_genes(unnamed, human, names)
        genes |= found
    genes |= _genes_by_name(unnamed, species_of(known.genes), names)
    if human is not None:
        for gene in genes:
            for name in [symbol, *human.earlier_names(gene)] if (symbol := human.symbol(gene)) else ():
                names.add(gene, name)
            for retired in human.earlier_ids(gene):
                names.aliases.setdefault(gene, []).append(retired)
    everything = known if human is None and genes == set(known.genes) else _catalogue(genes, names)
    if only is not None:
        match = everything.resolve(list(only))
        genes &= {everything.tokens[int(t)] for t in match.token_ids[match.known]}
        everything = _catalogue(genes, names)
    if not genes:
        raise ValueError("no gene is left: no file has a gene of the list of genes to keep")
    return everything


def _catalogue(genes: Iterable[str], names: GeneNames) -> GeneVocabulary:
    return GeneVocabulary.from_statistics(sorted(genes), symbols=names.symbols, aliases=names.aliases)


def _unnamed(index: Sequence[str], columns: Mapping[str, Any] | None, rows: list[int]) -> tuple[list[str], list[str]]:
    """Return all names of a file, and the names of some rows; numbers are replaced by names in other columns."""
    (_, first), *others = name_sources(index, columns)
    named = [values for name, values in others if column_key(name) in NAME_COLUMNS]
    found = []
    for row in rows:
        name = first[row]
        if not name or is_number(name):
            name = next((v[row] for v in named if v[row] and not is_number(v[row])), "")
        if name and not _SPIKE_IN.match(name):
            found.append(str(name))
    return first.tolist(), found


def _human_genes(
    unnamed: list[tuple[list[str], list[str]]], human: HumanGenes, names: GeneNames
) -> tuple[set[str], list[tuple[list[str], list[str]]]]:
    """Return human genes that files name, and what `unnamed` has besides: names that no human gene has."""
    genes: set[str] = set()
    left = []
    for every, found in unnamed:
        if in_mouse_case(every):
            left.append((every, found))
            continue
        cleaner, unknown = NameCleaner(every, "human"), []
        for name in found:
            meant = human.find(name) or human.find(cleaner.clean(name))
            if not meant:
                unknown.append(name)
            elif len(meant) == 1:
                genes.add(meant[0])
                names.add(meant[0], human.symbol(meant[0]))
                if human.find(name) == meant:
                    names.add(meant[0], name)
        left.append((every, unknown))
    return genes, left


def _genes_by_name(unnamed: list[tuple[list[str], list[str]]], species: str | None, names: GeneNames) -> set[str]:
    """Return genes without an id; different spellings of a gene in several files become its aliases in `names`.

    `unnamed` has, for each file, all names, and those of genes without an id; `species` is that of genes with ids.
    """
    if species is None:
        genomes = set().union(*(genomes_of(found) for _, found in unnamed))
        species = genomes.pop() if len(genomes) == 1 else ""
    by_file = []
    for every, found in unnamed:
        cleaner = NameCleaner(every, species)
        by_file.append({cleaner.clean(name) for name in found})
    genes: set[str] = set().union(*by_file)
    for spelling, usual in unique_spellings(genes).items():
        if not any(spelling in found and usual in found for found in by_file):
            genes.discard(spelling)
            names.aliases.setdefault(usual, []).append(spelling)
    return genes


def _named_ids(index: Sequence[str], columns: Mapping[str, Any] | None) -> Iterable[tuple[str, str]]:
    """Yield (Ensembl id, name) of the rows of a gene table that have an id; the name may be empty."""
    sources = name_sources(index, columns)
    named = [v for n, v in sources if n == "index" or column_key(n) in NAME_COLUMNS]
    for row in range(len(sources[0][1])):
        gene = next((g for _, v in sources if (g := _id_of(v[row])) is not None), None)
        if gene is not None:
            yield gene, next((s for v in named if v[row] and (s := _symbol(v[row], gene))), "")


def _id_of(name: str) -> str | None:
    """Return the Ensembl id that a name is or contains."""
    if (bare := bare_id(name)) is not None:
        return bare
    return None if (split := split_id(name)) is None else split[0]


def _symbol(name: str, gene: str) -> str:
    """Return the symbol that a name is or contains in addition to an id; empty for an id."""
    if bare_id(name) is not None:
        return ""
    if (split := split_id(name)) is not None:
        return split[1]
    return without_genome(name, species_of([gene]))


__all__ = ["GeneNames", "gene_catalogue", "read_gene_table"]
