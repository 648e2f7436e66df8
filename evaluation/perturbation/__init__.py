"""In-silico perturbation: what deleting or overexpressing a gene does to the embedding and the classes of cells."""
