"""Find the features of a file that are genes; antibodies, peaks, guides and hashtags have other types or names.

All formats have the same rule: a feature is left out if its type is known and not a gene. A feature of an unknown
type (``NA``, a biotype such as ``protein_coding``, none) counts as a gene.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any

import numpy as np


# Names of columns and types, in lower case, with letters and digits only.
TYPE_COLUMNS = (
    "featuretypes", "featuretype", "featurestype", "featurestypes", "modality", "modalities", "featuremodality", "mod",
    "omic", "omics",
)  # fmt: skip
# Columns that may have types of features: `SHORT_TYPES`, which also mean something else, are not used there.
OTHER_COLUMNS = (
    "type", "types", "assay", "assays", "assaytype", "librarytype", "librarytypes", "datatype", "class",
    "featureclass", "category", "featurecategory", "kind", "genetype", "biotype", "genebiotype", "featurebiotype",
    "measurement",
)  # fmt: skip
GENE_TYPES = {
    "geneexpression", "gene", "genes", "rna", "mrna", "gex", "expression", "rnaexpression", "transcriptome", "scrna",
    "scrnaseq", "snrna", "snrnaseq",
}  # fmt: skip
OTHER_TYPES = {
    # proteins
    "antibodycapture", "antibody", "antibodies", "antibodyderivedtag", "antibodyderivedtags", "antibodytag", "adt",
    "adts", "adtcapture", "abcapture", "abseq", "citeseq", "surfaceprotein", "surfaceproteins", "cellsurfaceprotein",
    "proteinexpression", "proteincapture", "proteinadt", "prot", "antigencapture", "antigen",
    # guides
    "crisprguidecapture", "crisprcapture", "crispr", "crisprguide", "guidecapture", "grna", "grnas", "sgrna", "sgrnas",
    # samples
    "multiplexingcapture", "multiplexing", "multiplexingtag", "cellmultiplexing", "hto", "htos", "hashtag", "hashtags",
    "hashtagoligo", "hashtagoligos", "hashing", "cellhashing", "hashtagcapture", "cmo", "cmos", "lmo", "lmos",
    "sampletag", "sampletags", "featurebarcode", "featurebarcodes", "featurebarcoding",
    # chromatin
    "peak", "peaks", "atac", "atacpeak", "atacpeaks", "atacseq", "scatac", "scatacseq", "chromatinaccessibility",
    "openchromatin", "chromatin", "accessibility", "geneactivity", "genescore", "genescores", "chromvar", "motifs",
    "methylation", "dnamethylation",
    # receptors
    "tcr", "bcr",
    # controls of imaging
    "negativecontrolprobe", "negativecontrolcodeword", "negativecontrol", "negativeprobe", "negprobe",
    "genomiccontrol", "unassignedcodeword", "deprecatedcodeword", "blankcodeword", "controlprobe", "controlcodeword",
    "systemcontrol",
}  # fmt: skip
# Types in `TYPE_COLUMNS` only.
SHORT_TYPES = {
    "custom", "customfeature", "protein", "proteins", "ab", "guide", "guides", "guiderna", "guidernas", "tag",
}  # fmt: skip
BIOTYPES = {"proteincoding", "lncrna", "lincrna"}

_INTERVAL = re.compile(r"^(?:[\w.]+:\d+-\d+|(?:[A-Za-z0-9]+_+)?chr[0-9A-Za-z]+[._-]\d+[._-]\d+)$")
_ANTIBODY = re.compile(
    r"^(?:adt|prot|protein|antibody)[:_-]|[-_. |](?:total(?:seq)?[-_ ]?[abcd]|adt|prot|protein|antibody|pabo)$",
    re.IGNORECASE,
)
_SAMPLE = re.compile(r"^(?:hto[:_-]|cmo\d{3}$|hashtag[-_ ]?\d)|[-_. ](?:hto|hashtag)$", re.IGNORECASE)
# Each such name contains one of these, in lower case; most names contain none.
_HINTS = (":", "chr", "total", "adt", "prot", "antib", "pabo", "hto", "cmo", "hashtag")
_MISSING = ("", "na", "nan", "none", "nat", "null")


@dataclass
class Features:
    """The features of a matrix.

    Parameters
    ----------
    genes
        Flags of the features that are genes, shape (features,); None if all are.
    left_out
        Type of features that are not genes, as in the file -> number of features.
    note
        A sentence about types that have no meaning; empty if there are none.
    """

    genes: np.ndarray | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    note: str = ""

    def described(self) -> str:
        """Describe what was left out: ``12 Antibody Capture, 3 Peaks``."""
        return ", ".join(f"{n:,} {kind}" for kind, n in self.left_out.items())


def features_of(index: Iterable[Any], columns: Mapping[str, Any] | None) -> Features:
    """Find genes among features by the types in `columns` (of ``adata.var``), or else by their names in `index`."""
    names = list(index)
    left_out: dict[int, str] = {}
    said = np.zeros(len(names), dtype=bool)
    note = ""
    for name, values, own in _type_columns(columns):
        found, genes, unknown = _read_types(values, own)
        said |= genes
        for i, kind in found.items():
            left_out.setdefault(i, kind)
        if own and unknown and not note:
            note = _note(name, unknown)
    for i, kind in _by_name(names):
        if not said[i]:
            left_out.setdefault(i, kind)
    if not left_out:
        return Features(note=note)
    kept = np.ones(len(names), dtype=bool)
    kept[list(left_out)] = False
    return Features(kept, dict(Counter(left_out.values()).most_common()), note)


def with_types(
    places: Mapping[str, tuple[Any, Sequence[str], Mapping[str, Any] | None]],
) -> dict[str, tuple[Any, Sequence[str], Mapping[str, Any] | None]]:
    """Add types of features to places without them, from another place of the file with features of the same name.

    Parameters
    ----------
    places
        Name of the place -> (matrix, names of the features, columns of their table).
    """
    typed = next(((i, c) for _, i, c in places.values() if any(own for *_, own in _type_columns(c))), None)
    if typed is None:
        return dict(places)
    index, columns = typed
    name, values, _ = next(column for column in _type_columns(columns) if column[2])
    types: dict[str, str] = {}
    for feature, kind in zip(map(str, index), map(_text, values), strict=True):
        types[feature] = kind if types.get(feature, kind) == kind else ""  # two features with the same name
    return {
        place: (matrix, own_index, own)
        if any(primary for *_, primary in _type_columns(own))
        else (matrix, own_index, {**(own or {}), name: [types.get(str(feature), "") for feature in own_index]})
        for place, (matrix, own_index, own) in places.items()
    }


def only_genes(values: Any, genes: np.ndarray) -> Any:
    """Keep the values of features that are genes, in the type of `values`."""
    return values[genes] if hasattr(values, "dtype") else list(compress(values, genes))


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").strip()
    text = str(value).strip()
    return "" if _plain(text) in _MISSING else text


def _type_columns(columns: Mapping[str, Any] | None) -> list[tuple[str, Any, bool]]:
    """Return (name, values, whether it is one of `TYPE_COLUMNS`) of columns with types of features."""
    named = {} if columns is None else {str(c): c for c in columns}
    found = []
    for name, key in named.items():
        plain = _plain(name)
        if plain in TYPE_COLUMNS or plain in OTHER_COLUMNS:
            found.append((name, columns[key], plain in TYPE_COLUMNS))  # type: ignore[index]
    return sorted(found, key=lambda column: not column[2])


def _read_types(values: Any, own: bool) -> tuple[dict[int, str], np.ndarray, Counter[str]]:
    """Return features of other types with their type, flags of features with the type of genes, and unknown types."""
    texts = list(map(_text, values))
    kinds = {text: _plain(text) for text in set(texts)}
    believed = OTHER_TYPES | SHORT_TYPES if own else OTHER_TYPES
    if BIOTYPES & set(kinds.values()):
        believed = believed - {"guiderna", "guidernas"}  # a biotype of small RNAs
    others = {text for text, kind in kinds.items() if kind in believed or kind.startswith("vdj")}
    genes = {text for text, kind in kinds.items() if kind in GENE_TYPES}
    unknown: Counter[str] = Counter()
    if len(kinds) > len(others) + len(genes):
        unknown.update(text for text in texts if text not in others and text not in genes)
    found = {i: text for i, text in enumerate(texts) if text in others} if others else {}
    return found, np.fromiter((t in genes for t in texts), bool, len(texts)), unknown


def _note(column: str, unknown: Counter[str]) -> str:
    listed = [f"{kind!r} ({n:,})" if kind else f"nothing ({n:,})" for kind, n in unknown.most_common(3)]
    more = f" and {len(unknown) - 3:,} more" if len(unknown) > 3 else ""
    return f"{column} has {', '.join(listed)}{more}, no known type of features: these count as genes"


def _by_name(names: Sequence[Any]) -> Iterable[tuple[int, str]]:
    """Return features that are not genes by their name: intervals, antibodies, hashtags."""
    for i in _rows_with_hints([name if isinstance(name, str) else "" for name in names]):
        name = str(names[i]).strip()
        if _INTERVAL.match(name):
            yield i, "intervals of the genome (by name)"
        elif _ANTIBODY.search(name):
            yield i, "antibodies (by name)"
        elif _SAMPLE.search(name):
            yield i, "sample tags (by name)"


def _rows_with_hints(names: list[str]) -> Iterable[int]:
    """Return the rows whose names contain a hint, by a fast search in all names at once."""
    text = "\n".join(names).lower()
    if text.count("\n") >= len(names):  # a name has several lines
        return range(len(names))
    rows = set()
    for hint in _HINTS:
        row, seen, at = 0, 0, text.find(hint)
        while at >= 0:
            row, seen = row + text.count("\n", seen, at), at
            rows.add(row)
            end = text.find("\n", at)
            at = text.find(hint, end) if end >= 0 else -1
    return sorted(rows)


__all__ = ["Features", "features_of", "only_genes", "with_types"]
