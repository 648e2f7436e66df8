"""LangCell's text encoder: a BERT whose layers can also attend to cells (Zhao et al. 2024, arXiv 2405.06708)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .adapter_folders import AdapterFolders
from .cell_losses import full_precision
from .configuration_langcell import LangCellConfig, LangCellTextConfig
from .cpu_layers import Dropout
from .gene_sums import RankedGeneSums
from .input_checks import check_ids, is_readable
from .linear_latent import RankedLinearLatent
from .model_tasks import Predicts
from .modeling_sccello import ScCelloAttention, ScCelloEmbeddings, refuse_to_cut
from .packed_texts import CellKeys, PackedTexts, pack_texts


TOKENS_AT_ONCE = 512  # in a feed-forward block, on the CPU without gradients


@dataclass
class LangCellTextModelOutput(ModelOutput):
    """Output of `LangCellTextModel`.

    Parameters
    ----------
    last_hidden_state
        Hidden states, shape (texts, tokens, hidden size).
    pooler_output
        Text embedding in text mode: the projection of ``[CLS]``, normalised, float32, shape (texts, projection size).
        None in multimodal mode, in which the matching head reads ``[CLS]``.
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


@full_precision
def normalized(states: torch.Tensor) -> torch.Tensor:
    """Normalise states, shape (..., size), in float32 or higher precision."""
    return nn.functional.normalize(states.to(torch.promote_types(states.dtype, torch.float32)), dim=-1)


class LangCellPreTrainedModel(Predicts, AdapterFolders, PreTrainedModel):
    """Base of the LangCell models: initialisation as in BERT, and settings that transformers reads."""

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
        elif isinstance(module, (RankedGeneSums, RankedLinearLatent)):
            module.reset()
        else:
            super()._init_weights(module)

    def get_input_embeddings(self) -> nn.Module:
        """Return the embeddings of genes; those of tokens in a text encoder."""
        return self.cell_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace these embeddings."""
        self.cell_model.set_input_embeddings(value)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Add tokens of cells after the last one, or remove added tokens; the model's own tokens keep their ids.

        Add tokens of texts by ``text_model.resize_token_embeddings``.

        Raises
        ------
        NotImplementedError
            If tokens of the model would be removed.
        """
        if getattr(self.config, "cls_token_id", None) is not None:
            refuse_to_cut(self.config, new_num_tokens)
        return super().resize_token_embeddings(new_num_tokens, *args, **kwargs)


class LangCellTextAttention(ScCelloAttention):
    """Multi-head attention from text tokens to their text or to a cell."""

    def forward(  # type: ignore[override]
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
        """Attend from packed tokens to their text, in runs of texts of equal length.

        Parameters
        ----------
        hidden_states
            Shape (cells, tokens of all texts, hidden size).
        texts
            The texts of these tokens.
        first_only
            Whether only the first token of every text attends; the result has shape (cells, texts, hidden size) then.
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
        """Reshape (cells, texts * length, hidden size) to (cells * texts, heads, length, size of a head)."""
        return self.split_heads(states.reshape(-1, length, states.shape[-1]))


class LangCellTextLayer(GradientCheckpointingLayer):
    """Self-attention, cross attention to cells if there are some, feed-forward block.

    Each has dropout, residual and layer norm after it, as in BERT.
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
        """Apply the feed-forward block; on the CPU without gradients in parts, as its states are wide."""
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
        attention_mask, cell_mask
            Masks of text and cell, as the attention implementation takes them.
        cell_states
            Hidden states of cells, shape (cells, tokens, size); without them the block of cross attention is off.
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
    _input_embed_layer = "word_embeddings"
    get_input_embeddings = PreTrainedModel.get_input_embeddings
    set_input_embeddings = PreTrainedModel.set_input_embeddings
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

    def key_mask(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Check texts and return where there is a token, shape (texts, tokens).

        Raises
        ------
        ValueError
            If a text is longer than the model's positions, begins with padding, or has an id outside the vocabulary.
        """
        config, tokens = self.config, input_ids.shape[1]
        if tokens > config.max_position_embeddings:
            raise ValueError(
                f"input_ids has texts of {tokens:,} tokens, but this model has positions for "
                f"{config.max_position_embeddings:,}: tokenize with truncation=True, "
                f"max_length={config.max_position_embeddings}"
            )
        mask = input_ids != config.pad_token_id if attention_mask is None else attention_mask.bool()
        what = f"vocab_size={config.vocab_size:,} in its text encoder"
        check_ids("input_ids of texts", input_ids, config.vocab_size, what)
        if is_readable(input_ids):
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
            Tokens, ``[CLS]`` first, and 1 for tokens, 0 for padding; shape (texts, tokens).
        cell_hidden_states
            Hidden states of the cell encoder, shape (cells, tokens, size): multimodal mode.
        cell_attention_mask
            1 for tokens of the cell, 0 for padding, shape (cells, tokens).
        cell_rows
            Cell of each text, shape (texts,); by default text i reads cell i. A cell's keys and values are computed
            once for all texts that read it.
        token_type_ids
            As BERT's tokenizers return them; all 0, as there are no token types.

        Raises
        ------
        ValueError
            As `key_mask`; if a token type is not 0, or cells and texts do not fit together.
        """
        key_mask = self.key_mask(input_ids, attention_mask)
        if token_type_ids is not None and input_ids.device.type == "cpu" and token_type_ids.any():
            raise ValueError("token_type_ids contains a second type: LangCell's text encoder takes single texts")
        states = self.embeddings(input_ids)
        mask = self._mask(states, states, key_mask)
        cell_mask = None
        if cell_hidden_states is not None:
            if cell_rows is None and len(cell_hidden_states) != len(input_ids):
                raise ValueError(
                    f"{len(input_ids):,} texts and {len(cell_hidden_states):,} cells: pass cell_rows, the cell of "
                    "each text"
                )
            cell_mask = self._cell_mask(states, cell_hidden_states, cell_attention_mask, cell_rows)
        for layer in self.layers:
            states = layer(states, mask, cell_hidden_states, cell_mask, cell_rows, **kwargs)
        pooled = normalized(self.projection(states[:, 0])) if cell_hidden_states is None else None
        return LangCellTextModelOutput(last_hidden_state=states, pooler_output=pooled)

    def _mask(self, queries: torch.Tensor, keys: torch.Tensor, key_mask: torch.Tensor | None) -> Any:
        """Return one row of the mask of keys: it is the same for all queries."""
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
        """Return packed texts after the first layer's self-attention, which does not depend on cells.

        Returns
        -------
        torch.Tensor
            Shape (1, tokens of all texts, hidden size); of first tokens only if there is a single layer.
        """
        states = self.embeddings(texts.tokens[None], texts.positions[None])
        return self.layers[0].read_text(states, texts, first_only=len(self.layers) == 1)

    def select_texts(
        self, texts: PackedTexts, states: torch.Tensor, rows: list[int]
    ) -> tuple[PackedTexts, torch.Tensor]:
        """Select some packed texts, by ascending number, and their states from `read_texts`."""
        if len(rows) == len(texts.lengths):
            return texts, states
        some, places = texts.select(rows)
        return some, states[:, rows if len(self.layers) == 1 else places]

    def finish(self, states: torch.Tensor, texts: PackedTexts, cells: CellKeys | None = None) -> torch.Tensor:
        """Compute the remaining layers for packed texts; each text reads each of the cells, if there are some.

        Parameters
        ----------
        states, texts
            Result of `read_texts`, and its texts.
        cells
            Cells to read.

        Returns
        -------
        torch.Tensor
            Last hidden states of first tokens, shape (cells or 1, texts, hidden size). The last layer computes these
            tokens only.
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
        """Return text embeddings, shape (texts, projection size), computed in parts without padding."""
        order = key_mask.sum(dim=1).argsort(stable=True)
        parts = [pack_texts(input_ids, key_mask, rows) for rows in order.split(texts_at_once)]
        firsts = torch.cat([self.finish(self.read_texts(part), part)[0] for part in parts])
        return normalized(self.projection(firsts))[order.argsort()]


LangCellTextModel.register_for_auto_class("AutoModel")

__all__ = ["LangCellPreTrainedModel", "LangCellTextModel", "LangCellTextModelOutput", "normalized"]
