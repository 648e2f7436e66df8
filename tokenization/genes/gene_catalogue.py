"""Tables of gene names, and the catalogue of genes that the files of a corpus share."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cellglot.inputs import read_table
from cellglot.tokenization.gene_names import (
    NameCleaner,
    bare_id,
    genomes_of,
    is_number,
    species_of,
    split_id,
    unique_spellings,
    without_genome,
)
from cellglot.tokenization.gene_vocabulary import (
    NAME_COLUMNS,
    GeneVocabulary,
    name_sources,
    read_released_dictionary,
)


_SPIKE_IN = re.compile(r"^ERCC[-_]\d{5}$")
_SYMBOL_COLUMNS = ("symbol", "approved_symbol", "gene_symbol", "gene_name", "name", "feature_name", "hgnc_symbol")
_ALIAS_COLUMNS = ("alias_symbol", "prev_symbol", "previous_symbols", "alias_symbols", "aliases", "synonyms", "alias")


class GeneNames:
    """Symbols and aliases of genes by Ensembl id.

    Attributes
    ----------
    aliases : dict
        Gene to other names.
    """

    def __init__(self) -> None:
        self.symbols: dict[str, str] = {}
        self.aliases: dict[str, list[str]] = {}

    def add(self, gene: str, name: str) -> None:
        """Name a gene: its first name is the symbol, others are aliases."""
        if name and self.symbols.setdefault(gene, name) != name and name not in self.aliases.setdefault(gene, []):
            self.aliases[gene].append(name)


def read_gene_table(path: Path) -> GeneNames:
    """Read gene names from a table with a column of Ensembl ids, or from the released dictionary of names.

    Parameters
    ----------
    path
        Tab- or comma-separated (plain or compressed), with columns such as ``ensembl_gene_id``, ``symbol``,
        ``alias_symbol``, ``prev_symbol`` (as HGNC and BioMart write them; several aliases are separated by ``|``),
        or ``gene_name_id_dict.pkl`` as Geneformer publishes it.
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
        wanted = "Ensembl gene ids" if ids is None else f"symbols (one of {', '.join(_SYMBOL_COLUMNS)})"
        raise ValueError(f"{path} has no column of {wanted}; its columns are {', '.join(map(str, table.columns))}")
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
) -> GeneVocabulary:
    """Find the genes of a corpus: by Ensembl id where a file or a table gives one, else by their name.

    A name without id means the gene that other files or the table give this name, if it is one gene; a name of
    several genes is ambiguous, and left out later; a name of none stands for itself, cleaned where that is certain
    (`cellglot.tokenization.gene_names`). Spike-ins (ERCC) and numbers are not genes.

    Parameters
    ----------
    tables
        Of each file, the index and the columns of its gene table.
    gene_names
        From `read_gene_table`.
    only
        Ids or names of the genes to keep.

    Returns
    -------
    GeneVocabulary
        Genes in alphabetical order, with symbols and aliases, without statistics.
    """
    names = GeneNames()
    own: set[str] = set()
    if gene_names is not None:
        names.symbols.update(gene_names.symbols)
        names.aliases.update({gene: list(aliases) for gene, aliases in gene_names.aliases.items()})
    for index, columns in tables:
        for gene, name in _named_ids(index, columns):
            own.add(gene)
            names.add(gene, name)
    known = _catalogue(own | set(names.symbols), names)
    genes = set(own)
    unnamed = []
    for index, columns in tables:
        match = known.resolve(index, columns)
        genes.update(known.tokens[int(t)] for t in match.token_ids[match.known])
        unnamed.append(_unnamed(index, columns, (~match.known & ~match.ambiguous).nonzero()[0].tolist()))
    genes |= _genes_by_name(unnamed, species_of(known.genes), names)
    everything = known if genes == set(known.genes) else _catalogue(genes, names)
    if only is not None:
        match = everything.resolve(list(only))
        genes &= {everything.tokens[int(t)] for t in match.token_ids[match.known]}
        everything = _catalogue(genes, names)
    if not genes:
        raise ValueError("no gene is left: the files share none with the list of genes to keep")
    return everything


def _catalogue(genes: Iterable[str], names: GeneNames) -> GeneVocabulary:
    return GeneVocabulary.from_statistics(sorted(genes), symbols=names.symbols, aliases=names.aliases)


def _unnamed(index: Sequence[str], columns: Mapping[str, Any] | None, rows: list[int]) -> tuple[list[str], list[str]]:
    """Return all names of a file, and those of some rows: numbers are replaced by what columns of names say."""
    (_, first), *others = name_sources(index, columns)
    named = [values for name, values in others if _holds_names(name)]
    found = []
    for row in rows:
        name = first[row]
        if not name or is_number(name):
            name = next((v[row] for v in named if v[row] and not is_number(v[row])), "")
        if name and not _SPIKE_IN.match(name):
            found.append(str(name))
    return first.tolist(), found


def _genes_by_name(unnamed: list[tuple[list[str], list[str]]], species: str | None, names: GeneNames) -> set[str]:
    """Return genes that have names alone; spellings of one gene in several files become one, with aliases.

    Parameters
    ----------
    unnamed
        Of each file all names, and those that stand for genes without an id.
    species
        That of the genes with ids.
    names
        Takes the other spellings as aliases.
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


def _holds_names(column: str) -> bool:
    return column.lower().replace(" ", "_").replace("-", "_") in NAME_COLUMNS


def _named_ids(index: Sequence[str], columns: Mapping[str, Any] | None) -> Iterable[tuple[str, str]]:
    """Yield (Ensembl id, name) of the rows of a gene table that have an id; the name may be empty."""
    sources = name_sources(index, columns)
    named = [v for n, v in sources if n == "index" or _holds_names(n)]
    for row in range(len(sources[0][1])):
        gene = next((g for _, v in sources if (g := _id_of(v[row])) is not None), None)
        if gene is not None:
            yield gene, next((s for v in named if v[row] and (s := _symbol(v[row], gene))), "")


def _id_of(name: str) -> str | None:
    """Return the Ensembl id that a name is or holds."""
    if (bare := bare_id(name)) is not None:
        return bare
    return None if (split := split_id(name)) is None else split[0]


def _symbol(name: str, gene: str) -> str:
    """Return the symbol that a name is or holds beside an id; empty where it is an id or a number."""
    if bare_id(name) is not None:
        return ""
    if (split := split_id(name)) is not None:
        return split[1]
    return without_genome(name, species_of([gene]))


__all__ = ["GeneNames", "gene_catalogue", "read_gene_table"]
