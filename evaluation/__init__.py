"""Evaluation: embeddings, baselines, metrics with their intervals, plots."""
