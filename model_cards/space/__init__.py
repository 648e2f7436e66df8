"""Spaces of the Hub that annotate cells with a model, and the same pages on one's own machine."""
