"""Tables of genes and the catalogue of a corpus."""
