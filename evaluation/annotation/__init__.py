"""Annotation of cells with cell types: by texts, by a classifier, from file to file."""
