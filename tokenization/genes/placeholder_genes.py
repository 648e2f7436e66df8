"""A tokenizer for models whose genes are not known: it refuses cells and explains why."""

from cellglot.tokenization.gene_vocabulary import GeneVocabulary
from cellglot.tokenization.tokenization_exceiver import UNPUBLISHED, ExceiverTokenizer


def placeholder_tokenizer(n_genes: int) -> ExceiverTokenizer:
    """Make a tokenizer of placeholder genes for a converted checkpoint; `n_genes` excludes special tokens."""
    vocabulary = GeneVocabulary.from_statistics(
        [f"unpublished_gene_{row}" for row in range(n_genes)],
        metadata={
            "gene_order": UNPUBLISHED,
            "note": "the released checkpoint came without the order of its genes and without their statistics",
        },
    )
    return ExceiverTokenizer.from_vocabulary(vocabulary)


__all__ = ["placeholder_tokenizer"]
