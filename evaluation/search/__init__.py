"""Cells and texts found by their embeddings."""
