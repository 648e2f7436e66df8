"""Scores of embeddings by packages of the field: scib-metrics in this process, cz-benchmarks in one of its own."""
