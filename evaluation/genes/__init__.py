"""Embeddings of genes, static and in cells, their neighbours, gene sets, and attention between genes."""
