"""A tokenizer for models whose genes are not known: it says so, and refuses cells."""

from cellglot.tokenization.gene_vocabulary import GeneVocabulary
from cellglot.tokenization.tokenization_exceiver import UNPUBLISHED, ExceiverTokenizer


def placeholder_tokenizer(n_genes: int) -> ExceiverTokenizer:
    """Make a tokenizer of placeholder genes for a converted checkpoint.

    Parameters
    ----------
    n_genes
        Rows of the model's gene embedding that stand for genes.
    """
    vocabulary = GeneVocabulary.from_statistics(
        [f"unpublished_gene_{row}" for row in range(n_genes)],
        metadata={
            "gene_order": UNPUBLISHED,
            "note": "the released checkpoint came without the order of its genes and without their statistics",
        },
    )
    return ExceiverTokenizer.from_vocabulary(vocabulary)


__all__ = ["placeholder_tokenizer"]
