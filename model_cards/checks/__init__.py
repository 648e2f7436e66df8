"""Checks before publishing: paths of this machine, and a process without cellglot."""
