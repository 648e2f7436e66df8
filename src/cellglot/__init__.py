"""cellglot: single-cell language models as first-class Hugging Face models."""

__version__ = "0.1.0"
