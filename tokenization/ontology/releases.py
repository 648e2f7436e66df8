"""Fetch a release of the Cell Ontology once."""

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


def fetch_release(release: str, cache_folder: str | os.PathLike | None = None, timeout: float = 60.0) -> Path:
    """Return the path of ``cl.obo`` of a release, fetched where it is not there yet.

    Parameters
    ----------
    release
        Its date, as in ``"2024-04-05"``.
    cache_folder
        Where the file is kept; None for `default_cache_folder`.
    timeout
        Seconds without an answer after which the network counts as missing.
    """
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", release):
        raise CellOntologyError(f"{release!r} is no release of the Cell Ontology: give its date, as in '2024-04-05'")
    folder = Path(cache_folder or default_cache_folder())
    path = folder / f"cl-{release}.obo"
    if path.exists():
        return path
    url = RELEASE_URL.format(release=release)
    instead = f"fetch {url} elsewhere and pass it to CellOntology.from_file, or use CellOntology.blood()"
    if is_offline_mode():
        raise CellOntologyError(f"release {release} is not in {folder}, and HF_HUB_OFFLINE is set: {instead}")
    try:
        with atomic(path) as temporary:
            _download(url, temporary, timeout)
            found = read_ontology_file(temporary, cache_folder=folder).release
            if found != release:
                raise CellOntologyError(
                    f"{url} gave release {found or 'without a date'} instead of {release}: {instead}"
                )
    except (OSError, HTTPException) as error:
        raise CellOntologyError(f"release {release} cannot be fetched from {url} ({error}): {instead}") from error
    return path


def _download(url: str, path: Path, timeout: float) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": "cellglot"})
    with urllib.request.urlopen(request, timeout=timeout) as response, path.open("wb") as file:
        while chunk := response.read(1 << 20):
            file.write(chunk)
        expected = response.headers.get("Content-Length")
        if expected is not None and file.tell() != int(expected):
            raise OSError(f"{file.tell():,} of {int(expected):,} bytes came")


__all__ = ["RELEASE_URL", "fetch_release"]
