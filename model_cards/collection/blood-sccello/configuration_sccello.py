"""Configuration of scCello."""

from collections.abc import Iterable
from dataclasses import field
from types import MappingProxyType
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from .model_pipelines import ModelPipelines
from .model_tasks import TaskConfig, check_gene_sums, check_linear_genes, classes_that_fit


@strict
class ScCelloConfig(TaskConfig, ModelPipelines, PreTrainedConfig):
    """Sizes, objectives and cell types of scCello, a BERT encoder over rank-value gene tokens (Yuan et al. 2024).

    Defaults are those of the published pretrained model, except the dropout of attention weights.

    Parameters
    ----------
    vocab_size
        Genes and the special tokens ``<pad>``, ``<mask>`` and ``<cls>``.
    hidden_size, intermediate_size
        Sizes of a token's hidden state, and within the feed-forward blocks.
    num_hidden_layers, num_attention_heads
        Layers, and heads of each.
    hidden_act
        Activation of the feed-forward blocks and of the prediction heads.
    hidden_dropout_prob
        Dropout on embeddings and on the outputs of attention and feed-forward blocks; also the noise of the second
        pass of the relational alignment.
    attention_probs_dropout_prob
        Dropout on attention weights: 0 is our choice, so that fused attention works on every device.
    max_position_embeddings
        Longest cell in tokens, ``<cls>`` included.
    layer_norm_eps, initializer_range
        Epsilon of layer norms; standard deviation of the weights (and prototypes) at the start.
    tau
        Temperature: products of representations are cosines divided by it.
    num_cell_types
        Number of prototypes; by default that of `cell_types`.
    cell_types
        Cell Ontology id of each prototype, in order; None for unknown ones.
    masked_gene_weight, coherence_weight, regularization_weight, relational_alignment_weight
        Weights of the objectives in the loss; an objective of weight 0 is not computed.
    gather_cells
        Whether objectives are computed over all processes' cells when several processes compute gradients.
    pooling
        Cell embedding: ``"cls"``, the hidden state of ``<cls>``, as published, or the ``"mean"`` over genes (without
        special tokens and padding).
    encoder_tokens
        Tokens of a cell that the encoder reads, the first ones; the others are for `gene_sums` and `linear_genes`
        alone. By default all.
    linear_genes
        Genes of a linear latent, a weighted sum of their expression as the order of all tokens implies it, see
        `RankedLinearLatent`; 0 for none. In the cell embedding it follows the pooled hidden state.
    gene_sums
        Whether a classifier of cells also has weighted sums of the log expression of all genes, see `GeneSums`.
    gene_sum_weight
        Their share of the scores, between 0 and 1.
    imputed_genes, imputation_factors
        Genes that gene sums expect where a file did not measure them, and factors of their expression, see
        `GeneImputation`; 0 for none.
    label_cl_ids
        Cell Ontology id of each class that is a cell type; None if classes are not cell types.
    target_mean, target_std
        Mean and standard deviation of the training cells' values, for a regression; None for 0 and 1.
    pad_token_id, mask_token_id, cls_token_id
        Ids of the special tokens; ``<cls>`` is the last, ``vocab_size - 1``.
    """

    model_type = "sccello"
    gene_heads = MappingProxyType({"ForPreTraining": "AutoModelForPreTraining", "ForMaskedLM": "AutoModelForMaskedLM"})

    vocab_size: int = 25427
    hidden_size: int = 256
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    intermediate_size: int = 512
    hidden_act: str = "relu"
    hidden_dropout_prob: float | int = 0.02
    attention_probs_dropout_prob: float | int = 0.0
    max_position_embeddings: int = 2048
    layer_norm_eps: float = 1e-12
    initializer_range: float | int = 0.02
    tau: float | int = 0.01
    num_cell_types: int | None = None
    cell_types: list[str | None] | None = None
    masked_gene_weight: float | int = 1.0
    coherence_weight: float | int = 1.0
    regularization_weight: float | int = 1.0
    relational_alignment_weight: float | int = 1.0
    gather_cells: bool = True
    pooling: str = "cls"
    encoder_tokens: int | None = None
    linear_genes: int = 0
    gene_sums: bool = False
    gene_sum_weight: float | int = 0.5
    imputed_genes: int = 0
    imputation_factors: int = 0
    label_cl_ids: dict[str, str] | None = None
    target_mean: float | int | None = None
    target_std: float | int | None = None
    pad_token_id: int | None = 0
    mask_token_id: int | None = 1
    cls_token_id: int | None = None
    auto_map: dict[str, Any] | None = field(
        default_factory=lambda: {
            "AutoConfig": "configuration_sccello.ScCelloConfig",
            "AutoModel": "modeling_sccello.ScCelloModel",
            "AutoModelForMaskedLM": "modeling_sccello.ScCelloForMaskedLM",
            "AutoModelForPreTraining": "modeling_sccello.ScCelloForPreTraining",
            "AutoModelForSequenceClassification": "modeling_sccello.ScCelloForSequenceClassification",
            "AutoModelForTokenClassification": "modeling_sccello.ScCelloForTokenClassification",
        }
    )

    def __post_init__(self, **kwargs: Any):
        """Fill in the id of ``<cls>``, and the number of cell types or None for their names."""
        if self.cls_token_id is None:
            self.cls_token_id = self.vocab_size - 1
        if self.num_cell_types is None:
            self.num_cell_types = len(self.cell_types or ())
        if self.cell_types is None:
            self.cell_types = [None] * self.num_cell_types
        kept = ("AutoModel", "AutoModelForSequenceClassification")
        self.auto_map = classes_that_fit(self.auto_map, self, *kept)
        super().__post_init__(**kwargs)

    @property
    def num_genes(self) -> int:
        """Genes of the model: tokens that are not special."""
        return self.vocab_size - 3

    def cell_type_ids(self, cell_types: Iterable[str]) -> list[int]:
        """Return the rows of cell types among the prototypes: the models' argument `cell_type_ids`.

        Parameters
        ----------
        cell_types
            Cell Ontology ids, such as ``"CL:0000236"``.

        Raises
        ------
        ValueError
            If the model has no prototype for some of them; names them.
        """
        wanted = list(cell_types)
        rows = {name: row for row, name in enumerate(self.cell_types or ()) if name is not None}
        missing = sorted({name for name in wanted if name not in rows})
        if missing:
            raise ValueError(
                f"{len(missing):,} of {len(set(wanted)):,} cell types are not among the {len(rows):,} that this model "
                f"knows by name: {', '.join(missing[:10])}{', ...' if len(missing) > 10 else ''}. Give such cells "
                "the id -100, or extend the prototypes by model.add_cell_types(cell_types, similarity_levels, "
                "ancestor_mask)"
            )
        return [rows[name] for name in wanted]

    def validate_architecture(self) -> None:
        """Refuse sizes that do not match, repeated cell types and unknown conventions.

        Raises
        ------
        ValueError
            Names the fields.
        """
        check_gene_sums(self)
        check_linear_genes(self, self.num_genes)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of num_attention_heads={self.num_attention_heads}"
            )
        if self.vocab_size < 4:
            raise ValueError(
                f"vocab_size={self.vocab_size}: it has to be at least 4, for a gene, <pad>, <mask> and <cls>"
            )
        if self.tau <= 0:
            raise ValueError(f"tau={self.tau}: it has to be above 0")
        if self.pooling not in ("cls", "mean"):
            raise ValueError(f"pooling={self.pooling!r}: it has to be 'cls' or 'mean'")
        if len(self.cell_types or ()) != self.num_cell_types:
            raise ValueError(
                f"cell_types names {len(self.cell_types or ()):,} cell types, num_cell_types={self.num_cell_types:,}"
            )
        named = [name for name in self.cell_types or () if name is not None]
        twice = sorted({name for name in named if named.count(name) > 1}) if len(set(named)) < len(named) else []
        if twice:
            raise ValueError(f"cell_types contains {', '.join(twice[:5])} more than once")


ScCelloConfig.register_for_auto_class()

__all__ = ["ScCelloConfig"]
