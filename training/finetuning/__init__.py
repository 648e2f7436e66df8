"""Fine-tuning on labels of cells and genes, with and without adapters."""
