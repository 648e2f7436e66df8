"""Drug response: ln IC50 of cell lines from an embedding of their expression and the structure of the drug."""
