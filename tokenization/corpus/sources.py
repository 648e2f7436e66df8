"""Token Parquet where it lies: on disk, or read over a network by ``hf://``, ``s3://`` and other addresses."""

import functools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from cellglot.inputs import is_remote, network, path_inside
from cellglot.inputs.file_digests import FileMark, file_mark
from cellglot.tokenization.corpus.check import AGAIN, CorpusError


PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
TOKENIZER_FILES = ("gene_vocab.json", "gene_stats.safetensors", "tokenizer_config.json")
OTHER_TOKENIZER_FILES = ("special_tokens_map.json", "added_tokens.json")

Result = TypeVar("Result")


class ShardError(CorpusError):
    """A shard cannot be read, or changed during a run; the message names it."""

    def __init__(self, message: str):
        # from a loader process comes the text of its traceback, which ends with the message
        super().__init__(message.rsplit("ShardError: ", 1)[-1].strip())


def read_parquet(path: str, columns: list[str]) -> pa.Table:
    """Read columns of a shard, on disk or from a network source."""
    if not is_remote(path):
        return pq.read_table(path, columns=columns)
    return retried(path, lambda: open_parquet(path).read(columns=columns))


def read_columns(path: str) -> list[str]:
    """Return the names of the columns of a shard."""
    if not is_remote(path):
        return list(pq.read_schema(path).names)
    return retried(path, lambda: list(open_parquet(path).schema_arrow.names))


def open_parquet(path: str, footer: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """Open a shard; of a network source, column chunks that lie together are read by one request.

    Parameters
    ----------
    footer
        Its footer, if it was read before.
    """
    if not is_remote(path):
        return pq.ParquetFile(path, metadata=footer)
    system, name = file_system(path)
    return pq.ParquetFile(system.open(name, "rb", cache_type="none"), metadata=footer, pre_buffer=True)


def file_system(address: str) -> tuple[Any, str]:
    """Return the file system of a network source and the path in it.

    Raises
    ------
    CorpusError
        If the scheme of the address is unknown, or its package is not installed; names the package.
    """
    import fsspec  # type: ignore[import-untyped]

    scheme = address.partition("://")[0]
    try:
        return fsspec.core.url_to_fs(address)
    except ImportError as error:
        package = PACKAGES.get(scheme, f"the fsspec package for {scheme}://")
        raise CorpusError(f"{address}: {scheme}:// needs a package that is missing: pip install {package}") from error
    except ValueError as error:
        raise CorpusError(f"{address}: {error}") from error


def retried(address: str, read: Callable[[], Result]) -> Result:
    """Read from a network source; try again if it breaks off or does not answer.

    Raises
    ------
    CorpusError
        If the file does not exist or may not be read, or all tries failed; names the address.
    """
    then = (
        "check the network and the source, then run the same command again; training resumes from its last checkpoint"
    )
    return network.retried(address, read, ShardError, then, final=CorpusError)


# -------------------------------------------------------------------- a corpus of a network source


def fetch_description(address: str, manifest: str) -> Path:
    """Copy manifest and tokenizer of a corpus to a temporary folder, which is deleted when the process ends."""
    import atexit

    temporary = tempfile.mkdtemp(prefix="cellglot-")
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    folder = Path(temporary, address.rpartition("/")[2].partition("@")[0] or "corpus")
    (folder / "tokenizer").mkdir(parents=True)
    names = [manifest, *(f"tokenizer/{name}" for name in TOKENIZER_FILES)]
    for name in [*names, *(f"tokenizer/{name}" for name in OTHER_TOKENIZER_FILES)]:
        source = f"{address}/{name}"
        system, path = file_system(source)

        def read(system: Any = system, path: str = path) -> bytes | None:
            return system.cat_file(path) if system.exists(path) else None

        content = retried(source, read)
        if content is not None:
            (folder / name).write_bytes(content)
        elif name == manifest:
            raise CorpusError(f"{address} contains no corpus (no {manifest}): give the folder with that file")
        elif name in names:
            raise CorpusError(f"{source} is missing: publish the whole corpus, with its tokenizer")
    return folder


def pinned(address: str) -> str:
    """Return the address of the present commit of a repository of the Hub, so that a run reads one commit only."""
    if not address.startswith("hf://"):
        return address
    system, name = file_system(address)

    def find() -> str:
        found = system.resolve_path(name)
        info = system._api.repo_info(found.repo_id, repo_type=found.repo_type, revision=found.revision)
        root = type(found)(found.repo_type, found.repo_id, info.sha, found.path_in_repo).unresolve()
        return f"hf://{root}".rstrip("/")

    return retried(address, find)


def check_sizes(address: str, shards: list[dict[str, Any]]) -> None:
    """Compare the sizes of the shards of a network source with the manifest."""
    system, path = file_system(address)
    folders = {shard["file"].rpartition("/")[0] for shard in shards}
    found: dict[str, int] = {}
    for folder in sorted(folders):
        inside = f"{path}/{folder}" if folder else path
        try:
            listed = retried(f"{address}/{folder}", functools.partial(system.ls, inside, detail=True))
        except CorpusError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                continue
            raise
        found |= {f"{folder}/{entry['name'].rpartition('/')[2]}": entry["size"] for entry in listed}
    for shard in shards:
        path_inside(Path("/"), shard["file"], Path(f"{address}/manifest.json"))
        where = f"{address}/{shard['file']}"
        if shard["file"] not in found:
            raise CorpusError(f"{where} is missing: publish the whole corpus again")
        if found[shard["file"]] != shard["bytes"]:
            raise CorpusError(
                f"{where} has {found[shard['file']]:,} bytes, but the manifest says {shard['bytes']:,}: it was cut "
                "short or changed; publish the whole corpus again"
            )


# -------------------------------------------------------------------- changes while it is read


class ShardMark:
    """Detects that a shard on disk changes after it was opened for a run."""

    def __init__(self, path: str):
        self.path = path
        self._mark: FileMark | None = None if is_remote(path) else file_mark(path)

    def check(self) -> None:
        """Raise an error if the shard is missing or has changed.

        Raises
        ------
        CorpusError
            Names the shard, and what to do.
        """
        if self._mark is None:
            return
        try:
            now = file_mark(self.path)
        except FileNotFoundError as error:
            raise ShardError(f"{self.path} disappeared during the run: {RESTORE}") from error
        if (now.size, now.mtime_ns) != (self._mark.size, self._mark.mtime_ns):
            sizes = f"{self._mark.size:,} bytes before, {now.size:,} now"
            raise ShardError(f"{self.path} was changed during the run ({sizes}): {RESTORE}")


RESTORE = (
    f"restore the corpus and run the same command again, which resumes from the last checkpoint; else {AGAIN}, and "
    "train again"
)

__all__ = [
    "ShardError",
    "ShardMark",
    "check_sizes",
    "fetch_description",
    "file_system",
    "open_parquet",
    "pinned",
    "read_columns",
    "read_parquet",
    "retried",
]
