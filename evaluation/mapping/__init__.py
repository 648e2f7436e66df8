"""Mapping of cells to a reference: nearest neighbours in a model's embedding."""
