"""Check that a corpus is unchanged: its manifest, the content of every shard, its vocabulary."""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from cellglot.inputs import InputError, path_inside, read_json, reading
from cellglot.inputs.addresses import as_source
from cellglot.inputs.file_digests import FileMark, digests_of, file_mark, file_marks
from cellglot.tokenization.corpus.plan import SPLITS, Plan, fingerprint, fingerprint_of_ends


logger = logging.getLogger(__name__)

MOST_MANIFEST_BYTES = 256 << 20
FOOTERS_AT_ONCE = 4
AGAIN = "run cellglot tokenize again with --overwrite (overwrite=True)"

_OF_A_CORPUS: dict[str, type] = {
    "shards": list, "files": list, "tokenizer": str, "vocab_size": int, "split": dict, "plan": dict, "broken": dict,
}  # fmt: skip
_OF_A_SPLIT: dict[str, type] = {"by": str}
_OF_A_SHARD: dict[str, type] = {"file": str, "split": str, "cells": int, "tokens": int, "bytes": int}
_OF_A_FILE: dict[str, type] = {"name": str, "n_cells": int, "counts_in": str, "duplicate_names": int, "report": dict}
_OF_A_REPORT: dict[str, type] = {
    "matched": int, "genes": int, "coverage": float, "matched_by_rule": dict, "ambiguous": int,
    "cells_without_genes": int, "cells_cut": int, "tokens_cut": int,
}  # fmt: skip


class CorpusError(ValueError):
    """A corpus folder is unfinished, damaged, or contains something else."""


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest, and check the entries that a corpus needs."""
    try:
        manifest = read_json(path, most_bytes=MOST_MANIFEST_BYTES)
        _check_manifest(path, manifest)
    except InputError as error:
        raise CorpusError(f"{error}; {AGAIN}") from error
    return manifest


def _check_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    if "shards" not in manifest:
        raise InputError(f"{path} is not the manifest of a corpus: it lists no shards")
    _check_kinds(path, "the corpus", manifest, _OF_A_CORPUS)
    _check_kinds(path, "the split", manifest["split"], _OF_A_SPLIT)
    for file in manifest["files"]:
        _check_kinds(path, "a file", file, _OF_A_FILE)
        _check_kinds(path, "the report of a file", file["report"], _OF_A_REPORT)
    named = set()
    for shard in manifest["shards"]:
        _check_kinds(path, "a shard", shard, _OF_A_SHARD)
        if shard["split"] not in SPLITS:
            raise InputError(f"{path} is damaged: it has a split {shard['split']!r:.60}")
        if shard["file"] in named:
            raise InputError(f"{path} is damaged: it lists {shard['file']} twice")
        named.add(shard["file"])
        path_inside(path.parent, shard["file"], path)


def _check_kinds(path: Path, what: str, content: Any, kinds: Mapping[str, type]) -> None:
    """Check the types of values; numbers are not negative, and integers are also floats."""
    for name, kind in kinds.items():
        value = content.get(name) if isinstance(content, dict) else None
        fits = isinstance(value, int | float if kind is float else kind) and not isinstance(value, bool)
        if not fits or (isinstance(value, int | float) and not value >= 0):
            raise InputError(f"{path} is damaged: {name!r} of {what} is {value!r:.60}")


def check_shards(folder: Path, manifest: Mapping[str, Any], contents: bool = True) -> None:
    """Compare the shards with the manifest: size, content (if `contents`), cells."""
    shards = manifest["shards"]
    for shard in shards:
        path = folder / shard["file"]
        if not path.is_file():
            raise CorpusError(f"{path} is missing: {AGAIN}")
        if path.stat().st_size != shard["bytes"]:
            raise CorpusError(
                f"{path} has {path.stat().st_size:,} bytes, but the manifest says {shard['bytes']:,}: it was cut "
                f"short or changed; {AGAIN}"
            )
    if contents:
        _check_contents(folder, [shard for shard in shards if "digest" in shard])
    without = sum("digest" not in shard for shard in shards)
    if without:
        logger.info(
            "%s: %d shards of an earlier version have no digest in the manifest: damage inside them is not found",
            folder, without,
        )  # fmt: skip
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as threads:
        for _ in threads.map(lambda shard: _check_cells(folder / shard["file"], shard["cells"]), shards):
            pass


def _check_cells(path: Path, cells: int) -> None:
    try:
        with reading(path, AGAIN):
            rows = pq.read_metadata(path).num_rows
    except (InputError, OSError) as error:
        raise CorpusError(f"{path} is not a readable Parquet file ({error}): {AGAIN}") from error
    if rows != cells:
        raise CorpusError(f"{path} has {rows:,} cells, but the manifest says {cells:,}: {AGAIN}")


def _check_contents(folder: Path, shards: list[dict[str, Any]]) -> None:
    found = digests_of([folder / shard["file"] for shard in shards], progress=True) if shards else []
    for shard, digest in zip(shards, found, strict=True):
        if digest != shard["digest"]:
            raise CorpusError(
                f"the content of {folder / shard['file']} does not match the manifest ({digest} instead of "
                f"{shard['digest']!r:.60}): it is damaged or was changed; {AGAIN}"
            )


def is_whole(folder: Path, shard: Mapping[str, Any]) -> bool:
    """Whether size and content of a shard of an earlier run match its record."""
    path = folder / shard["file"]
    if not path.is_file() or path.stat().st_size != shard["bytes"]:
        return False
    return "digest" not in shard or digests_of([path])[0] == shard["digest"]


def vocabulary_digest(vocabulary: Any) -> str:
    """Return a digest of a `GeneVocabulary`'s tokens, names and statistics, which does not depend on its files."""
    names = [vocabulary.token_ids, vocabulary.symbols, vocabulary.aliases]
    digest = hashlib.blake2b(json.dumps(names, sort_keys=True).encode(), digest_size=16)
    for values in (vocabulary.medians, vocabulary.means, vocabulary.stds):
        digest.update(b"-" if values is None else np.ascontiguousarray(values, dtype="<f8").tobytes())
    return digest.hexdigest()


def same_plan(earlier: Mapping[str, Any], plan: Plan) -> bool:
    """Whether an earlier `Plan.to_dict` equals this plan; early versions hashed only size and ends of files."""
    now = plan.to_dict()
    if earlier == now:
        return True
    files = earlier.get("files")
    if not isinstance(files, list) or len(files) != len(now["files"]):
        return False
    for old, new, file in zip(files, now["files"], plan.files, strict=True):
        if isinstance(old, dict) and ":" not in str(old.get("fingerprint", ":")):
            new["fingerprint"] = fingerprint_of_ends(Path(file.path))
    return earlier == now


class SourceMarks:
    """Detects files of a plan that change before the corpus is finished."""

    def __init__(self, plan: Plan):
        self._files = [(file, as_source(file.path)) for file in plan.files]
        self._marked = [_marks(path) for _, path in self._files]

    def check(self) -> None:
        """Raise an error if a file is missing or has changed."""
        for (file, path), marks in zip(self._files, self._marked, strict=True):
            try:
                same = (bool(marks) and _marks(path) == marks) or fingerprint(path) == file.fingerprint
            except OSError as error:
                raise CorpusError(f"{path} disappeared before the corpus was finished: {error}") from error
            if not same:
                raise CorpusError(f"{path} changed while it was read: {AGAIN}")


def _marks(path: Path | str) -> dict[str, FileMark]:
    if isinstance(path, str):
        return {}
    return file_marks(path) if path.is_dir() else {os.fspath(path): file_mark(path)}


__all__ = [
    "AGAIN", "MOST_MANIFEST_BYTES", "CorpusError", "SourceMarks", "check_shards", "is_whole", "read_manifest",
    "same_plan", "vocabulary_digest",
]  # fmt: skip
