"""Preparation of models, adapters, data sets and metrics for the Hub."""
