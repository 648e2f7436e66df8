"""What families over rank-value tokens share: their tokenizers, collators and settings of fine-tuning."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from huggingface_hub.dataclasses import strict

from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.tokenization_rank_value import RankValueTokenizer
from cellglot.training.data.rank_value_collator import rank_value_collator
from cellglot.training.data.thinning import ThinningSettings, thinning_of
from cellglot.training.families.recipe import check_tokenizer


WHOLE_CELL = 2048  # tokens, as in the published models


@strict
@dataclass(kw_only=True)
class FinetuningData(ThinningSettings):
    """Keys of the section ``data`` in fine-tuning.

    Parameters
    ----------
    initialize_gene_embeddings
        Start the gene embeddings of a new model from the corpus's co-expression.
    """

    initialize_gene_embeddings: bool = False


def tokenizer_of(corpus: Corpus, model: str) -> RankValueTokenizer:
    """Return the tokenizer of a corpus of rank-value tokens whose cells begin with ``<cls>``."""
    tokenizer: Any = corpus.tokenizer()
    check_tokenizer(tokenizer, RankValueTokenizer, corpus, model, "rank-value --option add_cls_token=true")
    if not tokenizer.add_cls_token:
        raise ValueError(
            f"cells of {corpus.folder} do not begin with <cls>, {model}'s cell embedding: tokenize with "
            "--option add_cls_token=true"
        )
    return tokenizer


def saved_tokenizer(tokenizer: RankValueTokenizer, config: Any) -> RankValueTokenizer:
    """Return the tokenizer that is saved with a model: no longer cells than it reads, and nothing but its inputs."""
    return RankValueTokenizer.from_vocabulary(
        tokenizer.vocabulary,
        add_cls_token=True,
        total=tokenizer.total,
        target_sum=tokenizer.target_sum,
        model_max_length=min(_of_cells(config).max_position_embeddings, tokenizer.model_max_length),
    )


def corpus_tokenizer(tokenizer: RankValueTokenizer) -> RankValueTokenizer:
    """Return the same tokenizer with expression values, and no shorter than whole cells mostly are."""
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
    """Return the scale of embeddings of ranks, which are added to those of genes."""
    return _of_cells(config).initializer_range


def _of_cells(config: Any) -> Any:
    """Return the configuration of the cell encoder, a part of its own in models of cells and texts."""
    return getattr(config, "cell_config", config)


# Fields of the record of a family over these tokens.
RANK_VALUE: dict[str, Any] = {
    "finetuning_data": FinetuningData,
    "tokenizer_of": tokenizer_of,
    "saved_tokenizer": saved_tokenizer,
    "corpus_tokenizer": corpus_tokenizer,
    "collators": collators,
    "gene_scale": gene_scale,
}

__all__ = ["RANK_VALUE", "FinetuningData", "saved_tokenizer", "tokenizer_of"]
