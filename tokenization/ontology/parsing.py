"""Read a cell ontology from OBO or OWL, and cache the result by the file's checksum."""

import gzip
import hashlib
import io
import json
import logging
import os
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import cached_assets_path

from cellglot.outputs import atomic, sha256
from cellglot.tokenization.ontology.terms import CellOntologyError, CellTerm, parents_first


logger = logging.getLogger(__name__)

FORMAT_VERSION = 1  # of the cache; increased when its content changes

MOST_BYTES = 512 << 20
LONGEST_LINE = 1 << 20  # of OBO
_GZIP = b"\x1f\x8b"
_RELEASE_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_TERM_ID = re.compile(rb"^\[Term\]\s+id:\s*(\S+)", re.MULTILINE)  # OBO has the id first

# What fastobo and the XML parser raise.
UNREADABLE = (
    AttributeError, EOFError, LookupError, OSError, RuntimeError, SyntaxError, TypeError, ValueError,
)  # fmt: skip


@dataclass
class OntologyFile:
    """The content of an ontology file.

    Parameters
    ----------
    terms
        Classes by id, including obsolete ones, sorted by id.
    release
        Date of the file's version, or the version if it has no date; empty if the file has none.
    checksum
        SHA-256 of the file.
    left_out
        Number of `is_a` edges that were left out, by reason.
    """

    terms: dict[str, CellTerm]
    release: str = ""
    checksum: str = ""
    left_out: dict[str, int] = field(default_factory=dict)


def default_cache_folder() -> Path:
    """Return the folder of parsed ontologies: the assets cache of huggingface_hub (see ``HF_HOME``)."""
    return cached_assets_path(library_name="cellglot", namespace="cell_ontology")


def read_ontology_file(
    path: str | os.PathLike, prefixes: Sequence[str] = ("CL",), cache_folder: str | os.PathLike | None = None
) -> OntologyFile:
    """Read an ontology as `CellOntology.from_file` does, from the cache if the same file was read before."""
    path = Path(path)
    checksum = _checksum(path)
    key = hashlib.sha256(json.dumps([FORMAT_VERSION, checksum, sorted(prefixes)]).encode()).hexdigest()
    cached = Path(cache_folder or default_cache_folder()) / f"{key}.json.gz"
    content = _read_cache(cached)
    if content is None:
        content = _parse(path, prefixes)
        content.checksum = checksum
        _write_cache(cached, content)
    return content


def _checksum(path: Path) -> str:
    if path.is_dir():
        raise CellOntologyError(f"{path} is a folder: pass the OBO or OWL file in it")
    if path.stat().st_size > MOST_BYTES:
        raise CellOntologyError(f"{path} has more than {MOST_BYTES:,} bytes: it is too large for a cell ontology")
    return sha256(path)


# -------------------------------------------------------------------- parsing


def _content(path: Path) -> bytes:
    """Read and unpack an ontology of a bounded size."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == _GZIP
        with gzip.open(path) if packed else path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise CellOntologyError(f"{path} is cut short or damaged ({error}): download it again") from error
    if len(content) > MOST_BYTES:
        raise CellOntologyError(f"{path} has more than {MOST_BYTES:,} bytes: it is too large for a cell ontology")
    if not content.startswith(b"<") and max(map(len, content.split(b"\n")), default=0) > LONGEST_LINE:
        raise CellOntologyError(f"{path} has a line of more than {LONGEST_LINE:,} bytes: it is not an ontology")
    return content


def _parse(path: Path, prefixes: Sequence[str]) -> OntologyFile:
    content = _content(path)
    ontology, parents = _run_pronto(path, content)
    terms, left_out = _cell_terms(ontology, parents, prefixes)
    if not terms:
        wanted = " or ".join(f"{p}:" for p in prefixes)
        raise CellOntologyError(
            f"{path} is an ontology of {len(parents):,} classes, but no id starts with {wanted}: pass the prefixes "
            "of its cell types as prefixes=(...)"
        )
    try:
        parents_first(terms)
    except CellOntologyError as error:
        raise CellOntologyError(f"{path}: {error}") from None
    version = ontology.metadata.data_version or ""
    date = _RELEASE_DATE.search(version)
    return OntologyFile(terms, date.group() if date else version, left_out=left_out)


def _run_pronto(path: Path, content: bytes) -> tuple[Any, dict[str, set[str]]]:
    """Return pronto's ontology, and the parents of each class, also those that the file does not define."""
    import pronto
    from pronto.parsers.obo import OboParser
    from pronto.parsers.rdfxml import RdfXMLParser
    from pronto.utils.warnings import ProntoWarning

    head = content[:512]
    parser = next((p for p in (OboParser, RdfXMLParser) if p.can_parse(str(path), head)), None)
    if parser is None:
        raise CellOntologyError(f"{path} is neither OBO nor OWL in RDF/XML: it starts with {head[:40]!r}")
    if parser is OboParser:
        _check_unique(path, content)
    parents: dict[str, set[str]] = {}

    class OpenParser(parser):  # type: ignore[misc, valid-type]
        """Keeps edges to classes of other files; pronto raises an error for these."""

        def symmetrize_lineage(self) -> None:
            parents.update({i: set(lineage.sup) for i, lineage in self.ont._terms.lineage.items()})

    ontology = pronto.Ontology(import_depth=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ProntoWarning)  # thousands, about annotations that are not used here
        try:
            OpenParser(ontology).parse_from(io.BytesIO(content))
        except UNREADABLE as error:
            raise CellOntologyError(f"{path} cannot be read as an ontology: {error}") from error
    return ontology, parents


def _check_unique(path: Path, content: bytes) -> None:
    """Refuse an OBO file that defines a class twice: pronto would mix the definitions."""
    ids = Counter(i.decode("utf-8", "replace") for i in _TERM_ID.findall(content))
    twice = [i for i, n in ids.items() if n > 1]
    if twice:
        listed = ", ".join(twice[:5]) + (f" and {len(twice) - 5:,} more" if len(twice) > 5 else "")
        raise CellOntologyError(f"{path} defines classes more than once: {listed}; keep one [Term] of each")


def _cell_terms(
    ontology: Any, parents: dict[str, set[str]], prefixes: Sequence[str]
) -> tuple[dict[str, CellTerm], dict[str, int]]:
    starts = tuple(f"{p}:" for p in prefixes)
    found = sorted((t for t in ontology.terms() if t.id.startswith(starts)), key=lambda t: t.id)
    withdrawn = {t.id for t in found if t.obsolete}
    left_out = {"is_a another ontology": 0, "is_a an obsolete class": 0}
    terms = {}
    for term in found:
        kept = []
        for parent in sorted(parents.get(term.id, ()) if term.id not in withdrawn else ()):
            if not parent.startswith(starts):
                left_out["is_a another ontology"] += 1
            elif parent in withdrawn:
                left_out["is_a an obsolete class"] += 1
            else:
                kept.append(parent)
        data = term._data()  # `term.replaced_by` raises an error for ids that the file does not define
        terms[term.id] = CellTerm(
            id=term.id,
            name=term.name or term.id,
            parents=tuple(kept),
            definition=str(term.definition or ""),
            synonyms=tuple(sorted({(s.description, s.scope) for s in data.synonyms})),
            obsolete=term.id in withdrawn,
            alternate_ids=tuple(sorted(data.alternate_ids)),
            replaced_by=tuple(sorted(data.replaced_by)),
            consider=tuple(sorted(data.consider)),
        )
    return terms, left_out


# -------------------------------------------------------------------- cache


def _read_cache(path: Path) -> OntologyFile | None:
    """Read the cache; None if it does not exist or is damaged."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            content = json.load(file)
        terms = [_term_from_json(t) for t in content.pop("terms")]
        return OntologyFile({t.id: t for t in terms}, **content)
    except FileNotFoundError:
        return None
    except (OSError, EOFError, zlib.error, ValueError, TypeError, KeyError, AttributeError) as error:
        logger.warning("the parsed ontology %s is damaged (%s): the file is parsed again", path, error)
        return None


def _term_from_json(values: dict[str, Any]) -> CellTerm:
    lists = {k: tuple(tuple(x) if isinstance(x, list) else x for x in v) for k, v in values.items() if type(v) is list}
    return CellTerm(**(values | lists))


def _write_cache(path: Path, content: OntologyFile) -> None:
    """Write the cache; if that fails, only warn."""
    plain = asdict(content) | {"terms": [asdict(t) for t in content.terms.values()]}
    try:
        with atomic(path) as temporary:
            temporary.write_bytes(gzip.compress(json.dumps(plain, ensure_ascii=False).encode("utf-8"), mtime=0))
    except OSError as error:
        logger.warning("the parsed ontology cannot be written to %s (%s): the file is parsed each time", path, error)


__all__ = ["OntologyFile", "default_cache_folder", "read_ontology_file"]
