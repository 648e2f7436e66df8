"""Folders that are ready for the Hub: models, adapters, data sets, metrics."""
