"""Configuration of Exceiver."""

from dataclasses import field
from types import MappingProxyType
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from .model_pipelines import ModelPipelines
from .model_tasks import TaskConfig, check_gene_sums, check_linear_genes


@strict
class ExceiverConfig(TaskConfig, ModelPipelines, PreTrainedConfig):
    """Sizes and conventions of Exceiver, a Perceiver IO over sparse expression (Connell et al. 2022).

    Defaults are those of the published pretrained model.

    Parameters
    ----------
    vocab_size
        Rows of the gene embedding: genes, ``<pad>`` and the class query.
    gene_embedding_size
        Size of a gene's embedding (published as ``seq_dim``); also that of the decoder's queries.
    hidden_size
        Size of a latent (``query_dim``).
    num_latents
        Learned latent queries (``query_len``).
    num_hidden_layers
        Self-attention layers on the latents.
    num_attention_heads
        Heads of these layers (``nhead``).
    num_cross_attention_heads
        Heads of encoder and decoder cross attention; 4 in all published models, for every ``nhead``.
    intermediate_size
        Hidden size of the layers' feed-forward blocks (``dim_feedforward``).
    hidden_act
        Activation of the layers.
    hidden_dropout, attention_dropout
        Dropout on the layers' outputs and within their feed-forward blocks, and on their attention weights.
    layer_norm_eps
        Epsilon of all layer norms.
    unexpressed_genes
        ``"exclude"``: genes without counts are ignored, as in the paper. ``"bias"``: they are used with their
        standardised zero count and +1 on their attention logits, as the published weights were trained. Read at every
        call.
    pooling
        Cell embedding: ``"flatten"``, all processed latents concatenated, as published, or their ``"mean"``.
    linear_genes
        Genes of a further latent that is a weighted sum of their expression, see `LinearLatent`; 0 for none. In the
        cell embedding it follows the other latents, or their mean.
    gene_sums
        Whether a classifier of cells also has weighted sums of the log expression of all genes, see `GeneSums`.
    gene_sum_weight
        Their share of the scores, between 0 and 1.
    imputed_genes, imputation_factors
        Genes that gene sums expect where a file did not measure them, and factors of their expression, see
        `GeneImputation`; 0 for none.
    gene_order_known
        Whether row i of the gene embedding is known to be gene i of the tokenizer. The order of the published
        checkpoints' genes was never published.
    label_cl_ids
        Cell Ontology id of each class that is a cell type; None if classes are not cell types.
    target_mean, target_std
        Mean and standard deviation of the training cells' values, for a regression; None for 0 and 1.
    pad_token_id, cls_token_id
        Ids after the last gene: ``vocab_size - 2`` and ``vocab_size - 1``.
    """

    model_type = "exceiver"
    gene_heads = MappingProxyType({"ForMaskedExpression": "AutoModelForMaskedLM"})

    vocab_size: int = 19069
    gene_embedding_size: int = 4
    hidden_size: int = 4
    num_latents: int = 128
    num_hidden_layers: int = 8
    num_attention_heads: int = 4
    num_cross_attention_heads: int = 4
    intermediate_size: int = 2048
    hidden_act: str = "gelu"
    hidden_dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    layer_norm_eps: float = 1e-5
    unexpressed_genes: str = "exclude"
    pooling: str = "flatten"
    linear_genes: int = 0
    gene_sums: bool = False
    gene_sum_weight: float | int = 0.5
    imputed_genes: int = 0
    imputation_factors: int = 0
    gene_order_known: bool = True
    label_cl_ids: dict[str, str] | None = None
    target_mean: float | int | None = None
    target_std: float | int | None = None
    pad_token_id: int | None = None
    cls_token_id: int | None = None
    auto_map: dict[str, Any] | None = field(
        default_factory=lambda: {
            "AutoConfig": "configuration_exceiver.ExceiverConfig",
            "AutoModel": "modeling_exceiver.ExceiverModel",
            "AutoModelForMaskedLM": "modeling_exceiver.ExceiverForMaskedExpression",
            "AutoModelForPreTraining": "modeling_exceiver.ExceiverForMaskedExpression",
            "AutoModelForSequenceClassification": "modeling_exceiver.ExceiverForSequenceClassification",
        }
    )

    def __post_init__(self, **kwargs: Any):
        """Fill in the special tokens' ids."""
        if self.pad_token_id is None:
            self.pad_token_id = self.vocab_size - 2
        if self.cls_token_id is None:
            self.cls_token_id = self.vocab_size - 1
        super().__post_init__(**kwargs)

    @property
    def num_genes(self) -> int:
        """Genes of the model: ids below this number."""
        return self.vocab_size - 2

    def validate_architecture(self) -> None:
        """Refuse sizes that do not match and unknown conventions.

        Raises
        ------
        ValueError
            If a size is not a multiple of its heads, there is no gene, or a convention is unknown; names the fields.
        """
        for size, heads in (
            ("hidden_size", "num_attention_heads"),
            ("hidden_size", "num_cross_attention_heads"),
            ("gene_embedding_size", "num_cross_attention_heads"),
        ):
            if getattr(self, size) % getattr(self, heads):
                raise ValueError(f"{size}={getattr(self, size)} is not a multiple of {heads}={getattr(self, heads)}")
        if self.vocab_size < 3:
            raise ValueError(
                f"vocab_size={self.vocab_size}: it has to be at least 3, for a gene, <pad> and the class query"
            )
        check_gene_sums(self)
        check_linear_genes(self, self.num_genes)
        for name, choices in (("unexpressed_genes", ("exclude", "bias")), ("pooling", ("flatten", "mean"))):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name}={getattr(self, name)!r}: it has to be one of {', '.join(map(repr, choices))}"
                )


ExceiverConfig.register_for_auto_class()

__all__ = ["ExceiverConfig"]
