"""Clean the names of genes in a file, if their meaning is certain.

Files have names that include an Ensembl id (``TP53_ENSG00000141510``) or a genome (``GRCh38---TP53``), that were made
unique by a number (``TBCE-1``), or that R has changed (``HLA.A``).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np


_ENSEMBL = re.compile(r"^(ENS[A-Z]*GR?\d{8,})(?:\.\d+)?$")
_WITHIN = re.compile(r"(?<![A-Za-z0-9])(ENS[A-Z]{0,6}GR?\d{8,})(?:\.\d+)?(?![A-Za-z0-9])", re.IGNORECASE)
# Text beside an id of a feature that is a part or another copy of the gene.
_PART = re.compile(r"^(?:.*PAR[_-]Y|E\d+|exon.*|intron.*|(?:un)?spliced|nascent|pre-?mrna|antisense|as|\d+|.)$", re.I)
_GENOME = re.compile(
    r"^(?:(?P<human>GRCh3[78]|hg(?:18|19|38)|human|homo_sapiens)|(?P<mouse>GRCm3[89]|mm(?:9|10|39)|mouse|mus_musculus))"
    r"(?:-(?:20\d\d-A|\d\.\d\.\d))?(?:_+|-+|:+|\.+|\|+)(?P<rest>\S.*)$",
    re.IGNORECASE,
)
_GENOME_BEGINS = ("gr", "hg", "hu", "ho", "mm", "mo", "mu")
_DIGITS = tuple("0123456789")
_MADE_UNIQUE = re.compile(r"^(?P<name>.+)[-._](?P<number>\d{1,3})$")
# Families of genes with such numbers: SNORD115-1 is not a second SNORD115.
_NUMBERED = re.compile(r"^(?:SNOR|SCARNA|MIR|RNU|RN\d|RNA\d|TRN|PIWI|VTRNA|LINC|U\d)", re.IGNORECASE)
_OPEN_FRAME = re.compile(r"^C(\d{1,2}|X|Y)ORF(\d+)$")
_NUMBER = re.compile(r"^[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?$")
_NUMBERED_BY_R = re.compile(r"^[XV]\d+(?:\.\d+)?$")
_ANTIBODIES = 3  # from this number, names made unique at the end of a file may be proteins named as their genes
_DENSE = 0.2  # share of such names among all after the first of them
COLUMNS_LISTED = 8

Names = Sequence[str] | np.ndarray


def bare_id(name: str) -> str | None:
    """Return the Ensembl gene id without its version; None if `name` is not an Ensembl gene id."""
    matched = _ENSEMBL.match(name)
    return None if matched is None else matched.group(1)


def split_id(name: str) -> tuple[str, str] | None:
    """Return the Ensembl gene id in a longer name, without its version, and the rest of the name.

    Return None if there is no id or several, or the name is of a part of a gene (an exon, unspliced RNA) or of a copy
    on Y.
    """
    if "ENS" not in name and "ens" not in name:
        return None
    found = list(_WITHIN.finditer(name))
    if not found or len({m.group(1).upper() for m in found}) > 1:
        return None
    rest = _WITHIN.sub("", name).strip(" \t_-|:;,.()[]{}\"'/")
    if rest and (_PART.match(rest) or any(c.isspace() for c in rest)):
        return None
    return found[0].group(1).upper(), "" if _genome(f"{rest}_.") is not None else rest


def is_number(name: str) -> bool:
    """Whether a name is a number, which does not identify a gene."""
    return _NUMBER.match(name) is not None


def numbers_among(names: Names) -> np.ndarray:
    """Flag names that are numbers, shape (names,); if most names have the form ``X1`` or ``V1``, also these."""
    by_r = np.fromiter((_NUMBERED_BY_R.match(n) is not None for n in names), bool, len(names))
    numbers = np.fromiter((is_number(n) for n in names), bool, len(names))
    return numbers | by_r if by_r.sum() > len(names) / 2 else numbers


def genomes_of(names: Iterable[str]) -> set[str]:
    """Return the species of the genomes in names: ``human`` for ``GRCh38_TP53``, ``mouse`` for ``mm10_X``."""
    matches = map(_genome, names)
    return {"human" if m["human"] else "mouse" for m in matches if m is not None}


def _genome(name: str) -> re.Match | None:
    return _GENOME.match(name) if name[:2].lower() in _GENOME_BEGINS else None


def without_genome(name: str, species: str | None) -> str:
    """Return a name without the genome of this species before it."""
    genome = _genome(name)
    return genome["rest"] if genome is not None and species and genome[species] else name


def species_of(genes: Iterable[str]) -> str | None:
    """Return the species of Ensembl ids: human, mouse, or None for another one or without ids."""
    first = next((g for g in genes if bare_id(g) is not None), "")
    return "human" if first.startswith("ENSG") else "mouse" if first.startswith("ENSMUSG") else None


def in_mouse_case(names: Names) -> bool:
    """Tell whether most names beside ids and numbers are written as in mouse: ``Cd3e``, not ``CD3E``."""
    words = [n for n in names if len(n) > 2 and n[0].isalpha() and bare_id(n) is None]
    return len(words) > len(names) / 4 and sum(n[0].isupper() and n[1].islower() for n in words) > len(words) / 2


def as_in_r(name: str) -> str:
    """Return a name as R's make.names writes it, with dots for all characters except letters and digits."""
    return re.sub(r"[^A-Za-z0-9]", ".", name)


class NameCleaner:
    """Cleans the names of a file.

    Parameters
    ----------
    names
        All names of one column or index of the file.
    species
        Species whose genome is removed from names, ``""`` for none; by default the only one in names of the file.
    """

    def __init__(self, names: Names, species: str | None = None):
        self.names = names
        self._species = species

    @cached_property
    def species(self) -> str | None:
        """Species whose genome is removed from names; None if names have several."""
        if self._species is not None:
            return self._species
        found = genomes_of(self.names)
        return found.pop() if len(found) == 1 else None

    @cached_property
    def made_unique(self) -> dict[str, str]:
        """Names that were made unique by a number -> the original name."""
        present = set(self.names)
        found: dict[str, str] = {}
        rows = []
        for row, name in enumerate(self.names):
            if name[-1:] not in _DIGITS or (matched := _MADE_UNIQUE.match(name)) is None:
                continue
            if matched["name"] not in present or _NUMBERED.match(name):
                continue
            number = int(matched["number"])
            before = f"{name[: matched.start('number')]}{number - 1}"
            if number == 1 or (number > 1 and before in present):
                found[name] = matched["name"]
                rows.append(row)
        return {} if self._may_be_proteins(rows, set(found.values())) else found

    def _may_be_proteins(self, rows: list[int], originals: set[str]) -> bool:
        """Whether names that were made unique are close together, after all names that they repeat."""
        if len(rows) < _ANTIBODIES:
            return False
        last = max(row for row, name in enumerate(self.names) if name in originals)
        return last < rows[0] and len(rows) > _DENSE * (len(self.names) - rows[0])

    def clean(self, name: str) -> str:
        """Return the id or name that a name means; the name itself if nothing else is certain."""
        if (split := split_id(name)) is not None:
            return split[0]
        text = self.made_unique.get(name, name).strip("\"' ")
        text = without_genome(text, self.species)
        if (split := split_id(text)) is not None:
            return split[0]
        if "|" in text and is_number(text.partition("|")[2]):  # TP53|7157
            text = text.partition("|")[0]
        if "ORF" in text:
            text = _OPEN_FRAME.sub(r"C\1orf\2", text)
        return text if text not in ("", "?") else name


def unique_spellings(names: Iterable[str]) -> dict[str, str]:
    """Return names as R writes them -> their usual spelling, if that is also among the names."""
    by_key: dict[str, list[str]] = {}
    for name in names:
        by_key.setdefault(as_in_r(name), []).append(name)
    return {
        key: others[0]
        for key, found in by_key.items()
        if len(found) > 1 and key in found and len(others := [n for n in found if n != key]) == 1
    }


def described_columns(columns: Mapping[str, Any] | None) -> str:
    """List the columns of texts in a gene table, each with an example."""
    listed = []
    for name, values in (columns or {}).items():
        example = next((v for v in _some(values) if isinstance(v, str) and v.strip() and not is_number(v)), None)
        if example is not None:
            listed.append(f"{name} (e.g. {example[:40]!r})")
    more = ", ..." if len(listed) > COLUMNS_LISTED else ""
    return ", ".join(listed[:COLUMNS_LISTED]) + more


def _some(values: Any) -> Iterable[Any]:
    for value in islice(values, 100):
        yield value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def listed_names(names: Sequence[str]) -> str:
    """Quote up to three names: ``'TP53', 'CD4', ...``."""
    return ", ".join(repr(n[:60]) for n in names[:3]) + (", ..." if len(names) > 3 else "")


__all__ = [
    "NameCleaner",
    "as_in_r",
    "bare_id",
    "described_columns",
    "genomes_of",
    "in_mouse_case",
    "is_number",
    "listed_names",
    "numbers_among",
    "species_of",
    "split_id",
    "unique_spellings",
    "without_genome",
]
