"""Settings of the texts of a LangCell on a base."""

from dataclasses import dataclass, field

from huggingface_hub.dataclasses import strict


@strict
@dataclass(kw_only=True)
class TextSettings:
    """The text encoder of a LangCell on a base, and how it is trained.

    Parameters
    ----------
    hidden_size, num_hidden_layers, num_attention_heads, intermediate_size
        Of the text encoder.
    words
        Most frequent words of the names, synonyms and definitions of the ontology that are in its vocabulary, beside
        single characters, which spell the others.
    longest
        Most tokens of a text.
    cells
        Cells of each label and data set to learn from.
    steps, batch_size
        Number of batches, and cells of each.
    terms
        Types of the ontology in each batch whose texts are learned beside those of the types of cells.
    learning_rate, weight_decay
        Of AdamW, with a cosine schedule.
    leave_out
        Types, with those below them, that a second model learns nothing of, to be tested on them.
    """

    hidden_size: int = 64
    num_hidden_layers: int = 1
    num_attention_heads: int = 2
    intermediate_size: int = 128
    words: int = 3000
    longest: int = 64
    cells: int = 60
    steps: int = 1500
    batch_size: int = 48
    terms: int = 32
    learning_rate: float | int = 2e-3
    weight_decay: float | int = 1e-2
    leave_out: list[str] = field(default_factory=list)


__all__ = ["TextSettings"]
