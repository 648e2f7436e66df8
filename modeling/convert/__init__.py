"""Converters of released checkpoints."""
