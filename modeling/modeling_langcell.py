"""LangCell: cells and texts in one space, and a matcher of both (Zhao et al. 2024, arXiv 2405.06708)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.core_model_loading import WeightRenaming
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .adapter_folders import AdapterFolders
from .cell_losses import (
    IGNORED,
    GatheredCells,
    LossTerms,
    count_items,
    cross_entropy_terms,
    every_weight_counts,
    full_precision,
    gather_cells,
    join_losses,
    masked_gene_loss,
)
from .cell_text_losses import (
    MatchedPairs,
    cell_cell_loss,
    cell_text_loss,
    draw_hard_negatives,
    gather_texts,
    matching_loss,
    number_texts,
    pairs_to_match,
)
from .configuration_langcell import LangCellCellConfig, LangCellConfig, LangCellTextConfig
from .dropout import Dropout
from .label_losses import ONE_CLASS, in_units, label_terms, problem_of
from .model_tasks import Predicts, former_name
from .modeling_sccello import (
    ScCelloEmbeddings,
    ScCelloModel,
    check_labels,
    count_cells,
    eager_attention_forward,
    refuse_to_cut,
)
from .packed_texts import CellKeys, DistinctTexts, PackedTexts, distinct_texts, pack_texts, trim_cells
from .plain_layers import works_alone


logger = logging.get_logger(__name__)

# Pairs of a cell and a text whose hidden states are held at once, by default.
PAIRS_ON_CPU, PAIRS_ON_ACCELERATOR = 32, 512

# Tokens that go through a feed-forward block at once on the CPU where there are no gradients.
TOKENS_AT_ONCE = 512

# Cells whose keys and values are held at once where texts come in several parts.
CELLS_WITH_KEYS = 4


@dataclass
class LangCellTextModelOutput(ModelOutput):
    """Output of `LangCellTextModel`.

    Parameters
    ----------
    last_hidden_state
        Hidden states, shape (texts, tokens, hidden size).
    pooler_output
        Text embedding in text mode: the projection of ``[CLS]``, normalised, float32, shape (texts, projection size).
        None in multimodal mode, where ``[CLS]`` is read by the matching head.
    hidden_states
        Hidden states before the first and after every layer, on request.
    attentions, cross_attentions
        Weights of self-attention and of cross attention of every layer, shape (texts, heads, tokens, tokens of the
        text or the cell), on request under eager.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class LangCellModelOutput(ModelOutput):
    """Output of `LangCellModel`.

    Parameters
    ----------
    last_hidden_state
        Hidden states of cells, shape (cells, tokens, hidden size).
    pooler_output
        Cell embedding, normalised, float32, shape (cells, projection size).
    logits
        Similarity, cosine over tau, shape (cells, texts), where there are texts.
    text_features
        Text embedding, normalised, float32, shape (texts, projection size), where there are texts.
    text_last_hidden_state
        Hidden states of texts, shape (texts, tokens, hidden size), where there are texts.
    hidden_states, attentions
        Of the cell encoder, on request, as for `LangCellCellModel`.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    text_features: torch.Tensor | None = None
    text_last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class LangCellAnnotation(ModelOutput):
    """Output of `LangCellModel.annotate`.

    Parameters
    ----------
    scores
        ``alpha * similarity + (1 - alpha) * matching``; each cell's add up to 1. Shape (cells, classes).
    similarity
        Softmax over classes of cosines over tau, shape (cells, classes).
    matching
        Softmax over classes of the probabilities below, as released; shape (cells, classes).
    matching_probability
        P(match), shape (cells, classes); NaN where a shortlist left it out.
    """

    scores: torch.Tensor | None = None
    similarity: torch.Tensor | None = None
    matching: torch.Tensor | None = None
    matching_probability: torch.Tensor | None = None


@dataclass
class LangCellForPreTrainingOutput(ModelOutput):
    """Output of `LangCellForPreTraining`.

    Parameters
    ----------
    loss
        Sum of the losses below, each times its weight in the configuration, where any could be computed.
    masked_gene_loss
        Cross entropy of masked genes against the vocabulary; 0 where no position is masked.
    cell_cell_loss
        Cross entropy of cells against second passes of all cells.
    cell_text_loss
        Cross entropy of cells against texts and of texts against cells, the mean of both.
    matching_loss
        Cross entropy of the matching head over true pairs and hard negatives.
    hard_negatives
        Number of hard negatives that this process matched, shape (); 0 where all cells share one text.
    logits
        Scores of all tokens at masked positions, shape (masked positions, vocabulary); in training only on request.
    pooler_output
        Cell embedding, normalised, float32, shape (cells, projection size).
    text_features
        Text embedding of each cell's text, normalised, float32, shape (cells, projection size).
    last_hidden_state
        Hidden states of cells, shape (cells, tokens, hidden size).
    hidden_states, attentions
        Of the cell encoder, on request; of both passes where there are two.
    """

    loss: torch.Tensor | None = None
    masked_gene_loss: torch.Tensor | None = None
    cell_cell_loss: torch.Tensor | None = None
    cell_text_loss: torch.Tensor | None = None
    matching_loss: torch.Tensor | None = None
    hard_negatives: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    text_features: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


# -------------------------------------------------------------------- the cell encoder


class LangCellCellModel(ScCelloModel):
    """Cell encoder: scCello's network over the same tokens, with LangCell's sizes and projection.

    Parameters
    ----------
    config
        The configuration of the cell encoder.
    add_projection
        Whether the cell embedding is the normalised projection; otherwise it is the pooled hidden state.
    """

    config: LangCellCellConfig
    config_class = LangCellCellConfig
    base_model_prefix = "cell_model"
    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", r"^matching_head\.", r"^gene_head\."]

    def __init__(self, config: LangCellCellConfig, add_projection: bool = True):
        super().__init__(config)
        self.projection = nn.Linear(config.hidden_size, config.projection_dim) if add_projection else None
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode cells.

        Parameters
        ----------
        input_ids
            ``<cls>`` and genes by rank, shape (cells, tokens); or packed, as for `ScCelloModel`.
        attention_mask
            1 where there is a token, shape (cells, tokens); by default where `input_ids` is not padding.
        position_ids
            Ranks, as for `ScCelloModel`.

        Returns
        -------
        BaseModelOutputWithPooling
            ``last_hidden_state`` of shape (cells, tokens, hidden size); ``pooler_output``, the cell embedding:
            normalised, float32, shape (cells, projection size).
        """
        outputs = super().forward(input_ids, attention_mask, position_ids, **kwargs, return_dict=True)
        if self.projection is not None:
            outputs.pooler_output = normalized(self.projection(outputs.pooler_output))
        return outputs


@full_precision
def normalized(states: torch.Tensor) -> torch.Tensor:
    """Normalise states, shape (..., size), in float32 where they are of lower precision."""
    return nn.functional.normalize(states.to(torch.promote_types(states.dtype, torch.float32)), dim=-1)


# -------------------------------------------------------------------- the text encoder


class LangCellTextAttention(nn.Module):
    """Multi-head attention of text tokens, onto their text or onto a cell.

    Parameters
    ----------
    config
        The configuration of the text encoder.
    key_value_size
        Size of the hidden states that keys and values project from.
    """

    def __init__(self, config: LangCellTextConfig, key_value_size: int):
        super().__init__()
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
        """Shape (rows, tokens, hidden size) to (rows, heads, tokens, size of a head)."""
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def key_value(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values of hidden states, shape (rows, heads, tokens, size of a head) each."""
        return self.split_heads(self.k_proj(states)), self.split_heads(self.v_proj(states))

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend by the configured implementation.

        Parameters
        ----------
        query, key, value
            Shape (rows, heads, tokens, size of a head).
        mask
            As the implementation takes it.

        Returns
        -------
        context
            Shape (rows, queries, hidden size).
        weights
            Shape (rows, heads, queries, keys), None where the implementation gives none.
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
        mask: Any = None,
        key_value: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend from tokens, shape (rows, tokens, hidden size), to their text or to given keys and values."""
        key, value = self.key_value(hidden_states) if key_value is None else key_value
        context, weights = self.attend(self.split_heads(self.q_proj(hidden_states)), key, value, mask, **kwargs)
        return self.o_proj(context), weights

    def forward_packed(self, hidden_states: torch.Tensor, texts: PackedTexts, first_only: bool) -> torch.Tensor:
        """Attend from packed tokens to their text, one run of equal lengths after the other.

        Parameters
        ----------
        hidden_states
            Shape (cells, tokens of all texts, hidden size).
        texts
            What stands where.
        first_only
            Whether only the first token of every text asks; the result then has shape (cells, texts, hidden size).
        """
        asking = hidden_states[:, texts.starts] if first_only else hidden_states
        query, key, value = self.q_proj(asking), self.k_proj(hidden_states), self.v_proj(hidden_states)
        pieces, text = [], 0
        for start, stop, number, length in texts.runs():
            of_queries, queries = ((text, text + number), 1) if first_only else ((start, stop), length)
            pieces.append(
                self.attend(
                    self._rows(query[:, slice(*of_queries)], queries),
                    self._rows(key[:, start:stop], length),
                    self._rows(value[:, start:stop], length),
                    None,
                )[0].reshape(len(query), -1, query.shape[-1])
            )
            text += number
        return self.o_proj(torch.cat(pieces, dim=1))

    def _rows(self, states: torch.Tensor, length: int) -> torch.Tensor:
        """Shape (cells, texts * length, hidden size) to (cells * texts, heads, length, size of a head)."""
        return self.split_heads(states.reshape(-1, length, states.shape[-1]))


class LangCellTextLayer(GradientCheckpointingLayer):
    """Self-attention, cross attention onto cells where there are some, feed-forward block.

    Each has dropout, residual and layer norm after it, as in BERT.

    Parameters
    ----------
    config
        The configuration of the text encoder.
    """

    def __init__(self, config: LangCellTextConfig):
        super().__init__()
        size, eps = config.hidden_size, config.layer_norm_eps
        self.self_attn = LangCellTextAttention(config, size)
        self.norm_attention = nn.LayerNorm(size, eps=eps)
        self.cross_attn = LangCellTextAttention(config, config.encoder_hidden_size)
        self.norm_cross_attention = nn.LayerNorm(size, eps=eps)
        self.fc1 = nn.Linear(size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, size)
        self.norm_feed_forward = nn.LayerNorm(size, eps=eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def read_text(self, hidden_states: torch.Tensor, texts: PackedTexts, first_only: bool = False) -> torch.Tensor:
        """Attend from packed tokens to their texts; the block of self-attention."""
        attended = self.self_attn.forward_packed(hidden_states, texts, first_only)
        if first_only:
            hidden_states = hidden_states[:, texts.starts]
        return self.norm_attention(hidden_states + self.dropout(attended))

    def read_cell(
        self, hidden_states: torch.Tensor, key_value: tuple[torch.Tensor, torch.Tensor], mask: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Attend from tokens to the keys and values of cells; the block of cross attention."""
        attended, _ = self.cross_attn(hidden_states, mask, key_value, **kwargs)
        return self.norm_cross_attention(hidden_states + self.dropout(attended))

    def feed_forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Apply the feed-forward block."""
        processed = self.fc2(self.activation(self.fc1(hidden_states)))
        return self.norm_feed_forward(hidden_states + self.dropout(processed))

    def feed_forward_in_parts(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Apply the feed-forward block; on the CPU without gradients to some tokens at a time, for its wide states."""
        if torch.is_grad_enabled() or hidden_states.device.type != "cpu":
            return self.feed_forward(hidden_states)
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        result = torch.empty_like(tokens)
        for part, into in zip(tokens.split(TOKENS_AT_ONCE), result.split(TOKENS_AT_ONCE), strict=True):
            into.copy_(self.feed_forward(part))
        return result.view_as(hidden_states)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Any = None,
        cell_states: torch.Tensor | None = None,
        cell_mask: Any = None,
        cell_rows: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Process tokens, shape (texts, tokens, hidden size).

        Parameters
        ----------
        hidden_states
            Of the tokens.
        attention_mask, cell_mask
            Masks of text and cell, as the implementation of attention takes them.
        cell_states
            Hidden states of cells, shape (cells, tokens, size); the block of cross attention is off without them.
        cell_rows
            Cell of each text, shape (texts,); by default text i reads cell i.
        """
        attended, _ = self.self_attn(hidden_states, attention_mask, **kwargs)
        hidden_states = self.norm_attention(hidden_states + self.dropout(attended))
        if cell_states is not None:
            key, value = self.cross_attn.key_value(cell_states)
            if cell_rows is not None:
                key, value = key[cell_rows], value[cell_rows]
            hidden_states = self.read_cell(hidden_states, (key, value), cell_mask, **kwargs)
        return self.feed_forward(hidden_states)


class LangCellPreTrainedModel(Predicts, AdapterFolders, PreTrainedModel):
    """Base of the LangCell models: initialisation as BERT's, and what the library has to know."""

    config: LangCellConfig
    config_class = LangCellConfig
    base_model_prefix = "langcell"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ScCelloEmbeddings", "ScCelloLayer", "LangCellTextLayer"]
    _supports_sdpa = True
    _supports_flash_attn = False
    _supports_flex_attn = False
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            init.normal_(module.weight, std=self.config.initializer_range)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)
        elif isinstance(module, LangCellGeneHead):
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Add tokens of cells after the last, or take such tokens away again; the model's own keep their ids.

        Tokens of texts are added by ``text_model.resize_token_embeddings``.

        Parameters
        ----------
        new_num_tokens, *args, **kwargs
            As for other models.

        Raises
        ------
        NotImplementedError
            If tokens of the model would be cut off.
        """
        if getattr(self.config, "cls_token_id", None) is not None:
            refuse_to_cut(self.config, new_num_tokens)
        return super().resize_token_embeddings(new_num_tokens, *args, **kwargs)


class LangCellTextModel(LangCellPreTrainedModel):
    """Text encoder: a BERT whose layers can also attend to cells.

    In *text mode* the blocks of cross attention are off, and the text embedding is the normalised projection of
    ``[CLS]``. In *multimodal mode* they read the hidden states of cells.

    Parameters
    ----------
    config
        The configuration of the text encoder.
    """

    config: LangCellTextConfig
    config_class = LangCellTextConfig
    prediction = "pooler_output"
    base_model_prefix = "text_model"
    _keys_to_ignore_on_load_unexpected = [r"^cell_model\.", r"^matching_head\.", r"^gene_head\."]
    _can_record_outputs = {
        "hidden_states": LangCellTextLayer,
        "attentions": OutputRecorder(LangCellTextAttention, index=1, layer_name="self_attn"),
        "cross_attentions": OutputRecorder(LangCellTextAttention, index=1, layer_name="cross_attn"),
    }

    def __init__(self, config: LangCellTextConfig):
        super().__init__(config)
        self.embeddings = ScCelloEmbeddings(config)
        self.layers = nn.ModuleList(LangCellTextLayer(config) for _ in range(config.num_hidden_layers))
        self.projection = nn.Linear(config.hidden_size, config.projection_dim)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the embeddings of tokens."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embeddings of tokens."""
        self.embeddings.word_embeddings = value

    def key_mask(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Return where there is a token, shape (texts, tokens), once the texts have been looked at.

        Raises
        ------
        ValueError
            If a text is longer than the model's positions, begins with padding, or holds an id beyond the vocabulary.
        """
        config, tokens = self.config, input_ids.shape[1]
        if tokens > config.max_position_embeddings:
            raise ValueError(
                f"texts of {tokens:,} tokens, but this model has positions for {config.max_position_embeddings:,}: "
                f"tokenize with truncation=True, max_length={config.max_position_embeddings}"
            )
        mask = input_ids != config.pad_token_id if attention_mask is None else attention_mask.bool()
        if input_ids.device.type != "cpu" or torch.compiler.is_compiling() or input_ids.numel() == 0:
            return mask
        low, high = int(input_ids.min()), int(input_ids.max())
        if low < 0 or high >= config.vocab_size:
            raise ValueError(
                f"the texts hold the id {low if low < 0 else high:,}, but this model's text encoder has "
                f"vocab_size={config.vocab_size:,}: do tokenizer and model belong together?"
            )
        padded = mask.any(dim=1) & ~mask[:, 0]
        if padded.any():
            raise ValueError(f"text {int(padded.nonzero()[0])} is padded on the left: it has to begin with [CLS]")
        return mask

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        cell_hidden_states: torch.Tensor | None = None,
        cell_attention_mask: torch.Tensor | None = None,
        cell_rows: torch.LongTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LangCellTextModelOutput:
        """Encode texts, alone or reading cells.

        Parameters
        ----------
        input_ids, attention_mask
            Tokens, ``[CLS]`` first, and 1 where there is one; shape (texts, tokens).
        cell_hidden_states
            Hidden states of the cell encoder, shape (cells, tokens, size): multimodal mode.
        cell_attention_mask
            1 where there is a token of the cell, shape (cells, tokens).
        cell_rows
            Cell of each text, shape (texts,); by default text i reads cell i. A cell's keys and values are computed
            once however many texts read it.
        token_type_ids
            What BERT's tokenizers give; all 0, as there are no token types.

        Raises
        ------
        ValueError
            As `key_mask`; if a token type is not 0, or cells and texts do not fit together.
        """
        key_mask = self.key_mask(input_ids, attention_mask)
        if token_type_ids is not None and input_ids.device.type == "cpu" and token_type_ids.any():
            raise ValueError("token_type_ids holds a second type: LangCell's text encoder knows one text at a time")
        states = self.embeddings(input_ids)
        mask = self._mask(states, states, key_mask)
        cell_mask = None
        if cell_hidden_states is not None:
            if cell_rows is None and len(cell_hidden_states) != len(input_ids):
                raise ValueError(
                    f"{len(input_ids):,} texts and {len(cell_hidden_states):,} cells: pass cell_rows, the cell that "
                    "each text reads"
                )
            cell_mask = self._cell_mask(states, cell_hidden_states, cell_attention_mask, cell_rows)
        for layer in self.layers:
            states = layer(states, mask, cell_hidden_states, cell_mask, cell_rows, **kwargs)
        pooled = normalized(self.projection(states[:, 0])) if cell_hidden_states is None else None
        return LangCellTextModelOutput(last_hidden_state=states, pooler_output=pooled)

    def _mask(self, queries: torch.Tensor, keys: torch.Tensor, key_mask: torch.Tensor | None) -> Any:
        """Return the mask of keys; one row of it, as it is the same for all queries."""
        if key_mask is None:
            return None
        attendable = key_mask | ~key_mask.any(dim=1, keepdim=True)
        return create_bidirectional_mask(self.config, queries[:, :1], attendable, encoder_hidden_states=keys)

    def _cell_mask(
        self, states: torch.Tensor, cells: torch.Tensor, mask: torch.Tensor | None, rows: torch.Tensor | None
    ) -> Any:
        if mask is None:
            return None
        if rows is not None:
            mask, cells = mask[rows], cells[:1].expand(len(rows), -1, -1)
        return self._mask(states, cells, mask.bool())

    # ---------------------------------------------------------------- many texts, without padding

    def read_texts(self, texts: PackedTexts) -> torch.Tensor:
        """Return packed texts after the first layer's self-attention, which no cell has a part in.

        Returns
        -------
        torch.Tensor
            Shape (1, tokens of all texts, hidden size); of first tokens alone, where there is one layer only.
        """
        states = self.embeddings(texts.tokens[None], texts.positions[None])
        return self.layers[0].read_text(states, texts, first_only=len(self.layers) == 1)

    def select_texts(
        self, texts: PackedTexts, states: torch.Tensor, rows: list[int]
    ) -> tuple[PackedTexts, torch.Tensor]:
        """Return some of packed texts, and of what `read_texts` gave for them.

        Parameters
        ----------
        texts, states
            Packed texts, and their states.
        rows
            Numbers of texts, ascending.
        """
        if len(rows) == len(texts.lengths):
            return texts, states
        some, places = texts.select(rows)
        return some, states[:, rows if len(self.layers) == 1 else places]

    def finish(self, states: torch.Tensor, texts: PackedTexts, cells: CellKeys | None = None) -> torch.Tensor:
        """Take texts from there through all layers, reading cells where there are some.

        Parameters
        ----------
        states
            What `read_texts` gives.
        texts
            What stands where.
        cells
            Cells to be read, each by all texts.

        Returns
        -------
        torch.Tensor
            Last hidden states of first tokens, shape (cells or 1, texts, hidden size). The last layer is computed for
            them alone.
        """
        last, mask = len(self.layers) - 1, None
        if cells is not None:
            states = states.expand(cells.number, -1, -1)
            mask = self._mask(states, cells.states, cells.mask)
        for number, layer in enumerate(self.layers):
            if number:
                states = layer.read_text(states, texts, first_only=number == last)
            if cells is not None:
                states = layer.read_cell(states, cells.of_layer(number), mask)
            states = layer.feed_forward_in_parts(states)
        return states

    def encode_texts(self, input_ids: torch.Tensor, key_mask: torch.Tensor, texts_at_once: int) -> torch.Tensor:
        """Return text embeddings, shape (texts, projection size), computed without padding in parts."""
        order = key_mask.sum(dim=1).argsort(stable=True)
        parts = [pack_texts(input_ids, key_mask, rows) for rows in order.split(texts_at_once)]
        firsts = torch.cat([self.finish(self.read_texts(part), part)[0] for part in parts])
        return normalized(self.projection(firsts))[order.argsort()]


# -------------------------------------------------------------------- both


class LangCellModel(LangCellPreTrainedModel):
    """Both encoders and the matching head: similarity, matching, zero-shot annotation.

    Parameters
    ----------
    config
        The configuration.
    """

    prediction = "pooler_output"
    _keys_to_ignore_on_load_unexpected = [r"^gene_head\.", r"^pooler\.", r"^classifier\."]

    def __init__(self, config: LangCellConfig):
        super().__init__(config)
        self.cell_model = LangCellCellModel(config.cell_config)
        self.text_model = LangCellTextModel(config.text_config)
        self.matching_head = nn.Linear(config.text_config.hidden_size, 2)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the embeddings of genes."""
        return self.cell_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embeddings of genes."""
        self.cell_model.set_input_embeddings(value)

    # ---------------------------------------------------------------- what is trained

    def freeze_cell_encoder(self, frozen: bool = True, projection: bool = False) -> None:
        """Take the cell encoder out of training, or back in.

        Parameters
        ----------
        frozen
            Whether its weights stay as they are.
        projection
            Whether this holds for its projection, too; it goes on learning by default (our choice).
        """
        self.cell_model.requires_grad_(not frozen)
        if not projection and self.cell_model.projection is not None:
            self.cell_model.projection.requires_grad_(True)

    def freeze_text_encoder(
        self, frozen: bool = True, projection: bool = False, cross_attention: bool = False
    ) -> None:
        """Take the text encoder out of training, or back in.

        Parameters
        ----------
        frozen
            Whether the weights that a BERT has stay as they are.
        projection, cross_attention
            Whether this holds for the projection and for the blocks of cross attention, too. They go on learning by
            default (our choice): a plain BERT has neither.
        """
        self.text_model.requires_grad_(not frozen)
        if not projection:
            self.text_model.projection.requires_grad_(True)
        if not cross_attention:
            for layer in self.text_model.layers:
                layer.cross_attn.requires_grad_(True)
                layer.norm_cross_attention.requires_grad_(True)

    # ---------------------------------------------------------------- embeddings

    def get_cell_features(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return cell embeddings, normalised, float32, shape (cells, projection size).

        Parameters
        ----------
        input_ids, attention_mask
            As for `LangCellCellModel`.
        """
        return self.cell_model(input_ids, attention_mask).pooler_output

    def get_text_features(
        self,
        text_input_ids: torch.LongTensor,
        text_attention_mask: torch.Tensor | None = None,
        texts_at_once: int | None = None,
    ) -> torch.Tensor:
        """Return text embeddings, normalised, float32, shape (texts, projection size).

        Identical texts are computed once, and no padding is.

        Parameters
        ----------
        text_input_ids, text_attention_mask
            As for `LangCellTextModel`, in text mode.
        texts_at_once
            Texts whose hidden states are held at once; by default 32 on the CPU, 512 elsewhere.
        """
        texts = self._texts(text_input_ids, text_attention_mask)
        number = texts_at_once or self._pairs_by_default(text_input_ids)
        return self.text_model.encode_texts(texts.input_ids, texts.key_mask, number)[texts.inverse]

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        text_input_ids: torch.LongTensor | None = None,
        text_attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LangCellModelOutput:
        """Encode cells, and texts where there are some, and compare them.

        Parameters
        ----------
        input_ids, attention_mask
            As for `LangCellCellModel`.
        text_input_ids, text_attention_mask
            As for `LangCellTextModel`, in text mode.
        """
        cells = self.cell_model(input_ids, attention_mask, **kwargs)
        texts = logits = None
        if text_input_ids is not None:
            texts = self.text_model(text_input_ids, text_attention_mask)
            logits = cells.pooler_output @ texts.pooler_output.T / self.config.tau
        return LangCellModelOutput(
            last_hidden_state=cells.last_hidden_state,
            pooler_output=cells.pooler_output,
            logits=logits,
            text_features=None if texts is None else texts.pooler_output,
            text_last_hidden_state=None if texts is None else texts.last_hidden_state,
            hidden_states=cells.hidden_states,
            attentions=cells.attentions,
        )

    # ---------------------------------------------------------------- matching

    def match(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        text_input_ids: torch.LongTensor | None = None,
        text_attention_mask: torch.Tensor | None = None,
        pairs_at_once: int | None = None,
    ) -> torch.Tensor:
        """Return P(match) of every cell with every text.

        The scores of running every pair, with what pairs share computed once: a cell's keys and values in each layer
        for all texts; embeddings and first self-attention of texts for all cells (for groups of 4 cells where texts
        come in several parts); identical texts; no padding; in the last layer ``[CLS]`` alone. Differentiable.

        Parameters
        ----------
        input_ids, attention_mask
            Cells, as for `LangCellCellModel`.
        text_input_ids, text_attention_mask
            Texts, as for `LangCellTextModel`.
        pairs_at_once
            Pairs whose hidden states are held at once, by default 32 on the CPU, 512 elsewhere: memory does not
            grow with the number of texts.

        Returns
        -------
        torch.Tensor
            Shape (cells, texts), float32.

        Raises
        ------
        ValueError
            If there are no texts.
        """
        texts = self._texts(text_input_ids, text_attention_mask)
        cells = self.cell_model(input_ids, attention_mask)
        key_mask = self._cell_key_mask(input_ids, attention_mask)
        pairs = pairs_at_once or self._pairs_by_default(input_ids)
        return self._match(cells.last_hidden_state, key_mask, texts, None, pairs)[:, texts.inverse]

    @torch.no_grad()
    def annotate(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        text_input_ids: torch.LongTensor | None = None,
        text_attention_mask: torch.Tensor | None = None,
        alpha: float = 0.1,
        *,
        text_class_ids: torch.LongTensor | None = None,
        text_features: torch.Tensor | None = None,
        shortlist: int | None = None,
        pairs_at_once: int | None = None,
    ) -> LangCellAnnotation:
        """Annotate cells with classes that are described by texts, as released.

        Similarity is the softmax over classes of cosines over tau. Matching is the softmax over classes of P(match): a
        softmax of probabilities, part of the published numbers.

        Parameters
        ----------
        input_ids, attention_mask
            Cells, as for `LangCellCellModel`.
        text_input_ids, text_attention_mask
            Texts of the classes, as for `LangCellTextModel`. Identical ones are asked once.
        alpha
            Weight of similarity, from 0 to 1; that of matching is ``1 - alpha``. 0.1 as released.
        text_class_ids
            Class of each text, counted from 0, where classes have several, shape (texts,): cosines and P(match) are
            averaged in each class before the softmaxes (our choice). By default every text is a class.
        text_features
            What `get_text_features` gave for these texts, shape (texts, projection size).
        shortlist
            Match a cell only with so many classes, those of the highest similarity. The others count as P(match) = 0
            (our choice): their scores stay above 0 and in the order of their similarity.
        pairs_at_once
            As for `match`.

        Returns
        -------
        LangCellAnnotation
            ``scores``, ``similarity``, ``matching``, ``matching_probability``, each float32 of shape (cells, classes).

        Raises
        ------
        ValueError
            If there are no texts, a class has none, or a setting is out of bounds.
        """
        texts = self._texts(text_input_ids, text_attention_mask)
        classes = _check_classes(text_class_ids, len(texts.inverse), texts.inverse.device)
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha={alpha}: the weight of similarity is from 0 to 1")
        if shortlist is not None and shortlist < 1:
            raise ValueError(f"shortlist={shortlist}: at least one class has to be matched")
        pairs = pairs_at_once or self._pairs_by_default(input_ids)
        if text_features is None:
            text_features = self.get_text_features(text_input_ids, text_attention_mask, pairs)
        elif len(text_features) != len(texts.inverse):
            raise ValueError(f"{len(text_features):,} text_features for {len(texts.inverse):,} texts")
        _say_duplicates(texts, classes)
        cells = self.cell_model(input_ids, attention_mask)
        logits = cells.pooler_output @ text_features.to(cells.pooler_output).T / self.config.tau
        logits = _mean_by_class(logits, classes)
        asked, wanted = _shortlisted(logits, shortlist), None
        if asked is not None:
            none = logits.new_zeros(len(logits), len(texts.input_ids))
            wanted = none.index_add(1, texts.inverse, asked[:, classes].to(none)) > 0
        key_mask = self._cell_key_mask(input_ids, attention_mask)
        matched = self._match(cells.last_hidden_state, key_mask, texts, wanted, pairs)[:, texts.inverse]
        probability = _mean_by_class(matched, classes)
        if asked is not None:
            probability = probability.masked_fill(~asked, float("nan"))
        similarity, matching = logits.softmax(dim=1), probability.nan_to_num(nan=0.0).softmax(dim=1)
        return LangCellAnnotation(
            scores=alpha * similarity + (1 - alpha) * matching,
            similarity=similarity,
            matching=matching,
            matching_probability=probability,
        )

    @staticmethod
    def _pairs_by_default(input_ids: torch.Tensor) -> int:
        return PAIRS_ON_CPU if input_ids.device.type == "cpu" else PAIRS_ON_ACCELERATOR

    def _cell_key_mask(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        mask = input_ids != self.config.pad_token_id if attention_mask is None else attention_mask.bool()
        return mask | ~mask.any(dim=1, keepdim=True)

    def _texts(self, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None) -> DistinctTexts:
        if input_ids is None or len(input_ids) == 0:
            raise ValueError("no candidates: pass the texts of at least one class as text_input_ids")
        key_mask = self.text_model.key_mask(input_ids, attention_mask)
        empty = ~key_mask.any(dim=1)
        if bool(empty.any()):
            raise ValueError(
                f"text {int(empty.nonzero()[0])} of {len(empty):,} is empty: every class needs a description"
            )
        return distinct_texts(input_ids, key_mask)

    def _match(
        self,
        states: torch.Tensor,
        key_mask: torch.Tensor,
        texts: DistinctTexts,
        wanted: torch.Tensor | None,
        pairs_at_once: int,
    ) -> torch.Tensor:
        """Return P(match) of cells with distinct texts; 0 where it is not wanted."""
        model, head = self.text_model, self.matching_head
        order = texts.key_mask.sum(dim=1).argsort(stable=True)
        if wanted is not None:
            order = order[wanted[:, order].any(dim=0)]
        parts = order.split(pairs_at_once)
        at_once = 1 if wanted is not None else max(1, pairs_at_once // len(parts[0]))
        steps = key_mask.sum(dim=1).argsort(stable=True).split(at_once)
        group = max(1, CELLS_WITH_KEYS // at_once) if len(parts) > 1 else len(steps)
        result = torch.zeros(len(states), len(texts.input_ids), device=states.device)
        for first in range(0, len(steps), group):
            several = steps[first : first + group]
            keys = [CellKeys(model.layers, *trim_cells(states[c], key_mask[c]), keep=len(parts) > 1) for c in several]
            for rows in parts:
                part = pack_texts(texts.input_ids, texts.key_mask, rows)
                read = model.read_texts(part)
                for cells, of_cells in zip(several, keys, strict=True):
                    asked, some, begun = rows, part, read
                    if wanted is not None:
                        picked = wanted[cells[0], rows].nonzero().flatten()
                        if not len(picked):
                            continue
                        asked, (some, begun) = rows[picked], model.select_texts(part, read, picked.tolist())
                    logits = _in_float32(head, model.finish(begun, some, of_cells))
                    result[cells[:, None], asked] = logits.softmax(dim=-1)[..., 1]
        return result


def _in_float32(layer: nn.Linear, states: torch.Tensor) -> torch.Tensor:
    """Apply a layer in float32: in bfloat16 classes that are close would come out the same."""
    if not works_alone(layer):  # an adapter is on it, or its weights are kept elsewhere
        return layer(states).float()
    return nn.functional.linear(states.float(), layer.weight.float(), layer.bias.float())


def _check_classes(given: torch.Tensor | None, number: int, device: torch.device) -> torch.Tensor:
    if given is None:
        return torch.arange(number, device=device)
    classes = torch.as_tensor(given, device=device)
    if classes.shape != (number,):
        raise ValueError(f"text_class_ids has shape {tuple(classes.shape)} for {number:,} texts")
    counts = torch.bincount(classes) if bool((classes >= 0).all()) else classes.new_zeros(1)
    if not bool((counts > 0).all()):
        raise ValueError("text_class_ids: classes are counted from 0, and each has at least one text")
    return classes


def _say_duplicates(texts: DistinctTexts, classes: torch.Tensor) -> None:
    """Say that classes share their text, where they do."""
    distinct, number = len(texts.input_ids), len(texts.inverse)
    pairs = torch.stack([texts.inverse, classes], dim=1).unique(dim=0)
    if len(pairs) > distinct:
        logger.warning_once(
            f"{number:,} texts, but {distinct:,} distinct ones: classes that share a text are asked once, get the "
            "same score, and cannot be told apart."
        )


def _mean_by_class(values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Average columns (cells, texts) by class."""
    number = int(classes.max()) + 1
    counts = torch.bincount(classes, minlength=number)
    return values.new_zeros(len(values), number).index_add(1, classes, values) / counts


def _shortlisted(logits: torch.Tensor, shortlist: int | None) -> torch.Tensor | None:
    """Return which classes are to be matched, None where all are; shape (cells, classes)."""
    if shortlist is None or shortlist >= logits.shape[1]:
        return None
    top = logits.topk(shortlist, dim=1).indices
    return torch.zeros_like(logits, dtype=torch.bool).scatter(1, top, True)


# -------------------------------------------------------------------- heads


class LangCellGeneHead(nn.Module):
    """BERT's prediction head: linear, activation, layer norm, products with the embeddings of tokens, and a bias.

    Parameters
    ----------
    config
        The configuration of the cell encoder.

    Notes
    -----
    The paper does not say which head masked gene modelling has; this one is our choice.
    """

    def __init__(self, config: LangCellCellConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(
        self, states: torch.Tensor, embeddings: torch.Tensor, labels: torch.Tensor | None, with_logits: bool
    ) -> tuple[torch.Tensor | None, LossTerms | None]:
        """Score all tokens for some hidden states.

        Parameters
        ----------
        states
            Hidden states, shape (positions, hidden size).
        embeddings
            Embeddings of all tokens, shape (vocabulary, hidden size).
        labels
            Ids of the tokens looked for, shape (positions,).
        with_logits
            Whether to give the scores; without them they are never kept in memory.

        Returns
        -------
        logits
            Shape (positions, vocabulary), float32, where wanted.
        terms
            Of the loss, where labels are given.
        """
        states = self.transform(states)
        with torch.autocast(states.device.type, enabled=False):
            # The bias is one more dimension, of which every state holds 1.
            states = nn.functional.pad(states.float(), (0, 1), value=1.0)
            genes = torch.cat([embeddings, self.bias[:, None]], dim=1).float()
            if not with_logits:
                return None, None if labels is None else masked_gene_loss(states, genes, labels)
            logits = states @ genes.T
        return logits, None if labels is None else cross_entropy_terms(logits, labels)

    def transform(self, states: torch.Tensor) -> torch.Tensor:
        """Transform hidden states to what is compared with embeddings, shape (positions, hidden size)."""
        return self.norm(self.activation(self.dense(states)))

    def resize(self, number: int) -> None:
        """Fit the bias to a number of tokens; that of new ones is 0."""
        kept = self.bias[:number]
        grown = nn.functional.pad(kept.detach(), (0, number - len(kept)))
        self.bias = nn.Parameter(grown, requires_grad=self.bias.requires_grad)


class LangCellForPreTraining(LangCellModel):
    """LangCell with its objectives: masked genes, cell-cell, cell-text, cell-text matching.

    In stage 1 (`set_stage`) the cell encoder learns alone, by the first two; in stage 2 all four are summed.

    Parameters
    ----------
    config
        The configuration; weights of objectives switch them off.

    Notes
    -----
    As published: the four objectives, their sum, two stages, hard negatives in proportion to similarity. Our choices,
    as the pretraining code was not released: weights 1, the head of masked genes, no momentum queue, both passes see
    the cell as it is given (with masked genes masked), masked genes are predicted in the first.

    While the model trains with dropout, every cell goes through the encoder twice, in one batch. A pair of a cell and
    a text is matched by the process that holds the cell, so that hidden states stay where they are. Where gradients
    are computed on several processes, losses are those of all processes' cells (`config.gather_cells`);
    `cell_losses.join_losses` says how they scale.
    """

    _keys_to_ignore_on_load_unexpected = [r"^pooler\.", r"^classifier\."]

    def __init__(self, config: LangCellConfig):
        super().__init__(config)
        self.gene_head = LangCellGeneHead(config.cell_config)
        self.post_init()
        if config.stage == 1:
            self.set_stage(1)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Add tokens of cells, as for the other models, and their biases in the head of masked genes."""
        embeddings = super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        self.gene_head.resize(embeddings.num_embeddings)
        return embeddings

    def set_stage(self, stage: int) -> None:
        """Choose the stage of pretraining; in stage 1 the text encoder and the matching head are frozen.

        Parameters
        ----------
        stage
            1, the cell encoder alone; 2, all objectives. Going from 1 to 2 lets all of the text encoder learn.

        Raises
        ------
        ValueError
            If there is no such stage.
        """
        if stage not in (1, 2):
            raise ValueError(f"stage {stage}: it is 1 (the cell encoder alone) or 2 (all objectives)")
        self.config.stage = stage
        self.text_model.requires_grad_(stage == 2)
        self.matching_head.requires_grad_(stage == 2)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        text_input_ids: torch.LongTensor | None = None,
        text_attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        text_ids: torch.LongTensor | None = None,
        return_logits: bool | None = None,
        num_items_in_batch: Any = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LangCellForPreTrainingOutput:
        """Compute the objectives that there are inputs for.

        Parameters
        ----------
        input_ids, attention_mask
            Cells, as for `LangCellCellModel`, masked genes replaced.
        text_input_ids, text_attention_mask
            Text of each cell, shape (cells, tokens); not read in stage 1.
        labels
            Ids of masked genes, -100 elsewhere; of the shape of `input_ids`.
        text_ids
            Number of each cell's text, the same for the same text on all processes, -100 for cells without one; shape
            (cells,). By default texts of the same tokens are the same, and a cell whose text is all padding has none.
        return_logits
            Whether to give the scores at masked positions (those with a label; those of ``<mask>`` where there are no
            labels). By default in evaluation and not in training.
        num_items_in_batch
            Labels of the whole step that are not -100 (cells, where there are no labels), over accumulated batches
            and processes, as `transformers.Trainer` counts them; see `cell_losses.join_losses`.

        Raises
        ------
        ValueError
            As the encoders do; if there are not as many texts as cells.
        """
        config = self.config
        if labels is not None:
            check_labels("labels", labels, config.vocab_size, "tokens")
        joined = config.gather_cells and torch.is_grad_enabled()
        outputs, noised = self._encode_cells(input_ids, attention_mask, **kwargs)
        with_logits = not self.training if return_logits is None else return_logits
        logits, gene_terms = self._gene_terms(outputs.last_hidden_state, input_ids, labels, with_logits)
        parts = {} if gene_terms is None else {"masked_gene_loss": gene_terms}
        cells = outputs.pooler_output
        key_mask = input_ids != config.pad_token_id if attention_mask is None else attention_mask.bool()
        if config.cell_cell_weight:
            parts["cell_cell_loss"] = self._cell_cell_terms(cells, noised, key_mask.any(dim=1), joined)
        texts = negatives = None
        if text_input_ids is not None and config.stage == 2 and (config.cell_text_weight or config.matching_weight):
            texts, negatives, more = self._text_terms(
                outputs, key_mask, text_input_ids, text_attention_mask, text_ids, joined
            )
            parts |= more
        number = count_cells(input_ids, attention_mask, None, config.pad_token_id)
        losses = join_losses(parts, count_items(labels, number), num_items_in_batch, joined)
        weighted = [getattr(config, name.replace("_loss", "_weight")) * part for name, part in losses.items()]
        if weighted and every_weight_counts():
            weighted += self._nothing_of(outputs)
        return LangCellForPreTrainingOutput(
            loss=torch.stack(weighted).sum() if weighted else None,
            **losses,
            hard_negatives=negatives,
            logits=logits,
            pooler_output=cells,
            text_features=texts,
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    # ---------------------------------------------------------------- cells

    def _encode_cells(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs: Any
    ) -> tuple[BaseModelOutputWithPooling, torch.Tensor]:
        """Encode cells, twice in one batch where dropout differs; give the first pass and the second's embeddings."""
        cell = self.config.cell_config
        noise = cell.hidden_dropout_prob or cell.attention_probs_dropout_prob
        if not (self.training and noise and self.config.cell_cell_weight):
            outputs = self.cell_model(input_ids, attention_mask, **kwargs)
            return outputs, outputs.pooler_output
        masks = None if attention_mask is None else torch.cat([attention_mask] * 2)
        outputs = self.cell_model(torch.cat([input_ids] * 2), masks, **kwargs)
        outputs.pooler_output, noised = outputs.pooler_output.chunk(2)
        outputs.last_hidden_state = outputs.last_hidden_state[: len(input_ids)]
        return outputs, noised

    def _gene_terms(
        self, states: torch.Tensor, input_ids: torch.Tensor, labels: torch.Tensor | None, with_logits: bool
    ) -> tuple[torch.Tensor | None, LossTerms | None]:
        if not self.config.masked_gene_weight:
            return None, None
        masked = input_ids == self.config.mask_token_id if labels is None else labels != IGNORED
        embeddings = self.cell_model.word_table(states)
        return self.gene_head(states[masked], embeddings, None if labels is None else labels[masked], with_logits)

    def _nothing_of(self, cells: BaseModelOutputWithPooling) -> list[torch.Tensor]:
        """Return zeros that depend on the weights of projection and gene head, used or not."""
        nothing = cells.last_hidden_state[:0, 0]
        logits, _ = self.gene_head(nothing, self.cell_model.word_table(nothing), None, True)
        return [cells.pooler_output[:0].sum(), logits.sum()]

    def _cell_cell_terms(
        self, cells: torch.Tensor, noised: torch.Tensor, takes_part: torch.Tensor, joined: bool
    ) -> LossTerms:
        gather = gather_cells if joined else _alone
        others, numbers, first = gather(noised, takes_part.long().masked_fill(~takes_part, IGNORED))
        return cell_cell_loss(cells, takes_part, self.config.tau, others, numbers != IGNORED, first)

    # ---------------------------------------------------------------- cells and texts

    def _text_terms(
        self,
        cells: BaseModelOutputWithPooling,
        key_mask: torch.Tensor,
        text_input_ids: torch.Tensor,
        text_attention_mask: torch.Tensor | None,
        text_ids: torch.Tensor | None,
        joined: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, LossTerms]]:
        """Return text embeddings, the number of hard negatives, and the terms of both objectives on texts."""
        config, embeddings = self.config, cells.pooler_output
        if len(text_input_ids) != len(embeddings):
            raise ValueError(f"{len(text_input_ids):,} texts for {len(embeddings):,} cells: each cell has one")
        text_mask = self.text_model.key_mask(text_input_ids, text_attention_mask)
        tokens, row = gather_texts(text_input_ids, text_mask, joined)
        texts = self._encode_distinct(text_input_ids, text_mask)
        if text_ids is None:
            text_ids = number_texts(tokens)[row : row + len(texts)]
        text_ids = text_ids.masked_fill(~key_mask.any(dim=1), IGNORED)
        gather = gather_cells if joined else _alone
        all_cells, all_ids, first = gather(embeddings, text_ids)
        all_texts = gather(texts, text_ids).cells
        parts, drawn = {}, None
        if config.cell_text_weight:
            parts["cell_text_loss"] = cell_text_loss(
                embeddings, texts, text_ids, config.tau, all_cells, all_texts, all_ids
            )
        if config.matching_weight:
            negatives = draw_hard_negatives(all_cells.detach(), all_texts.detach(), all_ids, config.tau, joined)
            pairs = pairs_to_match(negatives, text_ids, first)
            drawn = (pairs.matches == 0).sum()
            logits = self._match_pairs(cells.last_hidden_state, key_mask, tokens, pairs)
            parts["matching_loss"] = matching_loss(logits, pairs.matches)
            _say_shared_text(all_ids)
        return texts, drawn, parts

    def _encode_distinct(self, input_ids: torch.Tensor, key_mask: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of texts, each distinct one encoded once."""
        texts = distinct_texts(input_ids, key_mask)
        return self.text_model(texts.input_ids, texts.key_mask).pooler_output[texts.inverse]

    def _match_pairs(
        self, states: torch.Tensor, key_mask: torch.Tensor, tokens: torch.Tensor, pairs: MatchedPairs
    ) -> torch.Tensor:
        """Return the matching head's output for pairs of own cells with all processes' texts, shape (pairs, 2).

        Without pairs one is made up and dropped, so that all weights stay part of the graph.
        """
        if not len(pairs.cells):
            zero = pairs.cells.new_zeros(1)
            one = MatchedPairs(zero, zero, zero)
            return self._match_pairs(states, torch.ones_like(key_mask), tokens[:1].clamp(min=0), one)[:0]
        rows = tokens[pairs.texts]
        outputs = self.text_model(rows.clamp(min=0), rows >= 0, states, key_mask, pairs.cells)
        return self.matching_head(outputs.last_hidden_state[:, 0])


def _alone(rows: torch.Tensor, numbers: torch.Tensor) -> GatheredCells:
    return GatheredCells(rows, numbers, 0)


@torch.compiler.disable
def _say_shared_text(text_ids: torch.Tensor) -> None:
    """Say that there are no hard negatives, where all cells share one text."""
    known = text_ids[text_ids != IGNORED]
    if len(known) and bool((known == known[0]).all()):
        logger.warning_once(
            f"All {len(known):,} cells of a batch share one text: there are no hard negatives, and matching learns "
            "from true pairs alone. Draw batches over several texts."
        )


class LangCellClassificationHead(nn.Module):
    """BERT's classification head: linear, tanh, dropout, linear.

    Parameters
    ----------
    config
        The configuration.
    """

    def __init__(self, config: LangCellConfig):
        super().__init__()
        cell = config.cell_config
        self.dense = nn.Linear(cell.hidden_size, cell.hidden_size)
        self.dropout = Dropout(cell.hidden_dropout_prob)
        self.out_proj = nn.Linear(cell.hidden_size, config.num_labels)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Score classes, shape (cells, classes), by hidden states, shape (cells, hidden size)."""
        return self.out_proj(self.dropout(torch.tanh(self.dense(states))))


class LangCellForSequenceClassification(LangCellPreTrainedModel):
    """LangCell-CE: classifies cells, or predicts a value, by the cell encoder with BERT's classification head.

    Parameters
    ----------
    config
        The configuration; ``num_labels`` or ``id2label`` give the classes. With ``problem_type="regression"``, or one
        label, it predicts a value; with ``"multi_label_classification"`` each class by itself. The text encoder is
        not part of the model.

    Notes
    -----
    As published: linear and tanh on the hidden state of ``<cls>`` (of the mean over genes with ``pooling="mean"``, our
    choice), dropout, linear. In older folders the first of these layers has the name ``pooler``; they load as well.
    """

    _supports_flash_attn = True
    # Former names of the head's weights; PEFT reads this, too.
    _checkpoint_conversion_mapping = {
        r"^pooler\.(weight|bias)": r"classifier.dense.\1",
        r"^classifier\.(weight|bias)": r"classifier.out_proj.\1",
    }
    _keys_to_ignore_on_load_unexpected = [
        r"^text_model\.",
        r"^matching_head\.",
        r"^gene_head\.",
        r"^cell_model\.projection\.",
    ]

    def __init__(self, config: LangCellConfig):
        super().__init__(config)
        cell = config.cell_config
        self.num_labels = config.num_labels
        self.cell_model = LangCellCellModel(cell, add_projection=False)
        self.classifier = LangCellClassificationHead(config)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """Load a model or an adapter, whichever names its head has.

        Parameters
        ----------
        pretrained_model_name_or_path, *model_args, **kwargs
            As for other models.
        """
        kwargs["key_mapping"] = cls._checkpoint_conversion_mapping | (kwargs.get("key_mapping") or {})
        return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)

    def load_adapter(self, *args: Any, **kwargs: Any) -> Any:
        """Put an adapter on the model, whichever names its head has.

        Parameters
        ----------
        *args, **kwargs
            As for other models.
        """
        if kwargs.get("load_config") is None:
            names = self._checkpoint_conversion_mapping.items()
            kwargs.setdefault("weight_mapping", [WeightRenaming(former, now) for former, now in names])
        return super().load_adapter(*args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        """Return the embeddings of genes."""
        return self.cell_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embeddings of genes."""
        self.cell_model.set_input_embeddings(value)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        loss_weights: torch.Tensor | None = None,
        num_items_in_batch: Any = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        """Classify cells, or predict their value.

        Parameters
        ----------
        input_ids, attention_mask
            As for `LangCellCellModel`.
        labels
            Classes, -100 left out, or values in their unit, NaN left out, shape (cells,); 0 or 1 for each class of a
            multi-label problem, shape (cells, classes).
        loss_weights
            Weight of each cell in the loss of classes, shape (cells,); also taken by the name ``label_weights``.
        num_items_in_batch
            As for `LangCellForPreTraining`.

        Returns
        -------
        SequenceClassifierOutput
            ``loss``, where there are labels, and ``logits`` of shape (cells, classes), or the value in its unit, shape
            (cells, 1).

        Raises
        ------
        ValueError
            If a label is no class.
        """
        loss_weights = former_name(kwargs, "label_weights", loss_weights)
        if labels is not None and problem_of(self.config, labels) == ONE_CLASS:
            check_labels("labels", labels, self.num_labels, "classes")
        outputs = self.cell_model(input_ids, attention_mask, **kwargs)
        logits = in_units(self.config, self.classifier(outputs.pooler_output))
        terms = None if labels is None else label_terms(self.config, logits, labels, loss_weights)
        return SequenceClassifierOutput(
            loss=_joined(self, terms, labels, num_items_in_batch),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class LangCellForTokenClassification(LangCellPreTrainedModel):
    """Classifies genes in their cells by a linear layer on the cell encoder's hidden states.

    Parameters
    ----------
    config
        The configuration; ``num_labels`` or ``id2label`` give the classes. The text encoder is not part of the model.
    """

    _supports_flash_attn = True
    _keys_to_ignore_on_load_unexpected = [
        r"^text_model\.",
        r"^matching_head\.",
        r"^gene_head\.",
        r"^pooler\.",
        r"^classifier\.(dense|out_proj)\.",
        r"^cell_model\.projection\.",
    ]

    def __init__(self, config: LangCellConfig):
        super().__init__(config)
        cell = config.cell_config
        self.num_labels = config.num_labels
        self.cell_model = LangCellCellModel(cell, add_projection=False)
        self.dropout = Dropout(cell.hidden_dropout_prob)
        self.classifier = nn.Linear(cell.hidden_size, config.num_labels)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the embeddings of genes."""
        return self.cell_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embeddings of genes."""
        self.cell_model.set_input_embeddings(value)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        loss_weights: torch.Tensor | None = None,
        num_items_in_batch: Any = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:
        """Classify genes.

        Parameters
        ----------
        input_ids, attention_mask
            As for `LangCellCellModel`.
        labels
            Class of each token, -100 for those to leave out, of the shape of `input_ids`; for other kinds of problem
            as `label_losses.label_terms` takes them.
        loss_weights
            Weight of each token in the loss of classes, shape (cells, tokens); also taken by the name
            ``label_weights``.
        num_items_in_batch
            As for `LangCellForPreTraining`.

        Returns
        -------
        TokenClassifierOutput
            ``loss``, where there are labels: the mean over labelled tokens; and ``logits`` of shape (cells, tokens,
            classes).

        Raises
        ------
        ValueError
            If a label is no class.
        """
        loss_weights = former_name(kwargs, "label_weights", loss_weights)
        if labels is not None and problem_of(self.config, labels) == ONE_CLASS:
            check_labels("labels", labels, self.num_labels, "classes")
        outputs = self.cell_model(input_ids, attention_mask, **kwargs)
        logits = in_units(self.config, self.classifier(self.dropout(outputs.last_hidden_state)))
        terms = None if labels is None else label_terms(self.config, logits, labels, loss_weights)
        return TokenClassifierOutput(
            loss=_joined(self, terms, labels, num_items_in_batch),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def _joined(
    model: LangCellPreTrainedModel, terms: LossTerms | None, labels: torch.Tensor | None, num_items_in_batch: Any
) -> torch.Tensor | None:
    """Return the loss of a head, of all processes' cells as the objectives of pretraining are."""
    if terms is None:
        return None
    joined = model.config.gather_cells and torch.is_grad_enabled()
    return join_losses({"loss": terms}, count_items(labels, terms.count), num_items_in_batch, joined)["loss"]


LangCellModel.register_for_auto_class("AutoModel")
LangCellTextModel.register_for_auto_class("AutoModel")
LangCellCellModel.register_for_auto_class("AutoModel")
LangCellForPreTraining.register_for_auto_class("AutoModelForPreTraining")
LangCellForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
LangCellForTokenClassification.register_for_auto_class("AutoModelForTokenClassification")

__all__ = [
    "LangCellAnnotation",
    "LangCellCellModel",
    "LangCellForPreTraining",
    "LangCellForPreTrainingOutput",
    "LangCellForSequenceClassification",
    "LangCellForTokenClassification",
    "LangCellModel",
    "LangCellModelOutput",
    "LangCellPreTrainedModel",
    "LangCellTextModel",
    "LangCellTextModelOutput",
]
