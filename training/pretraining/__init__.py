"""Pretraining of the three models."""
