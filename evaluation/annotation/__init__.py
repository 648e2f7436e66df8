"""Cell types of cells: by texts, by a classifier, into a file."""
