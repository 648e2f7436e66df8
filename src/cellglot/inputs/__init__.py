"""Reading of documents: errors that name the file, digests, bounded JSON and YAML, names inside a folder."""

from cellglot.inputs.addresses import is_remote
from cellglot.inputs.documents import read_json, read_yaml
from cellglot.inputs.errors import InputError, reading
from cellglot.inputs.file_digests import FileMark, digest_of, file_mark
from cellglot.inputs.inside import path_inside
from cellglot.inputs.tables import read_table, read_text


__all__ = [
    "FileMark", "InputError", "digest_of", "file_mark", "is_remote", "path_inside", "read_json", "read_table",
    "read_text", "read_yaml", "reading",
]  # fmt: skip
