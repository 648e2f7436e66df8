"""Packages of the npm registry at pinned versions: downloaded once, checked, and unpacked without npm."""

import base64
import gzip
import hashlib
import io
import os
import tarfile
import tempfile
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cellglot.inputs import read_json
from cellglot.outputs import atomic


PACKAGES_FILE = Path(__file__).with_name("packages.json")
REGISTRY = "https://registry.npmjs.org"
MOST_BYTES = 200 << 20
SECONDS = 60


class PackageError(ValueError):
    """A package of the page cannot be downloaded, or is not the pinned one."""


def packages() -> dict[str, dict[str, Any]]:
    """Return the pinned packages: name -> version, integrity, license, and files (in the package -> in the page)."""
    found: dict[str, dict[str, Any]] = read_json(PACKAGES_FILE)
    return found


def page_files() -> dict[str, bytes]:
    """Return the files that the page takes from packages, and their licences: path in the page -> content.

    Files whose name in the page ends with ``.gz`` are packed.

    Raises
    ------
    PackageError
        If a package cannot be downloaded, or has another checksum than the pinned one.
    """
    files, notices = {}, []
    for name, package in packages().items():
        with tarfile.open(fileobj=io.BytesIO(tarball(name, package)), mode="r:gz") as archive:
            for inside, target in package["files"].items():
                content = _member(archive, name, inside)
                files[target] = gzip.compress(content, 9, mtime=0) if target.endswith(".gz") else content
            notices.append(_notice(archive, name, package))
    files["vendor/LICENSES.txt"] = "\n\n".join(notices).encode()
    return files


def tarball(name: str, package: Mapping[str, Any]) -> bytes:
    """Return the archive of a package, from the cache or from the registry; its checksum is the pinned one."""
    path = cache_folder() / f"{name}-{package['version']}.tgz"
    if path.is_file():
        content = path.read_bytes()
        if _digest(content) == package["integrity"]:
            return content
    url = f"{os.environ.get('NPM_CONFIG_REGISTRY', REGISTRY).rstrip('/')}/{name}/-/{name}-{package['version']}.tgz"
    content = _download(url, name)
    if _digest(content) != package["integrity"]:
        raise PackageError(
            f"{url} is not the pinned package {name} {package['version']}: its checksum differs from that in "
            f"{PACKAGES_FILE.name}. Nothing was written; try again, or tell the makers of cellglot"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        Path(temporary).write_bytes(content)
    return content


def cache_folder() -> Path:
    """Return the folder of downloaded packages: below ``XDG_CACHE_HOME``, or a temporary one if that is read-only."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "cellglot", "npm")
    try:
        usual.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="cellglot-npm-"))
    return usual if os.access(usual, os.W_OK) else Path(tempfile.mkdtemp(prefix="cellglot-npm-"))


def _download(url: str, name: str) -> bytes:
    if not url.startswith(("https://", "http://")):
        raise PackageError(f"{url} is not an address of a registry: set NPM_CONFIG_REGISTRY to one")
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as reply:
            content: bytes = reply.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise PackageError(
            f"{name}, which the page needs, cannot be downloaded from {url} ({reason}): connect to the network once, "
            f"or put the file into {cache_folder()}"
        ) from error
    if len(content) > MOST_BYTES:
        raise PackageError(f"{url} has more than {MOST_BYTES:,} bytes: it is not the package {name}")
    return content


def _digest(content: bytes) -> str:
    """Return the checksum as npm writes it."""
    return f"sha512-{base64.b64encode(hashlib.sha512(content).digest()).decode()}"


def _member(archive: tarfile.TarFile, name: str, inside: str) -> bytes:
    try:
        file = archive.extractfile(f"package/{inside}")
    except KeyError:
        file = None
    if file is None:
        raise PackageError(f"the package {name} has no file {inside}")
    return file.read()


def _notice(archive: tarfile.TarFile, name: str, package: Mapping[str, Any]) -> str:
    """Return the licence of a package."""
    text = _member(archive, name, package["license"]).decode("utf-8", "replace") if package["license"] else MIT_OF_ORT
    return f"==== {name} {package['version']} ====\n\n{text.strip()}\n"


# Its package has no file of the licence; its package.json says MIT.
MIT_OF_ORT = """MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


__all__ = ["PACKAGES_FILE", "PackageError", "cache_folder", "packages", "page_files", "tarball"]
