"""Scores that need no model: clustering, classification, intervals, marker genes, novel types."""
