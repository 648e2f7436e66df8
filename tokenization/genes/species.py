"""Cells of mouse read as human: genes by their one-to-one orthologs, and files of mouse told from others."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cellglot.tokenization.count_matrix import CountMatrix
from cellglot.tokenization.gene_names import bare_id, split_id
from cellglot.tokenization.gene_vocabulary import is_usual, name_sources
from cellglot.tokenization.genes.tables import human_genes, mouse_genes


SPECIES = ("human", "mouse", "other")
FEWEST_MOUSE = 0.3  # share of a file's genes that mouse names from which on it is of mouse


def check_species(species: str | None) -> None:
    """Refuse an unknown species.

    Raises
    ------
    ValueError
        If `species` is not one of `SPECIES`.
    """
    if species is not None and species not in SPECIES:
        raise ValueError(f"species {species!r}: it is one of {', '.join(SPECIES)}")


def is_mouse(index: Sequence[str], columns: Mapping[str, Any] | None) -> bool:
    """Whether the genes of a file are named as those of mouse: by ids, or by symbols that are not human."""
    mouse, human = mouse_genes(), human_genes()
    for _, names in name_sources(index, columns):
        ids = [i for name in names if (i := _id_of(name)) is not None]
        if len(ids) > len(names) / 2:
            return sum(i.startswith("ENSMUSG") for i in ids) > len(ids) / 2
        if sum(n in mouse.by_symbol and not human.find(n) for n in names) > FEWEST_MOUSE * len(names):
            return True
    return False


def read_as_human(counts: CountMatrix) -> str:
    """Name the genes of mouse cells by the Ensembl ids of their human orthologs, in place.

    Genes without exactly one ortholog in both directions keep their names, which no human vocabulary knows.

    Returns
    -------
    str
        How many genes have an ortholog.

    Raises
    ------
    ValueError
        If no gene is one of mouse with an ortholog.
    """
    mouse = mouse_genes()
    sources = name_sources(counts.index, counts.columns)
    index = sources[0][1].copy()
    found = np.zeros(len(index), dtype=bool)
    for _, names in sources:
        for row in np.flatnonzero(~found).tolist():
            name = names[row]
            gene = mouse.by_id.get(_id_of(name) or "") or mouse.by_symbol.get(name)
            if gene is not None:
                index[row], found[row] = gene, True
    if not found.any():
        raise ValueError(
            f"{counts.source or 'the cells'}: species='mouse', but no gene is of mouse with a human ortholog, e.g. "
            f"{', '.join(repr(str(n)) for n in sources[0][1][:3])}. Leave --species away for human cells"
        )
    for row in np.flatnonzero(~found).tolist():  # a human name would be taken for the human gene
        index[row] = f"mouse:{index[row]}"
    counts.own_genes = counts.index, counts.columns
    counts.index = index.tolist()
    counts.columns = {name: values for name, values in (counts.columns or {}).items() if not is_usual(name)}
    share = found.sum() / len(found)
    note = f"mouse genes read as human: {found.sum():,} of {len(found):,} ({share:.0%}) have a one-to-one ortholog"
    counts.note = f"{counts.note}; {note}" if counts.note else note
    return note


def _id_of(name: str) -> str | None:
    """Return the Ensembl id that a name is or holds."""
    if (bare := bare_id(name)) is not None:
        return bare
    return None if (split := split_id(name)) is None else split[0]


__all__ = ["SPECIES", "check_species", "is_mouse", "read_as_human"]
