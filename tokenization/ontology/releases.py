"""Download a release of the Cell Ontology once."""

import os
import re
import urllib.request
from http.client import HTTPException
from pathlib import Path

from huggingface_hub.constants import is_offline_mode

from cellglot.outputs import atomic
from cellglot.tokenization.ontology.parsing import default_cache_folder, read_ontology_file
from cellglot.tokenization.ontology.terms import CellOntologyError


RELEASE_URL = "https://purl.obolibrary.org/obo/cl/releases/{release}/cl.obo"
TIMEOUT = 60.0  # seconds without an answer


def fetch_release(release: str, cache_folder: str | os.PathLike | None = None) -> Path:
    """Return the path of ``cl.obo`` of a release, and download it if it is not in the cache folder."""
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", release):
        raise CellOntologyError(f"{release!r} is not a release of the Cell Ontology: pass its date, as '2024-04-05'")
    folder = Path(cache_folder or default_cache_folder())
    path = folder / f"cl-{release}.obo"
    if path.exists():
        return path
    url = RELEASE_URL.format(release=release)
    instead = f"download {url} elsewhere and pass it to CellOntology.from_file, or use CellOntology.shipped()"
    if is_offline_mode():
        raise CellOntologyError(f"release {release} is not in {folder}, and HF_HUB_OFFLINE is set: {instead}")
    try:
        with atomic(path) as temporary:
            _download(url, temporary)
            found = read_ontology_file(temporary, cache_folder=folder).release
            if found != release:
                raise CellOntologyError(
                    f"{url} contains release {found or 'without a date'}, not {release}: {instead}"
                )
    except (OSError, HTTPException) as error:
        raise CellOntologyError(f"release {release} cannot be downloaded from {url} ({error}): {instead}") from error
    return path


def guide_definitions() -> dict[str, str]:
    """Return the Cell Ontology's definitions, by id, from the optional package ``cellxgene-ontology-guide``.

    Raises
    ------
    CellOntologyError
        If the package is not installed.
    """
    try:
        from cellxgene_ontology_guide.ontology_parser import OntologyParser
    except ImportError as error:
        raise CellOntologyError(
            "the definitions of cell types come from a package that is not installed: pip install "
            "cellxgene-ontology-guide, or give an OBO or OWL file of the Cell Ontology"
        ) from error
    parser = OntologyParser()
    terms = parser.get_term_label_to_id_map("CL").values()
    texts = {term: parser.get_term_description(term) for term in terms}
    return {term: text for term, text in texts.items() if text}


def _download(url: str, path: Path) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": "cellglot"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response, path.open("wb") as file:
        while chunk := response.read(1 << 20):
            file.write(chunk)
        expected = response.headers.get("Content-Length")
        if expected is not None and file.tell() != int(expected):
            raise OSError(f"received {file.tell():,} of {int(expected):,} bytes")


__all__ = ["RELEASE_URL", "fetch_release", "guide_definitions"]
