"""A record for each family of models: its tokenizer and processor, and the options of its corpora."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cellglot.families import Families, resolve


@dataclass(frozen=True)
class TokenizerFamily:
    """The inputs of a family of models.

    Parameters
    ----------
    name
        Type of the model.
    kind
        Name of the tokenizer for ``cellglot tokenize --tokenizer``; families may share one.
    tokenizer
        Class of the tokenizer, or its name in `cellglot.tokenization`.
    corpus_options
        Options of the tokenizer for the corpus of a new model.
    processor
        Class of the processor of cells and texts, or its name; None if the models read no texts.
    """

    name: str
    kind: str
    tokenizer: str | type
    corpus_options: Mapping[str, Any] = field(default_factory=dict)
    processor: str | type | None = None

    @property
    def tokenizer_class(self) -> Any:
        """Class of the tokenizer."""
        return resolve("cellglot.tokenization", self.tokenizer)

    @property
    def processor_class(self) -> Any:
        """Class of the processor, or None."""
        return None if self.processor is None else resolve("cellglot.tokenization", self.processor)


_RANKED = {"add_cls_token": True, "return_expression_values": True}

FAMILIES: Families[TokenizerFamily] = Families(
    TokenizerFamily(name="exceiver", kind="exceiver", tokenizer="ExceiverTokenizer"),
    TokenizerFamily(name="sccello", kind="rank-value", tokenizer="RankValueTokenizer", corpus_options=_RANKED),
    TokenizerFamily(
        name="langcell",
        kind="rank-value",
        tokenizer="RankValueTokenizer",
        corpus_options=_RANKED,
        processor="LangCellProcessor",
    ),
)


def tokenizers() -> dict[str, Any]:
    """Return the classes of all tokenizers by their kind."""
    return {family.kind: family.tokenizer_class for family in FAMILIES.values()}


__all__ = ["FAMILIES", "TokenizerFamily", "tokenizers"]
