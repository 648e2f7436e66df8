"""Fields that families with rank-value tokens share: tokenizers, collators and settings of fine-tuning."""

import dataclasses
import datetime
from dataclasses import dataclass
from typing import Any

from huggingface_hub.dataclasses import strict

from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.tokenization_rank_value import RankValueTokenizer
from cellglot.training.data.cell_types import LABEL_COLUMNS
from cellglot.training.data.rank_value_collator import rank_value_collator
from cellglot.training.data.thinning import ThinningSettings, thinning_of
from cellglot.training.families.recipe import check_share, check_tokenizer


WHOLE_CELL = 2048  # tokens, as in the published models


@strict
@dataclass(kw_only=True)
class FinetuningData(ThinningSettings):
    """Keys of the section ``data`` in fine-tuning.

    Parameters
    ----------
    initialize_gene_embeddings
        Start the gene embeddings of a new model from the co-expression in the corpus.
    """

    initialize_gene_embeddings: bool = False


@strict
@dataclass(kw_only=True)
class PretrainingData(FinetuningData):
    """Keys of the section ``data`` in pretraining.

    Parameters
    ----------
    mask_fraction
        Share of the genes of a cell that are masked.
    ontology
        ``blood``, the date of a release, or an OBO or OWL file.
    label_columns
        Columns of the cell type; the first label that is a cell type is used.
    pack_cells
        Give the encoder of cells a batch's cells one after the other, without padding; for an ``attn_implementation``
        of ``flash_attention_2`` or ``flex_attention``, others gain nothing by it.
    """

    mask_fraction: float | int = 0.15
    ontology: str | datetime.date = "shipped"
    label_columns: list[str] | tuple[str, ...] = LABEL_COLUMNS
    pack_cells: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        super().__post_init__()
        check_share("mask_fraction", self.mask_fraction, "a cell's genes")
        self.ontology = str(self.ontology)  # YAML reads the date of a release as a date


def tokenizer_of(corpus: Corpus, model: str) -> RankValueTokenizer:
    """Return the tokenizer of a corpus of rank-value tokens whose cells begin with ``<cls>``."""
    tokenizer: Any = corpus.tokenizer()
    check_tokenizer(tokenizer, RankValueTokenizer, corpus, model, "rank-value --option add_cls_token=true")
    if not tokenizer.add_cls_token:
        raise ValueError(
            f"cells of {corpus.folder} do not begin with <cls>, which {model} needs for its cell embedding: tokenize "
            "with --option add_cls_token=true"
        )
    return tokenizer


def saved_tokenizer(tokenizer: RankValueTokenizer, config: Any) -> RankValueTokenizer:
    """Return the tokenizer to save with a model: limited to its length, without expression values."""
    return RankValueTokenizer.from_vocabulary(
        tokenizer.vocabulary,
        add_cls_token=True,
        total=tokenizer.total,
        target_sum=tokenizer.target_sum,
        model_max_length=min(_of_cells(config).max_position_embeddings, tokenizer.model_max_length),
    )


def corpus_tokenizer(tokenizer: RankValueTokenizer) -> RankValueTokenizer:
    """Return the same tokenizer with expression values, and long enough for most whole cells."""
    return RankValueTokenizer.from_vocabulary(
        tokenizer.vocabulary,
        add_cls_token=tokenizer.add_cls_token,
        total=tokenizer.total,
        target_sum=tokenizer.target_sum,
        return_expression_values=True,
        model_max_length=max(tokenizer.model_max_length, WHOLE_CELL),
    )


def collators(tokenizer: Any, model_config: Any, data: ThinningSettings, corpus: Corpus, seed: int) -> tuple[Any, Any]:
    """Return the collators of fine-tuning, for training and for evaluation."""
    collator = rank_value_collator(
        tokenizer,
        mask_fraction=0.0,
        seed=seed,
        max_length=_of_cells(model_config).max_position_embeddings,
        thinning=thinning_of(data, tokenizer, corpus, seed),
    )
    return collator, dataclasses.replace(collator, thinning=None)


def gene_scale(config: Any) -> float:
    """Return the scale of the embeddings of ranks, which are added to those of genes."""
    return _of_cells(config).initializer_range


def _of_cells(config: Any) -> Any:
    """Return the configuration of the cell encoder."""
    return getattr(config, "cell_config", config)


# Fields of the record of a family with these tokens.
RANK_VALUE: dict[str, Any] = {
    "finetuning_data": FinetuningData,
    "tokenizer_of": tokenizer_of,
    "saved_tokenizer": saved_tokenizer,
    "corpus_tokenizer": corpus_tokenizer,
    "collators": collators,
    "gene_scale": gene_scale,
}

__all__ = ["RANK_VALUE", "FinetuningData", "PretrainingData", "saved_tokenizer", "tokenizer_of"]
