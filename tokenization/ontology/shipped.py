"""The Cell Ontology that ships with the package: ids, names, synonyms and `is_a` of all cell types.

Made from a release of the Cell Ontology (https://obofoundry.org/ontology/cl, CC BY 4.0) by

    python -m cellglot.tokenization.ontology.shipped cl.owl.gz
"""

import hashlib
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from cellglot.packed_tables import pack, packed_ids, unpack, unpacked_ids
from cellglot.tokenization.ontology.parsing import OntologyFile, read_ontology_file
from cellglot.tokenization.ontology.terms import CellTerm


SHIPPED_FILE = Path(__file__).with_name("cell_ontology.zz")
SOURCE = "Cell Ontology (https://obofoundry.org/ontology/cl), CC BY 4.0; ids, names, synonyms and is_a"

_PREFIX = "CL:"
_DOUBTFUL = ("CL:0002394", "CL:0000784")  # CD141-positive myeloid dendritic cell is_a plasmacytoid dendritic cell
_LISTS = ("parents", "alternate_ids", "replaced_by", "consider")  # of ids


def _short(ids: Iterable[str]) -> str:
    return "|".join(i.removeprefix(_PREFIX) for i in ids)


def _long(cell: str) -> tuple[str, ...]:
    return tuple(f"{_PREFIX}{i}" if i.isdigit() else i for i in cell.split("|")) if cell else ()


def write_shipped(content: OntologyFile, path: Path = SHIPPED_FILE) -> str:
    """Write the classes of an ontology without their definitions.

    Parameters
    ----------
    content
        From `read_ontology_file`.
    path
        File to write; by default the one in the package.

    Returns
    -------
    str
        What was written.
    """
    terms = list(content.terms.values())
    columns = {
        "id": packed_ids([t.id for t in terms], _PREFIX),
        "name": [t.name for t in terms],
        "obsolete": ["".join("1" if t.obsolete else "0" for t in terms)],
        "synonyms": ["|".join(f"{scope[0]}{text}" for text, scope in t.synonyms) for t in terms],
    }
    columns |= {name: [_short(getattr(t, name)) for t in terms] for name in _LISTS}
    return pack(path, columns, {"source": SOURCE, "release": content.release})


def read_shipped() -> OntologyFile:
    """Return the classes that ship with the package."""
    facts, columns = unpack(SHIPPED_FILE)
    ids = unpacked_ids(columns["id"], _PREFIX, 7)
    scopes = {scope[0]: scope for scope in ("EXACT", "BROAD", "NARROW", "RELATED")}
    obsolete = columns["obsolete"][0]
    terms = {}
    for row, i in enumerate(ids):
        synonyms = columns["synonyms"][row]
        lists: dict[str, Any] = {name: _long(columns[name][row]) for name in _LISTS}
        terms[i] = CellTerm(
            id=i,
            name=columns["name"][row],
            synonyms=tuple((s[1:], scopes[s[0]]) for s in synonyms.split("|")) if synonyms else (),
            obsolete=obsolete[row] == "1",
            **lists,
        )
    checksum = hashlib.sha256(SHIPPED_FILE.read_bytes()).hexdigest()
    return OntologyFile(terms, release=facts["release"], checksum=checksum)


@cache
def shipped_parents() -> dict[str, tuple[str, ...]]:
    """Return the classes above each class, the one doubtful tie of the ontology left out."""
    terms = read_shipped().terms
    return {i: tuple(p for p in term.parents if (i, p) != _DOUBTFUL) for i, term in terms.items()}


@cache
def shipped_ancestors(cell_type: str) -> frozenset[str]:
    """Return all classes above one."""
    parents = shipped_parents().get(cell_type, ())
    return frozenset(parents).union(*map(shipped_ancestors, parents))


def main(arguments: Sequence[str]) -> None:
    """Write the file that ships from an OBO or OWL file of the Cell Ontology."""
    print(write_shipped(read_ontology_file(arguments[0])))


if __name__ == "__main__":
    main(sys.argv[1:])

__all__ = ["SHIPPED_FILE", "read_shipped", "shipped_ancestors", "shipped_parents", "write_shipped"]
