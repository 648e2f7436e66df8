"""Configuration of LangCell: a cell encoder, a text encoder, and both together."""

from dataclasses import field, fields
from types import MappingProxyType
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

from .model_pipelines import ModelPipelines
from .model_tasks import TaskConfig, check_gene_sums, check_linear_genes, classes_that_fit


# Text encoders with BERT's network, whose weights LangCell's text encoder can start from.
BERT_LIKE = ("bert", "camembert", "electra", "roberta", "xlm-roberta")

# Those whose positions start at pad_token_id + 1.
ROBERTA_LIKE = ("camembert", "roberta", "xlm-roberta")

OBJECTIVES = ("masked_gene", "cell_cell", "cell_text", "matching")


@strict
class LangCellCellConfig(TaskConfig, ModelPipelines, PreTrainedConfig):
    """Sizes of LangCell's cell encoder, a BERT over rank-value gene tokens.

    Defaults are those of the published model (Geneformer's 12 layers), except the dropout of attention weights.

    Parameters
    ----------
    vocab_size
        Genes and the special tokens ``<pad>``, ``<mask>`` and ``<cls>``.
    hidden_size, intermediate_size
        Sizes of a token's hidden state, and within the feed-forward blocks.
    num_hidden_layers, num_attention_heads
        Layers, and heads of each.
    hidden_act
        Activation of the feed-forward blocks and of the head of masked gene modelling.
    hidden_dropout_prob
        Dropout on embeddings and on the outputs of attention and feed-forward blocks; the only difference between the
        two passes of the cell-cell objective.
    attention_probs_dropout_prob
        Dropout on attention weights: 0 is our choice, so that fused attention works on every device.
    max_position_embeddings
        Longest cell in tokens, ``<cls>`` included.
    layer_norm_eps, initializer_range
        Epsilon of layer norms; standard deviation of the weights at the start.
    projection_dim
        Size of a cell embedding.
    pooling
        State that is projected to the cell embedding: ``"cls"``, that of ``<cls>``, as published, or the ``"mean"``
        over genes (without special tokens and padding).
    encoder_tokens
        Tokens of a cell that the encoder reads, the first ones; the others are for `linear_genes` and for the gene
        sums of a classifier alone. By default all.
    linear_genes
        Genes of a linear latent, a weighted sum of their expression as the order of all tokens implies it, see
        `RankedLinearLatent`; 0 for none. It follows the pooled hidden state, before the projection.
    pad_token_id, mask_token_id, cls_token_id
        Ids of the special tokens; ``<cls>`` is the last, ``vocab_size - 1``.
    """

    model_type = "langcell_cell"
    base_config_key = "cell_config"

    vocab_size: int = 25427
    hidden_size: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    intermediate_size: int = 1024
    hidden_act: str = "relu"
    hidden_dropout_prob: float | int = 0.02
    attention_probs_dropout_prob: float | int = 0.0
    max_position_embeddings: int = 2048
    layer_norm_eps: float = 1e-12
    initializer_range: float | int = 0.02
    projection_dim: int = 256
    pooling: str = "cls"
    encoder_tokens: int | None = None
    linear_genes: int = 0
    pad_token_id: int | None = 0
    mask_token_id: int | None = 1
    cls_token_id: int | None = None
    auto_map: dict[str, Any] | None = field(
        default_factory=lambda: {
            "AutoConfig": "configuration_langcell.LangCellCellConfig",
            "AutoModel": "modeling_langcell.LangCellCellModel",
        }
    )

    def __post_init__(self, **kwargs: Any):
        """Fill in the id of ``<cls>``."""
        if self.cls_token_id is None:
            self.cls_token_id = self.vocab_size - 1
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Refuse sizes that do not match and unknown conventions.

        Raises
        ------
        ValueError
            Names the fields.
        """
        check_gene_sums(self)
        check_linear_genes(self, self.vocab_size - 3)
        _check_heads(self)
        if self.vocab_size < 4:
            raise ValueError(
                f"vocab_size={self.vocab_size}: it has to be at least 4, for a gene, <pad>, <mask> and <cls>"
            )
        if self.pooling not in ("cls", "mean"):
            raise ValueError(f"pooling={self.pooling!r}: it has to be 'cls' or 'mean'")


@strict
class LangCellTextConfig(TaskConfig, ModelPipelines, PreTrainedConfig):
    """Sizes of LangCell's text encoder, a BERT with a block of cross attention to cells in every layer.

    Defaults are those of the published model, PubMedBERT with the two tokens ``[DEC]`` and ``[ENC]`` added. Names are
    those of `transformers.BertConfig`; there are no token types.

    Parameters
    ----------
    vocab_size
        Tokens.
    hidden_size, intermediate_size
        Sizes of a token's hidden state, and within the feed-forward blocks.
    num_hidden_layers, num_attention_heads
        Layers, and heads of each, in self-attention and cross attention.
    hidden_act
        Activation of the feed-forward blocks.
    hidden_dropout_prob, attention_probs_dropout_prob
        Dropout on embeddings and on the outputs of the blocks, and on attention weights.
    max_position_embeddings
        Longest text in tokens, ``[CLS]`` and ``[SEP]`` included.
    layer_norm_eps, initializer_range
        Epsilon of layer norms; standard deviation of the weights at the start.
    encoder_hidden_size
        Size of the cells' hidden states that cross attention reads.
    projection_dim
        Size of a text embedding.
    pad_token_id
        Id of padding.
    """

    model_type = "langcell_text"
    base_config_key = "text_config"

    vocab_size: int = 30524
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    max_position_embeddings: int = 512
    layer_norm_eps: float = 1e-12
    initializer_range: float | int = 0.02
    encoder_hidden_size: int = 512
    projection_dim: int = 256
    pad_token_id: int | None = 0
    auto_map: dict[str, Any] | None = field(
        default_factory=lambda: {
            "AutoConfig": "configuration_langcell.LangCellTextConfig",
            "AutoModel": "modeling_langcell_text.LangCellTextModel",
        }
    )

    @classmethod
    def from_bert(cls, config: PreTrainedConfig | dict[str, Any], **changes: Any) -> "LangCellTextConfig":
        """Take the sizes of a BERT-like text encoder.

        Parameters
        ----------
        config
            Configuration or dictionary of a checkpoint with BERT's network.
        **changes
            Further fields, such as ``encoder_hidden_size``.

        Raises
        ------
        ValueError
            If the checkpoint's network is another one.
        """
        given = config.to_dict() if isinstance(config, PreTrainedConfig) else dict(config)
        kind = given.get("model_type") or "bert"
        positions = given.get("position_embedding_type") or "absolute"
        if kind not in BERT_LIKE or positions != "absolute":
            raise ValueError(
                f"a text encoder of type {kind!r} with {positions} positions cannot be LangCell's: its network has to "
                f"be BERT's ({', '.join(BERT_LIKE)})"
            )
        if given.get("embedding_size", given.get("hidden_size")) != given.get("hidden_size"):
            raise ValueError(
                f"embedding_size={given['embedding_size']} and hidden_size={given.get('hidden_size')} differ in the "
                "text encoder: LangCell's has no projection between them"
            )
        ours = {f.name for f in fields(cls)} - {f.name for f in fields(PreTrainedConfig)} - {"auto_map"}
        taken = {name: given[name] for name in ours if given.get(name) is not None}
        if kind in ROBERTA_LIKE and "max_position_embeddings" in taken:
            taken["max_position_embeddings"] -= taken.get("pad_token_id", 1) + 1
        return cls(**(taken | changes))

    def validate_architecture(self) -> None:
        """Refuse sizes that do not match."""
        _check_heads(self)


@strict
class LangCellConfig(TaskConfig, ModelPipelines, PreTrainedConfig):
    """LangCell: a cell encoder and a text encoder in one space, and a matcher (Zhao et al. 2024, arXiv 2405.06708).

    Parameters
    ----------
    cell_config
        Cell encoder, a `LangCellCellConfig` or its fields.
    text_config
        Text encoder, a `LangCellTextConfig` or its fields, or the configuration of any text checkpoint with BERT's
        network; by default PubMedBERT's (``microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract``).
    projection_dim
        Size of the space that cells and texts share.
    tau
        Temperature: similarities are cosines divided by it. 0.05 in the released zero-shot annotation; that of
        pretraining was not published, ours is the same.
    masked_gene_weight, cell_cell_weight, cell_text_weight, matching_weight
        Weights of the four objectives in the loss (not published; 1 is our choice); an objective of weight 0 is not
        computed.
    stage
        Stage of pretraining: 1, the cell encoder only (masked genes, cell-cell); 2, all four objectives.
    gather_cells
        Whether objectives are computed over all processes' cells when several processes compute gradients.
    initializer_range
        Standard deviation of the heads' weights at the start.
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

    Notes
    -----
    ``vocab_size``, ``pad_token_id``, ``mask_token_id``, ``cls_token_id`` and ``pooling`` are those of `cell_config`:
    they can be read, set and given here.
    """

    model_type = "langcell"
    gene_heads = MappingProxyType({"ForPreTraining": "AutoModelForPreTraining"})
    matches_texts = ("LangCellModel", "LangCellForPreTraining")
    embeds_by_head = True  # models with a head have no projection to the space of texts
    sub_configs_defaults = {
        "cell_config": SubConfigSpec(LangCellCellConfig),
        "text_config": SubConfigSpec(LangCellTextConfig),
    }

    cell_config: Any = None
    text_config: Any = None
    projection_dim: int = 256
    tau: float | int = 0.05
    masked_gene_weight: float | int = 1.0
    cell_cell_weight: float | int = 1.0
    cell_text_weight: float | int = 1.0
    matching_weight: float | int = 1.0
    stage: int = 2
    gather_cells: bool = True
    initializer_range: float | int = 0.02
    gene_sums: bool = False
    gene_sum_weight: float | int = 0.5
    imputed_genes: int = 0
    imputation_factors: int = 0
    label_cl_ids: dict[str, str] | None = None
    target_mean: float | int | None = None
    target_std: float | int | None = None
    auto_map: dict[str, Any] | None = field(
        default_factory=lambda: {
            "AutoConfig": "configuration_langcell.LangCellConfig",
            "AutoModel": "modeling_langcell.LangCellModel",
            "AutoModelForPreTraining": "modeling_langcell.LangCellForPreTraining",
            "AutoModelForSequenceClassification": "modeling_langcell.LangCellForSequenceClassification",
            "AutoModelForTokenClassification": "modeling_langcell.LangCellForTokenClassification",
        }
    )

    def __post_init__(self, **kwargs: Any):
        """Create the encoders' configurations; shared fields that they do not set come from here."""
        of_cells = {name: kwargs.pop(name) for name in OF_CELLS if kwargs.get(name) is not None}
        if not isinstance(self.cell_config, PreTrainedConfig):
            shared = {"projection_dim": self.projection_dim}
            self.cell_config = LangCellCellConfig(**(shared | (self.cell_config or {}) | of_cells))
        else:
            for name, value in of_cells.items():
                setattr(self.cell_config, name, value)
        shared = {"projection_dim": self.projection_dim, "encoder_hidden_size": self.cell_config.hidden_size}
        self.text_config = _text_config(self.text_config, shared)
        kept = ("AutoModel", "AutoModelForSequenceClassification")
        self.auto_map = classes_that_fit(self.auto_map, self.cell_config, *kept)
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields; the precision of weights is stored once for both encoders."""
        given = super().to_dict()
        for tower in ("cell_config", "text_config"):
            given[tower].pop("dtype", None)
        return given

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """Return this configuration: to `transformers`, "text" is the tokens of ``input_ids``, here those of cells."""
        return self

    @property
    def vocab_size(self) -> int:
        """Genes and special tokens of the cell encoder."""
        return self.cell_config.vocab_size

    @vocab_size.setter
    def vocab_size(self, value: int) -> None:
        self.cell_config.vocab_size = value

    @property
    def pad_token_id(self) -> int:
        """Id of ``<pad>`` in the cell encoder."""
        return self.cell_config.pad_token_id

    @property
    def mask_token_id(self) -> int:
        """Id of ``<mask>``."""
        return self.cell_config.mask_token_id

    @property
    def cls_token_id(self) -> int:
        """Id of ``<cls>`` in the cell encoder."""
        return self.cell_config.cls_token_id

    @property
    def pooling(self) -> str:
        """State that is projected to the cell embedding."""
        return self.cell_config.pooling

    @pooling.setter
    def pooling(self, value: str) -> None:
        self.cell_config.pooling = value

    def validate_architecture(self) -> None:
        """Refuse encoders that do not match and unknown settings.

        Raises
        ------
        ValueError
            Names the fields.
        """
        cell, text = self.cell_config, self.text_config
        if not isinstance(cell, PreTrainedConfig) or not isinstance(text, PreTrainedConfig):
            return
        for name, tower in (("cell_config", cell), ("text_config", text)):
            if tower.projection_dim != self.projection_dim:
                raise ValueError(
                    f"{name}.projection_dim={tower.projection_dim}, but projection_dim={self.projection_dim}: the "
                    "embeddings of cells and texts have the same size"
                )
        if text.encoder_hidden_size != cell.hidden_size:
            raise ValueError(
                f"text_config.encoder_hidden_size={text.encoder_hidden_size}, but "
                f"cell_config.hidden_size={cell.hidden_size}: the matcher's keys and values project from cells"
            )
        check_gene_sums(self)
        if self.tau <= 0:
            raise ValueError(f"tau={self.tau}: it has to be above 0")
        if self.stage not in (1, 2):
            raise ValueError(f"stage={self.stage}: it has to be 1 (the cell encoder only) or 2 (all objectives)")


# Fields of the cell encoder that can be given for the whole.
OF_CELLS = ("vocab_size", "pad_token_id", "mask_token_id", "cls_token_id", "pooling")


def _check_heads(config: Any) -> None:
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"hidden_size={config.hidden_size} is not a multiple of num_attention_heads={config.num_attention_heads}"
        )


def _text_config(given: Any, shared: dict[str, Any]) -> PreTrainedConfig:
    """Create the text encoder's configuration from its fields, those of a BERT, or none."""
    if isinstance(given, PreTrainedConfig):
        own = given.model_type == LangCellTextConfig.model_type
        return given if own else LangCellTextConfig.from_bert(given, **shared)
    given = dict(given or {})
    if given.get("model_type", LangCellTextConfig.model_type) == LangCellTextConfig.model_type:
        return LangCellTextConfig(**(shared | given))
    return LangCellTextConfig.from_bert(given, **shared)


LangCellCellConfig.register_for_auto_class()
LangCellTextConfig.register_for_auto_class()
LangCellConfig.register_for_auto_class()

__all__ = ["LangCellCellConfig", "LangCellConfig", "LangCellTextConfig"]
