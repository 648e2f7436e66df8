"""Tables of gene names, and the catalogue of genes of a corpus."""
