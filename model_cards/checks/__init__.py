"""Checks before publishing: content, and a process without cellglot."""
