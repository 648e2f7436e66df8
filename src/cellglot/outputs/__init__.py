"""Writing of results: which paths may be written, which files belong to a run, one run at a time."""

from cellglot.outputs.ending import exit_on_sigterm
from cellglot.outputs.environment import EnvironmentFailureError, check_environment
from cellglot.outputs.folder import MANIFEST_FILE, OutputFolder, read_manifest
from cellglot.outputs.lock import LOCK_FILE, LockedError, lock
from cellglot.outputs.paths import OutputError, check_file, check_files, check_folder, holds, same_file
from cellglot.outputs.writing import atomic, remove_leftovers, sha256, share, write_json, write_text


__all__ = [
    "LOCK_FILE",
    "MANIFEST_FILE",
    "EnvironmentFailureError",
    "LockedError",
    "OutputError",
    "OutputFolder",
    "atomic",
    "check_environment",
    "check_file",
    "check_files",
    "check_folder",
    "exit_on_sigterm",
    "holds",
    "lock",
    "read_manifest",
    "remove_leftovers",
    "same_file",
    "sha256",
    "share",
    "write_json",
    "write_text",
]
