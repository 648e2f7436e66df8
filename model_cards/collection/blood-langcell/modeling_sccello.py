"""scCello: a BERT encoder over rank-value gene tokens, taught by the Cell Ontology (Yuan et al. 2024)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, MaskedLMOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .adapter_folders import AdapterFolders
from .cached_batches import BatchPart, WholeBatch, shares_of_step, step_factors
from .cell_classifiers import ClassifiesCells, ClassifiesGenes
from .cell_losses import (
    IGNORED,
    GatheredCells,
    LossTerms,
    coherence_loss,
    count_items,
    cross_entropy_terms,
    every_weight_counts,
    gather_cells,
    join_losses,
    joined_loss,
    masked_gene_loss,
    regularization_loss,
    relational_alignment_loss,
    scale_representations,
)
from .configuration_sccello import ScCelloConfig
from .cpu_layers import Dropout
from .gene_sums import RankedGeneSums
from .input_checks import check_ids, check_labels, check_range, is_readable
from .linear_latent import RankedLinearLatent, pooled_size
from .model_tasks import Predicts
from .plain_layers import eager_attention_forward, embedding_rows


logger = logging.get_logger(__name__)

NO_LEVEL = -1  # level of similarity before an ontology is set


@dataclass
class ScCelloForPreTrainingOutput(ModelOutput):
    """Output of `ScCelloForPreTraining`.

    Parameters
    ----------
    loss
        Sum of the losses below, each times its weight in the configuration; None if none was computed.
    masked_gene_loss
        Cross entropy of masked genes against the vocabulary; 0 if no position is masked.
    relational_alignment_loss
        Alignment of the cells of a batch with the ontology's similarities of their types; 0 if all cells have one
        type.
    coherence_loss
        Cross entropy of cells against prototypes.
    regularization_loss
        Mean squared error of projected prototypes and cells.
    logits
        Scores of all tokens at masked positions, shape (masked positions, vocabulary); on request during training.
    cell_representation
        Output of the cell head for the cell embedding (published: the hidden state of ``<cls>``), normalised and
        divided by the square root of tau; shape (cells, hidden size).
    representations
        Inputs of the objectives between cells by name, for a part of a batch (`cached_batches`).
    last_hidden_state
        Hidden states, shape (cells, tokens, hidden size); on request during training.
    hidden_states
        Hidden states before the first and after every layer, on request.
    attentions
        Attention weights of every layer, shape (cells, heads, tokens, tokens), on request under eager.
    """

    loss: torch.Tensor | None = None
    masked_gene_loss: torch.Tensor | None = None
    relational_alignment_loss: torch.Tensor | None = None
    coherence_loss: torch.Tensor | None = None
    regularization_loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    cell_representation: torch.Tensor | None = None
    representations: dict[str, torch.Tensor] | None = None
    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class ScCelloEmbeddings(nn.Module):
    """Gene and rank embeddings, layer norm, dropout."""

    def __init__(self, config: ScCelloConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        positions = getattr(config, "encoder_tokens", None) or config.max_position_embeddings
        self.position_embeddings = nn.Embedding(positions, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor | None = None) -> torch.Tensor:
        """Embed tokens, shape (cells, tokens); without `position_ids`, positions count from 0 in each row."""
        if position_ids is None:
            positions = embedding_rows(self.position_embeddings, input_ids.shape[1], input_ids.device)
        else:
            positions = self.position_embeddings(position_ids)
        return self.dropout(self.norm(self.word_embeddings(input_ids) + positions))


class ScCelloAttention(nn.Module):
    """Multi-head attention.

    Parameters
    ----------
    config
        Sizes, heads and dropout.
    key_value_size
        Size of the hidden states that keys and values project from; by default ``hidden_size``.
    """

    def __init__(self, config: Any, key_value_size: int | None = None):
        super().__init__()
        key_value_size = key_value_size or config.hidden_size
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(key_value_size, config.hidden_size)
        self.v_proj = nn.Linear(key_value_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def split_heads(self, states: torch.Tensor) -> torch.Tensor:
        """Reshape (rows, tokens, hidden size) to (rows, heads, tokens, size of a head)."""
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def key_value(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values of hidden states, each of shape (rows, heads, tokens, size of a head)."""
        return self.split_heads(self.k_proj(states)), self.split_heads(self.v_proj(states))

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend by the configured implementation.

        Parameters
        ----------
        query, key, value
            Shape (rows, heads, tokens, size of a head).

        Returns
        -------
        context
            Shape (rows, queries, hidden size).
        weights
            Shape (rows, heads, queries, keys); None if the implementation returns none.
        """
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.attention_dropout if self.training else 0.0
        context, weights = attention_interface(
            self, query, key, value, mask, scaling=self.scaling, dropout=dropout, **kwargs
        )
        return context.flatten(2), weights

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Any = None,
        query_states: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend from every token, or from those of `query_states`, to the tokens of its cell.

        Both are of shape (cells, tokens, hidden size).
        """
        query = self.split_heads(self.q_proj(hidden_states if query_states is None else query_states))
        context, weights = self.attend(query, *self.key_value(hidden_states), attention_mask, **kwargs)
        return self.o_proj(context), weights


class ScCelloLayer(GradientCheckpointingLayer):
    """Self-attention and feed-forward block, each with dropout, residual and layer norm after it."""

    def __init__(self, config: ScCelloConfig):
        super().__init__()
        self.self_attn = ScCelloAttention(config)
        self.norm_attention = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.norm_feed_forward = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Any = None,
        places: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Process tokens, shape (cells, tokens, hidden size), or those at some places, shape (cells, places)."""
        kept = hidden_states
        if places is not None:
            kept = hidden_states.gather(1, places.unsqueeze(-1).expand(-1, -1, hidden_states.shape[-1]))
        attended, _ = self.self_attn(hidden_states, attention_mask, kept, **kwargs)
        hidden_states = self.norm_attention(kept + self.dropout(attended))
        return self.norm_feed_forward(hidden_states + self.dropout(self.fc2(self.activation(self.fc1(hidden_states)))))


class ScCelloHead(nn.Module):
    """Linear, layer norm, activation, linear: the output is compared with prototypes or with genes."""

    def __init__(self, config: ScCelloConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Transform states, shape (..., hidden size)."""
        return self.fc2(self.activation(self.norm(self.fc1(states))))


class ScCelloPreTrainedModel(Predicts, AdapterFolders, PreTrainedModel):
    """Base of the scCello models: initialisation as in BERT, and settings that transformers reads."""

    config: ScCelloConfig
    config_class = ScCelloConfig
    base_model_prefix = "sccello"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ScCelloEmbeddings", "ScCelloLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # Parts that only some of the classes have: no warning when one class loads the folder of another.
    _keys_to_ignore_on_load_unexpected = [
        r"^(gene_head|cell_head|prototypes|affine_projection|classifier|gene_sums)\.",
        r"^(similarity_levels|ancestor_mask)$",
    ]
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": ScCelloLayer,
        "attentions": OutputRecorder(ScCelloAttention, index=1, layer_name="self_attn"),
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            init.normal_(module.weight, std=self.config.initializer_range)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)
        elif isinstance(module, ScCelloForPreTraining):
            init.constant_(module.similarity_levels, NO_LEVEL)
            init.constant_(module.ancestor_mask, False)
        elif isinstance(module, (RankedGeneSums, RankedLinearLatent)):
            module.reset()
        else:
            super()._init_weights(module)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Add tokens after the last one, or remove added tokens; the model's own tokens keep their ids.

        Raises
        ------
        NotImplementedError
            If tokens of the model would be removed.
        """
        refuse_to_cut(self.config, new_num_tokens)
        return super().resize_token_embeddings(new_num_tokens, *args, **kwargs)


def refuse_part_of_cells(config: Any, model: nn.Module) -> None:
    """Refuse an encoder that reads only the first tokens of a cell, for models that need all."""
    if config.encoder_tokens is not None:
        raise ValueError(
            f"encoder_tokens={config.encoder_tokens} is for classifiers of cells: {type(model).__name__} needs the "
            "hidden states of all tokens, set it to None"
        )


def refuse_linear_latent(config: Any, model: nn.Module) -> None:
    """Refuse a linear latent, for models that learn from the hidden state of a cell."""
    if config.linear_genes:
        raise ValueError(
            f"linear_genes={config.linear_genes} is for embeddings and classifiers of cells: {type(model).__name__} "
            "learns from hidden states alone, set it to 0"
        )


def refuse_to_cut(config: Any, new_num_tokens: int | None) -> None:
    """Refuse to remove a model's own tokens; the last of them is ``<cls>``."""
    if new_num_tokens is not None and new_num_tokens <= config.cls_token_id:
        raise NotImplementedError(
            f"resize_token_embeddings({new_num_tokens:,}) would remove <cls> (id {config.cls_token_id:,}) and perhaps "
            "genes: tokens can only be added after it"
        )


class ScCelloModel(ScCelloPreTrainedModel):
    """Embeddings and encoder; a cell's embedding is the hidden state of ``<cls>``.

    Parameters
    ----------
    config
        The configuration.

    Notes
    -----
    The embedding of a cell that is all padding is finite, but means nothing.
    """

    prediction = "pooler_output"
    _input_embed_layer = "word_embeddings"

    def __init__(self, config: ScCelloConfig):
        super().__init__(config)
        self.embeddings = ScCelloEmbeddings(config)
        self.layers = nn.ModuleList(ScCelloLayer(config) for _ in range(config.num_hidden_layers))
        self.linear_latent = RankedLinearLatent(config) if config.linear_genes else None
        self.gradient_checkpointing = False
        self.post_init()

    def word_table(self, states: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of all tokens, shape (vocabulary, hidden size), on the device of hidden states."""
        return embedding_rows(self.embeddings.word_embeddings, self.config.vocab_size, states.device)

    def _check_input(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, position_ids: torch.Tensor | None
    ) -> None:
        config, tokens = self.config, input_ids.shape[1]
        if tokens == 0:
            raise ValueError("input_ids has no tokens: every cell begins with <cls>")
        if tokens > config.max_position_embeddings and position_ids is None:
            raise ValueError(
                f"input_ids has cells of {tokens:,} tokens, but this model has positions for "
                f"{config.max_position_embeddings:,}, <cls> included: tokenize with "
                f"max_length={config.max_position_embeddings}"
            )
        check_ids("input_ids", input_ids, config.vocab_size, f"vocab_size={config.vocab_size:,}")
        if not is_readable(input_ids):
            return
        if position_ids is not None:
            self._check_positions(input_ids, attention_mask, position_ids)
        firsts = input_ids[:, 0] if position_ids is None else input_ids[position_ids.expand_as(input_ids) == 0]
        if not ((firsts == config.cls_token_id) | (firsts == config.pad_token_id)).all():
            logger.warning_once(
                f"Some cells do not begin with <cls> (id {config.cls_token_id:,}), and its hidden state is the cell's "
                "embedding: create the tokenizer with add_cls_token=True."
            )

    def _check_positions(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, position_ids: torch.Tensor
    ) -> None:
        number = self.config.max_position_embeddings
        check_range("position_ids", position_ids, number, f"positions for {number:,} tokens of a cell, from 0")
        if self._packed_cells(input_ids, attention_mask, position_ids) is not None:
            return
        tokens = input_ids != self.config.pad_token_id if attention_mask is None else attention_mask.bool()
        several = ((position_ids.expand_as(input_ids) == 0) & tokens).sum(dim=1) > 1
        if several.any():
            raise ValueError(
                f"position_ids starts again at 0 within row {int(several.nonzero()[0])}, but packed cells have to be "
                f"in a single row without attention_mask: got {len(input_ids):,} rows "
                f"{'without' if attention_mask is None else 'with'} attention_mask"
            )

    def _first_tokens(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, position_ids: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        if self._packed_cells(input_ids, attention_mask, position_ids) is not None:
            raise ValueError("encoder_tokens needs each cell in a row of its own, not packed cells")
        tokens = self.config.encoder_tokens
        first = [None if values is None else values[:, :tokens] for values in (attention_mask, position_ids)]
        return input_ids[:, :tokens], first[0], first[1]

    def _linear(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, position_ids: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Return the linear latent of all tokens of each cell, shape (cells, hidden size), if there is one."""
        if self.linear_latent is None:
            return None
        if self._packed_cells(input_ids, attention_mask, position_ids) is not None:
            raise ValueError("linear_genes needs each cell in a row of its own, not packed cells")
        return self.linear_latent(input_ids, attention_mask)

    def _packed_cells(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, position_ids: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Return the number of each token's cell, shape (1, tokens), if the row contains packed cells, else None."""
        if position_ids is None or len(input_ids) != 1 or attention_mask is not None:
            return None
        return (position_ids == 0).cumsum(dim=1) - 1

    def _attention(
        self, states: torch.Tensor, key_mask: torch.Tensor, packed: torch.Tensor | None
    ) -> tuple[Any, dict[str, Any]]:
        """Return the mask that the attention implementation takes, and its further arguments."""
        implementation = self.config._attn_implementation
        if packed is None:
            # The mask of keys is the same for all queries: one row is enough if masks are tensors.
            queries = states[:, :1] if implementation in ("eager", "sdpa") else states
            mask = create_bidirectional_mask(self.config, queries, key_mask, encoder_hidden_states=states)
            return mask, {}
        if "flash" in implementation:
            starts = torch.diff(packed[0], prepend=packed.new_full((1,), -1)).nonzero().flatten()
            bounds = torch.cat([starts, starts.new_tensor([packed.shape[1]])]).to(torch.int32)
            longest = int(bounds.diff().max())
            names = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
            return None, dict(zip(names, (bounds, bounds, longest, longest), strict=True))

        def same_cell(batch: Any, head: Any, query: Any, key: Any) -> torch.Tensor:
            return packed[batch, query] == packed[batch, key]

        return create_bidirectional_mask(self.config, states, None, and_mask_function=same_cell), {}

    def _pool(
        self, states: torch.Tensor, input_ids: torch.Tensor, key_mask: torch.Tensor, packed: torch.Tensor | None
    ) -> torch.Tensor:
        config = self.config
        if packed is None:
            first = states[:, 0]
        else:
            first = states[0, torch.diff(packed[0], prepend=packed.new_full((1,), -1)) > 0]
        if config.pooling == "cls":
            return first
        genes = key_mask.clone()
        for special in (config.pad_token_id, config.mask_token_id, config.cls_token_id):
            genes &= input_ids != special
        kept = states * genes.unsqueeze(-1)
        if packed is None:
            total, number = kept.sum(dim=1), genes.sum(dim=1)
        else:
            total = torch.zeros_like(first).index_add(0, packed[0], kept[0])
            number = genes.new_zeros(len(first), dtype=torch.long).index_add(0, packed[0], genes[0].long())
        return torch.where(number[:, None] > 0, total / number[:, None].clamp(min=1), first)

    def _finish(
        self, states: torch.Tensor, mask: torch.Tensor | None, last_places: Sequence[torch.Tensor], **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Compute the last layer for some tokens only."""
        parts = states.chunk(len(last_places))
        masks = [None] * len(parts) if mask is None else mask.chunk(len(parts))
        finished = [
            self.layers[-1](part, part_mask, places, **kwargs)
            for part, part_mask, places in zip(parts, masks, last_places, strict=True)
        ]
        pooled = torch.cat([part[:, 0] for part in finished])
        return BaseModelOutputWithPooling(last_hidden_state=finished[0], pooler_output=pooled)

    def can_choose_places(self, packed: bool) -> bool:
        """Whether the last layer can compute some tokens only (`last_places` of `forward`).

        The cell embedding has to be one of these tokens, and attention has to accept fewer queries than keys.
        """
        chosen = self.config.pooling == "cls" and self.linear_latent is None
        return not packed and chosen and self.config._attn_implementation in ("eager", "sdpa")

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        last_places: Sequence[torch.Tensor] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode cells.

        Parameters
        ----------
        input_ids
            ``<cls>`` and genes by rank, shape (cells, tokens); or packed cells without padding in a single row, shape
            (1, tokens of all cells), with `position_ids`.
        attention_mask
            1 for tokens, 0 for padding, shape (cells, tokens); by default computed from the id of padding. Not for
            packed cells.
        position_ids
            Rank of each token, shape (cells, tokens); by default counted from 0 in each row. In a row of packed cells
            it starts again at 0 with every cell, and tokens attend to their own cell only. FlashAttention and
            FlexAttention skip the work between cells; other implementations mask it and gain nothing by packing.
        last_places
            Places of the tokens that the last layer computes, the first of them that of ``<cls>``. One tensor of shape
            (cells of the part, places) for each of several equal parts of the batch; the last hidden states are those
            of the first part. See `can_choose_places`.

        Returns
        -------
        BaseModelOutputWithPooling
            ``last_hidden_state`` of shape (cells, tokens, hidden size), of at most the configuration's
            ``encoder_tokens``, or (1, tokens of all cells, hidden size);
            ``pooler_output``, the cell embedding, of shape (cells, hidden size): the hidden state of ``<cls>``, or
            the mean over genes (that of ``<cls>`` for a cell without genes); with ``linear_genes`` followed by the
            linear latent, of shape (cells, 2 * hidden size).

        Raises
        ------
        ValueError
            If a cell is longer than the model's positions, an id is not in its vocabulary, a position is negative, or
            packed cells are in several rows or come with an `attention_mask`.
        """
        self._check_input(input_ids, attention_mask, position_ids)
        linear = self._linear(input_ids, attention_mask, position_ids)
        if self.config.encoder_tokens is not None:
            input_ids, attention_mask, position_ids = self._first_tokens(input_ids, attention_mask, position_ids)
        packed = self._packed_cells(input_ids, attention_mask, position_ids)
        if packed is not None:
            key_mask = torch.ones_like(input_ids, dtype=torch.bool)
        elif attention_mask is None:
            key_mask = input_ids != self.config.pad_token_id
        else:
            key_mask = attention_mask.bool()
        states = self.embeddings(input_ids, position_ids)
        attendable = key_mask | ~key_mask.any(dim=1, keepdim=True)
        mask, more = self._attention(states, attendable, packed)
        for layer in self.layers[: None if last_places is None else -1]:
            states = layer(states, mask, **more, **kwargs)
        if last_places is not None:
            return self._finish(states, mask, last_places, **kwargs)
        pooled = self._pool(states, input_ids, key_mask, packed)
        if linear is not None:
            pooled = torch.cat([pooled, linear.to(pooled.dtype)], dim=1)
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=pooled)


def count_cells(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    pad_token_id: int | None,
) -> torch.Tensor:
    """Count the cells of a batch without rows that are all padding, shape ()."""
    if position_ids is not None and attention_mask is None and len(input_ids) == 1:
        return (position_ids == 0).sum()
    mask = input_ids != pad_token_id if attention_mask is None else attention_mask.bool()
    return mask.any(dim=1).sum()


class ScCelloGeneHead(ScCelloHead):
    """Head of masked gene prediction: it transforms hidden states and the embeddings of all tokens in the same way."""

    def compare(
        self,
        states: torch.Tensor,
        embeddings: torch.Tensor,
        labels: torch.Tensor | None,
        tau: float,
        with_logits: bool,
    ) -> tuple[torch.Tensor | None, LossTerms | None]:
        """Score all tokens for some hidden states.

        Parameters
        ----------
        states
            Hidden states, shape (..., hidden size).
        embeddings
            Embeddings of all tokens, shape (vocabulary, hidden size).
        labels
            Ids of the masked tokens, -100 elsewhere; shape (...,).
        with_logits
            Whether to return the scores; otherwise they are never kept in memory.

        Returns
        -------
        logits
            Shape (..., vocabulary), or None.
        terms
            Of the loss, or None without labels.
        """
        genes = scale_representations(self(embeddings), tau)
        if with_logits:
            states = scale_representations(self(states), tau)
            with torch.autocast(states.device.type, enabled=False):
                logits = states @ genes.T
            return logits, None if labels is None else cross_entropy_terms(logits.flatten(0, -2), labels.flatten())
        if labels is None:
            return None, None
        kept = labels != IGNORED
        return None, masked_gene_loss(scale_representations(self(states[kept]), tau), genes, labels[kept])


class ScCelloForPreTraining(ScCelloPreTrainedModel):
    """scCello with its three objectives: masked genes, coherence of cell types (and its regulariser), alignment.

    Prototypes of cell types are learned. Similarity levels and ancestors of these types, from the ontology, are
    buffers that checkpoints contain; `set_ontology` sets them, `add_cell_types` extends them.

    Parameters
    ----------
    config
        The configuration; `cell_types` names the types, and an objective of weight 0 is off.

    Notes
    -----
    During training with dropout, every cell goes through the encoder twice, in one batch; the second pass gives the
    noised representations of the relational alignment. When several processes compute gradients, losses are those of
    all processes' cells (`config.gather_cells`); see `cell_losses.join_losses` for their scale.
    """

    prediction = "cell_representation"
    similarity_levels: torch.Tensor
    ancestor_mask: torch.Tensor

    def __init__(self, config: ScCelloConfig):
        super().__init__(config)
        refuse_part_of_cells(config, self)
        refuse_linear_latent(config, self)
        number = config.num_cell_types
        self.sccello = ScCelloModel(config)
        self.gene_head = ScCelloGeneHead(config)
        self.cell_head = ScCelloHead(config)
        self.prototypes = nn.Embedding(number, config.hidden_size)
        self.affine_projection = nn.Linear(config.hidden_size, config.hidden_size)
        self.register_buffer("similarity_levels", torch.full((number, number), NO_LEVEL, dtype=torch.int32))
        self.register_buffer("ancestor_mask", torch.zeros(number, number, dtype=torch.bool))
        self._checked_ontology: tuple[int, int] | None = None
        self.post_init()

    @property
    def num_cell_types(self) -> int:
        """Number of prototypes."""
        return self.config.num_cell_types or 0

    # ---------------------------------------------------------------- the ontology

    def set_ontology(
        self, similarity_levels: Any, ancestor_mask: Any, cell_types: Sequence[str | None] | None = None
    ) -> None:
        """Set the ontology's tables for the model's cell types.

        Parameters
        ----------
        similarity_levels
            Whole numbers from 0, higher for more similar types, shape (cell types, cell types), in the order of the
            prototypes.
        ancestor_mask
            True where the second type is an ancestor of the first, or equal to it; of the same shape.
        cell_types
            Cell Ontology ids of the prototypes, if the configuration does not name them yet.

        Raises
        ------
        ValueError
            If a table has another size than the prototypes, a negative level, or a type that is not its own ancestor.
        """
        number = self.num_cell_types
        levels, ancestors = _check_tables(similarity_levels, ancestor_mask, number)
        if cell_types is not None:
            if len(cell_types) != number:
                raise ValueError(f"{len(cell_types):,} names for {number:,} prototypes")
            self.config.cell_types = list(cell_types)
        self.similarity_levels.copy_(levels)
        self.ancestor_mask.copy_(ancestors)

    @torch.no_grad()
    def add_cell_types(self, cell_types: Sequence[str | None], similarity_levels: Any, ancestor_mask: Any) -> None:
        """Extend prototypes and tables by cell types.

        A new prototype starts as the mean of the prototypes of the most similar known types (our choice), or at random
        if there are none. Create optimizers after this call.

        Parameters
        ----------
        cell_types
            Cell Ontology ids of the new types.
        similarity_levels, ancestor_mask
            As for `set_ontology`, for all types: those of the model, then the new ones.

        Raises
        ------
        ValueError
            If a type is already known or given twice, or a table has another size than all types.
        """
        config, added = self.config, list(cell_types)
        names = [name for name in [*(config.cell_types or ()), *added] if name is not None]
        twice = sorted({name for name in added if name is not None and names.count(name) > 1})
        if twice:
            raise ValueError(f"the model already has {', '.join(twice[:10])}, or they are given more than once")
        before, after = self.num_cell_types, self.num_cell_types + len(added)
        levels, ancestors = _check_tables(similarity_levels, ancestor_mask, after)
        old = self.prototypes.weight
        grown = nn.Embedding(after, config.hidden_size, device=old.device, dtype=old.dtype)
        grown.weight.requires_grad_(old.requires_grad)
        if before:
            to_known = levels[before:, :before].to(old.device)
            nearest = (to_known == to_known.amax(dim=1, keepdim=True)).to(old.dtype)
            grown.weight[before:] = (nearest / nearest.sum(dim=1, keepdim=True)) @ old
        else:
            grown.weight.normal_(std=config.initializer_range)
        grown.weight[:before] = old
        self.prototypes = grown
        device = self.similarity_levels.device
        self.similarity_levels, self.ancestor_mask = levels.to(device), ancestors.to(device)
        config.num_cell_types, config.cell_types = after, [*(config.cell_types or ()), *added]

    def _check_cell_types(self, cell_type_ids: torch.Tensor) -> None:
        number = self.num_cell_types
        check_labels(
            "cell_type_ids",
            cell_type_ids,
            number,
            "cell types",
            ": extend its prototypes and tables by model.add_cell_types(cell_types, similarity_levels, "
            "ancestor_mask), or give such cells the id -100",
        )
        if torch.compiler.is_compiling() or not self.config.relational_alignment_weight or not number:
            return
        table = self.similarity_levels
        # Tensors of `torch.inference_mode` have no version counter: check them every time.
        version = None if table.is_inference() else (table.data_ptr(), table._version)
        if version is None or version != self._checked_ontology:
            if (table == NO_LEVEL).any():
                raise ValueError(
                    "the relational alignment needs the similarity of cell types, which this model does not have: "
                    "call model.set_ontology(similarity_levels, ancestor_mask) once, or switch the objective off by "
                    "config.relational_alignment_weight = 0"
                )
            self._checked_ontology = version

    # ---------------------------------------------------------------- objectives

    def _aligns(self, cell_type_ids: torch.Tensor | None) -> bool:
        config = self.config
        return cell_type_ids is not None and self.num_cell_types > 0 and config.relational_alignment_weight != 0

    def _alignment_terms(
        self, cells: torch.Tensor, noised: torch.Tensor | None, cell_type_ids: torch.Tensor | None, joined: bool
    ) -> dict[str, LossTerms]:
        """Return the terms of the objective between cells, if it is on."""
        if cell_type_ids is None or not self._aligns(cell_type_ids):
            return {}
        together = gather_cells(cells, cell_type_ids) if joined else GatheredCells(cells, cell_type_ids, 0)
        terms = relational_alignment_loss(
            cells, cell_type_ids, self.similarity_levels, self.ancestor_mask, noised, *together
        )
        return {"relational_alignment_loss": terms}

    def _cell_terms(self, cells: torch.Tensor, cell_type_ids: torch.Tensor | None) -> dict[str, LossTerms]:
        """Return the terms of the cell-type objectives that are on and compare cells with prototypes."""
        config = self.config
        parts: dict[str, LossTerms] = {}
        if cell_type_ids is None or not config.num_cell_types:
            return parts
        table = embedding_rows(self.prototypes, self.num_cell_types, cells.device)
        prototypes = scale_representations(table, config.tau)
        if config.coherence_weight:
            parts["coherence_loss"] = coherence_loss(cells, prototypes, cell_type_ids)
        if config.regularization_weight:
            own = prototypes[cell_type_ids.clamp(min=0)]
            with torch.autocast(own.device.type, enabled=False):
                projected = self.affine_projection(own.to(self.affine_projection.weight.dtype))
            parts["regularization_loss"] = regularization_loss(projected, cells, cell_type_ids)
        return parts

    def _gene_terms(
        self, states: torch.Tensor, labels: torch.Tensor | None, with_logits: bool
    ) -> tuple[torch.Tensor | None, LossTerms | None]:
        """Return scores at masked positions, if wanted, and the terms of masked gene prediction."""
        if not self.config.masked_gene_weight:
            return None, None
        return self.gene_head.compare(states, self.sccello.word_table(states), labels, self.config.tau, with_logits)

    def masked_gene_scores(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the scores of all tokens in place of each ``<mask>``, row by row, shape (masks, vocabulary).

        Parameters
        ----------
        input_ids, attention_mask
            As for `ScCelloModel`.
        """
        states = self.sccello(input_ids, attention_mask).last_hidden_state
        masked = input_ids == self.config.mask_token_id
        embeddings = self.sccello.word_table(states)
        logits, _ = self.gene_head.compare(states[masked], embeddings, None, self.config.tau, True)
        assert logits is not None
        return logits

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        cell_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        return_states: bool | None = None,
        num_items_in_batch: Any = None,
        part: BatchPart | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ScCelloForPreTrainingOutput:
        """Compute the objectives whose labels are given.

        Parameters
        ----------
        input_ids, attention_mask, position_ids
            As for `ScCelloModel`.
        labels
            Ids of masked genes, -100 elsewhere; of the shape of `input_ids`.
        cell_type_ids
            Row of each cell's type in `config.cell_types` (see `ScCelloConfig.cell_type_ids`), shape (cells,); cells
            of -100 train masked gene prediction only.
        return_states
            Whether to return hidden states, and the scores at masked positions (positions with a label; without
            labels, those of ``<mask>``). By default in evaluation only: training saves their memory and most of the
            last layer's work.
        num_items_in_batch
            Labels of the whole step that are not -100 (cells, if there are no labels), over accumulated batches and
            processes, as `transformers.Trainer` counts them; see `cell_losses.join_losses`.
        part
            If the cells are a part of a larger batch (`cached_batches`): losses are the part's shares of those of
            the whole step, without the relational alignment, which `between_cells` computes.

        Raises
        ------
        ValueError
            As for `ScCelloModel`; if a cell type is not in the model, or the ontology's tables are not set.
        """
        if labels is not None:
            check_labels("labels", labels, self.config.vocab_size, "tokens")
        if cell_type_ids is not None:
            self._check_cell_types(cell_type_ids)
        complete = not self.training if return_states is None else return_states
        masked = input_ids == self.config.mask_token_id if labels is None else labels != IGNORED
        noise = self.config.hidden_dropout_prob or self.config.attention_probs_dropout_prob
        twice = bool(self.training and noise and self._aligns(cell_type_ids))
        outputs, masked_states = self._encode(
            input_ids, attention_mask, position_ids, masked, twice, complete, **kwargs
        )
        both = scale_representations(self.cell_head(outputs.pooler_output), self.config.tau)
        cells, noised = both.chunk(2) if twice else (both, None)
        representations = {"cells": cells} if noised is None else {"cells": cells, "noised": noised}
        if part is not None and part.only_encodes:
            return ScCelloForPreTrainingOutput(representations=representations)

        joined = self.config.gather_cells and torch.is_grad_enabled()
        logits, gene_terms = self._gene_terms(masked_states, None if labels is None else labels[masked], complete)
        parts = {} if gene_terms is None else {"masked_gene_loss": gene_terms}
        if part is None:
            parts |= self._alignment_terms(cells, noised, cell_type_ids, joined)
        parts |= self._cell_terms(cells, cell_type_ids)
        number = count_cells(input_ids, attention_mask, position_ids, self.config.pad_token_id)
        if part is None:
            losses = join_losses(parts, count_items(labels, number), num_items_in_batch, joined)
        else:
            losses = part.losses(parts)
        weighted = self._weighted(losses)
        if part is not None:
            weighted.append(part.pull(representations))
        if weighted and every_weight_counts():
            weighted += self._nothing_of(cells, masked_states)
        return ScCelloForPreTrainingOutput(
            loss=torch.stack(weighted).sum() if weighted else None,
            **losses,
            logits=logits,
            cell_representation=cells,
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def between_cells(
        self,
        representations: dict[str, torch.Tensor],
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        cell_type_ids: torch.Tensor | None = None,
        num_items_in_batch: Any = None,
    ) -> WholeBatch:
        """Compute the relational alignment of a batch that is encoded in parts (`cached_batches`).

        Parameters
        ----------
        representations
            Of all cells of the batch, from forward passes with a `BatchPart`.
        input_ids, attention_mask, labels, cell_type_ids, num_items_in_batch
            As for the forward pass; `num_items_in_batch` is needed.
        """
        config = self.config
        cells, noised = representations["cells"], representations.get("noised")
        joined = config.gather_cells
        terms = self._alignment_terms(cells, noised, cell_type_ids, joined)
        counts = {name: of_name.count for name, of_name in terms.items()}
        if labels is not None and config.masked_gene_weight:
            counts["masked_gene_loss"] = (labels != IGNORED).sum()
        if cell_type_ids is not None and config.num_cell_types:
            known = (cell_type_ids != IGNORED).sum()
            counts |= {"coherence_loss": known, "regularization_loss": known}
        number = count_cells(input_ids, attention_mask, None, config.pad_token_id)
        factors = step_factors(counts, count_items(labels, number), num_items_in_batch, joined)
        losses = shares_of_step(terms, factors)
        weighted = self._weighted(losses)
        return WholeBatch(losses, torch.stack(weighted).sum() if weighted else None, factors)

    def _weighted(self, losses: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        return [getattr(self.config, name.replace("_loss", "_weight")) * loss for name, loss in losses.items()]

    def _nothing_of(self, cells: torch.Tensor, states: torch.Tensor) -> list[torch.Tensor]:
        """Return zeros that depend on the weights of all objectives, also of those that are not computed."""
        prototypes = self.prototypes(torch.empty(0, dtype=torch.long, device=cells.device))
        projected = self.affine_projection(prototypes)
        return [nothing.sum() for nothing in (cells[:0], projected, self.gene_head(states[:0]))]

    def _encode(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        masked: torch.Tensor,
        twice: bool,
        complete: bool,
        **kwargs: Any,
    ) -> tuple[BaseModelOutputWithPooling, torch.Tensor]:
        """Encode cells, once or twice in one batch, and take the hidden states at masked positions.

        Cell embeddings are those of all passes, one after the other; the rest of the output is of the first pass. If
        the output need not be complete, the last layer computes only what the objectives use.
        """
        packed = self.sccello._packed_cells(input_ids, attention_mask, position_ids) is not None
        given = [input_ids, attention_mask, position_ids]
        if twice:
            axis = 1 if packed else 0
            given = [None if g is None else torch.cat([g.expand_as(input_ids)] * 2, dim=axis) for g in given]
        asked = any(kwargs.get(name) for name in ("output_hidden_states", "output_attentions"))
        if not complete and not asked and self.sccello.can_choose_places(packed):
            places, filled = _masked_places(masked)
            last = [places, places.new_zeros(len(places), 1)] if twice else [places]
            outputs = self.sccello(*given, last_places=last, **kwargs)
            masked_states = outputs.last_hidden_state[:, 1:][filled]
            outputs.last_hidden_state = None
            return outputs, masked_states
        outputs = self.sccello(*given, **kwargs)
        rows, tokens = input_ids.shape
        outputs.last_hidden_state = outputs.last_hidden_state[:rows, :tokens]
        if outputs.hidden_states is not None:
            outputs.hidden_states = tuple(states[:rows, :tokens] for states in outputs.hidden_states)
        if outputs.attentions is not None:
            outputs.attentions = tuple(weights[:rows, :, :tokens, :tokens] for weights in outputs.attentions)
        return outputs, outputs.last_hidden_state[masked]


@torch.compiler.disable
def _masked_places(masked: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return place 0 and the masked places of every cell, padded by others, and which of them are masked.

    Shapes (cells, 1 + most masked places of a cell), (cells, most masked places of a cell).
    """
    most = int(masked.sum(dim=1).max()) if len(masked) else 0
    places = masked.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
    return nn.functional.pad(places, (1, 0)), masked.gather(1, places)


class ScCelloForMaskedLM(ScCelloPreTrainedModel):
    """Predicts masked genes: scCello with the first of its objectives only.

    Parameters
    ----------
    config
        The configuration.
    """

    def __init__(self, config: ScCelloConfig):
        super().__init__(config)
        refuse_part_of_cells(config, self)
        self.sccello = ScCelloModel(config)
        self.gene_head = ScCelloGeneHead(config)
        self.post_init()

    def masked_gene_scores(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the scores of all tokens in place of each ``<mask>``, row by row, shape (masks, vocabulary).

        Parameters
        ----------
        input_ids, attention_mask
            As for `ScCelloModel`.
        """
        states = self.sccello(input_ids, attention_mask).last_hidden_state
        masked = input_ids == self.config.mask_token_id
        embeddings = self.sccello.word_table(states)
        logits, _ = self.gene_head.compare(states[masked], embeddings, None, self.config.tau, True)
        assert logits is not None
        return logits

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        return_logits: bool | None = None,
        num_items_in_batch: Any = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedLMOutput:
        """Score all tokens at every position.

        Parameters
        ----------
        input_ids, attention_mask, position_ids
            As for `ScCelloModel`.
        labels
            Ids of masked genes, -100 elsewhere; of the shape of `input_ids`.
        return_logits
            Whether to return scores; by default unless the model trains with labels.
        num_items_in_batch
            As for `ScCelloForPreTraining`.

        Returns
        -------
        MaskedLMOutput
            ``loss``, if there are labels, and ``logits`` of shape (cells, tokens, vocabulary): cosines divided by tau.
        """
        if labels is not None:
            check_labels("labels", labels, self.config.vocab_size, "tokens")
        outputs = self.sccello(input_ids, attention_mask, position_ids, **kwargs)
        logits, terms = self.gene_head.compare(
            outputs.last_hidden_state,
            self.sccello.word_table(outputs.last_hidden_state),
            labels,
            self.config.tau,
            with_logits=(not self.training or labels is None) if return_logits is None else return_logits,
        )
        return MaskedLMOutput(
            loss=joined_loss(terms, labels, num_items_in_batch, self.config.gather_cells),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class _ScCelloClassifier(ScCelloPreTrainedModel):
    """Encoder, dropout and a linear layer."""

    encoder_name = "sccello"

    def __init__(self, config: ScCelloConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.sccello = ScCelloModel(config)
        self.dropout = Dropout(config.hidden_dropout_prob)
        size = pooled_size(config) if isinstance(self, ClassifiesCells) else config.hidden_size
        self.classifier = nn.Linear(size, config.num_labels)
        self._add_parts(config)
        self.post_init()

    def _add_parts(self, config: ScCelloConfig) -> None:
        """Add what some of the classifiers have."""


class ScCelloForSequenceClassification(ClassifiesCells, _ScCelloClassifier):
    """Classifies cells, or predicts a value of each, by a linear layer on their embeddings.

    Parameters
    ----------
    config
        The configuration; ``num_labels`` or ``id2label`` give the classes. With ``problem_type="regression"``, or one
        label, it predicts a value; with ``"multi_label_classification"`` each class separately.
    """

    def _add_parts(self, config: ScCelloConfig) -> None:
        self.gene_sums = RankedGeneSums(config) if config.gene_sums else None


class ScCelloForTokenClassification(ClassifiesGenes, _ScCelloClassifier):
    """Classifies the genes of cells by a linear layer on their hidden states.

    Parameters
    ----------
    config
        The configuration; ``num_labels`` or ``id2label`` give the classes.
    """

    def _add_parts(self, config: ScCelloConfig) -> None:
        refuse_part_of_cells(config, self)


def _check_tables(similarity_levels: Any, ancestor_mask: Any, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Check sizes and values of the ontology's tables, and return them as tensors."""
    levels, ancestors = torch.as_tensor(similarity_levels).to(torch.int32), torch.as_tensor(ancestor_mask).bool()
    for name, table in (("similarity_levels", levels), ("ancestor_mask", ancestors)):
        if table.shape != (number, number):
            raise ValueError(f"{name} has shape {tuple(table.shape)} for {number:,} cell types in all")
    if (levels < 0).any():
        raise ValueError("similarity_levels contains a negative level: levels are whole numbers from 0")
    if not ancestors.diagonal().all():
        raise ValueError("ancestor_mask is False on its diagonal: every type has to be an ancestor of itself")
    return levels, ancestors


ScCelloModel.register_for_auto_class("AutoModel")
ScCelloForPreTraining.register_for_auto_class("AutoModelForPreTraining")
ScCelloForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")
ScCelloForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
ScCelloForTokenClassification.register_for_auto_class("AutoModelForTokenClassification")

__all__ = [
    "ScCelloForMaskedLM",
    "ScCelloForPreTraining",
    "ScCelloForPreTrainingOutput",
    "ScCelloForSequenceClassification",
    "ScCelloForTokenClassification",
    "ScCelloModel",
    "ScCelloPreTrainedModel",
]
